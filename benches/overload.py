"""Measures the server beyond its capacity, and the cost of TLS, API keys, idle connections and traces: `make bench-overload`.

Needs only the program, the example shop and openssl. For each deadline and each multiple of the capacity, it sends half of
the capacity, then the multiple, then half again, whatever becomes of the requests. All results are also written to
target/bench/overload.json.

The load generator is a process of its own on the same cores. Its time grows with the offered load and is lost to the server,
so the share of the capacity that is left under overload is lower than that of a server on its own machine; the table has the
generator's share of the processor time. The capacity is measured with the same generator, before and after each run, because
that of a shared host changes within minutes.

BENCH_SECONDS=10 is the duration of overload, BENCH_DEADLINES=50,100,200,400 are the deadlines in ms, BENCH_FACTORS=1.5,3 the
multiples, BENCH_REPEATS=15 the number of alternating rounds of a comparison, BENCH_IDLE=10000 the number of idle
connections.
"""
import contextlib
import json
import math
import os
import resource
import select
import shutil
import socket
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
SECONDS = float(os.environ.get("BENCH_SECONDS", "10"))
DEADLINES = [int(text) for text in os.environ.get("BENCH_DEADLINES", "50,100,200,400").split(",")]
FACTORS = [float(text) for text in os.environ.get("BENCH_FACTORS", "1.5,3").split(",")]
REPEATS = int(os.environ.get("BENCH_REPEATS", "15"))
IDLE = int(os.environ.get("BENCH_IDLE", "10000"))
# Seconds of half load before overload, and after it; of the warm-up; of a round of a comparison.
BEFORE, AFTER, WARM_UP = min(3, 3 * SECONDS), min(5, 10 * SECONDS), min(1, SECONDS)
ROUND = min(2, SECONDS)
CONNECTIONS = 32
# The deadline where none matters, in ms.
LONG = 10_000
# Few calls would leave none to export.
TRACE_SAMPLE = "0.01" if SECONDS >= 1 else "1"
# Descriptors of a process that are not idle connections.
SPARE_DESCRIPTORS = 500
os.environ.setdefault("ORT_DYLIB_PATH", str(TOP / "target/tools/onnxruntime/libonnxruntime.so"))


class Server(ServerProcess):
    """A server process with its own copy of the data. `client` are the flags of a client that connects to it."""

    def __init__(self, work, name, *flags, client=()):
        shutil.copytree(DATA, f"{work}/{name}")
        self.address, self.metrics = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        self.client = [str(flag) for flag in client]
        self.start([LODESTONE, "serve", "--bundle", BUNDLE, "--data", f"{work}/{name}", "--history-ends-now", "--listen",
                    self.address, "--metrics-listen", self.metrics, "--drain-wait", "0", *map(str, flags)],
                   OUT / f"overload-{name}.log")

    def is_ready(self):
        try:
            urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=5).close()
            return True
        except OSError:
            return False

    def memory(self, name):
        """Returns a size in /proc/PID/status, such as VmRSS or VmHWM, in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith(f"{name}:"))

    def cpu_seconds(self):
        ticks = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def load_test(self, *flags):
        out = subprocess.run([LODESTONE, "load-test", "--address", self.address, "--data", DATA, *self.client, *map(str, flags),
                              "--format", "json"], check=True, stdout=subprocess.PIPE)
        return json.loads(out.stdout)

    def steps(self, deadline_ms, *steps):
        """Runs steps of RATE:SECONDS and returns their reports. Ends the program if a call fails for another reason than
        the load."""
        flags = ["--rpc", "recommend", "--connections", CONNECTIONS, "--deadline-ms", deadline_ms, "--steps", ",".join(steps)]
        found = self.load_test(*flags)["steps"]
        for step in found:
            if step["failed"]:
                sys.exit(f"{step['failed']} calls failed: {step['first_failure']}")
        return found

    def capacity(self, seconds):
        """Returns the answers per second with one call in flight on each connection."""
        return self.steps(LONG, f"closed:{WARM_UP:g}", f"closed:{seconds:g}")[-1]["good_per_s"]


def rate(value):
    return f"{max(value, 1):.1f}"


def recovery_second(seconds, p99_ms):
    """Returns the number of the first second, from 1, in which the p99 is at most twice `p99_ms`; infinity if there is
    none."""
    return next((number for number, second in enumerate(seconds, 1) if second["good"] and second["p99_ms"] <= 2 * p99_ms), math.inf)


def overload(server):
    """Returns a row for each multiple of the capacity and each deadline."""
    rows, capacities = [], [server.capacity(min(SECONDS, 5))]
    for factor in FACTORS:
        for deadline in DEADLINES:
            half = rate(capacities[-1] / 2)
            server_before, generator_before = server.cpu_seconds(), resource.getrusage(resource.RUSAGE_CHILDREN)
            before, over, after = server.steps(deadline, f"{half}:{BEFORE:g}", f"{rate(factor * capacities[-1])}:{SECONDS:g}",
                                               f"{half}:{AFTER:g}")
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            generator_cpu = used.ru_utime + used.ru_stime - generator_before.ru_utime - generator_before.ru_stime
            server_cpu = server.cpu_seconds() - server_before
            capacities.append(server.capacity(min(SECONDS, 5)))
            capacity = (capacities[-2] + capacities[-1]) / 2
            rows.append({
                "factor": factor, "deadline_ms": deadline, "capacity_per_s": capacity, "offered_per_s": over["sent"] / over["seconds"],
                "good_per_s": over["good_per_s"], "good_share": over["good_per_s"] / capacity,
                "admitted_p99_ms": over["p99_ms"], "late_share": over["late"] / max(over["sent"], 1),
                "refused_share": over["refused"] / max(over["sent"], 1), "refused_p99_ms": over["refused_p99_ms"],
                "retry_info_share": over["refused_with_retry_info"] / over["refused"] if over["refused"] else None,
                "p99_before_ms": before["p99_ms"], "recovered_in_second": recovery_second(after["by_second"], before["p99_ms"]),
                "generator_cpu_share": generator_cpu / max(generator_cpu + server_cpu, 1e-9), "lag_p99_ms": over["lag_p99_ms"],
            })
    return rows


def print_overload(rows):
    print(f"{'load':>5} {'deadline':>8}  {'capacity/s':>10} {'in time/s':>9} {'share':>6}  {'p99 ms':>7} {'late':>6}  {'refused':>7} "
          f"{'p99 ms':>7} {'RetryInfo':>9}  {'recovered':>9}  {'generator':>9} {'lag ms':>6}")
    for row in rows:
        share = row["retry_info_share"]
        second = row["recovered_in_second"]
        print(f"{row['factor']:>4}x {row['deadline_ms']:>5} ms  {row['capacity_per_s']:>10.0f} {row['good_per_s']:>9.0f} "
              f"{row['good_share']:>6.0%}  {row['admitted_p99_ms']:>7.1f} {row['late_share']:>6.2%}  {row['refused_share']:>7.0%} "
              f"{row['refused_p99_ms']:>7.2f} {'-' if share is None else f'{share:.0%}':>9}  "
              f"{'never' if second == math.inf else f'second {second}':>9}  {row['generator_cpu_share']:>9.0%} {row['lag_p99_ms']:>6.1f}")
    print("Targets: in time at least 90 % of the capacity, p99 within the deadline, refusals within 5 ms and all with RetryInfo, "
          "recovered in second 1 or 2.")


def median_with_interval(values):
    """Returns the median and the narrowest interval of order statistics that contains that of the population with at least
    95 %; the range if there are too few values."""
    values, n = sorted(values), len(values)
    left_out, tail = 0, 0.0
    for k in range(n // 2):
        tail += math.comb(n, k) / 2 ** n
        if 2 * tail > 0.05:
            break
        left_out = k + 1
    low, high = (values[left_out - 1], values[n - left_out]) if left_out else (values[0], values[-1])
    return statistics.median(values), low, high


def alternate(measure, first, second):
    """Measures two servers in turn, each round in the other order. Returns the figures of each."""
    found = ([], [])
    for number in range(REPEATS):
        for at in (0, 1) if number % 2 == 0 else (1, 0):
            found[at].append(measure((first, second)[at]))
    return found


def throughput_cost(plain, other):
    """Returns by which share the throughput of `other` is lower, with an interval."""
    a, b = alternate(lambda server: server.capacity(ROUND), plain, other)
    median, low, high = median_with_interval([1 - y / x for x, y in zip(a, b)])
    return {"plain_per_s": statistics.median(a), "other_per_s": statistics.median(b), "cost": median, "interval": [low, high]}


def latency_cost(plain, other):
    """Returns by how many microseconds a call of `other` takes longer, one after the other on one connection."""
    def microseconds(server):
        report = server.load_test("--rpc", "get-loyalty", "--connections", 1, "--seconds", ROUND)["runs"][0]
        if report["failed"]:
            sys.exit(f"calls failed: {report['first_failure']}")
        return 1e6 / report["capacity_per_s"]
    a, b = alternate(microseconds, plain, other)
    median, low, high = median_with_interval([y - x for x, y in zip(a, b)])
    return {"plain_us": statistics.median(a), "other_us": statistics.median(b), "cost_us": median, "interval_us": [low, high]}


class IdleConnections:
    """Connections without calls, whose pings are answered by a thread."""
    PREFACE, EMPTY_SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\4\0\0\0\0\0"
    SETTINGS, PING, ACK = 4, 6, 1

    def __init__(self, address, count):
        host, port = address.split(":")
        self.buffers, self.sockets, self.poll = {}, {}, select.epoll()
        self.closed, self.stopping = 0, threading.Event()
        for _ in range(count):
            connection = socket.create_connection((host, int(port)), timeout=60)
            connection.sendall(self.PREFACE + self.EMPTY_SETTINGS)
            self.sockets[connection.fileno()], self.buffers[connection.fileno()] = connection, b""
            self.poll.register(connection, select.EPOLLIN)
        self.thread = threading.Thread(target=self.answer)
        self.thread.start()

    def answer(self):
        while not self.stopping.is_set():
            for descriptor, _ in self.poll.poll(0.2):
                connection = self.sockets[descriptor]
                received = connection.recv(4096)
                if not received:
                    self.closed += 1
                    self.poll.unregister(descriptor)
                    continue
                self.buffers[descriptor] = self.frames(connection, self.buffers[descriptor] + received)

    def frames(self, connection, received):
        """Answers the complete frames. Returns what is left."""
        while len(received) >= 9:
            length, kind, flags = int.from_bytes(received[:3], "big"), received[3], received[4]
            if len(received) < 9 + length:
                break
            payload, received = received[9:9 + length], received[9 + length:]
            if kind in (self.SETTINGS, self.PING) and not flags & self.ACK:
                payload = payload if kind == self.PING else b""
                connection.sendall(len(payload).to_bytes(3, "big") + bytes([kind, self.ACK, 0, 0, 0, 0]) + payload)
        return received

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join()
        for connection in self.sockets.values():
            connection.close()


def idle_connections(server):
    """Returns the memory of idle connections, and the p99 of calls at half load without and with them."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = IDLE if limit == resource.RLIM_INFINITY else min(IDLE, limit - SPARE_DESCRIPTORS)
    half = f"{rate(server.capacity(ROUND) / 2)}:{SECONDS:g}"
    measure = lambda: server.steps(LONG, half)[0]["p99_ms"]
    without, memory = [measure()], server.memory("VmRSS")
    with IdleConnections(server.address, count) as idle:
        within = [measure(), measure()]
        grown = server.memory("VmRSS") - memory
        if idle.closed:
            sys.exit(f"the server closed {idle.closed} of {count} idle connections")
    without.append(measure())
    return {"connections": count, "memory_mb": grown, "p99_ms_without": without, "p99_ms_with": within}


class Collector:
    """A collector of OTLP over gRPC that drops what it receives. It is a few lines of HTTP/2, so that the benchmark needs no
    packages, and takes little of the server's time."""
    DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 4, 6, 8
    END_STREAM, END_HEADERS, ACK = 1, 4, 1
    # `:status: 200` of HPACK's static table, and literals.
    RESPONSE = b"\x88" + b"\x0f\x10\x10application/grpc"
    TRAILERS = b"\x00\x0bgrpc-status\x010"
    WINDOW = (2 ** 31 - 1).to_bytes(4, "big")

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.exports = 0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=[connection.makefile("rwb")], daemon=True).start()

    @staticmethod
    def frame(kind, flags, stream, payload=b""):
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    def serve(self, connection):
        with contextlib.suppress(OSError), connection:
            connection.read(len(IdleConnections.PREFACE))
            # The client may send 2 GiB, on each stream (setting 4) and in all.
            connection.write(self.frame(self.SETTINGS, 0, 0, b"\0\4" + self.WINDOW))
            connection.write(self.frame(self.WINDOW_UPDATE, 0, 0, (2 ** 31 - 1 - 65535).to_bytes(4, "big")))
            connection.flush()
            while len(header := connection.read(9)) == 9:
                payload = connection.read(int.from_bytes(header[:3], "big"))
                kind, flags, stream = header[3], header[4], int.from_bytes(header[5:9], "big")
                if kind in (self.SETTINGS, self.PING) and not flags & self.ACK:
                    connection.write(self.frame(kind, self.ACK, 0, payload if kind == self.PING else b""))
                elif kind in (self.DATA, self.HEADERS) and flags & self.END_STREAM:
                    self.exports += 1
                    connection.write(self.frame(self.HEADERS, self.END_HEADERS, stream, self.RESPONSE))
                    # An empty ExportTraceServiceResponse.
                    connection.write(self.frame(self.DATA, 0, stream, bytes(5)))
                    connection.write(self.frame(self.HEADERS, self.END_HEADERS | self.END_STREAM, stream, self.TRAILERS))
                connection.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()


def has_traces():
    shown = subprocess.run([LODESTONE, "serve", "--help"], check=True, capture_output=True, text=True).stdout
    return "--otlp-endpoint" in shown and "--trace-sample" in shown


def certificate(work):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                    "-keyout", f"{work}/key.pem", "-out", f"{work}/cert.pem", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"],
                   check=True, capture_output=True)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The server inherits it.
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rows, report = [], {"seconds": SECONDS, "descriptors": hard}

    def row(name, measured, target, is_met):
        rows.append((name, measured, target, "met" if is_met else "MISSED"))

    with tempfile.TemporaryDirectory(dir=OUT) as work, Server(work, "plain") as plain:
        memory = plain.memory("VmRSS")
        report["overload"] = overload(plain)
        print_overload(report["overload"])
        report["memory_mb"] = {"before": memory, "peak": plain.memory("VmHWM")}
        print(f"resident memory: {memory:.0f} MB before, at most {report['memory_mb']['peak']:.0f} MB")

        subprocess.run([LODESTONE, "key", "create", "--keys", f"{work}/keys.toml", "--name", "bench", "--role", "rank",
                        "--role", "loyalty", "--out", f"{work}/bench.key"], check=True, capture_output=True)
        with Server(work, "keys", "--api-keys", f"{work}/keys.toml", client=["--api-key-file", f"{work}/bench.key"]) as keys:
            found = report["api_keys"] = latency_cost(plain, keys)
            low, high = found["interval_us"]
            row("API keys: a call takes longer by", f"{found['cost_us']:.1f} ({low:.1f} to {high:.1f}) µs", "5 µs", found["cost_us"] <= 5)
        if shutil.which("openssl"):
            certificate(work)
            flags = ["--tls-cert", f"{work}/cert.pem", "--tls-key", f"{work}/key.pem"]
            client = ["--tls-ca", f"{work}/cert.pem", "--tls-server-name", "localhost"]
            with Server(work, "tls", *flags, client=client) as tls:
                found = report["tls"] = throughput_cost(plain, tls)
                low, high = found["interval"]
                row("TLS: the throughput is lower by", f"{found['cost']:.1%} ({low:.1%} to {high:.1%})", "10 %", found["cost"] <= 0.1)
        else:
            print("TLS is not measured: openssl is not installed")
        if has_traces():
            with Collector() as collector:
                flags = ["--otlp-endpoint", collector.endpoint, "--trace-sample", TRACE_SAMPLE]
                with Server(work, "traced", *flags) as traced:
                    found = report["traces"] = throughput_cost(plain, traced)
                # The server has exported the last ones when it has ended.
                if not collector.exports:
                    sys.exit("no trace was exported")
                low, high = found["interval"]
                row("traces of 1 %: the throughput is lower by", f"{found['cost']:.1%} ({low:.1%} to {high:.1%})", "2 %",
                    found["cost"] <= 0.02)
        found = report["idle"] = idle_connections(plain)
        row(f"{found['connections']:,} idle connections: memory", f"{found['memory_mb']:.0f} MB", "200 MB", found["memory_mb"] <= 200)
        without, within = statistics.median(found["p99_ms_without"]), statistics.median(found["p99_ms_with"])
        noise = max(found["p99_ms_without"]) - min(found["p99_ms_without"])
        row(f"p99 at half load with them, without {without:.1f} ms", f"{within:.1f} ms", f"{without + max(noise, 0.2 * without):.1f} ms",
            within <= without + max(noise, 0.2 * without))

    print()
    for name, measured, target, verdict in rows:
        print(f"{name:<58} {measured:>28}  target {target:>8}  {verdict}")
    if hard != resource.RLIM_INFINITY and hard - SPARE_DESCRIPTORS < IDLE:
        print(f"The limit of descriptors is {hard} (ulimit -Hn), so there were fewer idle connections than {IDLE:,}.")
    (OUT / "overload.json").write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
