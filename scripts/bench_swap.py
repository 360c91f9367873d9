"""How much longer answers take while bundles are loaded beside the one that answers and swapped in.

Usage: bench_swap.py LODESTONE BUNDLE GRPCURL DATA. Needs ORT_DYLIB_PATH. Starts a server, finds what it can answer, and sends
half of that at a fixed rate: in turns without swaps and with one swap after the other, ROUNDS times (3) for SECONDS (10) each.
Latencies count from the time that a request was due. Prints the median over the rounds.
"""
import json
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

LODESTONE, BUNDLE, GRPCURL, DATA = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3], pathlib.Path(sys.argv[4])
ROUNDS, SECONDS = int(os.environ.get("ROUNDS", "3")), float(os.environ.get("SECONDS", "10"))
NAMES = ["swap-0", "swap-1", "swap-2"]


def call(address, method, request):
    ran = subprocess.run([GRPCURL, "-plaintext", "-d", json.dumps(request), address, method], capture_output=True, text=True)
    return json.loads(ran.stdout) if ran.returncode == 0 else {}


def load(address, rate=None, seconds=SECONDS):
    command = [LODESTONE, "load-test", "--address", address, "--data", str(DATA), "--connections", "8", "--format", "json",
               "--seconds", str(seconds)] + (["--rate", str(rate)] if rate else [])
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["runs"][0]


def swapping(store, stop, count):
    """Names the next bundle in the store, as `bundle publish` does at its end; the server sees it within a tenth of a second."""
    while not stop.is_set():
        count[0] += 1
        (store / "current.new").write_text(NAMES[count[0] % len(NAMES)])
        (store / "current.new").rename(store / "current")
        # As if one were published now and then: about half of the time nothing is loaded.
        stop.wait(float(os.environ.get("PAUSE", "1.5")))


with tempfile.TemporaryDirectory() as work:
    work = pathlib.Path(work)
    for name in NAMES:
        shutil.copytree(BUNDLE, work / name)
        manifest = json.loads((work / name / "manifest.json").read_text())
        (work / name / "manifest.json").write_text(json.dumps({**manifest, "name": name}))
        subprocess.run([LODESTONE, "bundle", "publish", "--bundle", work / name, "--store", work / "store"], check=True,
                       capture_output=True)
    shutil.copytree(DATA, work / "data")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    server = subprocess.Popen([LODESTONE, "serve", "--store", work / "store", "--data", work / "data", "--listen", address,
                               "--watch-seconds", "0.1", "--probation-seconds", "0"], stderr=subprocess.DEVNULL)
    try:
        while not call(address, "grpc.health.v1.Health/Check", {}):
            time.sleep(0.2)
        rate = load(address)["capacity_per_s"] / 2
        quiet, swapped, failed, count = [], [], 0, [0]
        for _ in range(ROUNDS):
            quiet.append(load(address, rate))
            stop = threading.Event()
            swapper = threading.Thread(target=swapping, args=(work / "store", stop, count))
            swapper.start()
            swapped.append(load(address, rate))
            stop.set()
            swapper.join()
        failed = sum(run["failed"] for run in quiet + swapped)
    finally:
        server.terminate()
        server.wait(timeout=30)
    median = lambda runs, key: statistics.median(run[key] for run in runs)
    print(f"{rate:.0f} requests/s (half of what the server can), {count[0]} swaps, {failed} failed")
    for key in ("p50_ms", "p99_ms"):
        before, during = median(quiet, key), median(swapped, key)
        print(f"{key[:3]}: {before:.2f} ms without swaps, {during:.2f} ms with them: {100 * (during / before - 1):+.0f} %")
