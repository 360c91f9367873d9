"""Starts the real server on damaged bundles, kills it in the middle of writing, and sends it bad requests.

Usage: run.py LODESTONE BUNDLE GRPCURL DATA ENCODER. DATA is what the bundle was trained on, ENCODER a directory with a
sentence encoder, with which it is trained once more. Needs ORT_DYLIB_PATH. Prints each check; exits with 1 if one is wrong.
"""
import atexit
import hashlib
import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from random import Random

LODESTONE, BUNDLE, GRPCURL = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
DATA, ENCODER = map(pathlib.Path, sys.argv[4:6])
KILLS = int(os.environ.get("KILLS", "3"))
wrong = []


def check(right, what):
    print(f"  {'ok   ' if right else 'WRONG'} {what}")
    if not right:
        wrong.append(what)


def refused(bundle, data, what, words, *flags, models=None, **environment):
    models = ["--bundle", str(bundle)] if models is None else models
    command = [LODESTONE, "serve", *models, "--data", str(data), "--listen", "127.0.0.1:0", *flags]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30, env={**os.environ, **environment})
    check(ran.returncode == 2 and all(word in ran.stderr for word in words), f"{what}: exit code 2, names {words}")


def damaged_bundles(work):
    def copy():
        target = work / "bundle"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(BUNDLE, target)
        return target

    data = work / "data"
    bundle = copy()
    content = bytearray((bundle / "ranker.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "ranker.onnx").write_bytes(content)
    refused(bundle, data, "a flipped bit", ["ranker.onnx", "damaged"])
    (bundle / "ranker.onnx").unlink()
    refused(bundle, data, "a missing file", ["ranker.onnx", "missing"])
    bundle = copy()
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["feature_schema"] = "0" * 16
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    refused(bundle, data, "another schema", ["feature schema"])
    bundle = copy()
    other = (bundle / "query_encoder.onnx").read_bytes()
    (bundle / "ranker.onnx").write_bytes(other)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["ranker.onnx"] = {"bytes": len(other), "sha256": hashlib.sha256(other).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    refused(bundle, data, "a model with other inputs", ["ranker", "term_ids", "features"])
    refused(BUNDLE, data, "no ONNX Runtime", ["ONNX Runtime", "ORT_DYLIB_PATH"], ORT_DYLIB_PATH="/nowhere.so")


def serving_files(work):
    bad = work / "bad.toml"
    data = work / "unused"
    for text, words in [
        ("[configs.default]\ndiversty = 1\n", ["bad.toml", "line 2", "diversty"]),
        ("[configs.x]\ndiversity = 7\ncandidates = 0\n", ["configs.x.diversity", "configs.x.candidates", "within 1 and 1000"]),
        ("[configs.x]\nhead_weights = { love = 1.0 }\n", ["configs.x.head_weights", "no head `love`", "purchase"]),
        ('[[experiments]]\nname = "e"\ninterleave = ["default", "y"]\n', ["experiments[0].interleave", "no configuration `y`"]),
    ]:
        bad.write_text(text)
        refused(BUNDLE, data, "a wrong serving file", words, "--serving", str(bad))
    refused(BUNDLE, data, "no serving file", ["nowhere.toml"], "--serving", str(work / "nowhere.toml"))
    refused(BUNDLE, data, "a share above 1", ["--answers-share is 2"], "--answers-share", "2")


SERVING = """
[configs.default]
[configs.explore]
exploration = { temperature = 0.7, first_slot = 2, top = 30, epsilon_slots = [6], epsilon = 0.5, share = 0.9 }
[configs.diverse]
diversity = 0.4
candidates = 120
[configs.plain]
ranker = false
[[experiments]]
name = "diversity"
arms = [{ name = "control", config = "default", share = 0.3 }, { name = "diverse", config = "diverse", share = 0.3 }]
[[experiments]]
name = "rankers"
interleave = ["default", "plain"]
"""


def any_request(random, items):
    """A method and a request with all that may decide an order."""
    def some(count):
        return random.sample(items, count)

    options = {"boosts": [{"filter": random.choice(["price > 3", 'title HAS "heart"', "in_stock"]),
                           "factor": random.choice([0.3, 1.7, 4])} for _ in range(random.choice([0, 0, 1, 2]))],
               "pins": [{"item_id": random.choice([*some(1), "no-such"]), "rank": random.randint(1, 12)}
                        for _ in range(random.choice([0, 0, 1, 3]))],
               "exclude_item_ids": some(random.choice([0, 3])),
               "serving_config": random.choice(["", "", "default", "explore", "explore", "diverse", "plain"])}
    if random.random() < 0.3:
        options["diversity"] = random.choice([0, 0.2, 0.8])
    if random.random() < 0.15:
        options["order_by"] = random.choice(["price", "price desc", "title"])
    request = {"viewer": {"user_id": str(random.randint(12340, 12999))}, "options": options}
    kind = random.choice(["search", "search", "recommend", "recommend", "rank"])
    if kind == "rank":
        return "Rank", {**request, "candidates": [{"item_id": item} for item in some(random.choice([1, 2, 20]))]}
    request["page_size"] = random.choice([1, 5, 24, 60])
    if random.random() < 0.3:
        request["filter"] = random.choice(["price < 5", 'title HAS "red"', 'item_id = "85123A"'])
    if kind == "search":
        return "Search", {**request, "query": random.choice(["heart holder", "lunch bag red", "85123A", "xmas", "vintage tea"])}
    kind = random.choice(["FOR_YOU", "FOR_YOU", "SIMILAR", "BOUGHT_TOGETHER", "TRENDING", "BUY_AGAIN"])
    return "Recommend", {**request, "type": f"RECOMMEND_TYPE_{kind}"}


def explained(work):
    """Answers that are made once more from their records, and what is exported of them."""
    data, serving = work / "explained", work / "serving.toml"
    shutil.copytree(DATA, data)
    serving.write_text(SERVING)
    server = Server(data, "--serving", str(serving))
    replay = "lodestone.v1.ExplainService/ReplayAnswer"
    random = Random(7)
    listed, _ = server.call("lodestone.v1.RankingService/Recommend", {
        "viewer": {"user_id": "x"}, "type": "RECOMMEND_TYPE_FOR_YOU", "page_size": 200})
    items = [result["itemId"] for result in listed["results"]]
    # One that no bundle has, so that its vectors come from the record.
    server.call("lodestone.v1.CatalogService/UpsertItems", {"items": [item("new-heart", "heart holder of red tin", priceMicros="3000000")]})
    seen, same, explored, arms, tokens = 0, 0, 0, set(), []
    for _ in range(60):
        method, request = any_request(random, [*items, "new-heart"])
        answer, error = server.call(f"lodestone.v1.RankingService/{method}", request)
        if answer is None:
            check(False, f"{method} {request} {error}")
        if not answer or not answer.get("results"):
            continue
        made, error = server.call(replay, {"attribution_token": answer["attributionToken"]})
        shown = [(result["itemId"], result.get("score")) for result in answer["results"]]
        again = [(slot["itemId"], slot.get("score")) for slot in (made or {}).get("slots", [])]
        seen += 1
        same += bool(made) and made.get("identical", False) and shown == again
        if not made or not made.get("identical"):
            check(False, f"{method} {request}: {error} {(made or {}).get('firstDifference')}")
        explored += answer["info"].get("explored", False)
        arms |= {(arm["experiment"], arm["arm"]) for arm in answer["info"].get("experimentArms", [])}
        tokens.append(answer["attributionToken"])
    check(same == seen >= 40, f"{same} of {seen} random answers are the same when they are made once more")
    check(explored > 3, f"{explored} of them explored")
    check({("diversity", "control"), ("diversity", "diverse"), ("rankers", "interleaved")} == arms, f"all arms answered: {arms}")

    asked = {"viewer": {"user_id": "12347"}, "type": "RECOMMEND_TYPE_FOR_YOU", "page_size": 12,
             "options": {"serving_config": "explore", "pins": [{"item_id": items[0], "rank": 3}]}}
    answer, _ = server.call("lodestone.v1.RankingService/Recommend", asked)
    made, _ = server.call(replay, {"attribution_token": answer["attributionToken"]})
    slots = made["slots"]
    check(slots[0]["conditionalProbability"] == 1 and slots[2]["pinned"] and slots[2]["probability"] == 1,
          "the first slot and the pin are certain")
    check(0 < slots[1]["probability"] < 1 and "probabilityStandardError" not in slots[1], "the first drawn slot is exact")
    check(0 < made["pageProbability"] < 1, f"the page had probability {made['pageProbability']}")
    check(made["recommend"]["viewer"]["userId"] == "12347" and made["servingConfigs"] == ["explore"], "it tells what was asked")
    for token, words in [("", "INVALID"), ("Zm9yZ2Vk", "INVALID"), (tokens[0][:-2] + ("AA" if tokens[0][-2:] != "AA" else "BB"), "INVALID")]:
        _, error = server.call(replay, {"attribution_token": token})
        check("InvalidArgument" in error and "ATTRIBUTION_TOKEN_INVALID" in error, f"a forged token is refused {error[:80]}")
    suggested, _ = server.call("lodestone.v1.RankingService/Suggest", {"viewer": {"user_id": "x"}, "prefix": "hea"})
    _, error = server.call(replay, {"attribution_token": suggested["attributionToken"]})
    check("NotFound" in error and "ANSWER_NOT_FOUND" in error, "an answer that is not logged is not found")
    for validate in [False, True]:
        _, error = server.call("lodestone.v1.RankingService/Search", {
            "viewer": {"user_id": "x"}, "query": "mug", "options": {"serving_config": "bold", "validate_only": validate}})
        check("NotFound" in error and "SERVING_CONFIG_NOT_FOUND" in error and "diverse, explore, plain" in error,
              "an unknown serving configuration is not found, and the known ones are told")
    metrics = server.metrics()
    check(int(metrics["lodestone_explored_total"]) > 3 and 'lodestone_experiment_answers_total{experiment="rankers",arm="interleaved"}' in metrics,
          "exploring answers and arms are counted")
    server.call("lodestone.v1.EventService/WriteEvents", {"events": [
        {**view("seen", items[0], "12347"), "attribution_token": answer["attributionToken"]}]})
    check(server.end(signal.SIGTERM) == 0, "SIGTERM ends it with exit code 0")

    out = work / "exported"
    command = [LODESTONE, "answers", "export", "--data", str(data), "--since", "1d", "--out", str(out), "--format", "json"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    told = json.loads(ran.stdout)
    check(told["answer_count"] >= seen and told["torn_byte_count"] == 0 == told["damaged_block_count"], f"all are exported: {told}")
    check(all((out / f"day={day}" / "answers.parquet").is_file() for day in told["days"]), "a file for each day")
    ran = subprocess.run([LODESTONE, "answers", "show", made["answerId"], "--data", str(data)], capture_output=True, text=True, timeout=60)
    check(ran.returncode == 0 and "pinned" in ran.stdout and "serving configuration explore" in ran.stdout, "one is shown")
    ran = subprocess.run([LODESTONE, "answers", "show", "00000000-0000-7000-8000-000000000000", "--data", str(data)],
                         capture_output=True, text=True, timeout=60)
    check(ran.returncode == 1 and "no record" in ran.stdout, "one that there is not: exit code 1")

    # What the answers say of their experiments and of another configuration.
    outcomes = work / "outcomes.jsonl"
    outcomes.write_text(json.dumps({"user": "u:12347", "time_ms": int(time.time() * 1000), "type": "view", "item": items[0]}) + "\n")
    for experiment, words in [("diversity", "control (control)"), ("rankers", "interleaving by view")]:
        ran = subprocess.run([LODESTONE, "experiment", "report", "--answers", str(out), "--events", str(outcomes), "--experiment", experiment],
                             capture_output=True, text=True, timeout=60)
        check(ran.returncode == 0 and words in ran.stdout, f"the experiment {experiment} is reported {ran.stderr}")
    judge = [LODESTONE, "evaluate", "--off-policy", "--events", str(outcomes), "--reward", "view", "--format", "json", "--answers"]
    ran = subprocess.run([*judge, str(out)], capture_output=True, text=True, timeout=60)
    judged = json.loads(ran.stdout or "{}")
    check(ran.returncode in (0, 1) and judged["answers"] >= seen and judged["same_slots"] > 0, f"the order without exploration is judged {ran.stderr}")
    ran = subprocess.run([*judge, str(data / "answers"), "--serving", str(serving), "--serving-config", "plain"], capture_output=True, text=True,
                         timeout=60)
    judged = json.loads(ran.stdout or "{}")
    check(judged["answers"] > 5 and judged["left_out"] > 0 and judged["answers"] + judged["left_out"] >= seen,
          f"another configuration is judged where the records tell what it would have shown {judged} {ran.stderr}")

    # The process dies as it writes: what was written before is there, in another life of the server too.
    newest = max((data / "answers").glob("*.answers"))
    with open(newest, "ab") as file:
        file.write(b"\x40\x00\x00\x00 half of a header")
    server = Server(data, "--serving", str(serving))
    same = [bool((server.call(replay, {"attribution_token": token})[0] or {}).get("identical")) for token in tokens[-5:]]
    check(all(same), f"answers of before the restart are made once more {same}")
    server.end(signal.SIGTERM)
    other = work / "other-bundle"
    shutil.copytree(BUNDLE, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "name": "another"}))
    server = Server(data, "--answers-share", "0", bundle=other)
    _, error = server.call(replay, {"attribution_token": tokens[-1]})
    check("FailedPrecondition" in error and "another answers now" in error, "the answer of a generation that is gone")
    answer, _ = server.call("lodestone.v1.RankingService/Search", {"viewer": {"user_id": "x"}, "query": "mug"})
    _, error = server.call(replay, {"attribution_token": answer["attributionToken"]})
    check("NotFound" in error, "with a share of 0 nothing is logged")
    check(server.end(signal.SIGTERM) == 0, "and it ends with exit code 0")


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


class Server:
    def __init__(self, data, *flags, bundle=BUNDLE, store=None, file_bytes_max=None):
        self.address, self.metrics_address = free_address(), free_address()
        models = ["--store", str(store)] if store else ["--bundle", str(bundle)]
        command = [LODESTONE, "serve", *models, "--data", str(data), "--listen", self.address,
                   "--metrics-listen", self.metrics_address, *flags]
        limit = file_bytes_max and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes_max, file_bytes_max)))
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=limit)
        # Whatever goes wrong here, it does not outlive the tests.
        atexit.register(self.process.kill)
        for _ in range(300):
            if self.call("grpc.health.v1.Health/Check", {})[0]:
                return
            time.sleep(0.1)
        raise SystemExit("the server did not start within 30 s")

    def call(self, method, request):
        ran = subprocess.run([GRPCURL, "-plaintext", "-d", "@", self.address, method], input=json.dumps(request),
                             capture_output=True, text=True, timeout=60)
        return (json.loads(ran.stdout), "") if ran.returncode == 0 else (None, ran.stderr)

    def metrics(self):
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))

    def end(self, how):
        self.process.send_signal(how)
        return self.process.wait(timeout=30)


def view(event_id, item="kill-item", user="kill"):
    return {"event_id": event_id, "type": "EVENT_TYPE_VIEW", "viewer": {"user_id": user}, "lines": [{"item_id": item}]}


def kills(work):
    data = work / "killed"
    acknowledged, state, wrong_states = [], None, 0
    seen = {"viewer": {"user_id": "seer"}, "type": "RECOMMEND_TYPE_RECENTLY_VIEWED", "page_size": 100}
    write, upsert = "lodestone.v1.EventService/WriteEvents", "lodestone.v1.CatalogService/UpsertItems"
    for round in range(KILLS):
        server = Server(data)
        after, error = server.call("lodestone.v1.RankingService/Recommend", seen)
        after = [result["itemId"] for result in after.get("results", [])] if after else error
        wrong_states += state is not None and after != state
        server.call(upsert, {"items": [{"item_id": f"kill-{round}", "title": f"kept through kill {round}"}]})
        for batch in range(5):
            ids = [f"k-{round}-{batch}-{n}" for n in range(20)]
            answer, error = server.call(write, {"events": [view(id) for id in ids]})
            acknowledged.extend(ids if answer else [])
        server.call(write, {"events": [view(f"seen-{round}", f"kill-{round}", "seer")]})
        state, _ = server.call("lodestone.v1.RankingService/Recommend", seen)
        state = [result["itemId"] for result in state.get("results", [])]
        # One more write is on its way when the process dies.
        late = subprocess.Popen([GRPCURL, "-plaintext", "-d", json.dumps({"events": [view(f"late-{round}")]}),
                                 server.address, write], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        server.end(signal.SIGKILL)
        late.wait()
    check(wrong_states == 0 and len(state) == min(KILLS, 100), f"what a user saw is the same after each kill: {len(state)} items")
    server = Server(data)
    answer, _ = server.call(write, {"events": [view(id) for id in acknowledged[-10_000:]]})
    known = [result["status"] for result in answer["results"]].count("EVENT_STATUS_DUPLICATE")
    check(known == len(acknowledged[-10_000:]) > 0, f"{known} of the last {len(acknowledged[-10_000:])} acknowledged events outlived {KILLS} kill -9")
    for round in range(KILLS):
        answer, _ = server.call("lodestone.v1.CatalogService/GetItem", {"item_id": f"kill-{round}"})
        check(answer is not None, f"the item of round {round} outlived them")
    bad_requests(server)
    load_test(server, work)
    check(server.end(signal.SIGTERM) == 0, "SIGTERM ends it with exit code 0")


def load_test(server, work):
    def run(file):
        return subprocess.run([LODESTONE, "load-test", "--address", server.address, "--data", DATA, "--connections", "2", "--seconds", "1",
                               "--rate", "50", "--only-rate", "--latencies", file], capture_output=True, text=True, timeout=60)

    began = time.time()
    ran = run(work / "latencies.csv")
    head, *lines = (work / "latencies.csv").read_text().splitlines()
    dues = [int(line.split(",")[0]) / 1e6 for line in lines]
    check(ran.returncode == 0 and head == "due_unix_us,latency_us,is_answered" and len(lines) == 50
          and all(line.endswith(",true") for line in lines) and began < min(dues) < max(dues) < time.time(),
          f"a load test writes each latency with when it was due: {len(lines)} {ran.stderr}")
    ran = run(work / "nowhere" / "latencies.csv")
    check(ran.returncode == 2 and "--latencies" in ran.stderr, f"and says where it cannot: {ran.stderr}")


def bad_requests(server):
    def violations(method, request, fields):
        answer, error = server.call(method, request)
        named = [field for field in fields if f'"field":"{field}"' in error.replace(" ", "")]
        check(answer is None and "InvalidArgument" in error and named == fields, f"{method} names {fields}")

    search, recommend = "lodestone.v1.RankingService/Search", "lodestone.v1.RankingService/Recommend"
    violations(search, {"viewer": {}, "query": "x" * 2_000_000, "page_size": -1, "filter": "price <"},
               ["viewer", "query", "page_size", "filter"])
    violations(search, {"viewer": {"user_id": "u"}, "query": "mug", "page_token": "foreign"}, ["page_token"])
    violations(search, {"viewer": {"user_id": "u"}, "query": "mug", "options": {"diversity": "NaN"}},
               ["options.diversity"])
    violations(recommend, {"viewer": {"user_id": "u"}, "type": 77}, ["type"])
    violations("lodestone.v1.EventService/WriteEvents", {"events": [view(str(n)) for n in range(10_001)]}, ["events"])
    answer, _ = server.call(search, {"viewer": {"user_id": "nobody-knows"}, "query": "mug", "page_size": 5000})
    check(answer and answer["info"]["notices"][0]["field"] == "page_size", "a page size above the limit is said")
    first = {"viewer": {"user_id": "nobody-knows"}, "query": "mug", "page_size": 2}
    answer, _ = server.call(search, first)
    again = {**first, "page_token": answer["nextPageToken"]}
    page, error = server.call(search, {**again, "options": {"request_id": "another"}})
    check(page and page["results"][0]["rank"] == 3, f"a request id of its own does not break a page token {error}")
    violations(search, {**again, "query": "cup"}, ["page_token"])
    answer, _ = server.call(recommend, {"viewer": {"user_id": "nobody-knows"}, "type": "RECOMMEND_TYPE_SIMILAR",
                                        "anchor_item_ids": ["no-such-item"]})
    check(answer and answer["info"]["unknownItemIds"] == ["no-such-item"], "unknown items are listed, not refused")
    asked = {"viewer": {"user_id": "nobody-knows"}, "query": "mug", "options": {"debug_level": "DEBUG_LEVEL_TIMINGS"}}
    answer, _ = server.call(search, asked)
    ways = {source["source"]: source.get("way", "") for source in answer["info"]["debug"]["sources"]}
    check(ways.get("query_vector") in ("walk", "scan") and ways["words"] == "", f"the debug answer says which way: {ways}")
    metrics = server.metrics()
    check(int(metrics['lodestone_requests_total{rpc="Search",code="INVALID_ARGUMENT"}']) >= 3
          and int(metrics['lodestone_requests_total{rpc="Recommend",code="OK"}']) == 1
          and int(metrics['lodestone_stage_seconds_count{stage="rank"}']) >= 2
          and int(metrics["lodestone_written_total{outcome=\"duplicate\"}"]) > 0
          and int(metrics["lodestone_panics_total"]) == 0, "the metrics counted all that")


def first_found(server, query):
    answer, error = server.call("lodestone.v1.RankingService/Search", {
        "viewer": {"visitor_id": "v-1"}, "query": query, "page_size": 3, "options": {"include_items": True}})
    return [result["item"]["title"] for result in answer.get("results", [])] if answer else [error]


WRITE, STREAM = "lodestone.v1.EventService/WriteEvents", "lodestone.v1.EventService/StreamEvents"
RECOMMEND = "lodestone.v1.RankingService/Recommend"


def events_of_a_shop(work):
    """A stream, and events that are remarkable."""
    data = work / "events"
    server = Server(data)
    messages = [{"events": [view(f"s-{batch}-{n}", user="stream") for n in range(500)]} for batch in range(4)]
    messages[1]["events"][7] = view("s-0-3", user="stream")
    messages[2]["events"][9] = {"event_id": "bad", "type": "EVENT_TYPE_VIEW", "viewer": {"user_id": "stream"}}
    ran = subprocess.run([GRPCURL, "-plaintext", "-d", "@", server.address, STREAM], capture_output=True, text=True,
                         input="".join(map(json.dumps, messages)), timeout=60)
    answer = json.loads(ran.stdout or "{}")
    counts = [int(answer.get(f"{name}Count", 0)) for name in ("event", "accepted", "duplicate", "rejected")]
    check(counts == [2000, 1998, 1, 1] and int(answer["sessionVersion"]) == 1998, f"a stream is counted: {counts} {ran.stderr}")
    told = [(int(entry["index"]), entry["result"]["status"]) for entry in answer.get("results", [])]
    check(told == [(507, "EVENT_STATUS_DUPLICATE"), (1009, "EVENT_STATUS_REJECTED")], f"and told by place: {told}")
    answer, _ = server.call(WRITE, {"events": [{**view("forged"), "attribution_token": "forged"}]})
    check(answer["results"][0]["status"] == "EVENT_STATUS_ACCEPTED"
          and answer["results"][0]["warnings"][0]["field"] == "events[0].attribution_token", "a forged token is flagged")
    ahead = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    answer, _ = server.call(WRITE, {"events": [{**view("ahead"), "occurred_time": ahead}]})
    said = answer["results"][0]["violations"][0]["description"]
    check(ahead[:16] in said and time.strftime("%Y-%m-%dT", time.gmtime()) in said.split("server's")[1],
          f"a clock that is an hour ahead is refused with both times: {said}")
    begun = time.monotonic()
    answer, error = server.call(RECOMMEND, {"viewer": {"user_id": "stream"}, "type": "RECOMMEND_TYPE_FOR_YOU",
                                            "options": {"session_version": 10**15}})
    waited = time.monotonic() - begun
    codes = [entry["code"] for entry in (answer or {"info": {}})["info"].get("degradations", [])]
    check("DEGRADATION_CODE_STALE_STATE" in codes and 0.4 < waited, f"a far position is waited for {waited:.2f} s, then said {error}")
    check(server.end(signal.SIGTERM) == 0, "SIGTERM ends it with exit code 0")
    ran = subprocess.run([LODESTONE, "events", "export", "--data", str(data), "--since", "2020-01-01", "--out",
                          str(work / "exported"), "--format", "json"], capture_output=True, text=True)
    exported = json.loads(ran.stdout)
    check(exported["events"] == 1999 and exported["foreign"] == 1, "the export has all events and knows the forged token")
    damaged_log(data, exported["events"])


def damaged_log(data, count):
    """A torn tail is cut, damage in the middle is refused by its byte, and the repair says what it drops."""
    def verify(*flags):
        ran = subprocess.run([LODESTONE, "events", "verify", "--data", str(data), *flags], capture_output=True, text=True)
        return ran.returncode, ran.stdout

    log = sorted((data / "log").glob("*.log"))[0]
    whole = log.read_bytes()
    check(verify()[0] == 0, "verify finds a whole log")
    log.write_bytes(whole[:-5])
    code, told = verify()
    check(code == 0 and "interrupted write" in told, "verify tells a torn tail")
    server = Server(data)
    answer, _ = server.call(WRITE, {"events": [view("forged"), view("s-3-3", user="stream")]})
    check([result["status"] for result in answer["results"]] == ["EVENT_STATUS_ACCEPTED", "EVENT_STATUS_DUPLICATE"],
          "a torn last record is gone and nothing else")
    server.end(signal.SIGTERM)
    flipped = bytearray(log.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    log.write_bytes(flipped)
    refused(BUNDLE, data, "damage in the middle of the log", [log.name, "byte", "position", "events verify"])
    code, told = verify()
    check(code == 1 and "DAMAGED" in told and "a repair drops 1 records" in told, "verify: exit code 1 and what a repair drops")
    code, told = verify("--repair")
    check(code == 0 and told.index("DAMAGED") < told.index("repaired:") and log.with_suffix(".damaged").exists(),
          "the repair tells first, then drops it and keeps the old file")
    server = Server(data)
    check(int(server.metrics()["lodestone_log_position"]) == count, "and the log goes on at its position")
    server.end(signal.SIGTERM)


def full_disk(work):
    """No file may grow beyond 100 kB, which fails as a full disk does."""
    data = work / "full"
    data.mkdir()
    shutil.copy(DATA / "events.parquet", data)
    server = Server(data, file_bytes_max=100_000)
    stored, error = [], ""
    for batch in range(50):
        ids = [f"f-{batch}-{n}" for n in range(100)]
        answer, error = server.call(WRITE, {"events": [view(id, user="full") for id in ids]})
        if answer is None:
            break
        stored.extend(ids)
    check("ResourceExhausted" in error and "nothing was stored" in error and len(stored) > 300,
          f"a full disk refuses the write after {len(stored)} events")
    answer, _ = server.call(RECOMMEND, {"viewer": {"user_id": "full"}, "type": "RECOMMEND_TYPE_FOR_YOU", "page_size": 3})
    check(answer and len(answer["results"]) == 3, "answers go on")
    answer, again = server.call(WRITE, {"events": [view(f"x-{n}", user="full") for n in range(100)]})
    check(answer is None and "ResourceExhausted" in again, "and the next write is refused too")
    small, _ = server.call(WRITE, {"events": [view("small", user="full")]})
    stored.extend(["small"] if small else [])
    server.end(signal.SIGKILL)
    server = Server(data)
    answer, _ = server.call(WRITE, {"events": [view(id, user="full") for id in stored]})
    known = [result["status"] for result in answer["results"]].count("EVENT_STATUS_DUPLICATE")
    check(known == len(stored) == int(server.metrics()["lodestone_log_position"]), "with room again, all that was acknowledged is there")
    server.end(signal.SIGTERM)


def merges(work):
    """So many items come and go that the live ones are merged into a new frozen index; answers and writes go on."""
    server = Server(work / "merged")
    upsert = "lodestone.v1.CatalogService/UpsertItems"
    for batch in range(12):
        answer, error = server.call(upsert, {"items": [
            {"item_id": f"live-{batch}-{n}", "title": f"azure widget number {batch * 500 + n}"} for n in range(500)]})
        check(answer is not None, f"batch {batch} of 500 items is written {error}")
    server.call("lodestone.v1.CatalogService/DeleteItems", {"item_ids": ["live-11-499"]})
    answers = 0
    for _ in range(600):
        found = first_found(server, "azure widget number 5001")
        answers += bool(found) and found[0].startswith("azure widget")
        if int(server.metrics()["lodestone_merges"]) > 0:
            break
        time.sleep(0.05)
    check(answers > 0 and int(server.metrics()["lodestone_merges"]) > 0, f"the items were merged, while {answers} searches were answered")
    check(int(server.metrics()["lodestone_live_items"]) < 6000, "merged items are not live any more")
    check(first_found(server, "azure widget number 5001")[0] == "azure widget number 5001", "a merged item is found")
    check("azure widget number 5999" not in first_found(server, "azure widget number 5999"), "a deleted one is not")
    server.call(upsert, {"items": [{"item_id": "late", "title": "crimson gadget"}]})
    check(first_found(server, "crimson gadget")[0] == "crimson gadget", "an item after the merge is found")
    check(server.end(signal.SIGTERM) == 0, "and it ends with exit code 0")


def sentence_encoder(work):
    """A bundle with an encoder that another program made, trained and asked."""
    bundle = work / "sentence-bundle"
    ran = subprocess.run([LODESTONE, "train", "--data", str(DATA), "--out", str(bundle), "--query-encoder", str(ENCODER)],
                         capture_output=True, text=True, timeout=900)
    check(ran.returncode == 0, f"trained with a sentence encoder {ran.stderr[-300:] if ran.returncode else ''}")
    server = Server(work / "sentence", bundle=bundle)
    found = first_found(server, "precipitation protection")
    check(any(word in title.upper() for title in found for word in ("UMBRELLA", "RAIN")), f"it finds what no word of the query names: {found}")
    server.call("lodestone.v1.CatalogService/UpsertItems", {"items": [{"item_id": "new", "title": "Bicycle pump"}]})
    found = first_found(server, "cyclist tyre inflator")
    check("Bicycle pump" in found, f"also an item that came just now: {found}")
    check(server.end(signal.SIGTERM) == 0, "and it ends with exit code 0")
    refused(BUNDLE.parent / "no-such", work / "data", "no bundle", ["no-such"])


def renamed(bundle, target, name):
    """A copy of a bundle under another name."""
    shutil.copytree(bundle, target)
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["name"] = name
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def publish(bundle, store):
    ran = subprocess.run([LODESTONE, "bundle", "publish", "--bundle", str(bundle), "--store", str(store)],
                         capture_output=True, text=True, timeout=60)
    return ran.returncode, ran.stdout + ran.stderr


def model_life(work):
    """Bundles are published, watched, refused, tried on some users, and taken back, while answers go on."""
    store, service = work / "store", "lodestone.v1.ModelService"
    refused(BUNDLE, work / "unused", "an empty store", ["publish one"], *["--store", str(store)], models=[])
    first = json.loads((BUNDLE / "manifest.json").read_text())["name"]
    code, said = publish(BUNDLE, store)
    check(code == 0 and first in said, f"a bundle is published: {said.strip()}")
    server = Server(work / "life", "--watch-seconds", "0.2", store=store)

    def states():
        answer, error = server.call(f"{service}/ListBundles", {})
        return {bundle["name"]: bundle for bundle in answer["bundles"]} if answer else {"error": error}

    def reaches(name, state):
        for _ in range(300):
            if states().get(name, {}).get("state") == f"BUNDLE_STATE_{state}":
                return True
            time.sleep(0.1)
        return False

    def generation(user="u"):
        answer, error = server.call("lodestone.v1.RankingService/Recommend", {
            "viewer": {"user_id": user}, "type": "RECOMMEND_TYPE_FOR_YOU", "page_size": 3})
        return answer["info"]["generation"] if answer else error

    check(generation() == first and states()[first]["state"] == "BUNDLE_STATE_CURRENT", "what is current in the store answers")
    check(publish(renamed(BUNDLE, work / "second", "second"), store)[0] == 0 and reaches("second", "CURRENT"),
          "a bundle that is published later is loaded without being asked")
    check(generation() == "second" and reaches(first, "KEPT"), "it answers, and the one before is kept")
    third = renamed(BUNDLE, work / "third", "third")
    content = bytearray((third / "ranker.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    code, said = publish(third, store) if (third / "ranker.onnx").write_bytes(content) else (0, "")
    check(code == 2 and "damaged" in said, "a damaged bundle is not published")
    shutil.copytree(third, store / "third")
    answer, error = server.call(f"{service}/ActivateBundle", {"bundle": "third"})
    check(answer is None and "FailedPrecondition" in error and "damaged" in error and "BUNDLE_REFUSED" in error,
          "one that was damaged in the store is refused with the reason")
    check(generation() == "second" and "damaged" in states()["third"].get("reason", ""), "the current one goes on")
    answer, error = server.call(f"{service}/ActivateBundle", {"bundle": "../second"})
    check(answer is None and "NotFound" in error and "BUNDLE_NOT_FOUND" in error, "an unknown bundle is NOT_FOUND")
    answer, error = server.call(f"{service}/SetCanary", {"bundle": first, "share": 1.5})
    check(answer is None and "InvalidArgument" in error and '"share"' in error.replace(" ", ""), "a share above 1 is refused")
    answer, error = server.call(f"{service}/SetCanary", {"bundle": first, "share": 0.5})
    check(answer and answer["bundle"]["state"] == "BUNDLE_STATE_CANARY", f"a canary is set {error}")
    shared = [generation(f"user-{n}") for n in range(20)]
    check(3 <= shared.count(first) <= 17 and shared == [generation(f"user-{n}") for n in range(20)],
          f"{shared.count(first)} of 20 users have it, and the same ones again")
    server.call(f"{service}/SetShadow", {"bundle": first, "share": 1})
    for n in range(10):
        first_found(server, f"{['red', 'blue', 'white'][n % 3]} {['mug', 'bag', 'light', 'box'][n % 4]}")
    seen = lambda: states()[first].get("shadow", {})
    until = time.monotonic() + 60
    while int(seen().get("requestCount", 0)) < 10 and time.monotonic() < until:
        time.sleep(0.05)
    seen = seen()
    check(int(seen.get("requestCount", 0)) == 10 and seen.get("rankCorrelation", 0) > 0.99, f"a shadow of the same content orders alike: {seen}")
    server.call(f"{service}/SetShadow", {})
    answer, error = server.call(f"{service}/ActivateBundle", {"bundle": first})
    check(answer and answer["bundle"]["state"] == "BUNDLE_STATE_CURRENT" and generation() == first, f"a bundle is activated by name {error}")
    answer, error = server.call(f"{service}/RollbackBundle", {"reason": "the tests say so"})
    check(answer and generation() == "second" and states()[first]["reason"] == "the tests say so", f"and rolled back {error}")
    metrics = server.metrics()
    check(int(metrics['lodestone_bundle_changes_total{outcome="rolled_back"}']) == 1
          and int(metrics['lodestone_bundle_changes_total{outcome="refused"}']) == 1
          and any('generation="second"' in name for name in metrics), "the metrics tell it")
    check(server.end(signal.SIGTERM) == 0, "and it ends with exit code 0")


def item(item_id, title, **fields):
    return {"item_id": item_id, "title": title, **fields}


def words_of_a_search(work):
    bad, good = work / "bad.txt", work / "synonyms.txt"
    bad.write_text("sofa, couch\nlonely\n")
    refused(BUNDLE, work / "unused", "a wrong line of synonyms", ["bad.txt", "line 2", "has a single term"],
            "--synonyms", str(bad))
    refused(BUNDLE, work / "unused", "no file of synonyms", ["nowhere.txt"], "--synonyms", str(work / "nowhere.txt"))
    good.write_text("# tests\nzibble, quibbleflax\n灯笼, quibbleflax\nworp => lantern\n")
    server = Server(work / "words", "--synonyms", str(good))
    search = "lodestone.v1.RankingService/Search"

    def answer(query, **fields):
        found, error = server.call(search, {"viewer": {"user_id": "words"}, "query": query, **fields})
        return found or {"error": error}

    def ids(query, **fields):
        return [result["itemId"] for result in answer(query, **fields).get("results", [])]

    server.call("lodestone.v1.CatalogService/UpsertItems", {"items": [
        item("QX-100", "Quibbleflax lantern 10 ft", brand="Zorbo", categories=["Outdoor", "Lanterns"], priceMicros="5000000",
             attributes={"sku": {"text": "ZB 77/1"}, "watts": {"number": 40}}),
        item("QX-200", "Quibbleflax lantern red", brand="ZORBO", categories=["Outdoor"], priceMicros="15000000",
             tags=["gift"], attributes={"watts": {"number": 60}}),
        item("QX-300", "Quibbleflax lamp for QX-200", brand="Other", categories=["Outdoor"], stockQuantity="0"),
        item("QX-400", "Quibbleflax tin QX 200 spare parts", brand="Zorbo", priceMicros="25000000"),
    ]})
    found = answer("quibleflax lantern")
    check(found.get("correctedQuery") == "quibbleflax lantern" and found["results"][0]["itemId"].startswith("QX-"),
          "a misspelled word is taken for a live item's")
    check(answer("quibbleflaxlantern").get("correctedQuery") == "quibbleflax lantern", "a missing space is put in")
    check("correctedQuery" not in answer("quibbleflax lantern") and "correctedQuery" not in answer("QX-999"),
          "known words and codes stay as they are")
    check(ids("qx-200")[0] == "QX-200" and ids(" zb 77/1 ")[0] == "QX-100", "an id and a SKU give their item first")
    check("QX-300" not in ids("qx-300"), "what is sold out is not shown, even by its id")
    for query in ["zibble lantern", "灯笼 lantern", "quibbleflax worp"]:
        check(ids(query)[:2] in (["QX-100", "QX-200"], ["QX-200", "QX-100"]), f"synonyms find it: {query}")
    check(ids("quibbleflax lantern 10'")[0] == "QX-100" and ids("quibbleflax 10feet")[0] == "QX-100", "units are read")
    for query in ["🦆", "\u200b\u200b", "\u0000", "( AND * ~ \"", "x" * 1000]:
        check("info" in answer(query), f"an answer for {query[:20]!r}")
    for query in ["", "   ", "\u3000\t", "🦆" * 10_000, "mug " * 2500]:
        found = answer(query)
        check("InvalidArgument" in found.get("error", "") and '"query"' in found["error"].replace(" ", ""),
              f"an error that names query for {query[:8]!r}, {len(query)} characters")
    facets(server, answer)
    check(server.end(signal.SIGTERM) == 0, "SIGTERM ends it with exit code 0")


def facets(server, answer):
    specs = [{"field": "brand"}, {"field": "category"}, {"field": "price", "bounds": [10, 20]}, {"field": "attributes.watts"},
             {"field": "tags", "value_count": 1}, {"field": "in_stock"}]
    first = {"facet_specs": specs, "page_size": 1}
    found = answer("quibbleflax", **first)
    counted = {facet["field"]: [(value.get("value", (value.get("min"), value.get("max"))), value.get("itemCount", "0"))
                                for value in facet.get("values", [])] for facet in found["facets"]}
    check(found["facetItemCount"] == "3" and list(counted) == [spec["field"] for spec in specs], "all in stock are counted")
    check([count for _, count in counted["brand"]] == ["3"] and counted["brand"][0][0].lower() == "zorbo",
          "letter case makes no brand of its own")
    check(counted["category"] == [("Outdoor", "2"), ("Lanterns", "1")] and counted["tags"] == [("gift", "1")],
          "every level of a category is counted")
    check(counted["price"] == [((None, 10), "1"), ((10, 20), "1"), ((20, None), "1")], "prices by the ranges that were sent")
    check(sum(int(count) for _, count in counted["attributes.watts"]) == 2, "numbers of attributes in ranges of their own")
    page = answer("quibbleflax", **first, page_token=found["nextPageToken"])
    check(page["facets"] == found["facets"], "the next page has the same facets")
    less = answer("quibbleflax", **first, filter="price < 20")
    check(less["facetItemCount"] == "2", "the filter counts")
    listed, _ = server.call("lodestone.v1.RankingService/Recommend", {
        "viewer": {"user_id": "words"}, "type": "RECOMMEND_TYPE_FOR_YOU", "filter": 'brand = "Zorbo"',
        "facet_specs": [{"field": "brand"}]})
    check(listed and listed["facetItemCount"] == "3", "a recommendation counts all that is eligible")
    for specs, field in [([{"field": "colour"}], "facet_specs[0].field"),
                         ([{"field": "brand"}, {"field": "brand"}], "facet_specs[1].field"),
                         ([{"field": "price", "bounds": [2, 1]}], "facet_specs[0].bounds"),
                         ([{"field": "brand", "bounds": [1]}], "facet_specs[0].bounds"),
                         ([{"field": "price", "bounds": ["NaN"]}], "facet_specs[0].bounds"),
                         ([{"field": "brand", "value_count": -1}], "facet_specs[0].value_count"),
                         ([{"field": f"attributes.a{n}"} for n in range(21)], "facet_specs")]:
        error = answer("mug", facet_specs=specs).get("error", "").replace(" ", "")
        check("InvalidArgument" in error and f'"field":"{field}"' in error, f"{field} is refused by name")
    many = answer("mug", facet_specs=[{"field": "brand", "value_count": 1000}])
    check(many["info"]["notices"][0]["field"] == "facet_specs[0].value_count", "more values than the limit is said")


with tempfile.TemporaryDirectory() as directory:
    kills(pathlib.Path(directory))
    if os.environ.get("CRASH_ONLY"):
        print(f"server: {len(wrong)} wrong")
        sys.exit(1 if wrong else 0)
    events_of_a_shop(pathlib.Path(directory))
    full_disk(pathlib.Path(directory))
    serving_files(pathlib.Path(directory))
    explained(pathlib.Path(directory))
    words_of_a_search(pathlib.Path(directory))
    model_life(pathlib.Path(directory))
    damaged_bundles(pathlib.Path(directory))
    merges(pathlib.Path(directory))
    sentence_encoder(pathlib.Path(directory))
print(f"server: {len(wrong)} wrong")
sys.exit(1 if wrong else 0)
