"""Runs the benchmarks of the command line on small made files, right and wrong.

Usage: run.py LODESTONE. Needs ORT_DYLIB_PATH. Prints each check; exits with 1 if one is wrong.
"""
import gzip
import json
import pathlib
import signal
import struct
import subprocess
import sys
import tempfile
import time

LODESTONE = sys.argv[1]
wrong = []


def check(right, what):
    print(f"  {'ok   ' if right else 'WRONG'} {what}")
    if not right:
        wrong.append(what)


def run(*arguments):
    return subprocess.run([LODESTONE, *map(str, arguments)], capture_output=True, text=True, timeout=300)


def refused(words, *arguments):
    ran = run(*arguments)
    check(ran.returncode == 2 and all(word in ran.stderr for word in words), f"{' '.join(map(str, arguments[:2]))} names {words}")


def nearest_vectors(work):
    report = json.loads(run("benchmark", "ann", "--synthetic", "3000x16", "--count", 10, "--json").stdout)
    check(report["runs"][-1]["recall"] >= 0.99 and report["runs"][-1]["queries_per_s"] > 0, "made vectors are found")
    check(all(filtered["recall"] >= 0.98 for filtered in report["filtered"]), "filters keep recall")
    saved = work / "vectors.npy"
    run("benchmark", "ann", "--synthetic", "3000x16", "--save", saved)
    again = json.loads(run("benchmark", "ann", "--vectors", saved, "--count", 10, "--json").stdout)
    check((again["vectors"], again["dimensions"]) == (3000, 16), "saved vectors are read")
    refused(["--synthetic", "3000"], "benchmark", "ann", "--synthetic", "3000")
    (work / "short.npy").write_bytes(saved.read_bytes()[:1000])
    refused(["short.npy", "4000 × 16"], "benchmark", "ann", "--vectors", work / "short.npy")
    (work / "other.bin").write_bytes(b"x")
    refused(["other.bin", ".npy"], "benchmark", "ann", "--vectors", work / "other.bin")
    values = [0.5] * 16
    values[3] = float("nan")
    vector = struct.pack("<i16f", 16, *values)
    (work / "nan.fvecs").write_bytes(vector * 3000)
    refused(["vector 0", "not a finite number at 3"], "benchmark", "ann", "--vectors", work / "nan.fvecs")


def product_search(work):
    colours, things = ["red", "blue", "green", "black"], ["mug", "lamp", "chair", "clock", "basket"]
    products = [{"id": f"{c}-{t}", "title": f"{c} {t}", "supplier": "Acme"} for c in colours for t in things]
    (work / "products.jsonl").write_text("\n".join(map(json.dumps, products)))
    rows = ["query\tproduct_id\trating"] + [f"{c} {t}\t{c}-{t}\t3" for c in colours for t in things]
    with gzip.open(work / "judgments.tsv.gz", "wt") as out:
        out.write("\n".join(rows))
    files = ["--products", work / "products.jsonl", "--judgments", work / "judgments.tsv.gz"]
    report = json.loads(run("benchmark", "search", *files, "--json").stdout)
    scores = {method["method"]: method for method in report["methods"]}
    check(set(scores) == {"lexical", "vector", "fused", "ranked"} and report["queries"] == 20, "four methods, every query")
    check(scores["lexical"]["ndcg_at_10"] == 1.0 and scores["fused"]["recall_at_100"] == 1.0, "what is asked for by name comes first")
    (work / "unknown.tsv").write_text("query\tproduct_id\trating\nmug\tno-such\t3\n")
    refused(["unknown.tsv", "line 2", "no-such"], "benchmark", "search", "--products", work / "products.jsonl", "--judgments",
            work / "unknown.tsv")
    (work / "columns.tsv").write_text("query\trating\nmug\t3\n")
    refused(["columns.tsv", "product_id"], "benchmark", "search", "--products", work / "products.jsonl", "--judgments",
            work / "columns.tsv")
    (work / "broken.jsonl").write_text('{"id": "a", "title": "b"}\n{"id": ')
    refused(["broken.jsonl", "line 2"], "benchmark", "search", "--products", work / "broken.jsonl", *files[2:])
    encoder = work / "encoder"
    refused(["encoder/model.onnx", "tokenizer.json"], "benchmark", "search", *files, "--encoder", encoder)
    encoder.mkdir()
    (encoder / "model.onnx").write_bytes(pathlib.Path("target/demo/bundle/query_encoder.onnx").read_bytes())
    (encoder / "tokenizer.json").write_text("{}")
    refused(["encoder", "tokenizer.json"], "benchmark", "search", *files, "--encoder", encoder)
    (encoder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}}))
    refused(["sentence_encoder", "term_ids", "input_ids"], "benchmark", "search", *files, "--encoder", encoder)


def gate():
    bundle, data = "target/demo/bundle", "target/demo/data"
    ran = run("gate", "--data", data, "--candidate", bundle, "--current", bundle, "--slower-max", 3, "--format", "json")
    verdict = json.loads(ran.stdout)
    check(ran.returncode == 0 and verdict["refusals"] == [] and verdict["ndcg_gain"]["mean"] == 0, "a bundle passes beside itself")
    ran = run("gate", "--data", data, "--candidate", bundle, "--current", bundle, "--slower-max", 0.01)
    check(ran.returncode == 1 and "refused: it is slower" in ran.stdout, "a slower one is refused with exit code 1")


def model_times():
    report = json.loads(run("benchmark", "models", "--bundle", "target/demo/bundle", "--runs", 50, "--json").stdout)
    sizes = {(timing["model"], timing["size"]) for timing in report["models"]}
    check({("user encoder", 50), ("ranker", 200), ("ranker", 1000), ("query encoder", 4)} <= sizes, "every model is timed")
    check(all(0 < timing["p50_ms"] <= timing["p99_ms"] for timing in report["models"]), "its times are in order")
    refused(["--runs is 3", "10"], "benchmark", "models", "--bundle", "target/demo/bundle", "--runs", 3)
    refused(["none", "No such file"], "benchmark", "models", "--bundle", "none")


def next_things(work):
    lines = [[(user * 7 + step) % 30 for step in range(4 + user % 4)] for user in range(120)]
    sequences, items = work / "sequences.txt.gz", work / "items.tsv"
    with gzip.open(sequences, "wt") as out:
        out.write("".join(f"u{user} {' '.join(map(str, line))}\n" for user, line in enumerate(lines)))
    items.write_text("item\ttitle\n" + "".join(f"{item}\tthing {item % 5}\n" for item in range(30)))
    out = work / "next.json"
    ran = run("benchmark", "next-item", "--sequences", sequences, "--items", items, "--json", out, "--seeds", 2)
    report = json.loads(out.read_text())
    methods = {method["method"]: method for method in report["methods"]}
    check(ran.returncode == 0 and {"encoder", "transitions", "text", "popularity", "retrieval", "ranked"} <= set(methods),
          "each source, the union and the ranking are judged")
    check(report["seeds"] == [1, 2] and report["hr_at_10"] == methods["ranked"]["hr_at_10"] > 0.9, "a chain is foretold")
    check("ndcg_at_10" in methods["ranked"]["spread"] and "hr_at_10" in methods["ranked"]["descending"],
          "spread and the descending are given")
    (work / "train.txt").write_text("".join(" ".join(map(str, line)) + "\n" for line in lines))
    (work / "test.tsv").write_text("3 4\t5\n8\t9\n")
    ran = run("benchmark", "sessions", "--train", work / "train.txt", "--test", work / "test.tsv", "--json", out)
    check(ran.returncode == 0 and json.loads(out.read_text())["hr_at_20"] == 1.0, "next clicks are foretold")
    (work / "history.txt").write_text("".join(f"u{user}\t1 2;{user % 5} 9;1 2\n" for user in range(30)))
    (work / "future.txt").write_text("".join(f"u{user}\t1 2\n" for user in range(30)))
    ran = run("benchmark", "next-basket", "--history", work / "history.txt", "--future", work / "future.txt", "--json", out)
    check(ran.returncode == 0 and json.loads(out.read_text())["recall_at_10"] == 1.0, "next baskets are foretold")
    refused(["none.txt"], "benchmark", "next-item", "--sequences", work / "none.txt", "--items", items)
    refused(["two baskets"], "benchmark", "next-basket", "--history", work / "future.txt", "--future",
            work / "future.txt")
    refused(["--seeds"], "benchmark", "next-item", "--sequences", sequences, "--items", items, "--seeds", 0)


def other_policies(work):
    header = "item_id,position,click,propensity_score\n"
    rows = [(row % 4, 1 + row % 3, int(row % 50 == 0)) for row in range(1200)]
    uniform, other = work / "uniform.csv.gz", work / "other.csv"
    with gzip.open(uniform, "wt") as out:
        out.write(header + "".join(f"{item},{position},{click},0.25\n" for item, position, click in rows))
    other.write_text(header + "".join(f"{item // 2},{position},{click},0.5\n" for item, position, click in rows))
    ran = run("benchmark", "off-policy", "--logged", uniform, "--target", other, "--json")
    report = json.loads(ran.stdout)
    check(ran.returncode == 0 and all(judged["covers"] for judged in report["judged"]) and len(report["judged"]) == 4,
          "a log tells what another policy earns")
    other.write_text(header + "".join(f"new,{position},{click},0.5\n" for _, position, click in rows))
    out = work / "refused.json"
    ran = run("benchmark", "off-policy", "--logged", uniform, "--target", other, "--json", out)
    check(ran.returncode == 1 and "refused: no support: 100.0 %" in ran.stdout and "100.0 %" in json.loads(out.read_text())["refused"],
          "a policy that does what the log never did is refused with exit code 1")
    other.write_text(header + "1,1,0,0\n")
    refused(["other.csv", "line 2", "propensity_score"], "benchmark", "off-policy", "--logged", uniform, "--target", other)


def stopped_training(work):
    out = work / "bundle"
    # Until the query encoder has learned there is nothing to keep; when that is differs by machine.
    for seconds in (2, 4, 8, 16):
        ran = subprocess.Popen([LODESTONE, "train", "--data", "target/demo/data", "--out", str(out)], stderr=subprocess.PIPE, text=True)
        time.sleep(seconds)
        ran.send_signal(signal.SIGINT)
        told = ran.communicate(timeout=120)[1]
        if (work / "bundle.checkpoint").exists():
            break
    check(ran.returncode == 130 and "bundle.checkpoint" in told, "Ctrl-C stops a training and names the checkpoint")
    check((work / "bundle.checkpoint").stat().st_size > 0 and not out.exists(), "it leaves a checkpoint and no bundle")


def same_model(work):
    """A small shop: its file is imported, and trained on twice with one thread."""
    rows = ["order,user,item,title,time"]
    for day in range(120):
        for user in range(12):
            item = (user * 3 + day) % 25
            rows += [f"{day}-{user},p{user},i{thing},thing number {thing},2025-{1 + day // 30:02}-{1 + day % 30 % 28:02} 10:{user:02}:00"
                     for thing in (item, (item + 5) % 25)]
    (work / "shop.csv").write_text("\n".join(rows))
    (work / "shop.toml").write_text('[columns]\n' + "".join(f'{name} = "{name}"\n' for name in ("item", "time", "order", "user", "title")))
    ran = run("import", "--mapping", work / "shop.toml", "--in", work / "shop.csv", "--out", work / "shop")
    check(ran.returncode == 0, f"a small shop is imported {ran.stderr}")
    sums = []
    for name in ("one", "two"):
        ran = run("train", "--data", work / "shop", "--out", work / name, "--threads", 1, "--seed", 7, "--format", "json")
        check(ran.returncode == 0 and json.loads(ran.stdout)["heads"], f"it is learned from {ran.stderr}")
        sums.append({file: entry["sha256"] for file, entry in json.loads((work / name / "manifest.json").read_text())["files"].items()})
    different = [name for name in sums[0] if sums[0][name] != sums[1].get(name)]
    check(not different, f"the same seed gives the same files with one thread {different}")
    refused(["--threads"], "train", "--data", work / "shop", "--out", work / "three", "--threads", 0)


def experiments(work):
    answers, events, page = work / "answers.jsonl", work / "events.jsonl", work / "report.html"
    users = [(f"u:{number}", "brave" if number % 2 else "control") for number in range(2000)]
    answers.write_text("".join(json.dumps({"user": user, "time_ms": 1000, "experiment": "e", "arm": arm}) + "\n"
                               for user, arm in users))
    events.write_text("".join(json.dumps({"user": user, "time_ms": 2000, "type": "click"}) + "\n"
                              for number, (user, arm) in enumerate(users) if number % 20 < (6 if arm == "brave" else 2))
                      + json.dumps({"user": "u:x", "time_ms": 90_000_000, "type": "click"}) + "\n")
    files = ["--answers", answers, "--events", events]
    ran = run("experiment", "report", *files, "--experiment", "e", "--html", page, "--format", "json")
    report = json.loads(ran.stdout)
    comparison = report["metrics"][0]["comparisons"][0]
    check(ran.returncode == 0 and report["control"] == "control" and comparison["decided"] and comparison["interval"]["low"] > 0,
          "a better arm is found")
    check("<svg" in page.read_text() and not report["sample_ratio"]["mismatch"], "the page has a plot")
    ran = run("experiment", "report", *files, "--experiment", "e", "--shares", "control=0.6,brave=0.4")
    check(ran.returncode == 1 and "SAMPLE RATIO MISMATCH" in ran.stdout, "a wrong split has exit code 1")
    refused(["nobody was in the experiment `f`", "there are: e"], "experiment", "report", *files, "--experiment", "f")
    refused(["events.jsonl", "line 1"], "experiment", "report", "--answers", events, "--events", events, "--experiment", "e")


with tempfile.TemporaryDirectory() as directory:
    experiments(pathlib.Path(directory))
    other_policies(pathlib.Path(directory))
    nearest_vectors(pathlib.Path(directory))
    product_search(pathlib.Path(directory))
    next_things(pathlib.Path(directory))
    same_model(pathlib.Path(directory))
    stopped_training(pathlib.Path(directory))
gate()
model_times()
refused(["no server answers at 127.0.0.1:1"], "load-test", "--address", "127.0.0.1:1", "--data", "target/demo/data")
print(f"cli: {len(wrong)} wrong")
sys.exit(1 if wrong else 0)
