"""Runs `lodestone retrain` as a cron job would: concurrently, stopped, killed, and with a server that loads the published bundles.

Usage: retrain.py LODESTONE GRPCURL. Needs ORT_DYLIB_PATH. Prints each check; exits with 1 if one is wrong.
"""
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from styles import check, write_shop, wrong

LODESTONE, GRPCURL = sys.argv[1:3]
SECONDS_MAX = 120


def command(work, *more):
    return [LODESTONE, "retrain", "--data", work / "data", "--store", work / "store", "--lists-max", "200", "--format", "json", *more]


def retrain(work, *more):
    ran = subprocess.run(command(work, *more), capture_output=True, text=True, timeout=SECONDS_MAX)
    return ran.returncode, json.loads(ran.stdout) if ran.stdout else None, ran.stderr


def current(work):
    file = work / "store" / "current"
    return file.read_text().strip() if file.exists() else None


def begun(work):
    """A retrain that has gathered its data and trains."""
    running = subprocess.Popen(command(work), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + SECONDS_MAX
    while not (work / "data" / "retrain" / "gathered.json").exists() and time.monotonic() < until:
        time.sleep(0.01)
    return running


def stopped_in_training(work):
    """Stops a retrain while its user encoder trains. The right time differs between machines, so several are tried."""
    for attempt in range(30):
        running = begun(work)
        time.sleep(0.03 * 1.25 ** attempt)
        running.send_signal(signal.SIGTERM)
        if running.wait(SECONDS_MAX) == 130 and list((work / "data" / "retrain").glob("*.checkpoint")):
            return True
        # Too early, before there is a checkpoint, or too late.
        shutil.rmtree(work / "data" / "retrain")
        shutil.rmtree(work / "store", ignore_errors=True)
    return False


def at_once_stopped_and_killed(work):
    first = begun(work)
    # It is suspended, so that it outlives the second one.
    first.send_signal(signal.SIGSTOP)
    code, _, stderr = retrain(work)
    check(code == 2 and f"process {first.pid}" in stderr and "nothing was done" in stderr, "the second of two at once names the first",
          (code, stderr))
    first.kill()
    first.wait()
    shutil.rmtree(work / "data" / "retrain")
    check(stopped_in_training(work) and current(work) is None, "a stopped one publishes nothing", current(work))
    code, report, stderr = retrain(work)
    check(code == 0 and report["resumed"] and report["trained"]["checkpoint"] == "resumed", "the next one resumes its training",
          (code, stderr))
    published = current(work)
    check(report and published == report["published"], "what it publishes is current", published)
    check(os.listdir(work / "data" / "retrain") == ["lock"], "only its lock remains", os.listdir(work / "data" / "retrain"))
    killed = begun(work)
    time.sleep(0.1)
    killed.kill()
    killed.wait()
    names = sorted(entry.name for entry in (work / "store").iterdir())
    check(names == sorted(["current", published]), "a killed one leaves the store as it was", names)
    shown = subprocess.run([LODESTONE, "bundle", "show", "--bundle", work / "store" / published], capture_output=True, text=True)
    check(shown.returncode == 0 and published in shown.stdout, "its current bundle is whole", shown.stderr)


def call(address, method, request):
    ran = subprocess.run([GRPCURL, "-plaintext", "-max-time", "5", "-d", json.dumps(request), address, method], capture_output=True,
                         text=True, timeout=60)
    return json.loads(ran.stdout) if ran.returncode == 0 else None


def with_a_server(work):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    server = subprocess.Popen([LODESTONE, "serve", "--store", work / "store", "--data", work / "data", "--listen", address,
                               "--watch-seconds", "0.2"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ask = {"viewer": {"user_id": "p1"}, "type": "RECOMMEND_TYPE_FOR_YOU", "page_size": 3}
        generation = lambda: (call(address, "lodestone.v1.RankingService/Recommend", ask) or {}).get("info", {}).get("generation")
        until = time.monotonic() + SECONDS_MAX
        while generation() is None and server.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        begins = generation() == current(work)
        check(begins, "the server starts with the store's bundle")
        if not begins:
            return
        event = {"type": "EVENT_TYPE_PURCHASE", "viewer": {"user_id": "p1"}, "lines": [{"item_id": "i1-1"}, {"item_id": "new-1"}]}
        foreign = {**event, "attribution_token": "Zm9yZWlnbg"}
        item = {"item_id": "new-1", "title": "round blue teapot"}
        call(address, "lodestone.v1.CatalogService/UpsertItems", {"items": [item]})
        call(address, "lodestone.v1.EventService/WriteEvents", {"events": [event, foreign]})
        before = current(work)
        code, report, stderr = retrain(work, "--gate", "--newest", "40")
        gathered = report["gathered"] if report else {}
        check((gathered.get("item_count"), gathered.get("logged_event_count"), gathered.get("foreign_event_count")) == (41, 1, 1),
              "items and events of a running server's log are gathered, without events with foreign tokens", (code, stderr, gathered))
        start = report["trained"]["start"] if report else None
        check(start == {"bundle": {"name": before, "known_item_count": 40}}, "the encoders start with the weights of the current bundle", start)
        verdict = report["gate"] if report else None
        check(bool(verdict) and 0 < verdict["user_count"] < 50 and code == 1 and "too few users" in verdict["refusals"][0],
              "the gate compares the bundle with the current one and refuses to decide on few users", verdict)
        code, report, stderr = retrain(work, "--gate", "--newest", "40", "--users-min", "5")
        verdict = report["gate"] if report else None
        check(bool(verdict) and code == (1 if verdict["refusals"] else 0) and "too few" not in str(verdict["refusals"]),
              "with a declared number of users it decides", verdict)
        older = sorted(set(os.listdir(work / "store")) - {"current"})
        code, report, stderr = retrain(work, "--newest", "60", "--cold", "--keep", "0")
        check(bool(report) and report["trained"]["start"] == "random_weights", "with --cold they start with random weights", (code, stderr))
        left = set(os.listdir(work / "store")) - {"current"}
        check(bool(report) and report["pruned"] == older and left == {current(work)}, "older bundles are removed from the store", (report, left))
        until = time.monotonic() + SECONDS_MAX
        while code == 0 and generation() != report["published"] and time.monotonic() < until:
            time.sleep(0.1)
        check(code == 0 and generation() == report["published"] == current(work), "the server loads the published bundle", (code, stderr))
    finally:
        server.terminate()
        server.wait(SECONDS_MAX)


def features_stay(work):
    """Declared features and searchable attributes are those of the current bundle until a flag says otherwise."""
    (work / "features.toml").write_text('[[feature]]\nname = "hour"\nkind = "context"\nfield = "hour"\n')

    def manifest(bundle):
        return json.loads((bundle / "manifest.json").read_text())

    def declared(*more):
        code, report, stderr = retrain(work, *more)
        shown = manifest(work / "store" / current(work))
        check(code == 0, "it is trained", stderr)
        return [feature["name"] for feature in shown["declared_features"]], shown["searchable_attributes"], report and report["trained"]["inherited"]

    check(declared("--features", work / "features.toml", "--searchable-attributes", "color") == (["hour"], ["color"], "nothing"),
          "flags declare features and searchable attributes")
    first = current(work)
    found = declared()
    inherited = {"bundle": {"name": first, "features": ["hour"], "searchable_attributes": ["color"]}}
    check(found == (["hour"], ["color"], inherited), "without the flags they stay, and the report says so", found)
    ran = subprocess.run([argument for argument in command(work, "--cold") if argument not in ("--format", "json")],
                         capture_output=True, text=True, timeout=SECONDS_MAX)
    check(ran.returncode == 0 and "declared features of bundle" in ran.stdout and "\nfeature hour" in ran.stdout
          and "heads: " in ran.stdout, "the summary has the features, also with --cold", (ran.stdout, ran.stderr))
    bundle = work / "from"
    train = [LODESTONE, "train", "--data", work / "data", "--lists-max", "200", "--out"]
    ran = subprocess.run([*train, bundle, "--from", work / "store" / current(work)], capture_output=True, text=True, timeout=SECONDS_MAX)
    check(ran.returncode == 0 and [feature["name"] for feature in manifest(bundle)["declared_features"]] == ["hour"]
          and manifest(bundle)["searchable_attributes"] == ["color"], "train --from inherits them too", ran.stderr)
    found = declared("--no-features", "--no-searchable-attributes")
    check(found == ([], [], "nothing"), "they are removed explicitly", found)
    # A gated training that was killed, or that fails after the training, does not stop the next one.
    (work / "gated.candidate").mkdir()
    (work / "gated.candidate" / "manifest.json").write_text("{}")
    gated = [*train, work / "gated", "--gate", bundle, "--users-min", "0"]
    ran = subprocess.run(gated, capture_output=True, text=True, timeout=SECONDS_MAX)
    check(ran.returncode in (0, 1) and not (work / "gated.candidate").exists(), "the remains of a killed training are replaced", ran.stderr)
    shutil.rmtree(work / "gated", ignore_errors=True)


def a_deleted_item(work):
    """An item that leaves the catalogue after it was bought breaks nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    server = subprocess.Popen([LODESTONE, "serve", "--store", work / "store", "--data", work / "data", "--listen", address],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + SECONDS_MAX
        delete = lambda: call(address, "lodestone.v1.CatalogService/DeleteItems", {"item_ids": ["i1-1", "i2-3"]})
        while delete() is None and server.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
    finally:
        server.terminate()
        server.wait(SECONDS_MAX)
    before = current(work)
    code, report, stderr = retrain(work, "--gate", "--users-min", "0")
    left_out = report["evaluation"]["unknown_targets"] if report else None
    check(code in (0, 1) and bool(left_out) and left_out["item_count"] == 2 and left_out["line_count"] >= 2
          and report["gate"]["unknown_targets"]["item_count"] == 2, "bought items that left the catalogue are left out and counted",
          (code, stderr, left_out))
    check(current(work) != before or code == 1, "and the bundle is published if it passes")
    other = work / "other-shop"
    other.mkdir()
    rows = (work / "shop.csv").read_text().replace(",i", ",x").replace("order,xtem", "order,item")
    (other / "shop.csv").write_text(rows)
    subprocess.run([LODESTONE, "import", "--mapping", work / "mapping.toml", "--events", other / "shop.csv", "--out", other / "data"],
                   check=True, capture_output=True)
    ran = subprocess.run([LODESTONE, "evaluate", "--data", other / "data", "--bundle", work / "store" / current(work)],
                         capture_output=True, text=True, timeout=SECONDS_MAX)
    check(ran.returncode == 2 and "another shop" in ran.stderr and "panicked" not in ran.stderr, "data of another shop are named", ran.stderr)
    ran = subprocess.run([LODESTONE, "train", "--data", other / "data", "--out", other / "bundle", "--gate", work / "store" / current(work),
                          "--lists-max", "200"], capture_output=True, text=True, timeout=SECONDS_MAX)
    check(ran.returncode == 2 and "another shop" in ran.stderr and not (other / "bundle.candidate").exists(),
          "a gate that fails leaves no bundle behind that stops the next training", ran.stderr)


def refusals(work):
    def refused(words, *arguments):
        ran = subprocess.run([LODESTONE, "retrain", *map(str, arguments)], capture_output=True, text=True, timeout=SECONDS_MAX)
        check(ran.returncode == 2 and all(word in ran.stderr for word in words), f"it names {words}", (ran.returncode, ran.stderr))

    refused(["--data", "nowhere"], "--data", work / "nowhere", "--store", work / "store")
    refused(["--newest", "half"], "--data", work / "data", "--store", work / "other", "--newest", 10_000)
    ran = subprocess.run([LODESTONE, "bundle", "prune", "--keep", "1", "--store", work / "other"], capture_output=True, text=True)
    check(ran.returncode == 2 and "names no current bundle" in ran.stderr, "a store without bundles is not pruned", ran.stderr)
    (work / "empty.toml").write_text("# none\n")
    shop = ("--data", work / "data", "--store", work / "other")
    refused(["declares no feature"], *shop, "--features", work / "empty.toml")
    refused(["declares no feature"], *shop, "--features", "/dev/null")
    refused(["more than 1048576 bytes"], *shop, "--features", "/dev/zero")
    refused(["exclude each other"], *shop, "--features", work / "features.toml", "--no-features")
    (work / "empty").mkdir()
    refused(["items"], "--data", work / "empty", "--store", work / "other")


with tempfile.TemporaryDirectory() as directory:
    work = pathlib.Path(directory)
    write_shop(LODESTONE, work)
    at_once_stopped_and_killed(work)
    with_a_server(work)
    features_stay(work)
    a_deleted_item(work)
    refusals(work)
print(f"retrain: {len(wrong)} wrong")
sys.exit(1 if wrong else 0)
