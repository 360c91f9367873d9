"""Runs a small simulation with three real servers and two nights, and checks the result and the plot.

Usage: simulate.py LODESTONE OUT. Needs ORT_DYLIB_PATH. Prints each check; exits with 1 if one is wrong.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

LODESTONE, OUT = sys.argv[1], pathlib.Path(sys.argv[2])
wrong = []


def check(right, claim, found=""):
    print(f"  {'ok   ' if right else 'WRONG'} {claim}{'' if right or not found else f': {found}'}")
    if not right:
        wrong.append(claim)


OUT.mkdir(parents=True, exist_ok=True)
small = ["--seeds", "1", "--shoppers", "80", "--products", "96", "--days", "3", "--history-days", "20"]
ran = subprocess.run([LODESTONE, "simulate", *small, "--format", "json", "--out", OUT / "simulation.json", "--plot",
                      OUT / "simulation.svg"], capture_output=True, text=True, timeout=300)
check(ran.returncode == 0 and ran.stdout == "", "a small world is simulated", ran.stderr)
if ran.returncode == 0:
    report = json.loads((OUT / "simulation.json").read_text())
    arms = {arm["arm"]: arm for arm in report["outcomes"]["arms"]}
    check(set(arms) == {"off", "live", "loop"} and report["outcomes"]["shopper_count"] == 80, "all arms, all shoppers")
    check([len(arm["days"]) for arm in arms.values()] == [3, 3, 3] and len(report["nights"][0]) == 2, "three days, two nights")
    first = {arm: outcome["days"][0]["came"] for arm, outcome in arms.items()}
    check(len(set(first.values())) == 1 and first["off"] > 0.1, "on the first day the same shoppers come to each", first)
    # Per shopper. Answers differ a little, because each server publishes popularity at moments of its own.
    live, loop = ([arm["days"][0][count] for count in arm["days"][0]] for arm in (arms["live"], arms["loop"]))
    check(all(abs(a - b) <= 0.15 for a, b in zip(live, loop)),
          "before the first night live and loop are the same server", (live, loop))
    clicks = {arm: outcome["rates"]["clicks"]["mean"] for arm, outcome in arms.items()}
    check(all(0.1 < mean < 5 for mean in clicks.values()) and clicks["off"] != clicks["live"], "written events change answers", clicks)
    differences = [(difference["more"], difference["less"]) for difference in report["outcomes"]["differences"]]
    check(("loop", "off") in differences, "the differences between the arms are reported", differences)
    svg = (OUT / "simulation.svg").read_text()
    check(svg.count("<polyline") == 9 and "NaN" not in svg, "the figure has three plots of three lines")
ran = subprocess.run([LODESTONE, "simulate", *small[:2], "--shoppers", "30", "--products", "60", "--days", "2", "--history-days", "20",
                      "--answers", "--format", "json", "--out", OUT / "answers.json"], capture_output=True, text=True, timeout=300)
check(ran.returncode == 0, "a small world with the arms of the answer log is simulated", ran.stderr)
if ran.returncode == 0:
    report = json.loads((OUT / "answers.json").read_text())
    check([arm["arm"] for arm in report["outcomes"]["arms"]] == ["off", "live", "loop", "explore", "answers"], "there are five arms")
    differences = [(difference["more"], difference["less"]) for difference in report["outcomes"]["differences"]]
    check(("answers", "explore") in differences and len(differences) == 6, "learning from answers is compared with its control", differences)
    check([night["list_count"] for night in report["answer_nights"][0]] == [0], "a day has too few answers to learn from")
rare = ["--shoppers", "120", "--products", "96", "--days", "2", "--history-days", "150", "--visit-probability", "0.05"]
ran = subprocess.run([LODESTONE, "simulate", *small[:2], *rare, "--objective-weights", "0,1", "--objectives", "loyalty,revenue",
                      "--format", "json", "--out", OUT / "objectives.json", "--plot", OUT / "objectives.svg"],
                     capture_output=True, text=True, timeout=300)
check(ran.returncode == 0, "weights of objectives are simulated", ran.stderr)
if ran.returncode == 0:
    points = json.loads((OUT / "objectives.json").read_text())["curves"]["points"]
    check([(point["objective"], point["weight"]) for point in points] == [("relevance", 0.0), ("loyalty", 1.0), ("revenue", 1.0)],
          "relevance is compared with each weight")
    check(all(point["rates"]["revenue"]["mean"] > 0 for point in points) and any(point["is_pareto_optimal"] for point in points),
          "each has a revenue, and one is Pareto optimal", points)
    svg = (OUT / "objectives.svg").read_text()
    check("NaN" not in svg and svg.count("<polyline") == 2, "the figure has a line for each objective")
# With a short history, the labels of return visits are not known.
with tempfile.TemporaryDirectory() as directory:
    # A work directory of its own, because that of a failed simulation remains.
    ran = subprocess.run([LODESTONE, "simulate", *small, "--objective-weights", "1", "--objectives", "loyalty",
                          "--work", pathlib.Path(directory) / "work"], capture_output=True, text=True, timeout=300)
check(ran.returncode == 2 and all(word in ran.stderr for word in ("`return_visit`", "--history-days", "150")),
      "a history without labels for loyalty is refused with the flag", ran.stderr)
for words, flags in ((["--days <N>", "1 is not in 2..=365"], ["--days", "1"]),
                     (["--shoppers <N>", "3 is not in 20..=100000"], ["--shoppers", "3"]),
                     (["--objective-weights", "1.5 is not within 0 and 1"], ["--objective-weights", "0,1.5"]),
                     (["--objectives", "`margin` is not one of"], ["--objective-weights", "1", "--objectives", "margin"]),
                     (["--visit-probability", "within 0.001 and 0.5"], ["--visit-probability", "0.9"]),
                     (["exists"], ["--work", OUT])):
    ran = subprocess.run([LODESTONE, "simulate", *map(str, flags)], capture_output=True, text=True, timeout=60)
    check(ran.returncode == 2 and all(word in ran.stderr for word in words), f"it names {words}", ran.stderr)
print(f"simulate: {len(wrong)} wrong")
sys.exit(1 if wrong else 0)
