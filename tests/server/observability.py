"""Tests what operators see of a server process: probes, log, request ids, slow requests, traces at a real receiver.

`run.py` passes itself as `run`: its class Server, its checks and its arguments.
"""
import atexit
import json
import pathlib
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request

SEARCH = "lodestone.v1.RankingService/Search"
QUERY = {"viewer": {"user_id": "12748"}, "query": "heart t-light holder", "page_size": 5}
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SPAN_KIND_INTERNAL, SPAN_KIND_SERVER = 1, 2


def probe(server, path):
    """Returns the code and the body of a GET of the HTTP endpoint."""
    try:
        with urllib.request.urlopen(f"http://{server.metrics_address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def call(run, server, request, **metadata):
    """Calls Search through grpcurl. Returns whether it succeeded, and the headers or trailers of the response by name."""
    headers = [part for name, value in metadata.items() for part in ["-H", f"{name.replace('_', '-')}: {value}"]]
    command = [run.GRPCURL, "-plaintext", "-v", *headers, "-d", "@", server.address, SEARCH]
    ran = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, timeout=60)
    return ran.returncode == 0, dict(re.findall(r"^([\w-]+): (.*)$", ran.stdout + ran.stderr, re.MULTILINE))


def probes(run, work):
    """Probes over HTTP of a server that serves and of one that stops."""
    server = run.Server(work / "probed")
    run.check(probe(server, "/livez") == (200, "alive\n") and probe(server, "/readyz") == (200, "ready\n"), "alive and ready")
    code, version = probe(server, "/version")
    version = json.loads(version)
    name = json.loads((run.BUNDLE / "manifest.json").read_text())["name"]
    run.check(code == 200 and version["bundles"] == {"default": name} and re.match(r"\d+\.\d+", version["version"]),
              f"/version has the version and the bundle: {version}")
    run.check(probe(server, "/readyz?service=lodestone.v1.EventService")[0] == 200, "a service is ready")
    run.check(probe(server, "/healthz")[0] == 404, "an unknown path: 404")
    # A call that is in progress lets the server wait, not ready, until the call ends.
    command = [run.GRPCURL, "-plaintext", "-d", "@", server.address, "lodestone.v1.EventService/StreamEvents"]
    stream = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    stream.stdin.write(json.dumps({"events": [run.view("probe")]}))
    stream.stdin.flush()
    in_flight = 'lodestone_requests_in_flight{rpc="StreamEvents"}'
    run.check(run.wait_for(lambda: server.metrics().get(in_flight) == "1", 20), "a stream is open")
    server.process.send_signal(signal.SIGTERM)
    run.check(run.wait_for(lambda: probe(server, "/readyz")[0] == 503, 5), "a stopping server is not ready")
    run.check(probe(server, "/readyz") == (503, "not ready\nserver: it is stopping\n") and probe(server, "/livez")[0] == 200,
              "and says why, and is alive")
    stream.stdin.close()
    run.check(server.process.wait(timeout=30) == 0 and stream.wait(timeout=30) == 0, "it ends when the stream has ended")


def logs(run, work):
    """The log as JSON, with request ids, and slow requests without content."""
    for flag, value in [("--slow-request-ms", "-1"), ("--log-format", "xml"), ("--trace-sample", "1.5"),
                        ("--otlp-endpoint", "localhost:4317")]:
        run.check_refused(run.BUNDLE, work / "unused", f"{flag} {value}", [flag, value], f"{flag}={value}")
    run.check_refused(run.BUNDLE, work / "unused", "a missing authority", ["--otlp-ca", "nowhere.pem"],
                      "--otlp-endpoint", "https://localhost:4317", "--otlp-ca", str(work / "nowhere.pem"))
    (work / "no.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    run.check_refused(run.BUNDLE, work / "unused", "an authority that is none", ["--otlp-ca", "no.pem", "cannot be parsed"],
                      "--otlp-endpoint", "https://localhost:4317", "--otlp-ca", str(work / "no.pem"))
    # Calls are slow, so that most of them are left out of the log.
    server = run.Server(work / "logged", "--log-format", "json", "--slow-request-ms", "1")
    boosts = [{"filter": f'title HAS "heart" OR price < {n + 1}', "factor": 1.1} for n in range(20)]
    heavy = {**QUERY, "viewer": {"user_id": "a-private-user"}, "page_size": 200,
             "options": {"boosts": boosts, "read_mask": {"paths": ["*"]}, "debug_level": "DEBUG_LEVEL_FEATURES"}}
    for number in range(30):
        call(run, server, heavy, x_request_id=f"slow-{number}", traceparent=f"00-{TRACE}-{CALLER}-00")
    succeeded, headers = call(run, server, {**heavy, "page_size": -1}, x_request_id="of-error")
    run.check(not succeeded and headers["x-request-id"] == "of-error", f"the response of an error has the id: {headers}")
    succeeded, headers = call(run, server, QUERY)
    run.check(succeeded and len(headers["x-request-id"]) == 36 and "x-trace-id" not in headers, f"a new id: {headers}")
    counted = int(server.metrics()['lodestone_slow_requests_total{rpc="Search"}'])
    run.check(server.end(signal.SIGTERM) == 0, "SIGTERM: exit code 0")
    text = server.logged()
    # ONNX Runtime writes lines of its own.
    own = [line for line in text.splitlines() if "lodestone" in line]
    lines = [json.loads(line) for line in own if line.startswith("{")]
    run.check(len(lines) == len(own) > 0 and all({"timestamp", "level", "message", "target"} <= set(line) for line in lines),
              "each line of the log is an object")
    slow = [line for line in lines if line["message"] == "slow request"]
    run.check(0 < len(slow) < counted and len(slow) <= 10 * (1 + counted // 10), f"{len(slow)} of {counted} slow requests are logged")
    first = slow[0]
    stages = dict(stage.split("=") for stage in first["stages_ms"].split())
    run.check(first["rpc"] == "Search" and first["code"] == "OK" and first["catalog"] == "default"
              and first["request_id"].startswith("slow-") and first["trace_id"] == TRACE, f"a line names its request: {first}")
    run.check({"queue", "retrieve", "rank"} <= set(stages) and sum(map(float, stages.values())) <= first["total_ms"] + 0.01,
              "the stages of a slow request are within its time")
    run.check("a-private-user" not in text and "t-light" not in text, "the log has neither users nor queries")


def traces(run, work):
    """Spans at a receiver: sampled by the caller or by the share, flushed on shutdown, and none without a receiver."""
    received = work / "spans.jsonl"
    received.touch()
    python = pathlib.Path(run.GRPCURL).absolute().parent.parent / "venv/bin/python"
    script = pathlib.Path(__file__).with_name("otlp_receiver.py")
    receiver = subprocess.Popen([python, script, received], stdout=subprocess.PIPE, text=True)
    atexit.register(receiver.kill)
    endpoint = f"http://127.0.0.1:{receiver.stdout.readline().strip()}"

    def spans(trace):
        # The last line may be incomplete.
        found = [json.loads(line) for line in received.read_text().rpartition("\n")[0].splitlines()]
        return [span for span in found if span["trace"] == trace]

    data = work / "traced"
    server = run.Server(data, "--otlp-endpoint", endpoint, "--trace-sample", "0")
    unsampled = TRACE.replace("4", "5")
    call(run, server, QUERY, traceparent=f"00-{unsampled}-{CALLER}-00")
    before = time.time_ns()
    succeeded, headers = call(run, server, QUERY, traceparent=f"00-{TRACE}-{CALLER}-01", x_request_id="traced")
    after = time.time_ns()
    run.check(succeeded and headers["x-trace-id"] == TRACE, f"the response has the trace of its caller: {headers}")
    run.check(run.wait_for(lambda: spans(TRACE), 20), "the spans arrive while the server runs")
    found = spans(TRACE)
    roots = [span for span in found if span["parent"] == CALLER]
    run.check(len(roots) == 1, f"one span has the caller's as its parent: {found}")
    root, stages = roots[0], [span for span in found if span["parent"] != CALLER]
    run.check(root["name"] == SEARCH and root["kind"] == SPAN_KIND_SERVER and root["status"] == 0, f"it is the call's: {root}")
    attributes = root["attributes"]
    run.check(attributes["rpc.method"] == "Search" and attributes["rpc.grpc.status_code"] == 0
              and attributes["lodestone.request_id"] == "traced" and attributes["lodestone.catalog"] == "default",
              f"with its attributes: {attributes}")
    run.check(root["resource"]["service.name"] == "lodestone" and root["resource"]["service.version"], "and its service")
    run.check(before <= root["begin"] < root["end"] <= after, "its time is that of the call")
    run.check({"queue", "state", "encode", "retrieve", "vector_search", "features", "rank"} <= {span["name"] for span in stages},
              f"stages are spans: {[span['name'] for span in stages]}")
    run.check(all(span["parent"] == root["id"] and span["kind"] == SPAN_KIND_INTERNAL for span in stages), "children of the call's span")
    run.check(all(root["begin"] <= span["begin"] <= span["end"] <= root["end"] for span in stages), "within its time")
    run.check(sum(span["end"] - span["begin"] for span in stages) <= root["end"] - root["begin"], "one after the other")
    run.check(len({span["id"] for span in found}) == len(found), "every span has an id of its own")
    run.check(server.end(signal.SIGTERM) == 0 and not spans(unsampled), "a call whose caller does not sample it has no span")
    run.check(len(received.read_text().splitlines()) == len(found), "no other call has one")

    server = run.Server(data, "--otlp-endpoint", endpoint, "--trace-sample", "1")
    _, headers = call(run, server, QUERY)
    run.check(server.end(signal.SIGTERM) == 0, "SIGTERM: exit code 0")
    found = spans(headers["x-trace-id"])
    run.check([span["name"] for span in found if not span["parent"]] == [SEARCH], f"the last spans are exported before the end: {found}")

    receiver.kill()
    receiver.wait()
    server = run.Server(data, "--otlp-endpoint", endpoint, "--trace-sample", "1")
    run.check(call(run, server, QUERY)[0], "calls are answered without the receiver")
    dropped = 'lodestone_spans_total{outcome="dropped"}'
    run.check(run.wait_for(lambda: int(server.metrics().get(dropped, 0)) > 5, 20), "the spans are counted as dropped")
    first = server.metrics()[dropped]
    call(run, server, QUERY)
    run.check(run.wait_for(lambda: server.metrics()[dropped] != first, 20), "and those of another call")
    run.check(server.end(signal.SIGTERM) == 0, "SIGTERM: exit code 0")
    lines = [line for line in server.logged().splitlines() if "dropped spans" in line]
    run.check(len(lines) == 1, f"one line says so: {lines}")


def observability(run, work):
    probes(run, work)
    logs(run, work)
    traces(run, work)
