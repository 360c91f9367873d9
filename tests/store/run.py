"""Publishes to, serves from and prunes a directory, which it then moves away, and a bucket of moto's S3 server, which it
then stops.

Usage: run.py LODESTONE GRPCURL BUNDLE MOTO_SERVER. Needs ORT_DYLIB_PATH. Prints each check; exits with 1 if one is wrong.
"""
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

LODESTONE, GRPCURL, BUNDLE, MOTO = sys.argv[1:5]
SECONDS_MAX = 120
wrong = []


def check(right, claim, found=""):
    print(f"  {'ok   ' if right else 'WRONG'} {claim}{'' if right or not found else f': {found}'}", flush=True)
    if not right:
        wrong.append(claim)


def waited_for(condition):
    until = time.monotonic() + SECONDS_MAX
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Bucket:
    """A bucket of moto's S3 server."""
    address = "s3://bundles/shop"

    def __init__(self, _):
        url = f"http://127.0.0.1:{free_port()}"
        self.moto = subprocess.Popen([MOTO, "--port", url.rsplit(":", 1)[1]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.environ |= {"AWS_ENDPOINT": url, "AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
                       "AWS_REGION": "us-east-1"}
        check(waited_for(lambda: bucket(url)), "a bucket is created")

    def end(self):
        self.moto.terminate()
        self.moto.wait(SECONDS_MAX)


class Directory:
    """A directory of bundles."""

    def __init__(self, work):
        self.path = work / "store"
        self.address = str(self.path)
        self.path.mkdir()

    def end(self):
        away = self.path.with_name("away")
        if not away.exists():
            self.path.rename(away)


def bucket(url):
    """Creates the bucket when the server answers."""
    signed = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"
    request = urllib.request.Request(f"{url}/bundles", method="PUT", headers={"Authorization": signed})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def renamed(work, name):
    """Copies the bundle under another name, with a creation time one second after the previous one."""
    copy = work / name
    shutil.copytree(BUNDLE, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest |= {"name": name, "created_ms": manifest["created_ms"] + 1000 * int(name[-1])}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def lodestone(*arguments):
    ran = subprocess.run([LODESTONE, *map(str, arguments)], capture_output=True, text=True, timeout=SECONDS_MAX)
    return ran.returncode, ran.stdout + ran.stderr


def published(work, name, store):
    code, output = lodestone("bundle", "publish", "--bundle", renamed(work, name), "--store", store)
    check(code == 0 and name in output, f"{name} is published", output)


def call(address, method, request):
    ran = subprocess.run([GRPCURL, "-plaintext", "-max-time", "5", "-d", json.dumps(request), address, method], capture_output=True,
                         text=True, timeout=60)
    return json.loads(ran.stdout) if ran.returncode == 0 else {}


def generation(address):
    ask = {"viewer": {"user_id": "p1"}, "type": "RECOMMEND_TYPE_FOR_YOU", "page_size": 3}
    return call(address, "lodestone.v1.RankingService/Recommend", ask).get("info", {}).get("generation")


def serve(work, store, address):
    log = open(work / "server.log", "w+")
    return subprocess.Popen([LODESTONE, "serve", "--store", store, "--data", work / "data", "--listen", address, "--watch-seconds", "0.2"],
                            stdout=subprocess.DEVNULL, stderr=log)


def copies(work):
    return sorted(os.listdir(work / "data" / "bundles"))


def run(kind, work):
    store = kind(work)
    address, server = f"127.0.0.1:{free_port()}", None
    try:
        code, output = lodestone("serve", "--store", store.address, "--data", work / "empty", "--listen", address)
        check(code == 2 and "publish one with" in output, "an empty store is an error", output)
        published(work, "shop-0", store.address)
        code, output = lodestone("bundle", "publish", "--if-empty", "--bundle", work / "shop-0", "--store", store.address)
        check(code == 0 and "stays current" in output, "with --if-empty a second bundle is not published", output)
        server = serve(work, store.address, address)
        check(waited_for(lambda: generation(address) == "shop-0"), "the server starts with it", generation(address))
        for number in (1, 2):
            published(work, f"shop-{number}", store.address)
            check(waited_for(lambda: generation(address) == f"shop-{number}"), "the server loads it", generation(address))
        if kind is Bucket:
            check(waited_for(lambda: copies(work) == ["shop-1", "shop-2"]), "local copies remain of the bundles in memory", copies(work))
        code, output = lodestone("bundle", "prune", "--store", store.address, "--keep", "1")
        check(code == 0 and "shop-0 removed" in output and "shop-1" not in output, "the oldest is pruned", output)
        bundles = call(address, "lodestone.v1.ModelService/ListBundles", {}).get("bundles", [])
        states = {bundle["name"]: bundle["state"] for bundle in bundles}
        check(states == {"shop-1": "BUNDLE_STATE_KEPT", "shop-2": "BUNDLE_STATE_CURRENT"}, "ListBundles lists the rest", states)
        store.end()
        check(waited_for(lambda: "the store" in (work / "server.log").read_text()), "the server notices that the store is gone")
        check(generation(address) == "shop-2", "it answers without the store")
        code, output = lodestone("serve", "--store", store.address, "--data", work / "other", "--listen", f"127.0.0.1:{free_port()}")
        check(code == 2 and store.address in output, "a server that cannot read the store ends with the reason", output)
    finally:
        if server and server.poll() is None:
            server.terminate()
            server.wait(SECONDS_MAX)
        store.end()


for kind in (Directory, Bucket):
    print(f"a store in a {kind.__name__.lower()}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        run(kind, pathlib.Path(directory))
print(f"store: {len(wrong)} wrong")
sys.exit(bool(wrong))
