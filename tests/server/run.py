"""Tests a server process: SIGKILL during writes, bad requests, damaged files, a full disk, replays, search, rollout,
merges, observability.

Usage: run.py LODESTONE BUNDLE GRPCURL DATA ENCODER. BUNDLE was trained on DATA; ENCODER is a directory with a sentence
encoder, with which another bundle is trained on DATA. Needs ORT_DYLIB_PATH. KILLS=n sets the number of kills (default
3); CRASH_ONLY=1 runs the kills only. Prints each check; exits with 1 if one fails.
"""
import atexit
import hashlib
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

from observability import observability

LODESTONE, BUNDLE, GRPCURL = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
DATA, ENCODER = map(pathlib.Path, sys.argv[4:6])
KILLS = int(os.environ.get("KILLS", "3"))
# ONNX Runtime keeps a database in the home directory for its telemetry. All processes of the user share it, and it may be
# larger than the limit of `full_disk`, which ends the server on startup.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
failures = []


def check(holds, name):
    """Prints a check and notes it if it does not hold."""
    print(f"  {'ok   ' if holds else 'WRONG'} {name}")
    if not holds:
        failures.append(name)


def wait_for(condition, seconds_max, interval=0.05):
    """Tests a condition until it holds, at most for `seconds_max`. Returns whether it holds."""
    deadline = time.monotonic() + seconds_max
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval)
    return True


def check_refused(bundle, data, name, texts, *flags, models=None, listen="127.0.0.1:0", **environment):
    """Checks that a server does not start: it exits with 2, and its message contains all `texts`."""
    models = ["--bundle", str(bundle)] if models is None else models
    command = [LODESTONE, "serve", *models, "--data", str(data), "--listen", listen, *flags]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30, env={**os.environ, **environment})
    check(ran.returncode == 2 and all(text in ran.stderr for text in texts), f"{name}: exit code 2, the message has {texts}")


def damaged_bundles(work):
    """Bundles that the server refuses on startup."""
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
    check_refused(bundle, data, "a bundle with a flipped bit", ["ranker.onnx", "damaged"])
    (bundle / "ranker.onnx").unlink()
    check_refused(bundle, data, "a bundle with a missing file", ["ranker.onnx", "missing"])
    bundle = copy()
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["feature_schema"] = "0" * 16
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    check_refused(bundle, data, "a bundle with another feature schema", ["feature schema"])
    bundle = copy()
    other = (bundle / "query_encoder.onnx").read_bytes()
    (bundle / "ranker.onnx").write_bytes(other)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["ranker.onnx"] = {"bytes": len(other), "sha256": hashlib.sha256(other).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    check_refused(bundle, data, "a bundle with another model as its ranker", ["ranker", "term_ids", "features"])
    check_refused(BUNDLE, data, "a path without ONNX Runtime", ["ONNX Runtime", "ORT_DYLIB_PATH"], ORT_DYLIB_PATH="/nowhere.so")


def serving_files(work):
    """Serving files that the server refuses on startup."""
    bad = work / "bad.toml"
    data = work / "unused"
    for text, texts in [
        ("[configs.default]\ndiversty = 1\n", ["bad.toml", "line 2", "diversty"]),
        ("[configs.x]\ndiversity = 7\ncandidates = 0\n", ["configs.x.diversity", "configs.x.candidates", "within 1 and 1000"]),
        ("[configs.x]\nhead_weights = { love = 1.0 }\n", ["configs.x.head_weights", "no head `love`", "purchase"]),
        ('[[experiments]]\nname = "e"\ninterleave = ["default", "y"]\n', ["experiments[0].interleave", "no configuration `y`"]),
    ]:
        bad.write_text(text)
        check_refused(BUNDLE, data, "an invalid serving file", texts, "--serving", str(bad))
    check_refused(BUNDLE, data, "a missing serving file", ["nowhere.toml"], "--serving", str(work / "nowhere.toml"))
    # No server is asked for a name with more than 63 characters before a dot.
    nowhere, new = "x" * 64 + ":50051", work / "unresolved"
    check_refused(BUNDLE, new, "an unknown host", ["--listen: cannot resolve the host", nowhere], listen=nowhere)
    check_refused(BUNDLE, new, "an unknown host of metrics", ["--metrics-listen: cannot resolve", nowhere], "--metrics-listen", nowhere)
    check_refused(BUNDLE, new, "an address without a port", ["--listen is `localhost`", "HOST:PORT"], listen="localhost")
    check(not new.exists(), "nothing is created before the addresses are known")
    check_refused(BUNDLE, data, "a share above 1", ["--answers-share", "within 0 and 1"], "--answers-share", "2")
    for flag in ["workers", "queue-requests-max", "dedupe-ids-max", "users-max", "event-items-max", "deadline-ms-default", "answers-bytes", "slates-bytes"]:
        check_refused(BUNDLE, data, f"--{flag} of 0", [f"--{flag}", "0"], f"--{flag}", "0")


def several_catalogues(work):
    """Catalogues of a file: refused files, separate items and metrics, a restart."""
    data, file = work / "main", work / "catalogs.toml"
    for text, texts in [
        ("[catalogs.outlet]\ndata = \"o\"\n", ["catalogs.toml", "catalogs.outlet", "either `bundle` or `store`"]),
        (f'[catalogs.default]\nbundle = "{BUNDLE}"\ndata = "{data}"\nworkers = 0\n',
         ["catalogs.default", "catalogs.default.data", "is the data directory of `default` too", "within 1 and 1024"]),
        (f'[catalogs.outlet]\nbundle = "{work / "nowhere"}"\ndata = "{work / "o"}"\n', ["catalogue outlet", "nowhere"]),
    ]:
        file.write_text(text)
        check_refused(BUNDLE, data, "an invalid catalogues file", texts, "--catalogs", str(file))
    file.write_text(f'[catalogs.outlet]\nbundle = "{BUNDLE}"\ndata = "{work / "outlet"}"\nworkers = 1\n')
    upsert, get = "lodestone.v1.CatalogService/UpsertItems", "lodestone.v1.CatalogService/GetItem"
    for is_new in [True, False]:
        server = Server(data, "--catalogs", str(file))
        check(("did not exist and was created" in server.logged()) == is_new, "a new data directory is a warning")
        if is_new:
            server.call(upsert, {"items": [{"item_id": "of-outlet", "title": "Outlet mug"}]}, "outlet")
        answer, _ = server.call(get, {"item_id": "of-outlet"}, "outlet")
        check(answer and answer["item"]["title"] == "Outlet mug", f"an item of another catalogue, {'new' if is_new else 'after a restart'}")
        check("ITEM_NOT_FOUND" in server.call(get, {"item_id": "of-outlet"})[1], "the default catalogue does not have it")
        error = server.call(get, {"item_id": "of-outlet"}, "nowhere")[1]
        check("NotFound" in error and "CATALOG_NOT_FOUND" in error and "outlet" not in error.replace("of-outlet", ""),
              "an unknown catalogue: NOT_FOUND without the names of others")
        items = {name: int(value) for name, value in server.metrics().items() if name.startswith("lodestone_items{")}
        counts = [items['lodestone_items{catalog="outlet"}'], items['lodestone_items{catalog="default"}']]
        check(counts[0] == counts[1] + 1, f"metrics have the label catalog: {items}")
        check(server.end(signal.SIGTERM) == 0, "SIGTERM: exit code 0")


SERVING = """
[configs.default]
[configs.explore]
exploration = { temperature = 0.7, first_slot = 2, top = 30, epsilon_slots = [6], epsilon = 0.5, share = 0.9 }
[configs.diverse]
diversity = 0.4
candidates = 120
repeat_fraction = 0.3
[configs.halves]
repeat_fraction = 0.5
[configs.unbought]
repeat_fraction = 0
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
    """Returns a method and a request with random options, all of which affect the order."""
    def some(count):
        return random.sample(items, count)

    ranks, pinned = random.sample(range(1, 13), 3), random.sample([*some(2), "no-such"], 3)
    options = {"boosts": [{"filter": random.choice(["price > 3", 'title HAS "heart"', "in_stock"]),
                           "factor": random.choice([0.3, 1.7, 4])} for _ in range(random.choice([0, 0, 1, 2]))],
               "pins": [{"item_id": pinned[n], "rank": ranks[n]} for n in range(random.choice([0, 0, 1, 3]))],
               "exclude_item_ids": some(random.choice([0, 3])),
               "serving_config": random.choice(["", "", "default", "explore", "explore", "diverse", "plain"])}
    if random.random() < 0.3:
        options["diversity"] = random.choice([0, 0.2, 0.8])
    if random.random() < 0.15:
        options["order_by"] = random.choice(["price", "price desc, title", "title", "create_time desc, price"])
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
    """Replays, exports and reports of logged answers."""
    data, serving = work / "explained", work / "serving.toml"
    shutil.copytree(DATA, data)
    serving.write_text(SERVING)
    server = Server(data, "--serving", str(serving))
    replay = "lodestone.v1.ExplainService/ReplayAnswer"
    random = Random(7)
    listed, _ = server.call("lodestone.v1.RankingService/Recommend", {
        "viewer": {"user_id": "x"}, "type": "RECOMMEND_TYPE_FOR_YOU", "page_size": 200})
    items = [result["itemId"] for result in listed["results"]]
    # An item that is not in the bundle, so that a replay takes its vectors from the record.
    server.call("lodestone.v1.CatalogService/UpsertItems", {"items": [item("new-heart", "heart holder of red tin", priceMicros="3000000")]})
    for config, expected in [("halves", 10), ("unbought", 0)]:
        answer, _ = server.call("lodestone.v1.RankingService/Recommend", {
            "viewer": {"user_id": "12748"}, "type": "RECOMMEND_TYPE_FOR_YOU", "page_size": 20,
            "options": {"serving_config": config, "debug_level": "DEBUG_LEVEL_FEATURES"}})
        column = answer["info"]["debug"]["featureNames"].index("bought_count")
        repeats = sum(result["debug"]["features"][column] > 0 for result in answer["results"])
        check(repeats == expected, f"{repeats} of 20 recommendations by the configuration {config} were bought before")
    answered, same, explored, arms, tokens = 0, 0, 0, set(), []
    for _ in range(60):
        method, request = any_request(random, [*items, "new-heart"])
        answer, error = server.call(f"lodestone.v1.RankingService/{method}", request)
        if answer is None:
            check(False, f"{method} {request} {error}")
        if not answer or not answer.get("results"):
            continue
        replayed, error = server.call(replay, {"attribution_token": answer["attributionToken"]})
        shown = [(result["itemId"], result.get("score")) for result in answer["results"]]
        again = [(slot["itemId"], slot.get("score")) for slot in (replayed or {}).get("slots", [])]
        answered += 1
        same += bool(replayed) and replayed.get("identical", False) and shown == again
        if not replayed or not replayed.get("identical"):
            check(False, f"{method} {request}: {error} {(replayed or {}).get('firstDifference')}")
        explored += answer["info"].get("explored", False)
        arms |= {(arm["experiment"], arm["arm"]) for arm in answer["info"].get("experimentArms", [])}
        tokens.append(answer["attributionToken"])
    check(same == answered >= 40, f"{same} of {answered} random answers are identical when they are replayed")
    check(explored > 3, f"{explored} of them were explored")
    check({("diversity", "control"), ("diversity", "diverse"), ("rankers", "interleaved")} == arms, f"every arm of the experiments answered: {arms}")

    request = {"viewer": {"user_id": "12347"}, "type": "RECOMMEND_TYPE_FOR_YOU", "page_size": 12,
             "options": {"serving_config": "explore", "pins": [{"item_id": items[0], "rank": 3}]}}
    answer, _ = server.call("lodestone.v1.RankingService/Recommend", request)
    replayed, _ = server.call(replay, {"attribution_token": answer["attributionToken"]})
    slots = replayed["slots"]
    check(slots[0]["conditionalProbability"] == 1 and slots[2]["pinned"] and slots[2]["probability"] == 1,
          "the first slot and the pin have probability 1")
    check(0 < slots[1]["probability"] < 1 and "probabilityStandardError" not in slots[1], "the probability of the first drawn slot is exact")
    check(0 < replayed["pageProbability"] < 1, f"the page had probability {replayed['pageProbability']}")
    check(replayed["recommend"]["viewer"]["userId"] == "12347" and replayed["servingConfigs"] == ["explore"],
          "the replay returns the request and its configuration")
    searched, _ = server.call("lodestone.v1.RankingService/Search", {
        "viewer": {"user_id": "12347"}, "query": "heart", "page_size": 5, "options": {"serving_config": "default"}})
    searched_reasons = [[reason["code"].removeprefix("REASON_CODE_") for reason in result.get("reasons", [])] for result in searched["results"]]
    searched_id = server.call(replay, {"attribution_token": searched["attributionToken"]})[0]["answerId"]
    for token in ["", "Zm9yZ2Vk", tokens[0][:-2] + ("AA" if tokens[0][-2:] != "AA" else "BB")]:
        _, error = server.call(replay, {"attribution_token": token})
        check("InvalidArgument" in error and "ATTRIBUTION_TOKEN_INVALID" in error, f"a forged token is refused {error[:80]}")
    suggested, _ = server.call("lodestone.v1.RankingService/Suggest", {"viewer": {"user_id": "x"}, "prefix": "hea"})
    again, error = server.call(replay, {"attribution_token": suggested["attributionToken"]})
    check(again and again["identical"], f"the answer to a Suggest is replayed {error[:80]}")
    for validate in [False, True]:
        _, error = server.call("lodestone.v1.RankingService/Search", {
            "viewer": {"user_id": "x"}, "query": "mug", "options": {"serving_config": "bold", "validate_only": validate}})
        check("NotFound" in error and "SERVING_CONFIG_NOT_FOUND" in error and "diverse, explore, halves, plain, unbought" in error,
              "an unknown serving configuration: NOT_FOUND, with the names of the known ones")
    metrics = server.metrics()
    check(int(metrics["lodestone_explored_total"]) > 3 and 'lodestone_experiment_answers_total{experiment="rankers",arm="interleaved"}' in metrics,
          "the metrics count explored answers and arms")
    server.call("lodestone.v1.EventService/WriteEvents", {"events": [
        {**view("seen", items[0], "12347"), "attribution_token": answer["attributionToken"]}]})
    check(server.end(signal.SIGTERM) == 0, "SIGTERM: exit code 0")
    server.log.seek(0)
    log = server.log.read()
    check(b"serving" in log and b"\x1b" not in log, "a log that is not a terminal's has no escape sequences")

    out = work / "exported"
    command = [LODESTONE, "answers", "export", "--data", str(data), "--since", "1d", "--out", str(out), "--format", "json"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    exported = json.loads(ran.stdout)
    check(exported["answer_count"] >= answered and exported["torn_byte_count"] == 0 == exported["damaged_block_count"],
          f"all answers are exported: {exported}")
    check(all((out / f"day={day}" / "answers.parquet").is_file() for day in exported["days"]), "the export has a file for each day")
    ran = subprocess.run([LODESTONE, "answers", "show", replayed["answerId"], "--data", str(data)], capture_output=True, text=True, timeout=60)
    check(ran.returncode == 0 and "pinned" in ran.stdout and "serving configuration explore" in ran.stdout, "a record is shown")
    check("type: FOR_YOU" in ran.stdout and f"pins: {items[0]} at 3" in ran.stdout and "PINNED" in ran.stdout,
          f"with its request and the reasons of its results {ran.stdout[:400]}")
    show = [LODESTONE, "answers", "show", searched_id, "--data", str(data)]
    ran = subprocess.run([*show, "--format", "json"], capture_output=True, text=True, timeout=60)
    shown = json.loads(ran.stdout)
    sums = [(slot["score"], sum(head["weight"] * head["probability"] for head in slot["explanation"]["heads"]) + slot["explanation"]["tier"])
            for slot in shown["slots"] if slot["explanation"]]
    check(shown["request"]["query"] == "heart" and sums and all(abs(score - total) < 1e-3 for score, total in sums),
          f"the parts of a search's scores make the scores {sums[:3]}")
    check([slot["reasons"] for slot in shown["slots"]] == searched_reasons, "the reasons are those of the answer")
    ran = subprocess.run(show, capture_output=True, text=True, timeout=60)
    check("query: heart" in ran.stdout and "score = " in ran.stdout and "found by lexical" in ran.stdout, "a search is explained")
    ran = subprocess.run([LODESTONE, "answers", "show", "00000000-0000-7000-8000-000000000000", "--data", str(data)],
                         capture_output=True, text=True, timeout=60)
    check(ran.returncode == 1 and "no record" in ran.stdout, "an unknown record: exit code 1")

    # Experiments and off-policy estimates from the exported answers.
    outcomes = work / "outcomes.jsonl"
    outcomes.write_text(json.dumps({"user": "u:12347", "time_ms": int(time.time() * 1000), "type": "view", "item": items[0]}) + "\n")
    for experiment, text in [("diversity", "control (control)"), ("rankers", "interleaving by view")]:
        ran = subprocess.run([LODESTONE, "experiment", "report", "--answers", str(out), "--events", str(outcomes), "--experiment", experiment],
                             capture_output=True, text=True, timeout=60)
        check(ran.returncode == 0 and text in ran.stdout, f"the experiment {experiment} is reported {ran.stderr}")
    evaluate = [LODESTONE, "evaluate", "--off-policy", "--events", str(outcomes), "--format", "json", "--answers"]
    ran = subprocess.run([*evaluate, str(out), "--reward", "view"], capture_output=True, text=True, timeout=60)
    estimate = json.loads(ran.stdout or "{}")
    check(ran.returncode in (0, 1) and estimate["answers"] >= answered and estimate["same_slots"] > 0,
          f"the value of the order without exploration is estimated {ran.stderr}")
    ran = subprocess.run([*evaluate, str(data / "answers"), "--reward", "view", "--serving", str(serving), "--serving-config", "plain"], capture_output=True, text=True,
                         timeout=60)
    estimate = json.loads(ran.stdout or "{}")
    ran_wrong = subprocess.run([*evaluate, str(out), "--reward", "zz"], capture_output=True, text=True, timeout=60)
    check(ran_wrong.returncode == 2 and all(word in ran_wrong.stderr for word in ["--reward is `zz`", "click, add_to_cart", "outcomes.jsonl has view"]),
          f"an unknown reward is refused with the known ones {ran_wrong.stderr}")
    check(estimate["answers"] > 5 and estimate["left_out"] > 0 and estimate["answers"] + estimate["left_out"] >= answered,
          f"the value of another configuration is estimated from the records that allow it {estimate} {ran.stderr}")

    # A process that is killed while it writes leaves a torn block; the records before it stay readable after a restart.
    newest = max((data / "answers").glob("*.answers"))
    with open(newest, "ab") as file:
        file.write(b"\x40\x00\x00\x00 half of a header")
    server = Server(data, "--serving", str(serving))
    same = [bool((server.call(replay, {"attribution_token": token})[0] or {}).get("identical")) for token in tokens[-5:]]
    check(all(same), f"answers from before the restart are replayed {same}")
    server.end(signal.SIGTERM)
    other = work / "other-bundle"
    shutil.copytree(BUNDLE, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "name": "another"}))
    server = Server(data, "--answers-share", "0", bundle=other)
    _, error = server.call(replay, {"attribution_token": tokens[-1]})
    check("FailedPrecondition" in error and "the current one is another" in error, "an answer of a bundle that is not loaded: FAILED_PRECONDITION")
    answer, _ = server.call("lodestone.v1.RankingService/Search", {"viewer": {"user_id": "x"}, "query": "mug"})
    _, error = server.call(replay, {"attribution_token": answer["attributionToken"]})
    check("NotFound" in error, "with a share of 0 no answer is logged")
    check(server.end(signal.SIGTERM) == 0, "SIGTERM: exit code 0")


def free_address(host="127.0.0.1"):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"{host}:{free.getsockname()[1]}"


class Server:
    """A server process on free ports, ready when the constructor returns. It is killed when the tests end.

    `file_bytes_max` limits the size of files that it writes. `host` is the name or address of this machine that it
    listens on.
    """

    def __init__(self, data, *flags, bundle=BUNDLE, store=None, file_bytes_max=None, host="127.0.0.1"):
        self.address, self.metrics_address = free_address(host), free_address(host)
        models = ["--store", str(store)] if store else ["--bundle", str(bundle)]
        command = [LODESTONE, "serve", *models, "--data", str(data), "--listen", self.address,
                   "--metrics-listen", self.metrics_address, *flags]
        self.log = tempfile.TemporaryFile()
        limit = file_bytes_max and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes_max, file_bytes_max)))
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self.log, preexec_fn=limit)
        atexit.register(self.process.kill)

        def is_healthy_or_ended():
            return self.call("grpc.health.v1.Health/Check", {})[0] or self.process.poll() is not None

        if not wait_for(is_healthy_or_ended, 60, 0.1) or self.process.poll() is not None:
            raise SystemExit(f"the server did not start within 60 s; exit code {self.process.poll()}")

    def call(self, method, request, catalog=""):
        """Calls a method through grpcurl. Returns the response and "", or None and the error."""
        metadata = ["-H", f"lodestone-catalog: {catalog}"] if catalog else []
        ran = subprocess.run([GRPCURL, "-plaintext", *metadata, "-d", "@", self.address, method], input=json.dumps(request),
                             capture_output=True, text=True, timeout=60)
        return (json.loads(ran.stdout), "") if ran.returncode == 0 else (None, ran.stderr)

    def metrics(self):
        """Returns the metrics by name with labels, as texts."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))

    def logged(self):
        """Returns what the server has logged so far."""
        position = self.log.tell()
        self.log.seek(0)
        text = self.log.read().decode()
        self.log.seek(position)
        return text

    def end(self, signal_number):
        """Sends a signal and returns the exit code."""
        self.process.send_signal(signal_number)
        return self.process.wait(timeout=30)


def view(event_id, item="kill-item", user="kill"):
    return {"event_id": event_id, "type": "EVENT_TYPE_VIEW", "viewer": {"user_id": user}, "lines": [{"item_id": item}]}


def kills(work):
    """SIGKILL during writes: every acknowledged event and item is there after the restarts."""
    data = work / "killed"
    acknowledged, state, wrong_states = [], None, 0
    recently_viewed = {"viewer": {"user_id": "seer"}, "type": "RECOMMEND_TYPE_RECENTLY_VIEWED", "page_size": 100}
    write, upsert = "lodestone.v1.EventService/WriteEvents", "lodestone.v1.CatalogService/UpsertItems"
    for round in range(KILLS):
        server = Server(data)
        after, error = server.call("lodestone.v1.RankingService/Recommend", recently_viewed)
        after = [result["itemId"] for result in after.get("results", [])] if after else error
        wrong_states += state is not None and after != state
        server.call(upsert, {"items": [{"item_id": f"kill-{round}", "title": f"kept through kill {round}"}]})
        for batch in range(5):
            ids = [f"k-{round}-{batch}-{n}" for n in range(20)]
            answer, error = server.call(write, {"events": [view(id) for id in ids]})
            acknowledged.extend(ids if answer else [])
        server.call(write, {"events": [view(f"seen-{round}", f"kill-{round}", "seer")]})
        state, _ = server.call("lodestone.v1.RankingService/Recommend", recently_viewed)
        state = [result["itemId"] for result in state.get("results", [])]
        # Another write is in progress when the process is killed.
        late = subprocess.Popen([GRPCURL, "-plaintext", "-d", json.dumps({"events": [view(f"late-{round}")]}),
                                 server.address, write], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        server.end(signal.SIGKILL)
        late.wait()
    check(wrong_states == 0 and len(state) == min(KILLS, 100), f"a user's recently viewed items are the same after each kill: {len(state)} items")
    server = Server(data)
    answer, _ = server.call(write, {"events": [view(id) for id in acknowledged[-10_000:]]})
    known = [result["status"] for result in answer["results"]].count("EVENT_STATUS_DUPLICATE")
    check(known == len(acknowledged[-10_000:]) > 0, f"{known} of the last {len(acknowledged[-10_000:])} acknowledged events survived {KILLS} kills")
    for round in range(KILLS):
        answer, _ = server.call("lodestone.v1.CatalogService/GetItem", {"item_id": f"kill-{round}"})
        check(answer is not None, f"the item of round {round} survived")
    bad_requests(server)
    load_test(server, work)
    check(server.end(signal.SIGTERM) == 0, "SIGTERM: exit code 0")


def load_test(server, work):
    """The load test writes latencies to a file."""
    def run(file):
        return subprocess.run([LODESTONE, "load-test", "--address", server.address, "--data", DATA, "--connections", "2", "--seconds", "1",
                               "--rate", "50", "--only-rate", "--latencies", file], capture_output=True, text=True, timeout=60)

    began = time.time()
    ran = run(work / "latencies.csv")
    head, *lines = (work / "latencies.csv").read_text().splitlines()
    dues = [int(line.split(",")[0]) / 1e6 for line in lines]
    check(ran.returncode == 0 and head == "due_unix_us,latency_us,is_answered" and len(lines) == 50
          and all(line.endswith(",true") for line in lines) and began < min(dues) < max(dues) < time.time(),
          f"a load test writes the due time and latency of each request: {len(lines)} {ran.stderr}")
    ran = run(work / "nowhere" / "latencies.csv")
    check(ran.returncode == 2 and "--latencies" in ran.stderr, f"a path that cannot be written: exit code 2 {ran.stderr}")


def bad_requests(server):
    """Invalid requests name their fields; values above a limit are reduced with a notice; metrics count the calls."""
    def violations(method, request, fields):
        answer, error = server.call(method, request)
        named = [field for field in fields if f'"field":"{field}"' in error.replace(" ", "")]
        check(answer is None and "InvalidArgument" in error and named == fields, f"{method} names {fields}")

    search, recommend = "lodestone.v1.RankingService/Search", "lodestone.v1.RankingService/Recommend"
    violations(search, {"viewer": {}, "query": "x" * 200_000, "page_size": -1, "filter": "price <"},
               ["viewer", "query", "page_size", "filter"])
    violations(search, {"viewer": {"user_id": "u"}, "query": "mug", "page_token": "foreign"}, ["page_token"])
    violations(search, {"viewer": {"user_id": "u"}, "query": "mug", "options": {"diversity": "NaN"}},
               ["options.diversity"])
    violations(search, {"viewer": {"user_id": "u", "locale": "!!!", "region_code": "1!"}, "query": "mug", "filter": 'title HAS ""'},
               ["viewer.locale", "viewer.region_code", "filter"])
    violations(recommend, {"viewer": {"user_id": "u"}, "type": 77}, ["type"])
    violations("lodestone.v1.EventService/WriteEvents", {"events": [view(str(n)) for n in range(10_001)]}, ["events"])
    answer, _ = server.call(search, {"viewer": {"user_id": "unknown-user"}, "query": "mug", "page_size": 5000})
    check(answer and answer["info"]["notices"][0]["field"] == "page_size", "a page size above the limit: a notice")
    first = {"viewer": {"user_id": "unknown-user"}, "query": "mug", "page_size": 2}
    answer, _ = server.call(search, first)
    again = {**first, "page_token": answer["nextPageToken"]}
    page, error = server.call(search, {**again, "options": {"request_id": "another"}})
    check(page and page["results"][0]["rank"] == 3, f"a page token is valid with another request id {error}")
    violations(search, {**again, "query": "cup"}, ["page_token"])
    answer, _ = server.call(recommend, {"viewer": {"user_id": "unknown-user"}, "type": "RECOMMEND_TYPE_SIMILAR",
                                        "anchor_item_ids": ["no-such-item"]})
    check(answer and answer["info"]["unknownItemIds"] == ["no-such-item"]
          and [entry["code"] for entry in answer["info"]["degradations"]] == ["DEGRADATION_CODE_ANCHORS_UNKNOWN"],
          "unknown items are listed and not refused; that no anchor is known is declared")
    request = {"viewer": {"user_id": "unknown-user"}, "query": "mug", "options": {"debug_level": "DEBUG_LEVEL_TIMINGS"}}
    answer, _ = server.call(search, request)
    strategies = {source["source"]: source.get("strategy", "") for source in answer["info"]["debug"]["sources"]}
    check(strategies.get("query_vector") in ("walk", "scan") and strategies["lexical"] == "",
          f"the debug information has the search strategy of each source: {strategies}")
    metrics = server.metrics()
    check(int(metrics['lodestone_requests_total{rpc="Search",code="INVALID_ARGUMENT"}']) >= 3
          and int(metrics['lodestone_requests_total{rpc="Recommend",code="OK"}']) == 1
          and int(metrics['lodestone_stage_seconds_count{stage="rank"}']) >= 2
          and int(metrics["lodestone_written_total{outcome=\"duplicate\"}"]) > 0
          and int(metrics["lodestone_panics_total"]) == 0, "the metrics count all of these calls")


def first_titles(server, query):
    """Returns the titles of the first three results, or the error."""
    answer, error = server.call("lodestone.v1.RankingService/Search", {
        "viewer": {"visitor_id": "v-1"}, "query": query, "page_size": 3, "options": {"read_mask": {"paths": ["*"]}}})
    return [result["item"]["title"] for result in answer.get("results", [])] if answer else [error]


WRITE, STREAM = "lodestone.v1.EventService/WriteEvents", "lodestone.v1.EventService/StreamEvents"
RECOMMEND = "lodestone.v1.RankingService/Recommend"


def check_stream_order(data):
    """The messages of a stream are stored in their order."""
    data.mkdir()
    shutil.copy(DATA / "events.parquet", data)
    server = Server(data)
    answer, _ = server.call(RECOMMEND, {"viewer": {"user_id": "order"}, "type": "RECOMMEND_TYPE_FOR_YOU", "page_size": 100})
    items = [result["itemId"] for result in answer["results"]]
    # At one time, so that the order of the user's history is that of the log.
    messages = [{"events": [{**view(f"order-{n}", item, "order"), "occurred_time": "2026-01-01T00:00:00Z"}]}
                for n, item in enumerate(items)]
    subprocess.run([GRPCURL, "-plaintext", "-d", "@", server.address, STREAM], capture_output=True, text=True,
                   input="".join(map(json.dumps, messages)), timeout=60)
    answer, _ = server.call(RECOMMEND, {"viewer": {"user_id": "order"}, "type": "RECOMMEND_TYPE_RECENTLY_VIEWED", "page_size": 100})
    viewed = [result["itemId"] for result in answer["results"]]
    check(len(items) > 50 and viewed == items[::-1], f"the {len(items)} messages of a stream are stored in their order")
    server.end(signal.SIGTERM)


def consistency_token(token, position):
    """Returns the token of another position of the log of a token."""
    log = token[16:24]
    check = hashlib.sha256(position.to_bytes(8, "big") + bytes.fromhex(log)).hexdigest()[:4]
    return f"{position:016x}{log}{check}"


def json_objects(text):
    """Returns the objects of a text that has one after the other, as grpcurl prints the responses of a stream."""
    decoder, objects, at = json.JSONDecoder(), [], 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        found, at = decoder.raw_decode(text, at)
        objects.append(found)
    return objects


def event_ingestion(work):
    """Events of a stream, with forged tokens, from wrong clocks; consistency tokens from the future; export."""
    data = work / "events"
    server = Server(data)
    messages = [{"events": [view(f"s-{batch}-{n}", user="stream") for n in range(500)]} for batch in range(4)]
    messages[1]["events"][7] = view("s-0-3", user="stream")
    messages[2]["events"][9] = {"event_id": "bad", "type": "EVENT_TYPE_VIEW", "viewer": {"user_id": "stream"}}
    ran = subprocess.run([GRPCURL, "-plaintext", "-d", "@", server.address, STREAM], capture_output=True, text=True,
                         input="".join(map(json.dumps, messages)), timeout=60)
    answers = json_objects(ran.stdout)
    watermarks = [int(answer["counts"]["eventCount"]) for answer in answers]
    check(watermarks == [500, 1000, 1500, 2000], f"each message of a stream is answered in order: {watermarks} {ran.stderr}")
    stored = answers[-1]["consistencyToken"]
    counts = [int(answers[-1]["counts"].get(f"{name}Count", 0)) for name in ("event", "accepted", "duplicate", "rejected")]
    check(counts == [2000, 1998, 1, 1] and int(answers[-1]["consistencyToken"][:16], 16) == 1998, f"the events of a stream are counted: {counts}")
    # Accepted events are listed too, because the catalogue does not have their item.
    listed = [(int(entry.get("index", 0)), entry["result"]["status"]) for answer in answers for entry in answer.get("results", [])
              if entry["result"]["status"] != "EVENT_STATUS_ACCEPTED"]
    check(listed == [(507, "EVENT_STATUS_DUPLICATE"), (1009, "EVENT_STATUS_REJECTED")], f"duplicates and rejected events are listed by index: {listed}")
    answer, _ = server.call(WRITE, {"events": [{**view("forged"), "attribution_token": "forged"}]})
    check(answer["results"][0]["status"] == "EVENT_STATUS_ACCEPTED"
          and "events[0].attribution_token" in [warning["field"] for warning in answer["results"][0]["warnings"]],
          "a forged token is accepted with a warning")
    ahead = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    answer, _ = server.call(WRITE, {"events": [{**view("ahead"), "occurred_time": ahead}]})
    reason = answer["results"][0]["violations"][0]["description"]
    check(ahead[:16] in reason and time.strftime("%Y-%m-%dT", time.gmtime()) in reason.split("server's")[1],
          f"an event an hour ahead is rejected with both times: {reason}")
    started = time.monotonic()
    answer, error = server.call(RECOMMEND, {"viewer": {"user_id": "stream"}, "type": "RECOMMEND_TYPE_FOR_YOU",
                                            "options": {"consistency_token": consistency_token(stored, 10**15)}})
    waited = time.monotonic() - started
    codes = [entry["code"] for entry in (answer or {"info": {}})["info"].get("degradations", [])]
    check("DEGRADATION_CODE_STALE_STATE" in codes and 0.4 < waited, f"an answer waits {waited:.2f} s for a position in the future and declares STALE_STATE {error}")
    check(server.end(signal.SIGTERM) == 0, "SIGTERM: exit code 0")
    ran = subprocess.run([LODESTONE, "events", "export", "--data", str(data), "--since", "2020-01-01", "--out",
                          str(work / "exported"), "--format", "json"], capture_output=True, text=True)
    exported = json.loads(ran.stdout)
    check(exported["events"] == 1999 and exported["foreign"] == 1, "the export has all events and marks the forged token")
    damaged_log(data, exported["events"])
    check_stream_order(work / "ordered")


def damaged_log(data, count):
    """A torn tail is cut; a server refuses damage in the middle and in the last record, and names the byte; a repair
    reports the records that it drops."""
    def verify(*flags):
        ran = subprocess.run([LODESTONE, "events", "verify", "--data", str(data), *flags], capture_output=True, text=True)
        return ran.returncode, ran.stdout

    log = sorted((data / "log").glob("*.log"))[0]
    whole = log.read_bytes()
    check(verify()[0] == 0, "verify: exit code 0 for an intact log")
    last_flipped = bytearray(whole)
    last_flipped[-10] ^= 1
    log.write_bytes(last_flipped)
    check_refused(BUNDLE, data, "a flipped bit in the last acknowledged record", [log.name, "byte", f"position {count}:", "events verify"])
    check(verify()[0] == 1 and log.read_bytes() == last_flipped, "verify: exit code 1 for the last record, which stays in the file")
    log.write_bytes(whole[:-5])
    code, report = verify()
    check(code == 0 and "interrupted write" in report, "verify reports a torn tail")
    server = Server(data)
    answer, _ = server.call(WRITE, {"events": [view("forged"), view("s-3-3", user="stream")]})
    check([result["status"] for result in answer["results"]] == ["EVENT_STATUS_ACCEPTED", "EVENT_STATUS_DUPLICATE"],
          "only the torn last record is lost")
    server.end(signal.SIGTERM)
    flipped = bytearray(log.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    log.write_bytes(flipped)
    check_refused(BUNDLE, data, "damage in the middle of the log", [log.name, "byte", "position", "events verify"])
    code, report = verify()
    check(code == 1 and "DAMAGED" in report and "a repair drops 1 records" in report, "verify: exit code 1 and the records that a repair drops")
    code, report = verify("--repair")
    check(code == 0 and report.index("DAMAGED") < report.index("repaired:") and log.with_suffix(".damaged").exists(),
          "a repair reports the damage, then drops it and keeps the old file")
    server = Server(data)
    check(int(server.metrics()["lodestone_log_position"]) == count, "the log continues at its position")
    server.end(signal.SIGTERM)


def lost_log(work):
    """A server whose log is removed or moved takes no writes, keeps answering, and does not start with a new log."""
    def health(service):
        answer, error = server.call("grpc.health.v1.Health/Check", {"service": service})
        return answer["status"] if answer else error

    def is_reported(status):
        return wait_for(lambda: all(health(f"lodestone.v1.{name}") == status for name in ["EventService", "CatalogService"]), 5)

    def refused(request, method=WRITE):
        answer, error = server.call(method, request)
        # The file without its directory.
        names_file = "is no longer the file of the event log" in error and str(data) not in error and "move it back" in error and "events verify --repair" in error
        return answer is None and "Unavailable" in error and "LOG_DISPLACED" in error and names_file

    data, moved = work / "lost", work / "lost-log"
    data.mkdir()
    shutil.copy(DATA / "events.parquet", data)
    server = Server(data)
    server.call(WRITE, {"events": [view("before")]})
    (data / "log").rename(moved)
    # The first write after the move, without a wait.
    check(refused({"events": [view("moved")]}), "the first write after the log was moved is refused as LOG_DISPLACED")
    check(refused({"events": [view("before")]}), "a duplicate is not acknowledged either")
    check(refused({"items": [{"item_id": "moved", "title": "moved"}]}, "lodestone.v1.CatalogService/UpsertItems"), "an item is refused")
    check(is_reported("NOT_SERVING") and health("") == "SERVING", "health: events and catalogue are NOT_SERVING, the server is SERVING")
    check(server.metrics()["lodestone_log_writable"] == "0", "the metric says that the log takes no writes")
    answer, error = server.call(RECOMMEND, {"viewer": {"user_id": "kill"}, "type": "RECOMMEND_TYPE_FOR_YOU"})
    check(answer and answer["results"], f"requests are still answered {error}")
    check_refused(BUNDLE, data, "a second server on the directory without its log", [str(data / "log"), "has no event log", "moved or removed", "events verify --data", "--repair"])
    ran = subprocess.run([LODESTONE, "events", "verify", "--data", str(data)], capture_output=True, text=True, timeout=60)
    check(ran.returncode == 2 and "has no event log, but a server has used the data directory" in ran.stderr, f"verify says the same {ran.stderr}")
    moved.rename(data / "log")
    check(is_reported("SERVING"), "health: SERVING when the log is back")
    check(server.metrics()["lodestone_log_writable"] == "1", "the metric says that the log takes writes again")
    answer, error = server.call(WRITE, {"events": [view("after"), view("before")]})
    check(answer and [result["status"] for result in answer["results"]] == ["EVENT_STATUS_ACCEPTED", "EVENT_STATUS_DUPLICATE"],
          f"writes continue when the log is back {error}")
    shutil.rmtree(data / "log")
    check(is_reported("NOT_SERVING"), "health: NOT_SERVING after the log was removed, without a write")
    check(refused({"events": [view("removed")]}), "a write after the log was removed is refused")
    check(server.end(signal.SIGTERM) == 0, "SIGTERM: exit code 0")
    check_refused(BUNDLE, data, "a removed log", ["has no event log", "moved or removed", "events verify --data", "--repair"])
    ran = subprocess.run([LODESTONE, "events", "verify", "--data", str(data), "--repair"], capture_output=True, text=True)
    check(ran.returncode == 0 and "repaired" in ran.stdout, f"verify --repair goes on without the log {ran.stderr}")
    server = Server(data)
    answer, _ = server.call(WRITE, {"events": [view("new")]})
    check(int(answer["consistencyToken"][:16], 16) > 2**32, "no position is issued twice")
    server.end(signal.SIGTERM)
    key = data / "token.key"
    check(key.stat().st_mode & 0o777 == 0o600, "only the owner can read token.key")
    whole = key.read_bytes()
    for damaged in [whole[:-1], bytes([whole[0] ^ 1]) + whole[1:], b""]:
        key.write_bytes(damaged)
        check_refused(BUNDLE, data, f"a token.key with {len(damaged)} bytes", ["token.key is damaged", "restore it from a backup"])
        check(key.read_bytes() == damaged, "the damaged key stays as it is")


def full_disk(work):
    """Files of at most 100,000 bytes, which a write exceeds with the same effect as a full disk."""
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
    check(answer and len(answer["results"]) == 3, "requests are still answered")
    answer, again = server.call(WRITE, {"events": [view(f"x-{n}", user="full") for n in range(100)]})
    check(answer is None and "ResourceExhausted" in again, "the next write is refused too")
    small, _ = server.call(WRITE, {"events": [view("small", user="full")]})
    stored.extend(["small"] if small else [])
    server.end(signal.SIGKILL)
    server = Server(data)
    answer, _ = server.call(WRITE, {"events": [view(id, user="full") for id in stored]})
    known = [result["status"] for result in answer["results"]].count("EVENT_STATUS_DUPLICATE")
    check(known == len(stored) == int(server.metrics()["lodestone_log_position"]), "without the limit, every acknowledged event is there")
    server.end(signal.SIGTERM)


def merges(work):
    """6,000 new items, which the server merges into a new frozen graph while it answers and writes."""
    server = Server(work / "merged")
    upsert = "lodestone.v1.CatalogService/UpsertItems"
    for batch in range(12):
        answer, error = server.call(upsert, {"items": [
            {"item_id": f"live-{batch}-{n}", "title": f"azure widget number {batch * 500 + n}"} for n in range(500)]})
        check(answer is not None, f"batch {batch} of 500 items is written {error}")
    server.call("lodestone.v1.CatalogService/DeleteItems", {"item_ids": ["live-11-499"]})
    answers = 0

    def has_merged():
        nonlocal answers
        found = first_titles(server, "azure widget number 5001")
        answers += bool(found) and found[0].startswith("azure widget")
        return int(server.metrics()["lodestone_merges"]) > 0

    wait_for(has_merged, 120)
    check(answers > 0 and int(server.metrics()["lodestone_merges"]) > 0, f"the items are merged, and {answers} searches meanwhile are answered")
    check(int(server.metrics()["lodestone_live_items"]) < 6000, "merged items leave the live graph")
    check(first_titles(server, "azure widget number 5001")[0] == "azure widget number 5001", "a merged item is found")
    check("azure widget number 5999" not in first_titles(server, "azure widget number 5999"), "a deleted item is not found")
    server.call(upsert, {"items": [{"item_id": "late", "title": "crimson gadget"}]})
    check(first_titles(server, "crimson gadget")[0] == "crimson gadget", "an item that is written after the merge is found")
    check(server.end(signal.SIGTERM) == 0, "SIGTERM: exit code 0")


def sentence_encoder(work):
    """A bundle that is trained with an external sentence encoder."""
    bundle = work / "sentence-bundle"
    ran = subprocess.run([LODESTONE, "train", "--data", str(DATA), "--out", str(bundle), "--query-encoder", str(ENCODER), "--query-prefix", "", "--passage-prefix", ""],
                         capture_output=True, text=True, timeout=900)
    check(ran.returncode == 0, f"training with a sentence encoder {ran.stderr[-300:] if ran.returncode else ''}")
    server = Server(work / "sentence", bundle=bundle)
    found = first_titles(server, "timepiece")
    check(any("CLOCK" in title.upper() for title in found), f"a search finds items without any word of the query: {found}")
    for query in ["zzqxv blorp", "prime minister election results"]:
        check(first_titles(server, query) == [], f"a search without a relevant item is empty: {query}")
    server.call("lodestone.v1.CatalogService/UpsertItems", {"items": [{"item_id": "new", "title": "Bicycle pump"}]})
    found = first_titles(server, "cyclist tyre inflator")
    check("Bicycle pump" in found, f"a search finds an item that was written after the training: {found}")
    check(server.end(signal.SIGTERM) == 0, "SIGTERM: exit code 0")
    check_refused(BUNDLE.parent / "no-such", work / "data", "a missing bundle", ["no-such"])


def renamed(bundle, target, name):
    """Copies a bundle to `target` under another name. Returns `target`."""
    shutil.copytree(bundle, target)
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["name"] = name
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def publish(bundle, store):
    """Publishes a bundle. Returns the exit code and the output."""
    ran = subprocess.run([LODESTONE, "bundle", "publish", "--bundle", str(bundle), "--store", str(store)],
                         capture_output=True, text=True, timeout=60)
    return ran.returncode, ran.stdout + ran.stderr


def rollout(work):
    """Bundles are published, activated, refused, tried as canary and shadow, and rolled back, while the server answers."""
    store, service = work / "store", "lodestone.v1.ModelService"
    check_refused(BUNDLE, work / "unused", "an empty store", ["publish one"], *["--store", str(store)], models=[])
    first = json.loads((BUNDLE / "manifest.json").read_text())["name"]
    code, output = publish(BUNDLE, store)
    check(code == 0 and first in output, f"a bundle is published: {output.strip()}")
    server = Server(work / "rollout", "--watch-seconds", "0.2", store=store)

    def states():
        answer, error = server.call(f"{service}/ListBundles", {})
        return {bundle["name"]: bundle for bundle in answer["bundles"]} if answer else {"error": error}

    def reaches(name, state):
        return wait_for(lambda: states().get(name, {}).get("state") == f"BUNDLE_STATE_{state}", 60, 0.1)

    def generation(user="u"):
        answer, error = server.call("lodestone.v1.RankingService/Recommend", {
            "viewer": {"user_id": user}, "type": "RECOMMEND_TYPE_FOR_YOU", "page_size": 3})
        return answer["info"]["generation"] if answer else error

    check(generation() == first and states()[first]["state"] == "BUNDLE_STATE_CURRENT", "the current bundle of the store answers")
    check(publish(renamed(BUNDLE, work / "second", "second"), store)[0] == 0 and reaches("second", "CURRENT"),
          "a bundle that is published later is activated without a call")
    check(generation() == "second" and reaches(first, "KEPT"), "it answers, and the previous bundle is kept")
    third = renamed(BUNDLE, work / "third", "third")
    content = bytearray((third / "ranker.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    code, output = publish(third, store) if (third / "ranker.onnx").write_bytes(content) else (0, "")
    check(code == 2 and "damaged" in output, "a damaged bundle is not published")
    shutil.copytree(third, store / "third")
    answer, error = server.call(f"{service}/ActivateBundle", {"bundle": "third"})
    check(answer is None and "FailedPrecondition" in error and "damaged" in error and "BUNDLE_REFUSED" in error,
          "a bundle that is damaged in the store is refused with the reason")
    check(generation() == "second" and "damaged" in states()["third"].get("reason", ""), "the current bundle goes on")
    answer, error = server.call(f"{service}/ActivateBundle", {"bundle": "../second"})
    check(answer is None and "NotFound" in error and "BUNDLE_NOT_FOUND" in error, "an unknown bundle: NOT_FOUND")
    answer, error = server.call(f"{service}/SetCanary", {"bundle": first, "share": 1.5})
    check(answer is None and "InvalidArgument" in error and '"share"' in error.replace(" ", ""), "a share above 1 is refused")
    answer, error = server.call(f"{service}/SetCanary", {"bundle": first, "share": 0.5})
    check(answer and answer["bundle"]["state"] == "BUNDLE_STATE_CANARY", f"a canary is set {error}")
    shared = [generation(f"user-{n}") for n in range(20)]
    check(3 <= shared.count(first) <= 17 and shared == [generation(f"user-{n}") for n in range(20)],
          f"the canary answers {shared.count(first)} of 20 users, and the same users again")
    server.call(f"{service}/SetShadow", {"bundle": first, "share": 1})
    for n in range(10):
        first_titles(server, f"{['red', 'blue', 'white'][n % 3]} {['mug', 'bag', 'light', 'box'][n % 4]}")

    def shadow():
        return states()[first].get("shadow", {})

    wait_for(lambda: int(shadow().get("requestCount", 0)) >= 10, 60)
    report = shadow()
    check(int(report.get("requestCount", 0)) == 10 and report.get("rankCorrelation", 0) > 0.99,
          f"a shadow with the same content returns the same order: {report}")
    server.call(f"{service}/SetShadow", {})
    answer, error = server.call(f"{service}/ActivateBundle", {"bundle": first})
    check(answer and answer["bundle"]["state"] == "BUNDLE_STATE_CURRENT" and generation() == first, f"a bundle is activated by name {error}")
    answer, error = server.call(f"{service}/RollbackBundle", {"reason": "the tests say so"})
    check(answer and generation() == "second" and states()[first]["reason"] == "the tests say so", f"a bundle is rolled back {error}")
    for method, request, reason in [("RollbackBundle", {}, "NO_EARLIER_BUNDLE"), ("ActivateBundle", {"bundle": "nowhere"}, "BUNDLE_NOT_FOUND"),
                                    ("SetCanary", {"bundle": "second", "share": 0.5}, "BUNDLE_IS_CURRENT")]:
        answer, error = server.call(f"{service}/{method}", request)
        check(answer is None and reason in error, f"{method} that cannot be executed: {reason} {error}")
    warnings = [line for line in server.logged().splitlines() if " WARN " in line and "command" in line]
    check(len(warnings) == 1 and "bundle `third` is refused" in warnings[0], f"mistakes of a caller are no warnings {warnings}")
    metrics = server.metrics()
    check(int(metrics['lodestone_bundle_changes_total{outcome="rolled_back"}']) == 1
          and int(metrics['lodestone_bundle_changes_total{outcome="refused"}']) == 1
          and any('generation="second"' in name for name in metrics), "the metrics count the changes")
    check(server.end(signal.SIGTERM) == 0, "SIGTERM: exit code 0")


def item(item_id, title, **fields):
    return {"item_id": item_id, "title": title, **fields}


def searches(work):
    """Synonyms, corrections, ids, units, unusual queries, facets."""
    bad, good = work / "bad.txt", work / "synonyms.txt"
    bad.write_text("sofa, couch\nlonely\n")
    check_refused(BUNDLE, work / "unused", "an invalid line of synonyms", ["bad.txt", "line 2", "has a single term"],
            "--synonyms", str(bad))
    check_refused(BUNDLE, work / "unused", "a missing file of synonyms", ["nowhere.txt"], "--synonyms", str(work / "nowhere.txt"))
    good.write_text("# tests\nzibble, quibbleflax\n灯笼, quibbleflax\nworp => lantern\n")
    serving = work / "relevance.toml"
    serving.write_text("[configs.everything]\nquery_cosine_min = -1.0\n")
    server = Server(work / "words", "--synonyms", str(good), "--serving", str(serving))
    search = "lodestone.v1.RankingService/Search"

    def answer(query, **fields):
        found, error = server.call(search, {"viewer": {"user_id": "words"}, "query": query, **fields})
        return found or {"error": error}

    def ids(query, **fields):
        return [result["itemId"] for result in answer(query, **fields).get("results", [])]

    server.call("lodestone.v1.CatalogService/UpsertItems", {"items": [
        item("QX-100", "Quibbleflax lantern 10 ft", brand="Zorbo", categories=["Outdoor > Lanterns"], priceMicros="5000000",
             attributes={"sku": {"text": "ZB 77/1"}, "watts": {"number": 40}}),
        item("QX-200", "Quibbleflax lantern red", brand="ZORBO", categories=["Outdoor"], priceMicros="15000000",
             tags=["gift"], attributes={"watts": {"number": 60}}),
        item("QX-300", "Quibbleflax lamp for QX-200", brand="Other", categories=["Outdoor"], stockQuantity="0"),
        item("QX-400", "Quibbleflax tin QX 200 spare parts", brand="Zorbo", priceMicros="25000000"),
    ]})
    found = answer("quibleflax lantern")
    check(found.get("correctedQuery") == "quibbleflax lantern" and found["results"][0]["itemId"].startswith("QX-"),
          "a misspelled word is corrected to a word of a live item")
    check(answer("quibbleflaxlantern").get("correctedQuery") == "quibbleflax lantern", "a missing space is inserted")
    check("correctedQuery" not in answer("quibbleflax lantern") and "correctedQuery" not in answer("QX-999"),
          "known words and codes are not corrected")
    check(ids("qx-200") == ["QX-200"] and ids(" zb 77/1 ") == ["QX-100"], "an id and a SKU return their item alone")
    check("QX-300" not in ids("qx-300"), "a sold-out item is not shown, not even for its id")
    for query in ["zibble lantern", "灯笼 lantern", "quibbleflax worp"]:
        check(ids(query)[:2] in (["QX-100", "QX-200"], ["QX-200", "QX-100"]), f"synonyms match: {query}")
    check(ids("quibbleflax lantern 10'")[0] == "QX-100" and ids("quibbleflax 10feet")[0] == "QX-100", "units are normalized")
    for query in ["🦆", "\u200b\u200b", "\u0000", "( AND * ~ \"", "x" * 1000]:
        check("info" in answer(query), f"an answer for {query[:20]!r}")
    for query in ["", "   ", "\u3000\t"]:
        found = answer(query)
        check(found.get("totalSize", 0) > 250 and "correctedQuery" not in found, f"{query!r} lists every eligible item")
    for query in ["🦆" * 10_000, "mug " * 2500]:
        found = answer(query)
        check("InvalidArgument" in found.get("error", "") and '"query"' in found["error"].replace(" ", ""),
              f"an error that names query for {query[:8]!r}, {len(query)} characters")
    facets(server, answer)
    relevance(server, answer, ids)
    same_texts(server, ids, answer)
    check(server.end(signal.SIGTERM) == 0, "SIGTERM: exit code 0")


def same_texts(server, ids, answer):
    """Spellings of one text, forms of words, and the order of items that have only some of the words."""
    server.call("lodestone.v1.CatalogService/UpsertItems", {"items": [
        item("T-1", "Blokko™ Wi-Fi kettle", brand="Zimt & Söhne", categories=["Straßenküche"]),
        item("T-2", "BLOKKO wifi kettle", brand="Zimt and Sohne", categories=["STRASSENKUCHE"]),
        item("T-3", "Zylbrqx shelf"), item("T-4", "Zylbrqx shelves"), item("T-5", "陶瓷臺燈"),
        item("T-6", "Zylbrqx C++ book"), item("T-7", "Zylbrqx C# book"), item("T-8", "แก้วกาแฟเซรามิก")]})
    for query, found in [("blokko", "12"), ("BLOKKO® wi-fi", "12"), ("blokko wi fi", "12"), ("zylbrqx shelves", "34"),
                         ("台灯", "5"), ("zylbrqx c++", "6"), ("c# zylbrqx", "7"), ("กาแฟ", "8")]:
        full = {f"T-{number}" for number in found}
        check(set(ids(query)[:len(full)]) == full, f"{query} finds {full}: {ids(query)[:3]}")
        check("correctedQuery" not in answer(query), f"{query} is not corrected")
    brand = {"filter": 'brand = "ZIMT &amp; SOHNE" AND category = "strassenkuche"'}
    check(set(ids("blokko", **brand)) == {"T-1", "T-2"}, "filters compare the same form")
    facet = answer("blokko", facet_specs=[{"field": "brand"}, {"field": "category"}], **brand)["facets"]
    check([[value["itemCount"] for value in counted["values"]] for counted in facet] == [["2"], ["2"]],
          f"spellings are one value of a facet: {facet}")
    relaxed = answer("zylbrqx bicyclette quux")
    check("DEGRADATION_CODE_QUERY_RELAXED" in str(relaxed["info"]), "no item has all words: declared")
    check(set(ids("zylbrqx bicyclette quux")[:4]) == {"T-3", "T-4", "T-6", "T-7"}, "items with some of the words come first")


def completions(work):
    """Which searches are completions for whom."""
    check_refused(BUNDLE, work / "unused", "completions of nobody", ["--completion-users-min", "1..=100"],
                  "--completion-users-min", "0")
    check_refused(BUNDLE, work / "unused", "an unknown language", ["xx", "ar, da, de"], "--languages", "en,xx")
    private, shared = "zzjane.roe@shop.test 0155 0199", "Zibbled lantern"

    def search(number, query, user):
        return {"event_id": f"s{number}", "type": "EVENT_TYPE_SEARCH", "viewer": {"visitor_id": user}, "query": query}

    def texts(server, prefix, user="other"):
        found, _ = server.call("lodestone.v1.RankingService/Suggest",
                               {"viewer": {"visitor_id": user}, "prefix": prefix, "product_count": 5})
        return [completion["text"] for completion in found.get("completions", [])], found.get("products", [])

    server = Server(work / "completions", "--completion-users-min", "3", host="localhost")
    server.call("lodestone.v1.CatalogService/UpsertItems", {"items": [item("Z-1", "Lantern, zibbled"), item("Z-2", "Vrakzel shirt")]})
    server.call("lodestone.v1.EventService/WriteEvents", {"events":
        [search(f"p{n}", private, f"v{n}") for n in range(9)] + [search(f"n{n}", "zzno such thing", f"v{n}") for n in range(9)]
        + [search(f"m{n}", shared, "v0") for n in range(9)] + [search("o", shared, "v1")]})
    check(texts(server, "zzjane")[0] == [] and texts(server, "zzjane", "v3")[0] == [private],
          "an address and a number are a completion only for those who typed them")
    check(texts(server, "zzno")[0] == [], "a search that finds nothing is no completion")
    check(shared not in texts(server, "zibbled")[0] and texts(server, "zibbled", "v1")[0][0] == shared,
          "a search of two users is a completion only for them")
    server.call("lodestone.v1.EventService/WriteEvents", {"events": [search("q", "zibbled  LANTERN", "v2")]})
    check(shared in texts(server, "zibbled")[0], "a search of three users is a completion for all")
    found, products = texts(server, "vrakzle")
    check(found == ["Vrakzel shirt"] and [product["itemId"] for product in products] == ["Z-2"],
          f"a mistyped prefix has completions and products: {found} {products}")
    check(server.end(signal.SIGTERM) == 0, "SIGTERM: exit code 0")
    server = Server(work / "completions", "--completion-users-min", "3")
    check(shared in texts(server, "zibbled")[0] and texts(server, "zzjane")[0] == [], "a restart keeps the completions")
    check(server.end(signal.SIGTERM) == 0, "SIGTERM: exit code 0")


def relevance(server, answer, ids):
    """What only the vectors find must be similar enough; a search without a relevant item is empty and says so."""
    code = ids("heart t-light holder")[0]
    found = answer(code, recommendation_count=5)
    check([result["itemId"] for result in found["results"]] == [code] and found["totalSize"] == 1 and "emptyReason" not in found
          and "recommendations" not in found, f"a stock code returns its item alone: {code}")
    for query in ["zzqxv blorp", "今天股票行情"]:
        found = answer(query)
        check("results" not in found and found.get("emptyReason") == "EMPTY_REASON_NOTHING_RELEVANT" and not found["info"].get("degradations"),
              f"a query without a relevant item has no result and a reason: {query} {str(found)[:300]}")
        check("recommendations" not in found, "no recommendations without a request for them")
        check(len(ids(query, options={"serving_config": "everything"})) > 0, "a serving configuration overrides the floor")
    server.call(WRITE, {"events": [view("relevance", code, "words")]})
    found = answer("zzqxv blorp", recommendation_count=5, filter="price > 1", options={"read_mask": {"paths": ["*"]}, "order_by": "price"})
    recommended = found.get("recommendations", {})
    check(len(recommended.get("results", [])) == 5 and "results" not in found, f"recommendations are a separate list {str(found)[:300]}")
    check(all(int(result["item"]["priceMicros"]) > 1_000_000 for result in recommended["results"]), "recommendations match the filter")
    check(recommended["attributionToken"] != found["attributionToken"], "recommendations have a token of their own")
    found = answer("quibbleflax", filter="price > 1000")
    check("results" not in found and found.get("emptyReason") == "EMPTY_REASON_NOTHING_ELIGIBLE", "the filter excludes all matches")
    found = answer("hart tligt holdr", page_size=3)
    check(len(found.get("results", [])) == 3, f"misspelled words are found {found.get('correctedQuery')}")
    error = answer("zzqxv blorp", recommendation_count=-1).get("error", "")
    check("InvalidArgument" in error and "recommendation_count" in error, "a negative number of recommendations is refused")
    found = answer("zzqxv blorp", recommendation_count=1000)
    check(found["info"]["notices"][0]["field"] == "recommendation_count", "a number of recommendations above the limit: a notice")


def facets(server, answer):
    """Counts of values and ranges; `answer` searches with further fields of the request."""
    specs = [{"field": "brand"}, {"field": "category"}, {"field": "price", "bounds": [10, 20]}, {"field": "attributes.watts"},
             {"field": "tags", "value_count": 1}, {"field": "in_stock"}]
    first = {"facet_specs": specs, "page_size": 1}
    found = answer("quibbleflax", **first)
    counted = {facet["field"]: [(value.get("value", (value.get("min"), value.get("max"))), value.get("itemCount", "0"))
                                for value in facet.get("values", [])] for facet in found["facets"]}
    check(found["facetItemCount"] == "3" and list(counted) == [spec["field"] for spec in specs], "all items in stock are counted")
    check([count for _, count in counted["brand"]] == ["3"] and counted["brand"][0][0].lower() == "zorbo",
          "spellings of a brand in different letter case are one value")
    check(counted["category"] == [("Outdoor", "2"), ("Lanterns", "1")] and counted["tags"] == [("gift", "1")],
          "every level of a category is counted")
    check(counted["price"] == [((None, 10), "1"), ((10, 20), "1"), ((20, None), "1")], "prices are counted by the ranges of the request")
    check(sum(int(count) for _, count in counted["attributes.watts"]) == 2, "numeric attributes are counted in automatic ranges")
    page = answer("quibbleflax", **first, page_token=found["nextPageToken"])
    check(page["facets"] == found["facets"], "the next page has the same facets")
    less = answer("quibbleflax", **first, filter="price < 20")
    check(less["facetItemCount"] == "2", "only items that match the filter are counted")
    listed, _ = server.call("lodestone.v1.RankingService/Recommend", {
        "viewer": {"user_id": "words"}, "type": "RECOMMEND_TYPE_FOR_YOU", "filter": 'brand = "Zorbo"',
        "facet_specs": [{"field": "brand"}]})
    check(listed and listed["facetItemCount"] == "3", "a recommendation counts all eligible items")
    for specs, field in [([{"field": "colour"}], "facet_specs[0].field"),
                         ([{"field": "brand"}, {"field": "brand"}], "facet_specs[1].field"),
                         ([{"field": "price", "bounds": [2, 1]}], "facet_specs[0].bounds"),
                         ([{"field": "brand", "bounds": [1]}], "facet_specs[0].bounds"),
                         ([{"field": "price", "bounds": ["NaN"]}], "facet_specs[0].bounds"),
                         ([{"field": "brand", "value_count": -1}], "facet_specs[0].value_count"),
                         ([{"field": f"attributes.a{n}"} for n in range(21)], "facet_specs")]:
        error = answer("mug", facet_specs=specs).get("error", "").replace(" ", "")
        check("InvalidArgument" in error and f'"field":"{field}"' in error, f"an invalid {field} is refused by name")
    many = answer("mug", facet_specs=[{"field": "brand", "value_count": 1000}])
    check(many["info"]["notices"][0]["field"] == "facet_specs[0].value_count", "a number of values above the limit: a notice")


with tempfile.TemporaryDirectory() as directory:
    kills(pathlib.Path(directory))
    if os.environ.get("CRASH_ONLY"):
        print(f"server: {len(failures)} failed")
        sys.exit(1 if failures else 0)
    event_ingestion(pathlib.Path(directory))
    lost_log(pathlib.Path(directory))
    full_disk(pathlib.Path(directory))
    serving_files(pathlib.Path(directory))
    several_catalogues(pathlib.Path(directory))
    explained(pathlib.Path(directory))
    searches(pathlib.Path(directory))
    completions(pathlib.Path(directory))
    rollout(pathlib.Path(directory))
    damaged_bundles(pathlib.Path(directory))
    merges(pathlib.Path(directory))
    sentence_encoder(pathlib.Path(directory))
    observability(sys.modules[__name__], pathlib.Path(directory))
print(f"server: {len(failures)} failed")
sys.exit(1 if failures else 0)
