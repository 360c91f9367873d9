"""Trains on the answer log of a server that explores: `lodestone retrain --answers` and `lodestone train --answers`.

Usage: answers.py LODESTONE GRPCURL. Needs ORT_DYLIB_PATH. Prints each check; exits with 1 if one is wrong.
"""
import concurrent.futures
import json
import pathlib
import random
import socket
import subprocess
import sys
import tempfile
import time

from styles import USERS, check, write_shop, wrong

LODESTONE, GRPCURL = sys.argv[1:3]
ANSWERS, PAGE = 260, 8
SECONDS_MAX = 120


def shop(work):
    write_shop(LODESTONE, work)
    (work / "serving.toml").write_text("[configs.default]\nexploration = { temperature = 2.0, top = 20 }\n")


def run(*arguments):
    return subprocess.run([LODESTONE, *map(str, arguments)], capture_output=True, text=True, timeout=SECONDS_MAX)


def retrain(work, *more):
    return run("retrain", "--answers", "--data", work / "data", "--store", work / "store", "--lists-max", "200", "--newest", "40", *more)


def call(address, method, request):
    ran = subprocess.run([GRPCURL, "-plaintext", "-max-time", "10", "-d", "@", address, method], input=json.dumps(request),
                         capture_output=True, text=True, timeout=60)
    return json.loads(ran.stdout) if ran.returncode == 0 else None


def shown(address, number):
    """Shows one answer and writes the clicks on it: everyone wants everything, but examines slot r with the probability 1 / r.
    Returns the number of clicks."""
    viewer = {"user_id": f"p{number % USERS}"}
    answer = call(address, "lodestone.v1.RankingService/Recommend",
                  {"viewer": viewer, "type": "RECOMMEND_TYPE_FOR_YOU", "page_size": PAGE})
    if answer is None:
        return 0
    rng = random.Random(number)
    token = answer["attributionToken"]
    clicks = [{"event_id": f"c{number}-{slot}", "type": "EVENT_TYPE_CLICK", "viewer": viewer, "attribution_token": token,
               "lines": [{"item_id": result["itemId"], "rank": slot}]}
              for slot, result in enumerate(answer["results"], 1) if rng.random() < 1 / slot]
    return len(clicks) if call(address, "lodestone.v1.EventService/WriteEvents", {"events": clicks}) else 0


def serve_and_click(work):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    server = subprocess.Popen([LODESTONE, "serve", "--store", work / "store", "--data", work / "data", "--listen", address,
                               "--serving", work / "serving.toml"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + SECONDS_MAX
        while not shown(address, 0) and server.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            return sum(pool.map(lambda number: shown(address, number), range(1, 1 + ANSWERS)))
    finally:
        server.terminate()
        server.wait(SECONDS_MAX)


def evidence(ran):
    return json.loads(ran.stdout)["trained"]["answers"] if ran.stdout else None


def learned(work):
    ran = retrain(work, "--format", "json")
    answers = evidence(ran)
    check(ran.returncode == 0 and answers["missing"] == {"explored_answer_count": 200, "explored_interaction_count": 200},
          "without an answer log everything is missing, and the bundle is trained and published", (ran.returncode, ran.stderr))
    check("answer log: none" in retrain(work).stdout, "the summary says that there is no answer log")
    clicks = serve_and_click(work)
    ran = retrain(work, "--format", "json")
    answers = evidence(ran)
    check(ran.returncode == 0 and answers["missing"] is None and answers["list_count"] > 20, "enough evidence: it learns from the answers",
          (ran.returncode, ran.stderr, answers))
    # The newest interactions are held out.
    check(ANSWERS - 40 < answers["answer_count"] <= ANSWERS + 9 and clicks - 60 < answers["interaction_count"] < clicks, "each click belongs to its slot",
          (clicks, answers))
    curve = answers["position_bias"]["examination"]
    check(len(curve) == PAGE and curve[0] == 1 and 0.3 < curve[1] < 0.8 and curve[-1] < 0.4, "the position bias is that of the clicks", curve)
    ran = retrain(work)
    check(ran.returncode == 0 and "examination by slot: 1.00" in ran.stdout, "the summary prints the curve", ran.stdout)


def damaged(work):
    """Files that cannot be read cost themselves only."""
    log = work / "data" / "answers"
    whole = next(log.glob("*.answers"))
    whole.write_bytes(whole.read_bytes() + b"torn")
    (log / "2025-11-24.00000.answers").write_bytes(b"LDANSW\0\x01" + b"of another version")
    (log / "2025-11-23.00000.answers").write_bytes(b"not an answer log")
    (log / "2025-11-22.00000.answers").write_bytes(b"")
    exported = run("events", "export", "--data", work / "data", "--since", "2026-01-01", "--out", work / "data" / "events")
    check(exported.returncode == 0, "the events are exported", exported.stderr)
    ran = run("train", "--data", work / "data", "--answers", log, "--out", work / "bundle", "--lists-max", "200")
    check(ran.returncode == 0 and "examination by slot" in ran.stdout and "4 bytes of incomplete blocks" in ran.stdout
          and "2025-11-24.00000.answers" in ran.stdout and "not an answer log file" in ran.stdout,
          "train reads exported tokens, and names the files that it leaves out", (ran.stdout, ran.stderr))
    other = work / "other"
    other.mkdir()
    rows = (work / "shop.csv").read_text().replace(",i", ",x")
    (other / "shop.csv").write_text(rows.replace("order,xtem", "order,item"))
    imported = run("import", "--mapping", work / "mapping.toml", "--events", other / "shop.csv", "--out", other / "data")
    check(imported.returncode == 0, "another shop", imported.stderr)
    ran = run("train", "--data", other / "data", "--answers", log, "--out", other / "bundle")
    check(ran.returncode == 2 and "answer log of another shop" in ran.stderr and not (other / "bundle").exists(),
          "the answer log of another shop is refused before the training", ran.stderr)
    (work / "empty").mkdir()
    exported = run("answers", "export", "--data", work / "data", "--since", "2026-01-01", "--out", work / "exported")
    check(exported.returncode == 0, "the answers are exported", exported.stderr)
    for directory, words in [("empty", "DATA/answers"), ("exported", "answers export"), ("bundle", "DATA/answers"),
                             ("data", f"it is a data directory; pass {log}")]:
        ran = run("train", "--data", other / "data", "--answers", work / directory, "--out", other / "bundle")
        check(ran.returncode == 2 and "is not an answer log" in ran.stderr and words in ran.stderr,
              f"{directory} is no answer log", ran.stderr)
    unreadable = work / "unreadable"
    unreadable.mkdir()
    (unreadable / "2025-11-24.00000.answers").write_bytes(b"not an answer log")
    ran = run("train", "--data", other / "data", "--answers", unreadable, "--out", other / "bundle")
    check(ran.returncode == 2 and "not an answer log file" in ran.stderr, "a log without a readable file is an error", ran.stderr)
    ran = run("answers", "show", "AqsBtoken", "--data", work / "data")
    check(ran.returncode == 2 and "answerId" in ran.stderr and "found `" not in ran.stderr, "answers show wants the answerId", ran.stderr)
    ran = run("train", "--data", other / "data", "--answers", work / "nowhere", "--out", other / "more")
    check(ran.returncode == 2 and "nowhere" in ran.stderr, "a missing directory is named", ran.stderr)


with tempfile.TemporaryDirectory() as directory:
    work = pathlib.Path(directory)
    shop(work)
    learned(work)
    damaged(work)
print(f"answers: {len(wrong)} wrong")
sys.exit(1 if wrong else 0)
