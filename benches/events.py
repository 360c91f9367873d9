"""Measures event ingestion, and the cost of events, bundle swaps and the answer log for requests: `make bench-events`.

Needs only the program, the example shop and `target/tools`. Prints each figure with its target; all results are also
written to target/bench/events.json. Events per second and their acknowledgements are measured over gRPC, with the load
test on the cores of the server. BENCH_SECONDS=5 is the duration of a load test, BENCH_EVENTS=10000000 the size of the
folded log, BENCH_BACKGROUND_SECONDS=90 the duration of a measurement with background work, BENCH_RATE the half load in
requests per second (default: measured), BENCH_REPEATS=3 the number of load tests of which the median counts.
"""
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from process import ServerProcess, free_port

TOP = Path(__file__).resolve().parent.parent
LODESTONE = TOP / "target/release/lodestone"
BUNDLE, DATA = TOP / "target/demo/bundle", TOP / "target/demo/data"
OUT = TOP / "target/bench"
SECONDS = os.environ.get("BENCH_SECONDS", "5")
EVENTS = os.environ.get("BENCH_EVENTS", "10000000")
# Duration of a measurement of requests with periods of background work.
BACKGROUND_SECONDS = int(os.environ.get("BENCH_BACKGROUND_SECONDS", "90"))
# Duration of each period of writes, and of the pause after it.
PERIOD_SECONDS = min(5, BACKGROUND_SECONDS / 6)
# Requests within or outside of background work from which a percentile may be taken; fewer if few are sent.
COMPARED_MIN = min(1000, 2 * BACKGROUND_SECONDS)
REPEATS = int(os.environ.get("BENCH_REPEATS", "3"))
# Requests this close to a time at which the host took a core away are left out, because their latencies measure the
# host.
STEAL_DISTANCE_S = 0.25
os.environ.setdefault("ORT_DYLIB_PATH", str(TOP / "target/tools/onnxruntime/libonnxruntime.so"))


class Server(ServerProcess):
    """A server process. `startup_s` is the time until it returns metrics, which it does when it serves."""

    def __init__(self, data, *flags, models=("--bundle", BUNDLE)):
        self.address, self.metrics_address = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        # Earlier writes, such as those of a build, must not keep the disk busy during the measurement.
        os.sync()
        started = time.monotonic()
        self.start([LODESTONE, "serve", *models, "--data", data, "--listen", self.address, "--metrics-listen",
                    self.metrics_address, *flags], OUT / "events-server.log")
        self.startup_s = time.monotonic() - started

    def is_ready(self):
        try:
            self.metric("lodestone_items")
            return True
        except OSError:
            return False

    def metric(self, name):
        """Returns the value of a metric; 0 if it has not been counted yet."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + " ")), 0)

    def load(self, rpc, connections, *flags, seconds=SECONDS):
        """Runs a load test and returns the report of its only run. Ends the program if a call fails."""
        out = subprocess.run([LODESTONE, "load-test", "--address", self.address, "--data", DATA, "--rpc", rpc, "--seconds",
                              str(seconds), "--connections", str(connections), "--format", "json", *map(str, flags)],
                             check=True, stdout=subprocess.PIPE)
        run = json.loads(out.stdout)["runs"][0]
        if run["failed"]:
            sys.exit(f"{run['failed']} calls of {rpc} failed")
        return run

    def typical(self, figure, *load):
        """Returns the load test with the median of this figure, because the machine may stall during one."""
        return sorted((self.load(*load) for _ in range(REPEATS)), key=lambda run: run[figure])[REPEATS // 2]

    def half_load(self):
        """Returns half of the capacity in recommendations per second; BENCH_RATE, if it is set."""
        if "BENCH_RATE" in os.environ:
            return float(os.environ["BENCH_RATE"])
        return self.typical("capacity_per_s", "recommend", 8)["capacity_per_s"] / 2


class Load:
    """A load test with recommendations at a fixed rate. Records the latency of each, and the times at which the host
    took cores away."""

    def __init__(self, server, rate, seconds):
        self.path, self.stolen = OUT / "latencies.csv", []
        self.process = subprocess.Popen([LODESTONE, "load-test", "--address", server.address, "--data", DATA, "--rpc", "recommend",
                                         "--seconds", str(seconds), "--connections", "8", "--rate", str(rate), "--only-rate",
                                         "--latencies", self.path], stdout=subprocess.DEVNULL)
        self.watching = threading.Thread(target=self.watch)
        self.watching.start()

    def is_running(self):
        return self.process.poll() is None

    def watch(self):
        before = stolen_ticks()
        while self.is_running():
            time.sleep(0.02)
            now = stolen_ticks()
            if now > before:
                self.stolen.append(time.time())
            before = now

    def compared(self, spans, neither=()):
        """Compares requests that were due within one of the spans with those that were due outside. Left out are
        requests within a span of `neither`, and those due within STEAL_DISTANCE_S of a time at which the host took a
        core away."""
        self.watching.join()
        if self.process.returncode:
            sys.exit("the load test failed")
        lines = self.path.read_text().splitlines()[1:]
        found, left_out = {False: [], True: []}, 0
        for line in lines:
            due_us, latency_us, is_answered = line.split(",")
            due = int(due_us) / 1e6
            if is_answered != "true":
                sys.exit("a request failed")
            if any(abs(due - stolen) < STEAL_DISTANCE_S for stolen in self.stolen) or is_within(due, neither):
                left_out += 1
            else:
                found[is_within(due, spans)].append(int(latency_us) / 1000)
        if min(map(len, found.values())) < COMPARED_MIN:
            sys.exit(f"{left_out} of {len(lines)} requests were left out; fewer than {COMPARED_MIN} remain within or outside")
        without, within = ({"requests": len(ms), "p50_ms": statistics.median(ms), "p99_ms": sorted(ms)[len(ms) * 99 // 100]}
                           for ms in found.values())
        return {"without": without, "within": within, "left_out": left_out / len(lines)}


def is_within(time, spans):
    return any(begin <= time < end for begin, end in spans)


def stolen_ticks():
    """Returns the time of all cores that the host gave to other machines since startup, in 1/100 s (`steal` of
    /proc/stat)."""
    with open("/proc/stat", encoding="ascii") as stat:
        return int(stat.readline().split()[8])


def with_events(server, rate):
    """Measures recommendations with and without writes: periods of 10,000 events per second, as long as the pauses."""
    load, spans, starting = Load(server, rate, BACKGROUND_SECONDS), [], []
    sent = OUT / "events-latencies.csv"
    # The first requests are measured without background work.
    time.sleep(2)
    while load.is_running():
        begin = time.time()
        server.load("write-events", 2, "--batch", 100, "--rate", 100, "--only-rate", "--latencies", sent, seconds=PERIOD_SECONDS)
        dues = [int(line.split(",")[0]) / 1e6 for line in sent.read_text().splitlines()[1:]]
        spans.append((min(dues), max(dues)))
        # A load test reads the shop's data before its first request.
        starting.append((begin, min(dues)))
        time.sleep(PERIOD_SECONDS)
    return load.compared(spans, starting) | {"rate_per_s": rate}


def with_swaps(server, store, names, rate):
    """Measures recommendations with and without bundle swaps. A period lasts from the change of the store's pointer,
    as `bundle publish` makes it, until 0.3 s after the new bundle answers; periods are 1.5 s apart."""
    load, spans = Load(server, rate, BACKGROUND_SECONDS), []
    activated = 'lodestone_bundle_changes_total{outcome="activated"}'
    # The first requests are measured without background work.
    time.sleep(2)
    while load.is_running():
        begin, before = time.time(), server.metric(activated)
        (store / "current.new").write_text(names[len(spans) % len(names)])
        (store / "current.new").rename(store / "current")
        while server.metric(activated) == before and load.is_running():
            time.sleep(0.05)
        spans.append((begin, time.time() + 0.3))
        time.sleep(1.5)
    return load.compared(spans) | {"rate_per_s": rate, "swaps": len(spans)}


def publish(work, names):
    """Creates a store with copies of the bundle under these names."""
    store = Path(work) / "store"
    for name in names:
        copy = Path(work) / "copy"
        shutil.copytree(BUNDLE, copy)
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps({**manifest, "name": name}))
        subprocess.run([LODESTONE, "bundle", "publish", "--bundle", copy, "--store", store], check=True, capture_output=True)
        shutil.rmtree(copy)
    return store


def logging_cost(data):
    """Returns the capacity in recommendations per second without and with a record of every answer; the median of
    each."""
    capacities = {"0": [], "1": []}
    for _ in range(REPEATS):
        for share, found in capacities.items():
            with Server(data, "--history-ends-now", "--answers-share", share) as server:
                found.append(server.load("recommend", 8)["capacity_per_s"])
    return [sorted(found)[REPEATS // 2] for found in capacities.values()]


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    rows, figures = [], {}

    def row(name, value, target, unit, is_met):
        rows.append((name, f"{value:,.1f}" if value < 1000 else f"{value:,.0f}", target, unit, "met" if is_met else "MISSED"))
        figures[name] = value

    def background(name, found):
        figures[f"with {name}"] = found
        without, within = found["without"]["p99_ms"], found["within"]["p99_ms"]
        row(f"half load, measured with {name}", found["rate_per_s"], "", "per s", True)
        row(f"p99 of Recommend at half load, no {name}", without, "", "ms", True)
        row(f"p99 of Recommend at half load, {name}", within, "", "ms", True)
        row(f"increase of that p99 by {name}", (within / without - 1) * 100, "20", "%", within <= 1.2 * without)
        row(f"requests left out, measured with {name}", found["left_out"] * 100, "", "%", True)

    with tempfile.TemporaryDirectory(dir=OUT) as work:
        shutil.copytree(DATA, f"{work}/data")
        with Server(f"{work}/data") as server:
            many = server.typical("p99_ms", "write-events", 8, "--batch", 100, "--rate", 500)
            streams = server.load("stream-events", 4, "--batch", 100, "--rate", 10)
            single = server.typical("p99_ms", "write-events", 32, "--batch", 1, "--rate", 5000)
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
            background("10,000 events/s", with_events(server, server.half_load()))
        # Three bundles, because the previous one stays in memory and would not be loaded again.
        names = ["swap-0", "swap-1", "swap-2"]
        store = publish(work, names)
        flags = ["--history-ends-now", "--watch-seconds", "0.1", "--probation-seconds", "0"]
        with Server(f"{work}/data", *flags, models=("--store", store)) as server:
            background("swaps", with_swaps(server, store, names, server.half_load()))
        bare, logged = logging_cost(f"{work}/data")
        row("recommendations without answer log", bare, "", "per s", True)
        row("recommendations with a record of each answer", logged, "", "per s", True)
        shutil.rmtree(f"{work}/data")
        out = subprocess.run([LODESTONE, "benchmark", "events", "--events", EVENTS, "--out", f"{work}/filled", "--format", "json"],
                             check=True, stdout=subprocess.PIPE)
        filled = json.loads(out.stdout)
        figures["benchmark events"] = filled
        row("folded on one core", filled["folded_per_s"], "1,000,000", "events/s", filled["folded_per_s"] >= 1e6)
        row("slowest group of 20,000 events during a checkpoint", filled["checkpoint_write_ms_max"], "", "ms", True)
        with Server(f"{work}/filled") as server:
            row(f"startup after {int(EVENTS):,} events, with a checkpoint", server.startup_s, "20", "s",
                server.startup_s < 20)
            server.end(signal.SIGKILL)
        for checkpoint in Path(f"{work}/filled/log").glob("*.checkpoint"):
            checkpoint.unlink()
        with Server(f"{work}/filled") as server:
            row("startup after these events, without a checkpoint", server.startup_s, "", "s", True)
            server.end(signal.SIGKILL)
        row("size of one event in the log", filled["log_bytes"] / filled["events"], "", "bytes", True)

    print(f"\n{'figure':<58} {'measured':>12} {'target':>12} unit")
    for name, value, target, unit, verdict in rows:
        print(f"{name:<58} {value:>12} {target:>12} {unit:<9} {verdict if target else ''}")
    (OUT / "events.json").write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
