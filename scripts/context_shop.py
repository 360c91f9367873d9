"""Writes a synthetic shop, products.csv, events.csv and mapping.toml, in which the platform of a visit changes what users choose.

Usage: context_shop.py DIRECTORY [FACTOR [SHARE]]

Each of 1,200 users has three favourite categories, and makes SHARE (0.8) of the visits on a platform of their own, the others on
any. A third of the items of a category is chosen FACTOR (3) times as often on one platform as the others; with 1, the platform
makes no difference.
"""
import csv
import datetime
import pathlib
import random
import sys

PLATFORMS = ["ios", "android", "web"]
CATEGORIES, ITEMS, USERS, DAYS = 30, 900, 1200, 360
END = datetime.datetime(2026, 11, 1)
MAPPING = """[items]
id = "id"
title = "title"
categories = ["category"]
price = "price"

[events]
time = "time"
user = "user"
event_type = "type"
item = "item"
platform = "platform"
order = "order"

[clean]
time_format = "%Y-%m-%d %H:%M:%S"

[constants]
currency = "GBP"
"""


def events(shelves, factor, share):
    for user in range(USERS):
        home, favourites = random.choice(PLATFORMS), random.sample(range(CATEGORIES), 3)
        for visit in range(random.randint(4, 14)):
            platform = home if random.random() < share else random.choice(PLATFORMS)
            at = END - datetime.timedelta(minutes=random.uniform(0, DAYS * 1440))
            shelf = shelves[random.choice(favourites) if random.random() < 0.8 else random.randrange(CATEGORIES)]
            weights = [popularity * (factor if of == platform else 1) for _, _, _, of, popularity in shelf]
            for item in random.choices(shelf, weights, k=random.randint(1, 3)):
                kind = "purchase" if random.random() < 0.5 else "view"
                yield at, f"u{user}", kind, item[0], platform, f"o{user}-{visit}"
                at += datetime.timedelta(seconds=30)


def write(path, header, rows):
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(rows)


def main(directory, factor="3", share="0.8"):
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    random.seed(7)
    items = [(f"i{n}", f"thing {n}", f"shelf {n % CATEGORIES}", PLATFORMS[n // CATEGORIES % 3], random.paretovariate(1.3))
             for n in range(ITEMS)]
    shelves = [items[n::CATEGORIES] for n in range(CATEGORIES)]
    rows = [(at.strftime("%Y-%m-%d %H:%M:%S"), *rest) for at, *rest in sorted(events(shelves, float(factor), float(share)))]
    write(directory / "products.csv", ["id", "title", "category", "price"], [(*item[:3], 10) for item in items])
    write(directory / "events.csv", ["time", "user", "type", "item", "platform", "order"], rows)
    (directory / "mapping.toml").write_text(MAPPING)
    print(f"{len(items)} items, {len(rows)} events")


if __name__ == "__main__":
    main(*sys.argv[1:])
