"""Restarts two servers one after the other while a client calls them: no call may fail.

Usage: rolling.py LODESTONE BUNDLE DATA, with a Python that has grpcio and grpcio-tools. The client follows gRPC's rules: it
knows both addresses, sends each call to the next of those that are connected (round_robin), and repeats calls that end with
UNAVAILABLE. Needs ORT_DYLIB_PATH. Prints each check; exits with 1 if one fails.
"""
import atexit
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import grpc
from grpc_tools import protoc

LODESTONE, BUNDLE, DATA = sys.argv[1:4]
TOP = pathlib.Path(__file__).resolve().parent.parent.parent
THREADS = 8
# The time for load balancers. Without one, the client learns of the end by GOAWAY.
DRAIN_WAITS = ["0", "0.5"]
SERVICE_CONFIG = """{"loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [{"name": [{"service": "lodestone.v1.RankingService"}],
    "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.05s", "maxBackoff": "0.5s", "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"]}}]}"""
failures = []


def check(holds, name):
    print(f"  {'ok   ' if holds else 'WRONG'} {name}")
    if not holds:
        failures.append(name)


def wait_for(condition, seconds_max):
    deadline = time.monotonic() + seconds_max
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A server that can be started again at the same addresses."""

    def __init__(self, work, name, drain_wait):
        self.data, self.address, self.metrics = work / name, f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        shutil.copytree(DATA, self.data)
        self.log = open(work / f"{name}.log", "w")
        self.drain_wait = drain_wait
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [LODESTONE, "serve", "--bundle", BUNDLE, "--data", self.data, "--listen", self.address, "--metrics-listen", self.metrics,
             "--drain-wait", self.drain_wait], stderr=self.log)
        atexit.register(self.process.kill)
        if not wait_for(lambda: self.answered() is not None or self.process.poll() is not None, 120) or self.process.poll() is not None:
            sys.exit(f"the server did not start; exit code {self.process.poll()}")

    def answered(self):
        """Returns the number of answers of Recommend; none if the server does not respond."""
        try:
            with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=5) as response:
                lines = response.read().decode().splitlines()
        except OSError:
            return None
        name = 'lodestone_requests_total{rpc="Recommend",code="OK"} '
        return next((int(line.removeprefix(name)) for line in lines if line.startswith(name)), 0)

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


class Load:
    """Threads that call both servers without a pause."""

    def __init__(self, servers):
        from lodestone.v1 import ranking_service_pb2 as messages, ranking_service_pb2_grpc as services
        target = "ipv4:" + ",".join(server.address for server in servers)
        # A server that is back must be found before the other one is stopped. The authority of several addresses would be their
        # list, which is none.
        options = [("grpc.default_authority", "localhost"), ("grpc.service_config", SERVICE_CONFIG), ("grpc.initial_reconnect_backoff_ms", 100),
                   ("grpc.min_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
        self.channel = grpc.insecure_channel(target, options=options)
        self.recommend = services.RankingServiceStub(self.channel).Recommend
        self.request = messages.RecommendRequest(type=1, viewer={"visitor_id": "rolling"}, page_size=5)
        self.count, self.failed, self.lock = 0, [], threading.Lock()
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self.call) for _ in range(THREADS)]
        for thread in self.threads:
            thread.start()

    def call(self):
        while not self.stopping.is_set():
            try:
                answer = self.recommend(self.request, timeout=10)
                error = None if answer.results else "an empty answer"
            except grpc.RpcError as failed:
                error = f"{failed.code().name}: {failed.details()}"
            with self.lock:
                self.count += 1
                if error:
                    self.failed.append(error)

    def end(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join()
        self.channel.close()


def rolling_restart(work, drain_wait):
    servers = [Server(work, name, drain_wait) for name in ("first", "second")]
    load = Load(servers)
    check(wait_for(lambda: all(server.answered() > 10 for server in servers), 60), "both servers are called")
    for number, server in enumerate(servers, 1):
        other, before = servers[2 - number], load.count
        check(server.end() == 0, f"server {number}: SIGTERM under load: exit code 0")
        answered = other.answered()
        check(wait_for(lambda: other.answered() > answered + 10, 60), f"server {number} is away, and the other one answers")
        server.start()
        check(wait_for(lambda: (server.answered() or 0) > 10, 60), f"server {number} is called again after {load.count - before} calls")
    load.end()
    check(not load.failed, f"no call of {load.count} failed with a wait of {drain_wait} s: {load.failed[:3]}")
    check(all(server.end() == 0 for server in servers), "SIGTERM: exit code 0")


with tempfile.TemporaryDirectory() as directory:
    stubs = pathlib.Path(directory) / "stubs"
    stubs.mkdir()
    protos = [str(path) for path in (TOP / "proto/lodestone/v1").glob("*.proto")]
    if protoc.main(["protoc", f"--proto_path={TOP / 'proto'}", f"--python_out={stubs}", f"--grpc_python_out={stubs}",
                    f"--proto_path={pathlib.Path(protoc.__file__).parent / '_proto'}", *protos]):
        sys.exit("the stubs cannot be generated")
    sys.path.insert(0, str(stubs))
    for drain_wait in DRAIN_WAITS:
        work = pathlib.Path(directory) / drain_wait
        work.mkdir()
        rolling_restart(work, drain_wait)
print(f"rolling restart: {len(failures)} failed")
sys.exit(1 if failures else 0)
