"""Compares the server's throughput and latency with the same work in Python: `make bench`.

Starts each server on a free port with the example shop, measures them with `lodestone load-test` one after the other,
and prints figures and ratios. Fails if the first pages of both have less than half of their items in common, because
the comparison is of the same work. All results are also written to target/bench/serving.json. BENCH_SECONDS=5 is the
duration of each measurement, BENCH_CONNECTIONS=1,8,32 the numbers of connections.
"""
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc

from process import ServerProcess, free_port

TOP = Path(__file__).resolve().parent.parent
LODESTONE = TOP / "target/release/lodestone"
BUNDLE, DATA = TOP / "target/demo/bundle", TOP / "target/demo/data"
OUT = TOP / "target/bench"
STUBS = OUT / "stubs"
SECONDS = os.environ.get("BENCH_SECONDS", "5")
CONNECTIONS = os.environ.get("BENCH_CONNECTIONS", "1,8,32")
# Users and queries whose first pages are compared, and the least share of common items.
COMPARED_USERS, AGREEMENT_MIN = 100, 0.5
# GetLoyalty per second.
LOYALTY_RATE = "1000"
# Requests without and with the objective LOYALTY, and the weight of the objective.
OBJECTIVE_REQUESTS, OBJECTIVE_WEIGHT = int(os.environ.get("BENCH_OBJECTIVE_REQUESTS", "2000")), 0.5
PEER_PROCESSES = os.cpu_count()

sys.path.insert(0, str(STUBS))


class Server(ServerProcess):
    """A server process with its children."""

    def __init__(self, command, port, log):
        self.address = f"127.0.0.1:{port}"
        self.start(command, log)

    def is_ready(self):
        from lodestone.v1 import ranking_service_pb2 as messages, ranking_service_pb2_grpc as services
        with grpc.insecure_channel(self.address) as channel:
            try:
                request = messages.RecommendRequest(type=1, viewer={"visitor_id": "warm"})
                services.RankingServiceStub(channel).Recommend(request, timeout=5)
                return True
            except grpc.RpcError:
                return False

    def end(self, signal_number=signal.SIGTERM):
        os.killpg(self.process.pid, signal_number)  # The peer has child processes.
        self.process.wait(timeout=60)

    def lines(self, text):
        """Returns the lines of the log that contain `text`."""
        return [line for line in Path(self.log.name).read_text().splitlines(keepends=True) if text in line]

    def wait_for_lines(self, text, count):
        """Waits until `count` lines of the log contain `text`. Ends the program after 120 s."""
        deadline = time.monotonic() + 120
        while len(self.lines(text)) < count:
            if time.monotonic() > deadline:
                sys.exit(f"{self.log.name} does not have {count} lines with '{text}' after 120 s")
            time.sleep(0.1)

    def load(self, rpc, connections=CONNECTIONS, *options):
        """Runs a load test and returns its report."""
        out = subprocess.run(
            [LODESTONE, "load-test", "--address", self.address, "--data", DATA, "--rpc", rpc, "--seconds", SECONDS,
             "--connections", connections, *options, "--format", "json"], check=True, stdout=subprocess.PIPE)
        return json.loads(out.stdout)

    def answers(self, users, titles):
        """Returns the item ids of the first pages: for each user a recommendation, for each title a search."""
        from lodestone.v1 import ranking_service_pb2 as messages, ranking_service_pb2_grpc as services
        with grpc.insecure_channel(self.address) as channel:
            stub = services.RankingServiceStub(channel)
            found = []
            for user, title in zip(users, titles):
                viewer = {"user_id": user}
                recommended = stub.Recommend(messages.RecommendRequest(type=1, viewer=viewer))
                searched = stub.Search(messages.SearchRequest(query=title, viewer=viewer))
                found.append([[result.item_id for result in answer.results] for answer in (recommended, searched)])
            return found


    def objective_cost(self, users):
        """Measures Recommend without and with the objective LOYALTY, one request after the other in turn.

        Returns the medians in µs of the response time at the client and of the policy, which blends objectives. With
        `refused` instead if the bundle cannot have the objective."""
        from lodestone.v1 import (ranking_service_pb2 as messages, ranking_service_pb2_grpc as services,
                                  serving_config_service_pb2 as configs, serving_config_service_pb2_grpc as config_services)
        objectives = {"weights": [{"objective": "OBJECTIVE_LOYALTY", "weight": OBJECTIVE_WEIGHT}]}
        config = {"serving_config_id": "bench-loyalty", "objectives": objectives}
        with grpc.insecure_channel(self.address) as channel:
            try:
                create = config_services.ServingConfigServiceStub(channel).CreateServingConfig
                create(configs.CreateServingConfigRequest(serving_config=config))
            except grpc.RpcError as error:
                return {"refused": error.details()}
            stub = services.RankingServiceStub(channel)
            times = {"": ([], []), "bench-loyalty": ([], [])}
            for number in range(OBJECTIVE_REQUESTS):
                # The order alternates, so that neither has the caches of the other more often.
                for name in sorted(times, reverse=number % 2 == 0):
                    options = {"serving_config": name, "debug_level": "DEBUG_LEVEL_TIMINGS"}
                    viewer = {"user_id": users[number % len(users)]}
                    request = messages.RecommendRequest(type=1, viewer=viewer, options=options)
                    begin = time.perf_counter()
                    answer = stub.Recommend(request)
                    elapsed = time.perf_counter() - begin
                    policy = next(of.duration for of in answer.info.debug.stages if of.stage == "policy")
                    times[name][0].append(1e6 * elapsed)
                    times[name][1].append(policy.ToNanoseconds() / 1e3)
        without, with_loyalty = [[statistics.median(of) for of in pair] for pair in times.values()]
        return {"requests": OBJECTIVE_REQUESTS, "response_us": {"without": without[0], "with": with_loyalty[0]},
                "policy_us": {"without": without[1], "with": with_loyalty[1]}}


def agreement(ours, theirs, at):
    """Returns the mean share of items of our first page that theirs has too. `at`: 0 recommendations, 1 searches."""
    shares = [len(set(a[at]) & set(b[at])) / len(a[at]) for a, b in zip(ours, theirs) if a[at]]
    return sum(shares) / len(shares)


def table(name, ours, theirs):
    """Prints the figures of both servers and their ratios."""
    print(f"\n{name:<12} {'connections':>11}  {'capacity/s':>10} {'p50 ms':>8} {'p99 ms':>8}   {'at rate/s':>9} "
          f"{'p50 ms':>8} {'p99 ms':>8}")
    for who, report in (("lodestone", ours), ("python", theirs)):
        for run in report["runs"] if report else ():
            print(f"{who:<12} {run['connections']:>11}  {run['capacity_per_s']:>10.0f} {run['capacity_p50_ms']:>8.2f} "
                  f"{run['capacity_p99_ms']:>8.2f}   {run['answered_per_s']:>9.0f} {run['p50_ms']:>8.2f} "
                  f"{run['p99_ms']:>8.2f}" + (f"  {run['failed']} FAILED" if run["failed"] else ""))
    for run, other in zip(ours["runs"], theirs["runs"] if theirs else ()):
        print(f"ratio at {run['connections']:>2} connections: {run['capacity_per_s'] / other['capacity_per_s']:.1f} times "
              f"the throughput, p99 {run['p99_ms'] / other['p99_ms']:.2f} of the peer's (each at 70 % of its capacity)")


def main():
    import pyarrow.parquet as pq
    OUT.mkdir(parents=True, exist_ok=True)
    events = pq.read_table(DATA / "events.parquet", columns=["user"])["user"].unique().to_pylist()
    users = sorted(user[2:] for user in events if user and user.startswith("u:"))
    users = users[:: max(1, len(users) // COMPARED_USERS)][:COMPARED_USERS]
    titles = pq.read_table(DATA / "items.parquet", columns=["title"])["title"].to_pylist()
    titles = [" ".join(title.split()[:3]).lower() for title in titles[:: max(1, len(titles) // COMPARED_USERS)]]

    with tempfile.TemporaryDirectory() as work:
        shutil.copytree(DATA, f"{work}/data")
        port = free_port()
        with Server([LODESTONE, "serve", "--bundle", BUNDLE, "--data", f"{work}/data", "--history-ends-now",
                     "--listen", f"127.0.0.1:{port}"], port, OUT / "lodestone.log") as server:
            our_answers = server.answers(users, titles)
            ours = {rpc: server.load(rpc) for rpc in ("recommend", "search", "suggest")}
            ours["get-loyalty"] = server.load("get-loyalty", "8", "--rate", LOYALTY_RATE, "--only-rate")
            objective = server.objective_cost(users)
            ours["write-events"] = server.load("write-events", CONNECTIONS)
        vectors = Path(work) / "vectors"
        subprocess.run([LODESTONE, "bundle", "export-vectors", "--bundle", BUNDLE, "--out", vectors], check=True,
                       stdout=subprocess.DEVNULL)
        port = free_port()
        with Server([sys.executable, TOP / "benches/peer/server.py", "--bundle", BUNDLE, "--vectors", vectors, "--data", DATA,
                     "--port", str(port), "--processes", str(PEER_PROCESSES), "--stubs", STUBS], port,
                    OUT / "peer.log") as server:
            server.wait_for_lines("serving", PEER_PROCESSES)
            print("\nvector indexes of the peer, one for each space:")
            print("".join(f"  {line}" for line in server.lines("index ")), end="")
            their_answers = server.answers(users, titles)
            theirs = {rpc: server.load(rpc) for rpc in ("recommend", "search")}

    agreed = {rpc: agreement(our_answers, their_answers, at) for at, rpc in enumerate(("recommend", "search"))}
    for rpc in ("recommend", "search"):
        table(rpc, ours[rpc], theirs[rpc])
        print(f"the first pages of both have {agreed[rpc]:.0%} of their items in common")
        stages = ours[rpc]["stages_us"]
        models = sum(stages.get(name, 0) for name in ("encode", "encode_query", "rank", "vector_search"))
        total = sum(stages.values())
        print("µs in the stages of Lodestone, one request at a time: "
              + ", ".join(f"{name} {time:.0f}" for name, time in stages.items())
              + f"; {1 - models / total:.0%} of {total:.0f} is neither ONNX Runtime nor vector search")
    table("suggest", ours["suggest"], None)
    loyalty = ours["get-loyalty"]["runs"][0]
    print(f"\nGetLoyalty, {loyalty['answered_per_s']:.0f} per second on {loyalty['connections']} connections: "
          f"p50 {loyalty['p50_ms']:.2f} ms, p99 {loyalty['p99_ms']:.2f} ms")
    if "refused" in objective:
        print(f"Recommend with the objective LOYALTY is not measured: {objective['refused']}")
    else:
        for name, of in (("response", objective["response_us"]), ("policy", objective["policy_us"])):
            print(f"Recommend with the objective LOYALTY, {name}: {of['with']:.1f} µs, without {of['without']:.1f} µs, "
                  f"{of['with'] - of['without']:+.1f} µs, ratio {of['with'] / of['without']:.3f} "
                  f"(medians of {objective['requests']} requests each, in turn)")

    batch = 100
    written = max(run["capacity_per_s"] for run in ours["write-events"]["runs"]) * batch
    print(f"\nevents acknowledged after fsync, in batches of {batch}: {written:,.0f} per second")
    memory = subprocess.run(["cargo", "test", "--release", "--locked", "--test", "memory", "--", "--nocapture"],
                            cwd=TOP, check=True, capture_output=True, text=True)
    counted = re.search(r"bytes per user: \[([\d, ]+)\]", memory.stdout)
    per_user = max(map(int, counted[1].split(",")))
    print(f"memory per user with 100 events: at most {per_user:,} bytes")
    if min(agreed.values()) < AGREEMENT_MIN:
        sys.exit(f"the first pages have too few items in common: {agreed}; at least {AGREEMENT_MIN:.0%} are required")
    report = {"lodestone": ours, "loyalty_objective": objective, "python": theirs, "agreement": agreed,
              "events_per_s": written, "bytes_per_user": per_user}
    (OUT / "serving.json").write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
