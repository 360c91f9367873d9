"""Opens the page of `lodestone evaluate --report` in headless Chromium and checks its appearance.

Usage: run.py LODESTONE CHROMIUM DATA BUNDLE OUT. Needs ORT_DYLIB_PATH. Writes report.html and screenshots to OUT. Prints each
check; exits with 1 if one is wrong.
"""
import json
import pathlib
import subprocess
import sys
import time

from browser import WIDTHS, check, measure, wrong

LODESTONE, CHROMIUM = sys.argv[1:3]
DATA, BUNDLE, OUT = map(pathlib.Path, sys.argv[3:6])


def check_sections(page, name, heads):
    for section in page["sections"]:
        check(section["plots"] > 0, f"{name}: `{section['title']}` has a plot")
    expected = {"Quality", "Baselines", "Losses", "Quality by activity of the user", "Quality by activity of the item", "Popularity bias",
           "Ablation of sources", "Ablation of the learned vectors on discovery", "Ablation of features",
           "Calibration of purchase"}
    titles = {section["title"] for section in page["sections"]}
    # A head without observations has no calibration.
    check(expected <= titles <= expected | {f"Calibration of {head}" for head in heads}, f"{name}: the page has the expected sections",
          titles ^ expected)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    report = OUT / "report.html"
    begun = time.monotonic()
    ran = subprocess.run([LODESTONE, "evaluate", "--data", DATA, "--bundle", BUNDLE, "--report", report, "--format", "json"],
                         capture_output=True, text=True, timeout=900)
    check(ran.returncode == 0, f"the report is written in {time.monotonic() - begun:.0f} s", ran.stderr)
    evaluation = json.loads(ran.stdout)
    manifest = json.loads((BUNDLE / "manifest.json").read_text())
    heads = [head["name"] for head in manifest["heads"]]
    pages = measure(CHROMIUM, report, OUT)
    for name, page in pages.items():
        check_sections(page, name, heads)
    page = pages["desktop"]
    check(manifest["name"] in page["title"] and f"{evaluation['user_count']} users" in page["text"],
          "the page names the bundle and the number of users")
    ranked = evaluation["methods"][-1]["ndcg_at_10"]["mean"]
    check(f"{ranked:.4f}" in page["text"], f"the table has the ranked NDCG@10, {ranked:.4f}")
    live = evaluation["comparisons"][0]
    check(live["task"] == "all" and f"{live['ratio']:.3f}" in page["text"] and live["best_baseline"] in page["text"],
          f"the page names the best baseline, {live['best_baseline']}, and the ratio")
    print(f"  screenshots: {', '.join(str(OUT / f'{name}.png') for name in WIDTHS)}")
    sys.exit(1 if wrong else 0)


main()
