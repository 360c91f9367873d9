"""Measures how long a server takes from its start until it is ready: `make bench-startup`.

Generates a shop of BENCH_ITEMS=1000000 items with few events, imports and trains it, and starts the server BENCH_REPEATS=3
times with an empty data directory and as often with the directory that it left. A server is ready when `/readyz` of its
HTTP endpoint returns 200, which it does when `grpc.health.v1` reports SERVING. The files of the bundle are in the page
cache. Prints the medians, and the steps that the server logs; all results are also written to target/bench/startup.json.
"""
import argparse
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from process import ServerProcess, free_port

TOP = Path(__file__).resolve().parent.parent
OUT = TOP / "target/bench"
ITEMS = int(os.environ.get("BENCH_ITEMS", "1000000"))
REPEATS = int(os.environ.get("BENCH_REPEATS", "3"))
# Enough for every part of a bundle except a ranking model.
VISITORS, VISITOR_EVENTS = 400, 10
# The target is for this many items.
TARGET_S, TARGET_ITEMS = 5, 1_000_000
os.environ.setdefault("ORT_DYLIB_PATH", str(TOP / "target/tools/onnxruntime/libonnxruntime.so"))
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("LODESTONE_DRAIN_WAIT", "0")

MAPPING = """\
[items]
id = "id"
title = "title"
categories = "category"
brand = "brand"
price = "price"
stock = "stock"
[items.attributes]
color = "color"
size = "size"
weight = "weight"
[events]
item = "id"
time = "time"
visitor = "visitor"
event_type = "event"
[constants]
currency = "EUR"
"""


def words_of(draw, count):
    """Returns different pronounceable words."""
    words = {}
    while len(words) < count:
        words["".join(draw.choice("bdfgklmnprst") + draw.choice("aeiou") for _ in range(draw.randrange(2, 5)))] = None
    return list(words)


def cumulative(count):
    """Returns the cumulative weights of Zipf's law."""
    return list(itertools.accumulate(1 / (10 + n) for n in range(count)))


def write_shop(directory):
    """Writes the mapping, the items and the events of a shop. Words and brands are as frequent as in Zipf's law, prices
    as in a log-normal law."""
    draw = random.Random(1)
    words = words_of(draw, 20_000)
    brands = [f"{word.title()} & Co" for word in words[:3000]]
    word_weights, brand_weights = cumulative(len(words)), cumulative(len(brands))
    colors, sizes = ["red", "blue", "green", "black", "white", "oak", "beech", "grey"], ["S", "M", "L", "XL"]
    (directory / "mapping.toml").write_text(MAPPING)
    with open(directory / "items.tsv", "w", encoding="utf-8") as out:
        out.write("id\ttitle\tcategory\tbrand\tprice\tstock\tcolor\tsize\tweight\n")
        for number in range(ITEMS):
            title = " ".join(draw.choices(words, cum_weights=word_weights, k=draw.randrange(3, 8)))
            brand = draw.choices(brands, cum_weights=brand_weights)[0]
            row = [f"item-{number}", f"{title} {number % 997}", f"Home > Area {number % 20} > Things {number % 400}", brand,
                   f"{draw.lognormvariate(3, 1):.2f}", draw.randrange(100), draw.choice(colors), draw.choice(sizes),
                   f"{draw.random() * 30:.1f}"]
            out.write("\t".join(map(str, row)) + "\n")
    with open(directory / "events.tsv", "w", encoding="utf-8") as out:
        out.write("time\tevent\tid\tvisitor\n")
        chosen = [draw.randrange(ITEMS) for _ in range(300)]
        for n in range(VISITORS * VISITOR_EVENTS):
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(1_735_689_600 + n * 600))
            event = "purchase" if n % 4 == 0 else "view"
            out.write(f"{at}\t{event}\titem-{draw.choice(chosen)}\tvisitor-{draw.randrange(VISITORS)}\n")


def run(*command):
    """Runs a command and returns the seconds that it took."""
    begun = time.monotonic()
    ran = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ran.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{ran.stdout[-3000:]}")
    return time.monotonic() - begun


def build(lodestone, work, bundle):
    """Imports and trains the shop."""
    write_shop(work)
    mapping = ["--mapping", work / "mapping.toml"]
    imported = run(lodestone, "import", *mapping, "--items", work / "items.tsv", "--events", work / "events.tsv",
                   "--out", work / "imported")
    # The shortest vectors and the fewest lists: the training is not what is measured.
    trained = run(lodestone, "train", "--data", work / "imported", "--out", bundle, "--lists-max", "500",
                  "--encoder-blocks", "1")
    return {"import_s": imported, "train_s": trained}


class Server(ServerProcess):
    def __init__(self, http_address):
        self.http_address = http_address

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"http://{self.http_address}/readyz", timeout=5) as answer:
                return answer.status == 200
        # Refused before the endpoint listens; 503 before the server serves.
        except OSError:
            return False


def megabytes(pid, name):
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(name))


def start(lodestone, bundle, data):
    """Starts a server, and stops it when it is ready. Returns its figures."""
    address = f"127.0.0.1:{free_port()}"
    # Earlier writes, such as those of the training, must not keep the disk busy.
    os.sync()
    log = OUT / "startup-server.log"
    command = [lodestone, "serve", "--bundle", bundle, "--data", data, "--listen", f"127.0.0.1:{free_port()}",
               "--metrics-listen", address, "--log-format", "json"]
    with Server(address) as server:
        begun = time.monotonic()
        server.start(list(map(str, command)), log)
        ready_s = time.monotonic() - begun
        pid = server.process.pid
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
        processor_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        memory = {"resident_mb": megabytes(pid, "VmRSS:"), "resident_mb_max": megabytes(pid, "VmHWM:")}
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    return {"ready_s": ready_s, "processor_s": processor_s, **memory, "steps_ms": steps(lines)}


def steps(lines):
    """Returns the times of the steps in the lines of a server's log, in ms."""
    times = {name.removesuffix("_ms"): value for line in lines for name, value in line.items() if name.endswith("_ms")}
    recovered = [line["seconds"] * 1000 for line in lines if line.get("message") == "recovered the state"]
    return {**times, "state": recovered[0]} if recovered else times


def medians(starts):
    """Returns the start with the median time."""
    return sorted(starts, key=lambda found: found["ready_s"])[len(starts) // 2] | {
        "ready_s_of_all": [found["ready_s"] for found in starts],
        "processor_s": statistics.median(found["processor_s"] for found in starts),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lodestone", type=Path)
    parser.add_argument("--bundle", type=Path, help="measure with this bundle instead of a generated shop; it is created if it does not exist")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    arguments = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    report = {"processors": os.cpu_count()}
    with tempfile.TemporaryDirectory(dir=OUT) as name:
        work = Path(name)
        bundle = arguments.bundle or work / "bundle"
        if not bundle.exists():
            report |= build(arguments.lodestone, work, bundle)
        files = {file.name: file.stat().st_size for file in sorted(bundle.iterdir())}
        # Into the page cache, and the first request of a library is not measured.
        for file in bundle.iterdir():
            file.read_bytes()
        empty, existing = [], []
        for _ in range(REPEATS):
            data = work / "data"
            shutil.rmtree(data, ignore_errors=True)
            empty.append(start(arguments.lodestone, bundle, data))
            existing.append(start(arguments.lodestone, bundle, data))
        report |= {"bundle_mb": sum(files.values()) / 1e6, "files_mb": {name: size / 1e6 for name, size in files.items()},
                   "empty_data": medians(empty), "existing_data": medians(existing)}
    (OUT / "startup.json").write_text(json.dumps(report, indent=2))
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{'':<34} {'empty data':>12} {'existing data':>14}")
    for name, key in [("ready, s", "ready_s"), ("processor time, s", "processor_s"), ("resident, MB", "resident_mb"),
                      ("resident at most, MB", "resident_mb_max")]:
        print(f"{name:<34} {report['empty_data'][key]:>12,.2f} {report['existing_data'][key]:>14,.2f}")
    for step, value in report["empty_data"]["steps_ms"].items():
        print(f"{'  ' + step.replace('_', ' ') + ', ms':<34} {value:>12,.0f} {report['existing_data']['steps_ms'][step]:>14,.0f}")
    verdict = "met" if report["empty_data"]["ready_s"] <= TARGET_S else "MISSED"
    target = f"; target: ready within {TARGET_S} s, {verdict}" if ITEMS >= TARGET_ITEMS else ""
    print(f"\n{ITEMS:,} items, {report['bundle_mb']:,.0f} MB on disk{target}")


if __name__ == "__main__":
    main()
