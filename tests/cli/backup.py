"""Backs up the data directory of a server under load, kills the server, restores, and starts a server on the copy: every write
that was acknowledged before a backup began is in it.

Usage: backup.py LODESTONE GRPCURL BUNDLE. Needs ORT_DYLIB_PATH. Prints each check; exits with 1 if one is wrong.
"""
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

from styles import check, wrong

LODESTONE, GRPCURL, BUNDLE = sys.argv[1:4]
SECONDS_MAX = 120
BATCH = 20


def run(*arguments):
    return subprocess.run([LODESTONE, *map(str, arguments)], capture_output=True, text=True, timeout=SECONDS_MAX)


def refused(words, *arguments, code=2):
    ran = run(*arguments)
    found = ran.stderr if code == 2 else ran.stdout
    check(ran.returncode == code and all(word in found for word in words), f"{' '.join(map(str, arguments[:2]))} names {words}",
          (ran.returncode, ran.stdout, ran.stderr))


def events(numbers):
    return [{"event_id": f"e{number}", "type": "EVENT_TYPE_PURCHASE", "viewer": {"user_id": f"p{number % 50}"},
             "lines": [{"item_id": f"i{number % 30}"}]} for number in numbers]


def write(address, numbers):
    """The statuses of the events, or None if the call failed."""
    ran = subprocess.run([GRPCURL, "-plaintext", "-max-time", "10", "-d", json.dumps({"events": events(numbers)}), address,
                          "lodestone.v1.EventService/WriteEvents"], capture_output=True, text=True, timeout=60)
    return [result.get("status") for result in json.loads(ran.stdout)["results"]] if ran.returncode == 0 else None


class Server:
    def __init__(self, data):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.process = subprocess.Popen([LODESTONE, "serve", "--bundle", BUNDLE, "--data", data, "--listen", self.address],
                                        stdout=subprocess.DEVNULL, stderr=open(f"{data}.log", "w"))
        until = time.monotonic() + SECONDS_MAX
        while self.process.poll() is None and time.monotonic() < until:
            ran = subprocess.run([GRPCURL, "-plaintext", self.address, "grpc.health.v1.Health/Check"], capture_output=True, text=True,
                                 timeout=60)
            if "SERVING" in ran.stdout and "NOT_SERVING" not in ran.stdout:
                return
            time.sleep(0.05)
        sys.exit(f"the server is not ready: {pathlib.Path(f'{data}.log').read_text()}")

    def kill(self):
        self.process.kill()
        self.process.wait()


class Load(threading.Thread):
    """Writes batches of events one after the other, until a call fails."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.address, self.acknowledged = address, 0

    def run(self):
        while True:
            numbers = range(self.acknowledged, self.acknowledged + BATCH)
            if write(self.address, numbers) is None:
                return
            self.acknowledged += BATCH

    def wait_for(self, count):
        until = time.monotonic() + SECONDS_MAX
        while self.acknowledged < count and time.monotonic() < until:
            time.sleep(0.01)
        return self.acknowledged >= count


def files(directory):
    """Sizes and permissions of the files below a directory."""
    return {path.relative_to(directory): (path.stat().st_size, path.stat().st_mode & 0o777)
            for path in directory.rglob("*") if path.is_file()}


def create(data, backups, *more):
    ran = run("backup", "create", "--data", data, "--out", backups, "--format", "json", *more)
    # A name is a second.
    until = time.monotonic() + SECONDS_MAX
    while ran.returncode == 2 and "exists; wait a second" in ran.stderr and time.monotonic() < until:
        time.sleep(0.1)
        ran = run("backup", "create", "--data", data, "--out", backups, "--format", "json", *more)
    return ran.returncode, json.loads(ran.stdout) if ran.stdout else None, ran.stderr


def under_load(work):
    data, backups, new = work / "data", work / "backups", work / "new"
    server = Server(data)
    (data / "imported").mkdir()
    (data / "imported" / "items.parquet").write_text("a file of the operator")
    os.chmod(data / "imported" / "items.parquet", 0o640)
    load = Load(server.address)
    load.start()
    made = []
    try:
        for count in (1, 2, 3):
            if not load.wait_for(load.acknowledged + 3 * BATCH):
                check(False, "the load writes")
                return
            before = load.acknowledged
            code, backup, stderr = create(data, backups, "--keep", "2")
            check(code == 0 and backup["position"] >= before, f"backup {count} has the {before} events that were acknowledged before it",
                  (code, backup, stderr))
            made.append((before, backup))
        check(made[2][1]["removed"] == [pathlib.Path(made[0][1]["path"]).name], "the oldest backup is removed", made[2][1])
        check(load.wait_for(made[2][0] + 6 * BATCH), "writes continue meanwhile")
    finally:
        server.kill()
        load.join(SECONDS_MAX)
    before, backup = made[2]
    path = pathlib.Path(backup["path"])
    check(run("backup", "verify", "--from", path).returncode == 0, "the backup is as it was made")
    ran = run("backup", "restore", "--from", path, "--data", new, "--format", "json")
    restored = json.loads(ran.stdout) if ran.returncode == 0 else {}
    check(restored.get("position") == backup["position"], "it is restored", ran.stderr)
    check(files(new) == files(path / "data"), "with all files and their permissions", (files(new), files(path / "data")))
    check((new / "token.key").read_bytes() == (data / "token.key").read_bytes(), "with the key of tokens")
    check(files(new)[pathlib.Path("imported/items.parquet")][1] == 0o640 and files(new)[pathlib.Path("token.key")][1] == 0o600,
          "readable by whom it was before")
    ran = run("events", "verify", "--data", new, "--format", "json")
    verified = json.loads(ran.stdout)
    check(ran.returncode == 0 and verified["last_position"] == backup["position"] and verified["torn_bytes"] == 0, "its log is whole",
          verified)
    shutil.rmtree(data)
    server = Server(new)
    try:
        statuses = []
        for begin in range(0, before, 500):
            statuses += write(server.address, range(begin, min(begin + 500, before))) or []
        check(len(statuses) == before and set(statuses) == {"EVENT_STATUS_DUPLICATE"}, "every event before it is there, once",
              (len(statuses), set(statuses)))
        check(write(server.address, range(10**6, 10**6 + 3)) == ["EVENT_STATUS_ACCEPTED"] * 3, "new ones are accepted")
    finally:
        server.kill()


def refusals(work):
    backups, new, other = work / "backups", work / "new", work / "other"
    path = backups / sorted(name for name in os.listdir(backups) if (backups / name / "backup.json").exists())[-1]
    refused(["--data", "restore to a directory that is empty"], "backup", "restore", "--from", path, "--data", new)
    refused(["is in the data directory"], "backup", "create", "--data", new, "--out", new / "backups")
    refused(["--keep", "0 is not in 1"], "backup", "create", "--data", new, "--out", backups, "--keep", 0)
    refused(["no server has used"], "backup", "create", "--data", backups, "--out", other)
    refused(["is no backup", "backup.json"], "backup", "restore", "--from", new, "--data", other)
    refused(["--from", "cannot be read"], "backup", "verify", "--from", work / "none")
    log = next((path / "data" / "log").glob("*.log"))
    whole = log.read_bytes()
    log.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    refused([log.name, "SHA-256"], "backup", "verify", "--from", path, code=1)
    refused([log.name, "SHA-256"], "backup", "restore", "--from", path, "--data", other)
    check(not other.exists(), "a refused command leaves nothing behind")
    log.write_bytes(whole)
    log = next((new / "log").glob("*.log"))
    whole = log.read_bytes()
    log.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    # Not beside the others, whose newest may have the name of this second.
    refused(["damaged", "events verify"], "backup", "create", "--data", new, "--out", other)
    left = [name for name in os.listdir(other) if name != "lock"]
    check(not left, "there is no backup of a damaged log", left)
    log.write_bytes(whole)
    (backups / ".incomplete-20260101T000000Z").mkdir()
    code, backup, stderr = create(new, backups)
    check(code == 0 and not list(backups.glob(".incomplete-*")), "what an interrupted backup left is removed", (code, backup, stderr))


with tempfile.TemporaryDirectory() as directory:
    work = pathlib.Path(directory)
    under_load(work)
    if not wrong:
        refusals(work)
print(f"backup: {len(wrong)} wrong")
sys.exit(1 if wrong else 0)
