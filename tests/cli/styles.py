"""A small shop in which everyone buys things of one style, and the checks of the scripts that train on it."""
import pathlib
import random
import subprocess

KINDS, STYLES = ["mug", "lamp", "rug", "vase", "tray"], ["red", "blue", "old", "new", "tall", "flat", "soft", "round"]
USERS = 100
wrong = []


def check(right, claim, found=""):
    print(f"  {'ok   ' if right else 'WRONG'} {claim}{'' if right or not found else f': {found}'}")
    if not right:
        wrong.append(claim)


def write_shop(lodestone, work):
    """Imports the shop's purchases into work/data."""
    rng = random.Random(1)
    rows = ["order,item,title,user,time"]
    for order in range(900):
        user = rng.randrange(USERS)
        time_of_day = f"{rng.randrange(8, 20):02}:{rng.randrange(60):02}:00"
        date = f"2026-{7 + order // 300:02}-{1 + order % 300 // 10:02}"
        for kind in rng.sample(range(len(KINDS)), 2):
            style = user % len(STYLES) if rng.random() < 0.9 else rng.randrange(len(STYLES))
            rows.append(f"o{order},i{kind}-{style},{STYLES[style]} {KINDS[kind]},p{user},{date} {time_of_day}")
    work = pathlib.Path(work)
    (work / "shop.csv").write_text("\n".join(rows) + "\n")
    columns = "".join(f'{name} = "{name}"\n' for name in ("order", "item", "title", "user", "time"))
    (work / "mapping.toml").write_text(f"[events]\n{columns}")
    subprocess.run([lodestone, "import", "--mapping", work / "mapping.toml", "--events", work / "shop.csv", "--out", work / "data"],
                   check=True, capture_output=True)
