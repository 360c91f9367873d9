#!/usr/bin/env python3
"""Compares the served models with the best tuned baseline, on the example shop and on public sets, in one table.

The example shop's bundle is evaluated on its own later events. Each subdirectory of --sets is a set in one of these
layouts, plain, .gz or .zst: `sequences.txt` and `items.tsv` (leave-one-out), `train_sessions.txt` or `train.tsv` and
`test.tsv` (next click), `history.txt` and a `future*.txt` (next basket), or `transactions*.csv` and `products.csv` of
The Complete Journey (trained and evaluated as a shop).
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def found(directory, pattern):
    """Returns the first file of a pattern, plain or compressed."""
    files = sorted(file for ending in ("", ".gz", ".zst") for file in directory.glob(pattern + ending))
    return files[0] if files else None


def report(lodestone, *arguments):
    """Runs a command and returns its JSON."""
    command = [lodestone, *map(str, arguments), "--format", "json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def benchmark(lodestone, name, *arguments):
    """Runs a benchmark with its baselines. Returns the comparison and the metrics of the answers."""
    result = report(lodestone, "benchmark", name, *arguments, "--baselines")
    metrics = {"next-item": ("hr_at_10", "ndcg_at_10"), "sessions": ("hr_at_20", "mrr_at_20"),
               "next-basket": ("recall_at_10", "ndcg_at_10")}[name]
    return result["baselines"], ", ".join(f"{metric} {result[metric]:.4f}" for metric in metrics)


def shop(lodestone, name, data, bundle):
    for comparison in report(lodestone, "evaluate", "--data", data, "--bundle", bundle)["comparisons"]:
        state = {"training": "static", "request": "live"}[comparison["state_until"]]
        yield f"{name}, {state}, {comparison['task']}", comparison, ""


def rows(lodestone, directory):
    """Yields the rows of one set: its name, the comparison and the metrics on all queries."""
    name = directory.name
    sequences, items = found(directory, "sequences.txt"), found(directory, "items.tsv")
    train = found(directory, "train_sessions.txt") or found(directory, "train.tsv")
    test = found(directory, "test.tsv")
    history, future = found(directory, "history.txt"), found(directory, "future*.txt")
    transactions, products = found(directory, "transactions*.csv"), found(directory, "products.csv")
    if sequences and items:
        yield name, *benchmark(lodestone, "next-item", "--sequences", sequences, "--items", items)
    elif train and test:
        yield name, *benchmark(lodestone, "sessions", "--train", train, "--test", test)
    elif history and future:
        yield name, *benchmark(lodestone, "next-basket", "--history", history, "--future", future)
    elif transactions and products:
        with tempfile.TemporaryDirectory() as temporary:
            data, bundle = Path(temporary) / "data", Path(temporary) / "bundle"
            mapping = HERE / "models" / "complete-journey.toml"
            for command in (
                ["import", "--mapping", mapping, "--events", transactions, "--items", products, "--out", data],
                ["train", "--data", data, "--out", bundle],
            ):
                subprocess.run([lodestone, *map(str, command)], check=True, stdout=subprocess.DEVNULL)
            yield from shop(lodestone, name, data, bundle)


def write_short_sets(directory):
    """Writes small sets in which the next item usually has the next number."""
    draw = random.Random(1)

    def histories(count):
        for _ in range(count):
            item, items = draw.randrange(40), []
            for _ in range(draw.randrange(4, 9)):
                items.append(item)
                item = (item + (1 if draw.random() < 0.8 else draw.randrange(2, 20))) % 40
            yield [str(item) for item in dict.fromkeys(items)]

    def write(name, lines):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("".join(line + "\n" for line in lines))

    write("leave-one-out/sequences.txt", (f"u{at} {' '.join(items)}" for at, items in enumerate(histories(120))))
    write("leave-one-out/items.tsv", ["item\ttitle", *(f"{item}\tword{item // 4} thing{item % 4}" for item in range(40))])
    write("sessions/train_sessions.txt", (" ".join(items) for items in histories(300)))
    write("sessions/test.tsv", (f"{' '.join(items[:-1])}\t{items[-1]}" for items in histories(60)))
    baskets = [(at, [f"{at % 10} {10 + week % 4} {20 + (at + week) % 7}" for week in range(7)]) for at in range(80)]
    write("baskets/history.txt", (f"u{at}\t{';'.join(weeks[:-1])}" for at, weeks in baskets))
    write("baskets/future.txt", (f"u{at}\t{weeks[-1]}" for at, weeks in baskets))


def show(name, comparison, metrics):
    if comparison is None:
        print(f"{name:<44} {'no case':>8}  {metrics}", flush=True)
        return
    best = next(of for of in comparison["baselines"] if of["name"] == comparison["best_baseline"])
    gain, ratio = comparison["gain"], comparison["ratio"]
    print(f"{name:<44} {comparison['served_ndcg_at_10']['mean']:>8.4f} {best['ndcg_at_10']['mean']:>8.4f} "
          f"{'' if ratio is None else format(ratio, '.3f'):>6}  {gain['mean']:+.4f} [{gain['low']:+.4f}, "
          f"{gain['high']:+.4f}]  {best['name']:<18} {metrics}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lodestone")
    parser.add_argument("--data", help="the example shop's data")
    parser.add_argument("--bundle", help="the bundle that was trained on it")
    parser.add_argument("--sets", type=Path, help="directory of sets")
    parser.add_argument("--short", action="store_true", help="only small generated sets, in a few seconds")
    arguments = parser.parse_args()
    if bool(arguments.data) != bool(arguments.bundle):
        parser.error("--data and --bundle belong together")
    header = "NDCG@10 of the answers and of the best tuned baseline, ratio, difference with its 95 % interval"
    print(header, f"{'':<44} {'served':>8} {'best':>8} {'ratio':>6}", sep="\n", flush=True)
    if arguments.short:
        with tempfile.TemporaryDirectory() as temporary:
            write_short_sets(Path(temporary))
            for directory in sorted(Path(temporary).iterdir()):
                for row in rows(arguments.lodestone, directory):
                    show(*row)
        return
    if arguments.data:
        for row in shop(arguments.lodestone, "example shop", arguments.data, arguments.bundle):
            show(*row)
    for directory in sorted(arguments.sets.iterdir()) if arguments.sets else []:
        for row in rows(arguments.lodestone, directory) if directory.is_dir() else []:
            show(*row)


if __name__ == "__main__":
    sys.exit(main())
