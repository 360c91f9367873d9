"""Runs commands and benchmarks on small synthetic files, valid and invalid, and checks output, flags and exit codes.

Usage: run.py LODESTONE. Needs ORT_DYLIB_PATH. Prints each check; exits with 1 if one is wrong.
"""
import csv
import gzip
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

LODESTONE = sys.argv[1]
BUNDLE, DATA = "target/demo/bundle", "target/demo/data"
# Exit codes of every command.
SUCCESS, NO, ERROR, INTERRUPTED = 0, 1, 2, 130
wrong = []


def check(right, claim):
    print(f"  {'ok   ' if right else 'WRONG'} {claim}")
    if not right:
        wrong.append(claim)


def run(*arguments, env=None):
    return subprocess.run([LODESTONE, *map(str, arguments)], capture_output=True, text=True, timeout=900, env=env)


def refused(words, *arguments):
    ran = run(*arguments)
    check(ran.returncode == ERROR and all(word in ran.stderr for word in words),
          f"{' '.join(map(str, arguments[:2]))} fails and names {words}")


def npy(path):
    """Returns the shape and the values of an .npy file of little-endian f32 in C order."""
    content = path.read_bytes()
    length = struct.unpack_from("<H", content, 8)[0]
    header = content[10:10 + length].decode()
    assert "'<f4'" in header and "'fortran_order': False" in header, header
    shape = tuple(int(size) for size in header.split("'shape': (")[1].split(")")[0].split(",") if size.strip())
    return shape, struct.unpack(f"<{shape[0] * shape[1]}f", content[10 + length:])


def exported_vectors(work):
    """`bundle export-vectors`: both spaces and the ids, in one order."""
    out = work / "vectors"
    ran = run("bundle", "export-vectors", "--bundle", BUNDLE, "--out", out, "--format", "json")
    written = json.loads(ran.stdout)
    shown = json.loads(run("bundle", "show", "--bundle", BUNDLE, "--format", "json").stdout)
    ids = (out / "item_ids.txt").read_text().removesuffix("\n").split("\n")
    check(len(ids) == len(set(ids)) == written["item_count"] == shown["item_count"] and written["bundle"] == shown["name"],
          f"the vectors of all {len(ids)} items are exported")
    for name, dimensions in [("item_vectors", shown["item_vector_dimensions"]), ("title_vectors", shown["query_vector_dimensions"])]:
        shape, values = npy(out / f"{name}.npy")
        squares = [sum(value * value for value in values[at:at + dimensions]) for at in range(0, len(values), dimensions)]
        check(shape == (len(ids), dimensions) and all(0.98 < square < 1.02 for square in squares),
              f"{name}.npy has a unit vector of {dimensions} numbers for each item")
    ran = run("bundle", "export-vectors", "--bundle", BUNDLE, "--out", out)
    check(ran.returncode == SUCCESS and f"{len(ids)} items" in ran.stdout, "a second export replaces the files")
    refused(["none"], "bundle", "export-vectors", "--bundle", "none", "--out", out)


def file_size_limit(work):
    """A limit of file sizes (`ulimit -f`) is an error with the file's name, and not the end of the process by a signal."""
    def limited(*arguments):
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8, 8))
        return subprocess.run([LODESTONE, *map(str, arguments)], capture_output=True, text=True, timeout=300, preexec_fn=limit)

    for arguments in [("serve", "--bundle", BUNDLE, "--data", work / "limited", "--listen", "127.0.0.1:0"),
                      ("bundle", "export-vectors", "--bundle", BUNDLE, "--out", work / "limited-vectors"),
                      ("bundle", "show", "--bundle", BUNDLE, "--out", work / "limited.txt")]:
        ran = limited(*arguments)
        check(ran.returncode == ERROR and any(text in ran.stderr for text in ("File too large", "limit of file sizes")),
              f"{' '.join(arguments[:2])} beyond the limit of file sizes: exit code 2 {ran.returncode} {ran.stderr[-200:]}")


def conventions(work):
    """`--format`, `--out`, standard streams and exit codes, the same in every command."""
    ran = run("--help")
    check(ran.returncode == SUCCESS and all(f"\n  {code:>3}  " in ran.stdout for code in (SUCCESS, NO, ERROR, INTERRUPTED)),
          "the help lists the exit codes")
    check("--format table|json" in ran.stdout and "--out FILE" in ran.stdout, "the help describes the output")
    refused(["--no-such-flag"], "bundle", "show", "--no-such-flag")
    refused(["none", "No such file"], "bundle", "show", "--bundle", "none")
    show = ["bundle", "show", "--bundle", BUNDLE]
    table, out = run(*show), work / "show.json"
    check(table.returncode == SUCCESS and "feature schema" in table.stdout and table.stderr == "", "a table is the default")
    shown = json.loads(run(*show, "--format", "json").stdout)
    check(shown["name"] in table.stdout and shown["item_count"] > 0, "JSON has the same figures")
    ran = run(*show, "--format", "json", "--out", out)
    check(ran.returncode == SUCCESS and ran.stdout == "" and json.loads(out.read_text()) == shown, "--out writes the same to a file")
    run(*show, "--out", out)
    check(out.read_text() == table.stdout, "--out writes a table, too")
    refused(["--out", "nowhere does not exist"], *show, "--out", work / "nowhere" / "show.json")
    refused(["--format", "yaml", "table", "json"], *show, "--format", "yaml")
    check(run(*show, "--json").stdout == run(*show, "--format", "json").stdout != "", "--json is --format json")
    refused(["--json", "--format"], *show, "--json", "--format", "table")
    # A pipe whose reader has gone, as in `lodestone ... | head -1`.
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run([LODESTONE, *show], stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    check(ran.returncode == SUCCESS and ran.stderr == b"", "a broken pipe is success")
    with open("/dev/full", "w") as full:
        ran = subprocess.run([LODESTONE, *show], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    check(ran.returncode == ERROR and "standard output" in ran.stderr, "a full disk is an error")
    store = work / "store"
    publish = ["bundle", "publish", "--bundle", BUNDLE, "--store", store, "--format", "json"]
    published, again = json.loads(run(*publish).stdout), json.loads(run(*publish, "--if-empty").stdout)
    check(published["published"] and not again["published"] and published["current"] == again["current"], "a bundle is published once")
    pruned = json.loads(run("bundle", "prune", "--store", store, "--keep", 1, "--format", "json").stdout)
    check(pruned["removed"] == [], "prune returns the removed bundles")
    ran = run("benchmark", "events", "--events", 2000, "--users", 50, "--items", 20, "--out", work / "filled", "--format", "json")
    check(ran.returncode == SUCCESS and json.loads(ran.stdout)["events"] == 2000, f"a log is filled {ran.stderr}")
    ran = run("events", "verify", "--data", work / "filled", "--format", "json", "--out", out)
    check(ran.returncode == SUCCESS and json.loads(out.read_text())["records"] == 2000, "a whole log is verified")
    log = next((work / "filled" / "log").glob("*.log"))
    damaged = bytearray(log.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    log.write_bytes(damaged)
    ran = run("events", "verify", "--data", work / "filled")
    check(ran.returncode == NO and "DAMAGED" in ran.stdout, "a damaged log is exit code 1")
    ran = run("events", "verify", "--data", work / "filled", "--repair", "--format", "json")
    check(ran.returncode == SUCCESS and json.loads(ran.stdout)["repair"]["lost_records"] > 0, "a repair reports the lost records")
    log.with_name("00000000000000009000.checkpoint").touch()
    ran = run("events", "verify", "--data", work / "filled")
    check(ran.returncode == NO and "changes up to position 9000" in ran.stdout and "from position 2001 on are lost" in ran.stdout,
          "a checkpoint ahead of the log is exit code 1")
    for command in [["compact"], ["export", "--since", "2020-01-01", "--out", work / "exported"]]:
        ran = run("events", *command, "--data", work / "filled")
        check(ran.returncode == ERROR and "ends at position 2000" in ran.stderr, f"events {command[0]} refuses a log without its end")
    ran = run("events", "verify", "--data", work / "filled", "--repair", "--format", "json")
    repair = json.loads(ran.stdout)["repair"]
    check(ran.returncode == SUCCESS and repair["lost_records"] is None and repair["set_aside"].endswith("9000.checkpoint.damaged"),
          "a repair goes on without the end and keeps the checkpoint")
    (work / "filled" / "answers").mkdir()
    ran = run("answers", "show", "00000000-0000-7000-8000-000000000000", "--data", work / "filled")
    check(ran.returncode == NO and "no record" in ran.stdout, "an answer that is not logged is exit code 1")
    ran = run("benchmark", "encoder-step", "--items", 100, "--batch", 4, "--length", 5, "--width", 8, "--steps", 2, "--threads", 1,
              "--save", work / "histories.txt")
    check(ran.returncode == SUCCESS and "ms per step" in ran.stdout and (work / "histories.txt").read_text().count("\n") == 4,
          f"a training step is measured {ran.stderr}")


def mistakes(work):
    """Wrong paths, numbers and versions are refused before the work begins, with what to do."""
    nowhere, file, empty = work / "no-such-directory", work / "a-file", work / "an-empty-directory"
    file.touch()
    empty.mkdir()
    existing = [("train", "--data", DATA), ("bundle", "build", "--from", BUNDLE, "--ranker", f"{BUNDLE}/ranker.onnx"), ("benchmark", "events")]
    for command in existing:
        refused(["--out", "exists"], *command, "--out", empty)
        refused(["--out", "a-file is not a directory"], *command, "--out", file / "out")
        # Even root creates nothing there.
        refused(["--out", "/proc cannot be written"], *command, "--out", "/proc/out")
    for command in [("import", "--mapping", "m.toml", "--events", "e.csv"), ("answers", "export", "--data", DATA),
                    ("events", "export", "--data", DATA, "--since", "2026-01-01"), ("bundle", "export-vectors", "--bundle", BUNDLE)]:
        refused(["--out", "is a file"], *command, "--out", file)
        refused(["--out", "/proc cannot be written"], *command, "--out", "/proc/out")
    refused(["--out", "/proc cannot be written"], "bundle", "show", "--bundle", BUNDLE, "--out", "/proc/out")
    refused(["--gate", "no-such-directory"], "train", "--data", DATA, "--out", work / "new", "--gate", nowhere)
    check(not (work / "new").exists() and list(empty.iterdir()) == [], "a refused command leaves nothing behind")

    answer = "00000000-0000-7000-8000-000000000000"
    for command in [("answers", "show", answer), ("answers", "export", "--out", work / "x"), ("events", "verify"), ("events", "verify", "--repair"),
                    ("events", "compact"), ("events", "export", "--since", "2026-01-01", "--out", work / "x"), ("train", "--out", work / "x"),
                    ("evaluate", "--bundle", BUNDLE), ("gate", "--candidate", BUNDLE, "--current", BUNDLE), ("retrain", "--store", work / "x"),
                    ("load-test",)]:
        refused(["--data", "no-such-directory", "cannot be read"], *command, "--data", nowhere)
    for command in [("bundle", "show"), ("bundle", "publish", "--store", work / "x"), ("benchmark", "models"), ("benchmark", "ann"),
                    ("evaluate", "--data", DATA), ("bundle", "export-vectors", "--out", work / "x")]:
        refused(["no-such-directory", "No such file"], *command, "--bundle", nowhere)
    refused(["no-such-directory", "No such file"], "experiment", "report", "--answers", nowhere, "--events", nowhere, "--experiment", "e")
    refused(["no-such-directory does not exist"], "bundle", "prune", "--keep", 1, "--store", nowhere)
    refused(["no-such-directory does not exist"], "serve", "--data", work / "x", "--store", nowhere)
    check(not nowhere.exists(), "none of these creates the directory")
    without_events = work / "without-events"
    without_events.mkdir()
    shutil.copy(f"{DATA}/items.parquet", without_events)
    for command in [("evaluate", "--bundle", BUNDLE), ("gate", "--candidate", BUNDLE, "--current", BUNDLE)]:
        refused(["without-events has no events", "lodestone import --events"], *command, "--data", without_events)
    refused(["an-empty-directory/answers does not exist", "--answers-share"], "answers", "show", answer, "--data", empty)
    for repair in [(), ("--repair",)]:
        refused(["an-empty-directory/log has no event log", "no server has used"], "events", "verify", "--data", empty, *repair)
    (empty / "token.key").touch()
    lost = ["an-empty-directory/log has no event log", "moved or removed", f"events verify --data {empty} --repair"]
    refused(lost, "events", "verify", "--data", empty)
    refused(lost, "serve", "--bundle", BUNDLE, "--data", empty)
    refused(lost, "retrain", "--data", empty, "--store", work / "a-store")

    nothing_set = {name: value for name, value in os.environ.items() if not name.startswith("LODESTONE_")}
    words = ["--bundle <DIR>|--store <DIR|URL>", "lodestone serve --bundle <DIR> --data <DIR>", "lodestone serve --store"]
    ran = run("serve", env=nothing_set)
    check(ran.returncode == ERROR and all(word in ran.stderr for word in words), f"serve fails and names {words}")
    refused(["--samples", "0 is not in 1"], "answers", "show", answer, "--data", DATA, "--samples", 0)
    refused(["--samples", "0 is not in 1"], "answers", "export", "--data", DATA, "--out", work / "x", "--samples", 0)
    for flag in ["connections", "page-size", "batch"]:
        refused([f"--{flag}", "0 is not in 1"], "load-test", "--data", DATA, f"--{flag}", 0)
    for steps, words in [("fast:2", ["the rate is `fast`"]), ("100", ["RATE:SECONDS"]), ("100:2,closed:0", ["the duration is `0`"])]:
        refused(["--steps", *words], "load-test", "--data", DATA, "--steps", steps, "--deadline-ms", 100)
    refused(["--deadline-ms"], "load-test", "--data", DATA, "--steps", "100:1")
    refused(["--steps takes recommend, search, browse or suggest, not GetLoyalty"], "load-test", "--data", DATA, "--rpc", "get-loyalty",
            "--steps", "100:1", "--deadline-ms", 100)
    for flag in ["drain-wait", "drain-timeout", "connection-idle", "max-connection-age"]:
        refused([f"--{flag}", "it must be within 0 and"], "serve", "--bundle", BUNDLE, "--data", work / "x", f"--{flag}=-1")
    for flag in ["events", "users", "items"]:
        refused([f"--{flag}", "0 is not in 1"], "benchmark", "events", "--out", work / "new", f"--{flag}", 0)
    for flag in ["count", "m", "ef-construction"]:
        refused([f"--{flag}", "0 is not in"], "benchmark", "ann", "--synthetic", "3000x16", f"--{flag}", 0)
    for flag in ["items", "batch", "length", "width", "negatives", "steps"]:
        refused([f"--{flag}", "0 is not in"], "benchmark", "encoder-step", f"--{flag}", 0)
    refused(["--mean-length is 0"], "benchmark", "encoder-step", "--mean-length", 0)
    for flag in ["seeds", "shoppers", "products", "days", "history-days"]:
        refused([f"--{flag}", "0 is not in"], "simulate", f"--{flag}", 0)
    refused(["--window-hours", "0 is not in 1"], "evaluate", "--off-policy", "--answers", "a", "--events", "e", "--window-hours", 0)

    for flag, wrong, limits in [("width", 8, "16..=512"), ("width", 520, "16..=512"), ("width", 20, "multiple of 8 in 16..=512"),
                                ("blocks", 0, "1..=8"), ("blocks", 9, "1..=8"), ("events", 7, "8..=200"), ("events", 201, "8..=200")]:
        refused([f"--encoder-{flag}", f"{wrong} is not", limits], "train", "--data", DATA, "--out", work / "new", f"--encoder-{flag}", wrong)
        refused([f"--encoder-{flag}", f"{wrong} is not", limits], "retrain", "--data", DATA, "--store", work / "s", f"--encoder-{flag}", wrong)

    features = work / "features.toml"
    for text, reasons in [('kind = "number"\nfield = "brand"', ["feature `x`: brand is no number"]),
                          ('kind = "affinity"\nfield = "brand"\nhalf_life = 3', ["unknown field `half_life`"]),
                          ('kind = "affinity"\nfield = "brand"', ["feature `x`: no item has a value in brand"])]:
        features.write_text(f'[[feature]]\nname = "x"\n{text}\n')
        refused(reasons, "train", "--data", DATA, "--out", work / "new", "--features", features)
    refused(["--features", "no-such-file"], "retrain", "--data", work, "--store", work / "s", "--features", work / "no-such-file")

    earlier = work / "earlier-bundle"
    shutil.copytree(BUNDLE, earlier)
    manifest = json.loads((earlier / "manifest.json").read_text())
    (earlier / "manifest.json").write_text(json.dumps({**manifest, "format": 5, "person_encoder": "a field of format 5"}))
    versions = ["has version 5", "reads version 18", "train again"]
    refused(versions, "bundle", "show", "--bundle", earlier)
    refused(versions, "serve", "--bundle", earlier, "--data", work / "x")
    store = work / "store-of-earlier"
    shutil.copytree(earlier, store / "earlier")
    (store / "current").write_text("earlier\n")
    refused(versions, "serve", "--store", store, "--data", work / "x")
    (work / "of-answers" / "answers").mkdir(parents=True)
    (work / "of-answers" / "answers" / "2026-11-28.00001.answers").write_bytes(b"LDANSW\0\x01 and more")
    refused(["has version 1", "reads version 2", "that wrote it"], "answers", "export", "--data", work / "of-answers", "--out", work / "x")


def nearest_vectors(work):
    report = json.loads(run("benchmark", "ann", "--synthetic", "3000x16", "--count", 10, "--format", "json").stdout)
    check(report["runs"][-1]["recall"] >= 0.99 and report["runs"][-1]["queries_per_s"] > 0, "synthetic vectors are found")
    check(all(filtered["recall"] >= 0.98 for filtered in report["filtered"]), "filters keep recall")
    saved = work / "vectors.npy"
    run("benchmark", "ann", "--synthetic", "3000x16", "--save", saved)
    again = json.loads(run("benchmark", "ann", "--vectors", saved, "--count", 10, "--format", "json").stdout)
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
    refused(["vector 0", "not finite at position 3"], "benchmark", "ann", "--vectors", work / "nan.fvecs")


def product_search(work):
    colours, things = ["red", "blue", "green", "black"], ["mug", "lamp", "chair", "clock", "basket"]
    products = [{"id": f"{c}-{t}", "title": f"{c} {t}", "supplier": "Acme"} for c in colours for t in things]
    (work / "products.jsonl").write_text("\n".join(map(json.dumps, products)))
    rows = ["query\tproduct_id\trating"] + [f"{c} {t}\t{c}-{t}\t3" for c in colours for t in things]
    with gzip.open(work / "judgments.tsv.gz", "wt") as out:
        out.write("\n".join(rows))
    files = ["--products", work / "products.jsonl", "--judgments", work / "judgments.tsv.gz"]
    report = json.loads(run("benchmark", "search", *files, "--format", "json").stdout)
    scores = {method["method"]: method for method in report["methods"]}
    check(set(scores) == {"lexical", "vector", "fused", "ranked"} and report["queries"] == 20, "four methods, every query")
    check(scores["lexical"]["ndcg_at_10"] == 1.0 and scores["fused"]["recall_at_100"] == 1.0, "a product searched by name is first")
    (work / "unknown.tsv").write_text("query\tproduct_id\trating\nmug\tno-such\t3\n")
    refused(["unknown.tsv", "line 2", "no-such"], "benchmark", "search", "--products", work / "products.jsonl", "--judgments",
            work / "unknown.tsv")
    (work / "columns.tsv").write_text("query\trating\nmug\t3\n")
    refused(["columns.tsv", "product_id"], "benchmark", "search", "--products", work / "products.jsonl", "--judgments",
            work / "columns.tsv")
    (work / "broken.jsonl").write_text('{"id": "a", "title": "b"}\n{"id": ')
    refused(["broken.jsonl", "line 2"], "benchmark", "search", "--products", work / "broken.jsonl", *files[2:])
    encoder = work / "encoder"
    refused(["encoder/model.onnx", "tokenizer.json"], "benchmark", "search", *files, "--query-encoder", encoder)
    encoder.mkdir()
    (encoder / "model.onnx").write_bytes((pathlib.Path(BUNDLE) / "query_encoder.onnx").read_bytes())
    (encoder / "tokenizer.json").write_text("{}")
    refused(["encoder", "tokenizer.json"], "benchmark", "search", *files, "--query-encoder", encoder)
    (encoder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}}))
    refused(["sentence_encoder", "term_ids", "input_ids"], "benchmark", "search", *files, "--query-encoder", encoder)


def repeat_purchases(work):
    """`benchmark repeat-purchase` and `loyalty-fit`: the example shop, and each mistake with field, value and limit."""
    shop = "data/online-retail/transactions_2009_2010.csv.zst"
    command = ("benchmark", "repeat-purchase", "--resamples", 100, "--transactions")
    ran = run(*command, shop, "--calibration-end", "2010-09-09", "--horizon-days", 91, "--format", "json")
    report = json.loads(ran.stdout or "{}")
    models = {of["model"]: of for of in report.get("models", [])}
    check((report.get("customers"), report.get("buyers")) == (3375, 1946), "3,375 customers are known, 1,946 purchase again")
    keys = {"auc", "log_loss", "log_likelihood", "mae", "rmse", "correlation", "brier", "calibration_error"}
    check(set(models) == {"bg-nbd", "mbg-nbd", "rfm", "learned"} and all(keys <= set(of) for of in models.values()),
          "each model has all metrics")
    check(all(0.7 < of["auc"] < 0.8 for of in models.values()), "buyers have higher probabilities")
    for of in report.get("differences", []):
        check(of["auc"]["low"] > 0 > of["log_loss"]["high"] and of["brier"]["high"] < 0,
              f"the learned model is better than {of['baseline']} outside the intervals")
    period = ("--calibration-end", "2010-09-09", "--horizon-days", 91)
    refused(["--horizon-days is 92", "at most 91", "2010-12-09"], *command, shop, *period[:3], 92)
    refused(["--calibration-end is 2009-11-30", "2009-12-01"], *command, shop, "--calibration-end", "2009-11-30", *period[2:])
    refused(["--calibration-end is 2011-01-01", "2010-12-09"], *command, shop, "--calibration-end", "2011-01-01", *period[2:])
    refused(["--calibration-end", "tomorrow", "2026-11-30"], *command, shop, "--calibration-end", "tomorrow", *period[2:])
    refused(["--horizon-days", "0 is not in 1"], *command, shop, *period[:3], 0)
    file = work / "purchases.csv"
    for words, text in [
        (["purchases.csv", "no rows"], ""),
        (["all 1 rows", "refunds"], "customer,date,value\na,20100101,-5\n"),
        (["line 3", "currency", "EUR", "USD"], "customer,date,value,currency\na,20100101,5,EUR\nb,20100102,5,USD\n"),
        (["line 2", "value", "`five`"], "customer,date,value\na,20100101,five\n"),
        (["customer", "name, date"], "name,date\na,20100101\n"),
        (["none", "customers"], "customer,date\na,20100101\na,20100301\nb,20110101\n"),
    ]:
        file.write_text(text)
        refused(words, *command, file, *period)
    refused(["missing.csv"], *command, work / "missing.csv", *period)
    ran = run("benchmark", "loyalty-fit", "--customers", 20_000, "--repeats", 1, "--save", file, "--format", "json")
    model = json.loads(ran.stdout)["model"]
    check(abs(model["r"] - 0.243) < 0.03 and len(file.read_text().splitlines()) == 20_001,
          "the fit recovers the parameters of simulated customers, which are saved")


def imports(work):
    """Files as other programs write them."""
    def imported(mapping, content, name="shop.csv"):
        (work / "mapping.toml").write_text(mapping)
        (work / name).write_text(content)
        return run("import", "--mapping", work / "mapping.toml", "--events", work / name, "--out", work / "imported", "--format", "json")

    retailrocket = '[events]\nitem = "itemid"\ntime = "timestamp"\nvisitor = "visitorid"\nevent_type = "event"\norder = "transactionid"\n' \
                   '[event_types]\ntransaction = "purchase"\n[clean]\ntime_format = "unix_ms"\n'
    rows = ["timestamp,visitorid,event,itemid,transactionid", "1433221332117,257597,view,355908,", "1433221999827,257597,addtocart,355908,",
            "1433222276276,257597,transaction,355908,4000", "1433222276276,1,rate,355908,"]
    ran = imported(retailrocket, "\n".join(rows))
    report = json.loads(ran.stdout)
    check(report["kept_by_type"] == {"add_to_cart": 1, "purchase": 1, "view": 1} and report["unknown_event_types"] == {"rate": 1},
          f"events of another program are imported {ran.stderr}")
    ran = imported('[events]\nitem = "sku"\ntitle = "name"\n', "sku,name\n1,mug\n")
    check(ran.returncode == ERROR and "events.time is missing" in ran.stderr and "--items" in ran.stderr,
          "a file of items as a file of events names --items")
    ran = imported('[events]\nitem = "sku"\ntime = "since"\n', "sku,since\n1,2025-01-01\n")
    check(ran.returncode == ERROR and "constants.event_type" in ran.stderr, "rows without a declared event type are not purchases")
    (work / "products.toml").write_text('[items]\nid = "sku"\ntitle = "name"\n')
    (work / "products.csv").write_text("sku,name\n" + "".join(f"{number},mug {number}\n" for number in range(700)))
    ran = run("import", "--mapping", work / "products.toml", "--items", work / "products.csv", "--out", work / "catalogue")
    check(ran.returncode == SUCCESS and "700 items" in ran.stdout and sorted(os.listdir(work / "catalogue")) == ["items.parquet"],
          f"a file of items becomes items and no events {ran.stderr}")
    refused(["--events", "--items"], "import", "--mapping", work / "products.toml", "--out", work / "catalogue")
    (work / "european.toml").write_text('[items]\nid = "sku"\ntitle = "name"\nprice = "price"\n[constants]\ncurrency = "EUR"\n')
    (work / "european.csv").write_text("sku;name;price\n1;mug;12,50\n2;jug;1.299,00\n3;cup;free\n")
    european = ["import", "--mapping", work / "european.toml", "--items", work / "european.csv", "--out", work / "european"]
    refused(["line 2", "`price`", "`12,50`", "clean.decimal_separator"], *european)
    with open(work / "european.toml", "a") as mapping:
        mapping.write('[clean]\ndecimal_separator = ","\n')
    ran = run(*european)
    check(ran.returncode == SUCCESS and "2 items" in ran.stdout and "line 4, column `price`: `free` is not a number" in ran.stdout,
          f"prices with a decimal comma are imported, and a bad one costs its row {ran.stdout} {ran.stderr}")


def gate():
    same = ["gate", "--data", DATA, "--candidate", BUNDLE, "--current", BUNDLE]
    ran = run(*same, "--slower-max", 3, "--format", "json")
    verdict = json.loads(ran.stdout)
    baseline = verdict["baseline"]
    check(verdict["ndcg_gain"]["mean"] == 0 and verdict["refusals"] == [] and ran.returncode == SUCCESS,
          f"a bundle passes compared with itself, and is not below a baseline {verdict['refusals']}")
    check(baseline["ndcg_at_10"] > 0.1 and abs(baseline["candidate_ndcg_at_10"] - verdict["candidate_ndcg_at_10"]) < 1e-9,
          f"and is compared with the best baseline, {baseline['name']}")
    ran = run(*same, "--slower-max", 3, "--users-min", 1_000_000)
    check(ran.returncode == NO and "refused: too few users to tell" in ran.stdout, "too few users to tell are a refusal")
    ran = run(*same, "--slower-max", 0.01)
    check(ran.returncode == NO and "refused: it is slower" in ran.stdout, "a slower one is refused with exit code 1")


BASELINES = ["popularity", "own purchases", "ItemKNN", "UserKNN", "TIFU-KNN", "EASE", "transitions", "own + popularity",
             "combination"]


def baselines():
    ran = run("evaluate", "--data", DATA, "--bundle", BUNDLE, "--format", "json")
    evaluation = json.loads(ran.stdout)
    comparisons = {(one["state_until"], one["task"]): one for one in evaluation["comparisons"]}
    states = [(state, task) for state in ("request", "training") for task in ("all", "repeat", "discovery")]
    check(all([of["name"] for of in comparisons[key]["baselines"]] == BASELINES for key in states),
          "evaluate compares with every baseline, by state and task")
    requests = {task for state, task in comparisons if (state, task) not in states}
    check(requests == {"bought_together", "similar", "buy_again", "search"}, f"and each type of request {requests}")
    for key, one in comparisons.items():
        best = max(one["baselines"], key=lambda of: of["ndcg_at_10"]["mean"])
        served = one["served_ndcg_at_10"]["mean"]
        check(best["name"] == one["best_baseline"] and abs(served / best["ndcg_at_10"]["mean"] - one["ratio"]) < 1e-9
              and abs(served - best["ndcg_at_10"]["mean"] - one["gain"]["mean"]) < 1e-9,
              f"{key}: ratio and difference are those to the best baseline")
    live = comparisons["request", "all"]
    ranked = next(method for method in evaluation["methods"] if method["name"] == "ranked")
    check(live["case_count"] == evaluation["user_count"] and abs(live["served_ndcg_at_10"]["mean"] - ranked["ndcg_at_10"]["mean"]) < 1e-9,
          "the users and lists are those of the table above")
    check(sum(group["case_count"] for group in live["groups"]) == live["case_count"], "groups by activity have all users")


def no_repeats(work):
    """Shops whose users have no basket of a task: the task is left out."""
    def shop(name, rows):
        (work / f"{name}.csv").write_text("\n".join(["order,user,item,title,time"] + rows))
        (work / f"{name}.toml").write_text('[events]\n' + "".join(f'{column} = "{column}"\n' for column in ("item", "time", "order", "user", "title")))
        ran = run("import", "--mapping", work / f"{name}.toml", "--events", work / f"{name}.csv", "--out", work / name)
        check(ran.returncode == SUCCESS, f"{name} is imported {ran.stderr}")
        ran = run("train", "--data", work / name, "--out", work / f"{name}-bundle")
        check(ran.returncode == SUCCESS, f"{name} is trained {ran.stderr[-300:]}")
        return run("evaluate", "--data", work / name, "--bundle", work / f"{name}-bundle", "--format", "json")

    def row(order, user, item, day):
        return f"{order},{user},i{item},blue thing {item},2025-{1 + day // 28:02}-{1 + day % 28:02} 10:00:00"

    ran = shop("once", [row(f"{user}-{day}", f"p{user}", (user + day) % 40, day) for user in range(20) for day in range(user, user + 30)])
    tasks = {one["task"] for one in json.loads(ran.stdout)["comparisons"]} if ran.returncode == SUCCESS else ran.stderr
    check({"all", "discovery"} <= set(tasks) and not {"repeat", "buy_again"} & set(tasks), f"without repeats there is no such task {tasks}")
    ran = shop("again", [row(f"{user}-{day}", f"p{user}", user, day) for user in range(20) for day in range(30)])
    tasks = {one["task"] for one in json.loads(ran.stdout)["comparisons"]} if ran.returncode == SUCCESS else ran.stderr
    check({"all", "repeat", "buy_again"} <= set(tasks) and "discovery" not in tasks, f"and with nothing but repeats no discovery {tasks}")
    ran = shop("guests", [f"{day}-{guest},,i{(guest + step) % 40},blue thing {(guest + step) % 40},2025-{1 + day // 28:02}-{1 + day % 28:02} 10:00:00"
                          for day in range(60) for guest in range(5) for step in range(2)])
    check(ran.returncode == ERROR and "no user with a history" in ran.stderr, f"a shop of guests has no next basket {ran.stderr[-300:]}")
    ran = shop("single", [row(user, f"p{user}", user % 40, user % 80) for user in range(300)])
    check(ran.returncode == ERROR and "no user with a history" in ran.stderr, f"nor has one with an event a user {ran.stderr[-300:]}")


def model_times():
    report = json.loads(run("benchmark", "models", "--bundle", BUNDLE, "--runs", 50, "--format", "json").stdout)
    sizes = {(timing["model"], timing["size"]) for timing in report["models"]}
    check({("user encoder", 50), ("ranker", 200), ("ranker", 1000), ("query encoder", 4)} <= sizes, "every model is measured")
    check(all(0 < timing["p50_ms"] <= timing["p99_ms"] for timing in report["models"]), "its times are in order")
    refused(["--runs", "3 is not in 10"], "benchmark", "models", "--bundle", BUNDLE, "--runs", 3)
    refused(["none", "No such file"], "benchmark", "models", "--bundle", "none")


def next_things(work):
    lines = [[(user * 7 + step) % 30 for step in range(4 + user % 4)] for user in range(120)]
    sequences, items = work / "sequences.txt.gz", work / "items.tsv"
    with gzip.open(sequences, "wt") as out:
        out.write("".join(f"u{user} {' '.join(map(str, line))}\n" for user, line in enumerate(lines)))
    items.write_text("item\ttitle\n" + "".join(f"{item}\tthing {item % 5}\n" for item in range(30)))
    out = work / "next.json"
    to_file = ["--format", "json", "--out", out]
    ran = run("benchmark", "next-item", "--sequences", sequences, "--items", items, *to_file, "--seeds", 2)
    report = json.loads(out.read_text())
    methods = {method["method"]: method for method in report["methods"]}
    check(ran.returncode == SUCCESS and {"user_vector", "transitions", "popular", "retrieval", "ranked"} <= set(methods),
          "each source, the union and the ranking are evaluated")
    check(report["seeds"] == [1, 2] and report["hr_at_10"] == methods["ranked"]["hr_at_10"] > 0.9, "a chain is predicted")
    check("ndcg_at_10" in methods["ranked"]["spread"] and "hr_at_10" in methods["ranked"]["descending"],
          "spread and descending users are reported")
    (work / "train.txt").write_text("".join(" ".join(map(str, line)) + "\n" for line in lines))
    (work / "test.tsv").write_text("3 4\t5\n8\t9\n")
    ran = run("benchmark", "sessions", "--train", work / "train.txt", "--test", work / "test.tsv", *to_file)
    check(ran.returncode == SUCCESS and json.loads(out.read_text())["hr_at_20"] == 1.0, "next clicks are predicted")
    (work / "history.txt").write_text("".join(f"u{user}\t1 2;{user % 5} 9;1 2\n" for user in range(30)))
    (work / "future.txt").write_text("".join(f"u{user}\t1 2\n" for user in range(30)))
    ran = run("benchmark", "next-basket", "--history", work / "history.txt", "--future", work / "future.txt", *to_file)
    check(ran.returncode == SUCCESS and json.loads(out.read_text())["recall_at_10"] == 1.0, "next baskets are predicted")
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
    ran = run("benchmark", "off-policy", "--logged", uniform, "--target", other, "--format", "json")
    report = json.loads(ran.stdout)
    check(ran.returncode == SUCCESS and all(judged["covers"] for judged in report["judged"]) and len(report["judged"]) == 4,
          "a log supports the estimate of another policy")
    other.write_text(header + "".join(f"new,{position},{click},0.5\n" for _, position, click in rows))
    out = work / "refused.json"
    ran = run("benchmark", "off-policy", "--logged", uniform, "--target", other, "--format", "json", "--out", out)
    check(ran.returncode == NO and "100.0 %" in json.loads(out.read_text())["refused"],
          "a policy whose actions the log never has is refused with exit code 1")
    ran = run("benchmark", "off-policy", "--logged", uniform, "--target", other)
    check(ran.returncode == NO and "refused: no support: 100.0 %" in ran.stdout, "the table has the reason")
    other.write_text(header + "1,1,0,0\n")
    refused(["other.csv", "line 2", "propensity_score"], "benchmark", "off-policy", "--logged", uniform, "--target", other)


def stopped_training(work):
    # The parents of `--out` are created before the training, because the checkpoint is there.
    out = work / "stopped" / "bundle"
    # There is no checkpoint before the query encoder is trained, which takes a different time on each machine.
    for seconds in (2, 4, 8, 16):
        ran = subprocess.Popen([LODESTONE, "train", "--data", DATA, "--out", str(out)], stderr=subprocess.PIPE, text=True)
        time.sleep(seconds)
        ran.send_signal(signal.SIGINT)
        stderr = ran.communicate(timeout=120)[1]
        if (work / "stopped" / "bundle.checkpoint").exists():
            break
    check(ran.returncode == INTERRUPTED and "bundle.checkpoint" in stderr, "Ctrl-C stops a training and names the checkpoint")
    check((work / "stopped" / "bundle.checkpoint").stat().st_size > 0 and not out.exists(), "it leaves a checkpoint and no bundle")


def same_model(work):
    """A small shop: its file is imported, and trained on twice with one thread."""
    rows = ["order,user,item,title,time"]
    for day in range(120):
        for user in range(12):
            item = (user * 3 + day) % 25
            rows += [f"{day}-{user},p{user},i{thing},thing number {thing},2025-{1 + day // 30:02}-{1 + day % 30 % 28:02} 10:{user:02}:00"
                     for thing in (item, (item + 5) % 25)]
    (work / "shop.csv").write_text("\n".join(rows))
    (work / "shop.toml").write_text('[events]\n' + "".join(f'{name} = "{name}"\n' for name in ("item", "time", "order", "user", "title")))
    ran = run("import", "--mapping", work / "shop.toml", "--events", work / "shop.csv", "--out", work / "shop")
    check(ran.returncode == SUCCESS, f"a small shop is imported {ran.stderr}")
    sums = []
    for name in ("one", "two"):
        ran = run("train", "--data", work / "shop", "--out", work / name, "--threads", 1, "--seed", 7, "--format", "json")
        check(ran.returncode == SUCCESS and json.loads(ran.stdout)["heads"], f"a bundle is trained on it {ran.stderr}")
        sums.append({file: entry["sha256"] for file, entry in json.loads((work / name / "manifest.json").read_text())["files"].items()})
    different = [name for name in sums[0] if sums[0][name] != sums[1].get(name)]
    check(not different, f"the same seed produces the same files with one thread {different}")
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
    ran = run("experiment", "report", *files, "--experiment", "e", "--report", page, "--format", "json")
    report = json.loads(ran.stdout)
    comparison = report["metrics"][0]["comparisons"][0]
    check(ran.returncode == SUCCESS and report["control"] == "control" and comparison["decided"] and comparison["interval"]["low"] > 0,
          "a better arm is found")
    check("<svg" in page.read_text() and not report["sample_ratio"]["mismatch"], "the page has a plot")
    ran = run("experiment", "report", *files, "--experiment", "e", "--shares", "control=0.6,brave=0.4")
    check(ran.returncode == NO and "SAMPLE RATIO MISMATCH" in ran.stdout, "a wrong split has exit code 1")
    refused(["do not contain the experiment `f`", "they contain: e"], "experiment", "report", *files, "--experiment", "f")
    refused(["events.jsonl", "line 1"], "experiment", "report", "--answers", events, "--events", events, "--experiment", "e")

    ran = run("experiment", "certificate", *files, "--experiment", "e")
    check(ran.returncode == NO and "too little evidence" in ran.stderr and "0 of 1000 users" not in ran.stderr
          and "0 of 100 users whose window is over" in ran.stderr and ran.stdout == "", f"a thin certificate is refused {ran.stderr}")
    day, kinds = 86_400_000, [("click", 0), ("purchase", 0), ("view", 3), ("view", 5)]
    rows = [json.dumps({"user": user, "time_ms": 2000 + days * day, "type": kind, "value": 4.5 if kind == "purchase" else 0,
                        "currency": "EUR"})
            for number, (user, arm) in enumerate(users) for kind, days in kinds
            if number % 20 < (10 if days and arm == "brave" else 4)]
    events.write_text("\n".join([*rows, json.dumps({"user": "u:x", "time_ms": 20 * day, "type": "click"})]))
    ran = run("experiment", "certificate", *files, "--experiment", "e", "--format", "json")
    certificate = json.loads(ran.stdout)
    verdicts = {metric["name"]: metric["verdict"] for metric in certificate["metrics"]}
    check(ran.returncode == SUCCESS and verdicts == {"clicks": "undecided", "purchases": "undecided", "return_visits": "gain",
                                                     "value_micros": "undecided"}, f"return visits are certified {verdicts}")
    check(certificate["currency"] == "EUR" and abs(certificate["metrics"][3]["control_mean"] - 900_000) < 1, "values are micros")
    ran = run("experiment", "certificate", *files, "--experiment", "e")
    check("certificate of `brave` against `control`" in ran.stdout and "value per user (EUR)" in ran.stdout, "it is printed")
    ran = run("experiment", "certificate", *files, "--experiment", "e", "--shares", "control=0.6,brave=0.4")
    check(ran.returncode == NO and "sample ratio mismatch" in ran.stderr, "a wrong split is refused")
    refused(["`brave`", "control"], "experiment", "certificate", *files, "--experiment", "e", "--control", "brave", "--arm", "brave")
    refused(["in USD", "in EUR"], "experiment", "certificate", *files, "--experiment", "e", "--currency", "usd")
    refused(["--window-hours is 0"], "experiment", "certificate", *files, "--experiment", "e", "--window-hours", 0)


def campaign(work, scored):
    """`loyalty campaign`: the rows are those of the scores, the highest value at risk first, with products and reasons."""
    out, command = work / "campaign.csv", ("loyalty", "campaign", "--data", DATA, "--bundle", BUNDLE)
    ran = run(*command, "--users", 20, "--out", out, "--format", "json")
    check(ran.returncode == SUCCESS, f"a campaign is written {ran.stderr}")
    rows, report = list(csv.DictReader(out.open())), json.loads(ran.stdout)
    sizes = {of["segment"]: of["users"] for of in scored["segments"]}
    check(len(rows) == report["users"] == min(20, sizes["at_risk"]) and report["eligible_users"] <= sizes["at_risk"],
          f"the campaign has the users at risk {report}")
    days = report["horizon_days"]
    values = [float(row[f"value_at_risk_{days}d"]) for row in rows]
    check(values == sorted(values, reverse=True) and {row["segment"] for row in rows} == {"at_risk"},
          f"the highest value at risk is first {values}")
    first = rows[0]
    expected = (1 - float(first[f"return_probability_{days}d"])) * float(first[f"expected_value_{days}d"])
    check(abs(values[0] - expected) < 1e-6 * expected, "the value at risk is P(no return) times the expected value")
    products = [[row[f"product_{at}"] for at in range(1, 13)] for row in rows]
    check(all(len(set(of)) == 12 and all(of) for of in products) and len({tuple(of) for of in products}) > 10,
          "each user has twelve products of its own")
    check(all(row[f"reasons_{at}"] for row in rows for at in range(1, 13)) and all(row["title_1"] for row in rows),
          "each product has a title and reasons")
    again = run(*command, "--users", 20, "--out", work / "again.csv")
    check(again.returncode == SUCCESS and (work / "again.csv").read_text() == out.read_text(), "the same again")
    parquet = work / "campaign.parquet"
    ran = run(*command, "--segment", "lost", "--segment", "lapsing", "--products", 1, "--out", parquet)
    check(ran.returncode == SUCCESS and parquet.read_bytes()[:4] == b"PAR1", f"a Parquet file is written {ran.stderr}")
    refused(["--segment", "risky", "at-risk", "lapsing"], *command, "--segment", "risky", "--out", out)
    refused(["--currency", "XYZ", "GBP"], *command, "--currency", "XYZ", "--out", out)
    refused([".csv", ".parquet"], *command, "--out", work / "campaign.txt")


def loyalty(work):
    """`loyalty score`, `loyalty campaign` and `loyalty report` of the example shop."""
    scores, page = work / "scores.parquet", work / "loyalty.html"
    ran = run("loyalty", "score", "--data", DATA, "--bundle", BUNDLE, "--out", scores, "--format", "json")
    check(ran.returncode == SUCCESS, f"all users are scored {ran.stderr}")
    scored = json.loads(ran.stdout)
    sizes = {of["segment"]: of["users"] for of in scored["segments"]}
    check(sum(sizes.values()) == scored["users"] > 3000 and len(sizes) == 6 and min(sizes["at_risk"], sizes["growing"]) > 0,
          f"each user is in a segment {sizes}")
    check(scores.read_bytes()[:4] == b"PAR1", "the scores are a Parquet file")
    ran = run("loyalty", "report", "--data", DATA, "--bundle", BUNDLE, "--out", page)
    html = page.read_text()
    check(ran.returncode == SUCCESS and f"{scored['users']} users" in ran.stdout, f"a page is written {ran.stderr}")
    check(html.count("<svg") >= 4 and "Retention by cohort" in html and "http://" not in html.replace("http://www.w3.org", ""),
          "the page has plots and needs no other file")
    campaign(work, scored)
    empty = work / "no-data"
    empty.mkdir()
    refused(["events.parquet"], "loyalty", "score", "--data", empty, "--bundle", BUNDLE, "--out", scores)
    refused(["nowhere"], "loyalty", "report", "--data", DATA, "--bundle", work / "nowhere", "--out", page)


def security(work):
    """API keys are printed once, and a server that strangers reach does not start."""
    keys, secret = work / "keys.toml", work / "secret.json"
    create = ["key", "create", "--keys", keys, "--role", "rank"]
    ran = run(*create, "--name", "shop", "--role", "events", "--catalog", "default", "--expires-days", "90")
    key = ran.stdout.split("\n")[0]
    check(ran.returncode == SUCCESS and key.startswith("lodestone_") and len(key) == len("lodestone_") + 64,
          f"a key is printed {ran.stderr}")
    check("for the catalogues default" in ran.stdout and "expires at" in ran.stdout, f"catalogues and expiry are printed {ran.stdout}")
    check(key not in keys.read_text() and keys.stat().st_mode & 0o777 == 0o600, "the file has its hash only, and is private")
    ran = run(*create, "--name", "other", "--format", "json", "--out", secret)
    check(ran.returncode == SUCCESS and ran.stdout == "" and secret.stat().st_mode & 0o777 == 0o600
          and json.loads(secret.read_text())["key"] != key, "a second key is another one, in a private file")
    check(json.loads(secret.read_text())["catalogs"] is json.loads(secret.read_text())["expires"] is None, "it has no limits")
    before = keys.read_text(), secret.read_text()
    refused([f"--out {secret}", "the file exists", "remove it first"], *create, "--name", "third", "--out", secret)
    check((keys.read_text(), secret.read_text()) == before, "the file of another key is not overwritten")
    secret.unlink()
    ran = run(*create, "--name", "third", "--out", secret)
    check(ran.returncode == SUCCESS and ran.stdout == "" and "key `third`" in ran.stderr
          and re.fullmatch(r"lodestone_[0-9a-f]{64}\n", secret.read_text()), f"the file has the key alone {ran.stderr}")
    before = keys.read_text()
    refused(["--name shop", "already has a key of this name"], *create, "--name", "shop")
    refused(["--role", "root", "privacy"], "key", "create", "--keys", keys, "--name", "x", "--role", "root")
    check(keys.read_text() == before and before.count("[[keys]]") == 3, "a refused key changes nothing")
    data = work / "unreached"
    serve = ["serve", "--bundle", BUNDLE, "--data", data, "--listen"]
    refused(["--listen 0.0.0.0:0", "--tls-cert", "--api-keys", "--insecure"], *serve, "0.0.0.0:0")
    refused(["--listen 0.0.0.0:0", "no encryption", "--tls-cert"], *serve, "0.0.0.0:0", "--api-keys", keys)
    refused(["--tls-cert", "none.pem", "cannot be read"], *serve, "127.0.0.1:0", "--tls-cert", "none.pem", "--tls-key", keys)
    refused(["--tls-cert", "keys.toml", "no certificate"], *serve, "127.0.0.1:0", "--tls-cert", keys, "--tls-key", keys)
    keys.write_text(before.replace('"rank"', '"root"', 1))
    refused(["--api-keys", "line 4", "root"], *serve, "127.0.0.1:0", "--api-keys", keys)
    check(not data.exists(), "nothing is written before")


def configuration(work):
    """A file, the environment and flags, in this order; `config check` and `doctor` name what is wrong."""
    file, data = work / "lodestone.toml", work / "configured"
    valid = f'bundle = "{BUNDLE}"\ndata = "{data}"\nlisten = "127.0.0.1:0"\nconnections_max = 100\nworkers = 3\nusers_max = 10\n'
    file.write_text(valid)

    def with_environment(environment, *arguments):
        return subprocess.run([LODESTONE, *map(str, arguments)], capture_output=True, text=True, timeout=300,
                              env=os.environ | environment)

    environment = {"LODESTONE_CONFIG": str(file), "LODESTONE_WORKERS": "4", "LODESTONE_USERS_MAX": "20",
                   "AWS_SECRET_ACCESS_KEY": "hidden-secret"}
    ran = with_environment(environment, "config", "show", "--workers", "5", "--format", "json")
    shown = {entry["key"]: (entry["value"], entry["origin"]) for entry in json.loads(ran.stdout)["settings"]}
    for key, value, origin in [("workers", "5", "flag"), ("users_max", "20", "environment"), ("connections_max", "100", "file"),
                               ("queue_requests_max", "1024", "default"), ("AWS_SECRET_ACCESS_KEY", "***", "environment")]:
        check(shown[key] == (value, origin), f"the {key} {value} is of origin {origin}")
    ran = with_environment(environment, "config", "show")
    check(ran.returncode == SUCCESS and "hidden-secret" not in ran.stdout + ran.stderr and "connections_max" in ran.stdout,
          "secrets are masked")
    ran = with_environment({"LODESTONE_WORKERS": "0"}, "config", "show", "--config", file)
    check(ran.returncode == ERROR and "--workers" in ran.stderr and str(file) not in ran.stderr,
          "a mistake in the environment is no mistake of the file")
    for lines, words in [("worker = 1", ["unknown key `worker`", "`workers`"]), ("device = 1", ["device", "a string"]),
                         ("store = \"s\"", ["`bundle`", "`store`", "remove one"]), ("answers_bytes = 0", ["answers_bytes is `0`"])]:
        file.write_text(valid + lines + "\n")
        for command in (["serve"], ["config", "check"]):
            ran = run(*command, "--config", file)
            check(ran.returncode == ERROR and len(ran.stderr.splitlines()) == 1 and str(file) in ran.stderr
                  and all(word in ran.stderr for word in words), f"{' '.join(command)} names {words} {ran.stderr}")
    refused(["--config", "none.toml", "cannot be read"], "serve", "--config", work / "none.toml")
    for name, value, words in [("LODESTONE_STORE", "s", ["LODESTONE_STORE (--store)", "--bundle", "exclude each other; remove one"]),
                               ("LODESTONE_TLS_CERT", "c", ["LODESTONE_TLS_CERT (--tls-cert)", "--tls-key", "set what is missing"]),
                               ("LODESTONE_INSECURE", "maybe", ["LODESTONE_INSECURE (--insecure) is `maybe`", "true, false"])]:
        ran = with_environment({name: value}, "serve", "--bundle", BUNDLE, "--data", data)
        check(ran.returncode == ERROR and len(ran.stderr.splitlines()) == 1 and all(word in ran.stderr for word in words),
              f"{name} is named in one line {ran.stderr}")
    serve = ["serve", "--data", data, "--listen", "127.0.0.1:0"]
    a_file = work / "a-file"
    a_file.touch()
    refused(["--bundle: ", "no-bundle", "No such file", "`lodestone train`"], *serve, "--bundle", work / "no-bundle")
    refused(["ONNX Runtime"], *serve, "--bundle", BUNDLE, "--onnxruntime", work / "none.so")
    refused(["--data", "a-file is a file; name a directory"], "serve", "--bundle", BUNDLE, "--data", a_file)
    for flag in ["catalogs", "serving", "synonyms"]:
        refused([f"--{flag}", "none.file", "No such file", "check the path"], *serve, "--bundle", BUNDLE, f"--{flag}", work / "none.file")
    refused(["--max-connection-age-grace 5", "--max-connection-age"], *serve, "--bundle", BUNDLE, "--max-connection-age-grace", 5)
    check(not data.exists(), "nothing is written before")
    file.write_text(valid)
    checked, examined = run("config", "check", "--config", file), run("doctor", "--config", file, "--format", "json")
    check(checked.returncode == SUCCESS and "0 wrong" in checked.stdout, f"the settings are right {checked.stdout}")
    check(examined.returncode == SUCCESS and all(found["is_right"] for found in json.loads(examined.stdout)["checks"]),
          f"the machine is fit {examined.stdout}")
    check(not data.exists(), "neither writes")
    (work / "not-synonyms.txt").write_text("sofa\n")
    ran = run("config", "check", "--config", file, "--bundle", work / "no-bundle", "--synonyms", work / "not-synonyms.txt")
    check(ran.returncode == NO and "no-bundle" in ran.stdout and "not-synonyms.txt" in ran.stdout and "2 wrong" in ran.stdout,
          f"all mistakes are reported at once {ran.stdout}")
    ran = run("doctor", "--config", file, "--connections-max", 1_000_000, "--onnxruntime", work / "none.so")
    check(ran.returncode == NO and "none.so" in ran.stdout, f"a missing library is found {ran.stdout}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ran = run("doctor", "--config", file, "--listen", address)
        check(ran.returncode == NO and address in ran.stdout and "1 wrong" in ran.stdout, f"a port in use is found {ran.stdout}")
        for flag in ["--listen", "--metrics-listen"]:
            ran = with_environment({"LODESTONE_WORKRES": "1"}, "serve", "--config", file, flag, address)
            check(ran.returncode == ERROR and f"{flag} {address}: cannot listen" in ran.stderr and "stop the process" in ran.stderr,
                  f"a port in use is an error with its flag and the remedy {ran.stderr}")
            check("did you mean LODESTONE_WORKERS?" in ran.stderr, "a variable with a typing error is a warning")
    same = ["--config", file, "--listen", "127.0.0.1:9", "--metrics-listen", "localhost:9"]
    for command in ["serve"], ["config", "check"], ["doctor"]:
        ran = run(*command, *same)
        check(ran.returncode == (ERROR if command == ["serve"] else NO) and "choose another port" in ran.stdout + ran.stderr,
              f"{' '.join(command)} finds equal addresses {ran.stdout}{ran.stderr}")
    ran = run("config", "check", "--config", file, "--catalogs", work / "none.file")
    check(ran.returncode == NO and "bundle of default" in ran.stdout and "--catalogs" in ran.stdout and "1 wrong" in ran.stdout,
          f"a missing file of catalogues hides no other check {ran.stdout}")
    check(not data.exists(), "nothing is written before a port is bound")


with tempfile.TemporaryDirectory() as directory:
    configuration(pathlib.Path(directory))
    security(pathlib.Path(directory))
    conventions(pathlib.Path(directory))
    mistakes(pathlib.Path(directory))
    exported_vectors(pathlib.Path(directory))
    file_size_limit(pathlib.Path(directory))
    experiments(pathlib.Path(directory))
    imports(pathlib.Path(directory))
    other_policies(pathlib.Path(directory))
    nearest_vectors(pathlib.Path(directory))
    product_search(pathlib.Path(directory))
    repeat_purchases(pathlib.Path(directory))
    loyalty(pathlib.Path(directory))
    next_things(pathlib.Path(directory))
    no_repeats(pathlib.Path(directory))
    same_model(pathlib.Path(directory))
    stopped_training(pathlib.Path(directory))
gate()
baselines()
model_times()
refused(["no server answers at 127.0.0.1:1"], "load-test", "--address", "127.0.0.1:1", "--data", DATA)
print(f"cli: {len(wrong)} wrong")
sys.exit(1 if wrong else 0)
