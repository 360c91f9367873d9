"""Opens the page of `lodestone loyalty report` in headless Chromium and checks its appearance.

Usage: loyalty.py LODESTONE CHROMIUM DATA BUNDLE OUT. Writes loyalty.html and screenshots to OUT. Prints each check; exits with
1 if one is wrong.
"""
import json
import pathlib
import re
import subprocess
import sys

from browser import WIDTHS, check, measure, wrong

LODESTONE, CHROMIUM = sys.argv[1:3]
DATA, BUNDLE, OUT = map(pathlib.Path, sys.argv[3:6])
SEGMENTS = ["new", "growing", "loyal", "at risk", "lapsing", "lost"]


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / "loyalty.html"
    ran = subprocess.run([LODESTONE, "loyalty", "report", "--data", DATA, "--bundle", BUNDLE, "--out", path, "--format", "json"],
                         capture_output=True, text=True, timeout=300)
    check(ran.returncode == 0, "the page is written", ran.stderr)
    report = json.loads(ran.stdout)
    horizons = [of["days"] for of in json.loads((BUNDLE / "loyalty.json").read_text())["model"]["horizons"]]
    pages = measure(CHROMIUM, path, OUT)
    titles = {"Segments", "Changes of segments", "Time until the next purchase", "Retention by cohort", "Concentration of value",
              "Budget of incentives"}
    titles |= {f"Purchase within {days} days" for days in horizons}
    for name, page in pages.items():
        found = {section["title"] for section in page["sections"]}
        check(found == titles, f"{name}: the page has the expected sections", found ^ titles)
    page = pages["desktop"]
    check(f"{report['users']} signed-in users" in page["text"], "the page has the number of users")
    rows = re.findall(r"^((?:%s|no events)\t[\d\t]+)$" % "|".join(SEGMENTS), page["text"], re.MULTILINE)
    cells = {row.split("\t")[0].strip(): [int(cell) for cell in row.split("\t")[1:]] for row in rows}
    check(set(cells) == {*SEGMENTS, "no events"}, "the changes have a row for each segment", cells)
    check(all(sum(row[:-1]) == row[-1] for row in cells.values()), "each row of the changes has its sum")
    now = [sum(row[index] for row in cells.values()) for index in range(len(SEGMENTS))]
    check(now == [of["users"] for of in report["segments"]], "the columns of the changes are the segments of now", now)
    print(f"  screenshots: {', '.join(str(OUT / f'{name}.png') for name in WIDTHS)}")
    sys.exit(1 if wrong else 0)


main()
