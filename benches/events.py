"""How fast events are taken in, and what they cost beside answers: `make bench-events`.

Needs nothing but the program, the example shop and `target/tools`. Each figure stands beside its goal; everything is also
written to target/bench/events.json. Events per second and their acknowledgements are those of a real server, over gRPC, with
the load test on the same cores.
"""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
LODESTONE = TOP / "target/release/lodestone"
BUNDLE, DATA = TOP / "target/demo/bundle", TOP / "target/demo/data"
OUT = TOP / "target/bench"
SECONDS = os.environ.get("BENCH_SECONDS", "5")
EVENTS = os.environ.get("BENCH_EVENTS", "10000000")
os.environ.setdefault("ORT_DYLIB_PATH", str(TOP / "target/tools/onnxruntime/libonnxruntime.so"))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A server process; `start_s` is from its start to its first metrics, which come when it serves."""

    def __init__(self, data, *flags):
        self.address, metrics = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        begun = time.monotonic()
        self.log = open(OUT / "events-server.log", "w+")
        self.process = subprocess.Popen([LODESTONE, "serve", "--bundle", BUNDLE, "--data", data, "--listen", self.address,
                                         "--metrics-listen", metrics, *flags], stderr=self.log)
        while True:
            try:
                urllib.request.urlopen(f"http://{metrics}/metrics", timeout=5).read()
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() > begun + 300:
                    self.log.seek(0)
                    sys.exit(f"the server did not start:\n{self.log.read()[-2000:]}")
                time.sleep(0.02)
        self.start_s = time.monotonic() - begun

    def __enter__(self):
        return self

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait(timeout=120)

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.end()

    def load(self, rpc, connections, *flags, seconds=SECONDS):
        out = subprocess.run([LODESTONE, "load-test", "--address", self.address, "--data", DATA, "--rpc", rpc, "--seconds",
                              str(seconds), "--connections", str(connections), "--format", "json", *map(str, flags)],
                             check=True, stdout=subprocess.PIPE)
        run = json.loads(out.stdout)["runs"][0]
        if run["failed"]:
            sys.exit(f"{run['failed']} calls of {rpc} failed")
        return run


def beside_events(server, rate, found):
    """The p99 of recommendations at a rate, without and with 10,000 events per second; the middle of three of each."""
    without, beside = [], []
    for _ in range(3):
        without.append(server.load("recommend", 8, "--rate", rate, "--only-rate")["p99_ms"])
        length = float(SECONDS) + 2
        events = threading.Thread(target=lambda: found.update(
            events=server.load("write-events", 2, "--batch", 100, "--rate", 100, "--only-rate", seconds=length)))
        events.start()
        time.sleep(1)
        beside.append(server.load("recommend", 8, "--rate", rate, "--only-rate")["p99_ms"])
        events.join()
    return sorted(without)[1], sorted(beside)[1]


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    rows, figures = [], {}

    def row(what, value, goal, unit, is_met):
        rows.append((what, f"{value:,.1f}" if value < 1000 else f"{value:,.0f}", goal, unit, "met" if is_met else "MISSED"))
        figures[what] = value

    with tempfile.TemporaryDirectory(dir=OUT) as work:
        shutil.copytree(DATA, f"{work}/data")
        with Server(f"{work}/data") as server:
            many = server.load("write-events", 8, "--batch", 100, "--rate", 500)
            streams = server.load("stream-events", 4, "--batch", 100, "--rate", 10)
            single = server.load("write-events", 32, "--batch", 1, "--rate", 5000)
            row("acknowledged and durable, batches of 100, 8 connections", many["capacity_per_s"] * 100, "50,000", "events/s",
                many["capacity_per_s"] * 100 >= 50_000)
            row("p99 acknowledgement of a batch at 50,000 events/s", many["p99_ms"], "25", "ms", many["p99_ms"] <= 25)
            row("acknowledged and durable, 4 streams of messages of 100", streams["capacity_per_s"] * 2000, "", "events/s", True)
            row("acknowledged and durable, single, 32 connections", single["capacity_per_s"], "5,000", "events/s",
                single["capacity_per_s"] >= 5000)
            row("p99 acknowledgement of one at 5,000 events/s", single["p99_ms"], "25", "ms", single["p99_ms"] <= 25)
        shutil.rmtree(f"{work}/data")
        shutil.copytree(DATA, f"{work}/data")
        with Server(f"{work}/data", "--history-ends-now") as server:
            half = server.load("recommend", 8)["capacity_per_s"] / 2
            found = {}
            without, beside = beside_events(server, half, found)
            row("p99 of Recommend at half load", without, "", "ms", True)
            row("p99 of Recommend at half load beside 10,000 events/s", beside, "", "ms", True)
            row("growth of that p99", (beside / without - 1) * 100, "20", "%", beside <= 1.2 * without)
        shutil.rmtree(f"{work}/data")
        out = subprocess.run([LODESTONE, "benchmark", "events", "--events", EVENTS, "--out", f"{work}/filled", "--format", "json"],
                             check=True, stdout=subprocess.PIPE)
        filled = json.loads(out.stdout)
        figures["benchmark events"] = filled
        row("folded on one core", filled["folded_per_s"], "1,000,000", "events/s", filled["folded_per_s"] >= 1e6)
        row("slowest group of 20,000 events beside a checkpoint", filled["checkpoint_write_ms_max"], "", "ms", True)
        with Server(f"{work}/filled") as server:
            row(f"start after {int(EVENTS):,} events, with a checkpoint", server.start_s, "20", "s", server.start_s < 20)
            server.end(signal.SIGKILL)
        for checkpoint in Path(f"{work}/filled/log").glob("*.checkpoint"):
            checkpoint.unlink()
        with Server(f"{work}/filled") as server:
            row("the same without one", server.start_s, "", "s", True)
            server.end(signal.SIGKILL)
        row("log of one event", filled["log_bytes"] / filled["events"], "", "bytes", True)

    print(f"\n{'figure':<58} {'measured':>12} {'goal':>12} unit")
    for what, value, goal, unit, verdict in rows:
        print(f"{what:<58} {value:>12} {goal:>12} {unit:<9} {verdict if goal else ''}")
    (OUT / "events.json").write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
