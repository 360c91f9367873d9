#!/usr/bin/env python3
"""Measures a checkout: sizes, function lengths, cycles, visibility, and the words of comments and documents.

    scripts/structure.py [ROOT] [--format table|json] [--figures FILE] [--svg FILE]
    scripts/structure.py --compare BEFORE AFTER [--format table|json]

ROOT is a checkout with one package or a workspace; the default is the checkout of this script. BEFORE and AFTER are
each a checkout or a file that `--format json` wrote. `--figures` reads a JSON object of numbers that were measured
elsewhere, such as {"cold_build_seconds": 1260, "binary_bytes": 61000000}, and shows them with the rest. `--svg` draws
crates and modules. Needs Python 3.11, standard library only.
"""
import argparse
import collections
import json
import pathlib
import re
import sys

import rust_tree
import structure_svg

LONG_FUNCTION_LINES = 70
WORDS = ("what", "beside", "because", "returns", "gives")
FENCE = re.compile(r"^ *(```|~~~).*?^ *\1", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`|\]\([^)\s]*\)|<[^>\n]*>")
WORD = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)?")
LARGEST = 10


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", default=pathlib.Path(__file__).resolve().parent.parent)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--figures", metavar="FILE", help="a JSON object of numbers to show with the rest")
    parser.add_argument("--svg", metavar="FILE", help="draw crates and modules into FILE")
    parser.add_argument("--compare", nargs=2, metavar=("BEFORE", "AFTER"), help="two checkouts or JSON files")
    options = parser.parse_args()

    if options.compare:
        before, after = [read(path) for path in options.compare]
        both = {"before": before, "after": after}
        print(json.dumps(both, indent=2) if options.format == "json" else compare(before, after))
        return
    measured = measure(pathlib.Path(options.root))
    if options.figures:
        measured["figures"] = json.loads(pathlib.Path(options.figures).read_text(encoding="utf-8"))
    if options.svg:
        pathlib.Path(options.svg).write_text(structure_svg.draw(measured), encoding="utf-8")
    print(json.dumps(measured, indent=2) if options.format == "json" else show(measured))


def read(path):
    path = pathlib.Path(path)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else measure(path)


def measure(top):
    if not (top / "Cargo.toml").is_file():
        sys.exit(f"structure.py: {top} is no checkout of a Rust project: it has no Cargo.toml")
    tree = rust_tree.read_tree(top)
    if unreached := tree.unreached():
        print(f"structure.py: no `mod` declaration leads to {', '.join(unreached)}", file=sys.stderr)
    source = [file for package in tree.packages for file in package.files.values()]
    tests = [file for package in tree.packages for file in package.test_files]
    comments = [comment.lstrip("/!* ") for file in source + tests for comment in file.comments]
    functions = [(function, file) for file in source for function in file.functions()]
    return {
        "size": {
            "crates": len(tree.packages),
            "files": len(source) + len(tests),
            "lines": sum(file.line_count for file in source + tests),
            "source_lines": sum(file.line_count - file.test_line_count() for file in source),
            "unit_test_lines": sum(file.test_line_count() for file in source),
            "integration_test_lines": sum(file.line_count for file in tests),
        },
        "functions": measure_functions([function for function, _ in functions if not function.is_test]),
        "cycles": measure_cycles(tree),
        "visibility": measure_visibility(source),
        "words": {
            "comments": measure_words("\n".join(comments)),
            "documents": measure_words("\n".join(path.read_text(encoding="utf-8") for path in markdown_files(top))),
        },
        "figures": {},
        "crates": measure_crates(tree),
        "largest_files": [{"file": file.name, "lines": file.line_count}
                          for file in sorted(source, key=lambda file: -file.line_count)[:LARGEST]],
        "longest_functions": [{"function": function.name, "at": f"{file.name}:{function.line}", "lines": function.lines}
                              for function, file in sorted(functions, key=lambda pair: -pair[0].lines)
                              if not function.is_test][:LARGEST],
    }


def measure_functions(functions):
    lengths = sorted(function.lines for function in functions)
    if not lengths:
        return {}
    return {
        "count": len(lengths),
        "median_lines": lengths[len(lengths) // 2],
        "p90_lines": lengths[len(lengths) * 9 // 10],
        "longest_lines": lengths[-1],
        "percent_above_70_lines": round(100 * sum(lines > LONG_FUNCTION_LINES for lines in lengths) / len(lengths), 2),
    }


def measure_visibility(source):
    counted = collections.Counter(found for file in source for found in file.visibilities())
    restricted = lambda is_item: sum(counted[name, is_item] for name in ("pub(crate)", "pub(super)", "pub(in)"))
    return {
        "pub_items": counted["pub", True],
        "restricted_items": restricted(True),
        "pub_fields": counted["pub", False],
        "restricted_fields": restricted(False),
    }


def measure_words(text):
    """Words of prose per 1,000; code in fences and backticks, and the targets of links, are left out."""
    words = [word.lower() for word in WORD.findall(CODE.sub(" ", FENCE.sub(" ", text)))]
    counted = collections.Counter(words)
    return {"count": len(words), **{word: round(1000 * counted[word] / max(len(words), 1), 2) for word in WORDS}}


def markdown_files(top):
    for path in sorted(top.rglob("*.md")):
        if not any(part.startswith(".") or part in ("target", "node_modules") for part in path.relative_to(top).parts):
            yield path


def measure_cycles(tree):
    """Cycles between files, modules and crates.

    A module may use the names of its parent modules, as `use super::` in a helper does, so these uses do not count;
    `files_with_parents` counts them too. A cycle between modules of one file each is not counted a second time.
    """
    names = list(tree.package_of)
    downward = [edge for edge in tree.edges if not edge[0].startswith(directory_of(edge[1]))]
    files = {file.name: file for package in tree.packages for file in package.files.values()}
    module = {name: f"{package.name}::{package.module_of(files[name])}" for name, package in tree.package_of.items()}
    files_of = collections.Counter(module.values())
    crate = {name: package.name for name, package in tree.package_of.items()}
    contract = lambda group: {(group[a], group[b]) for a, b in downward if group[a] != group[b]}
    return {
        "files": find_cycles(names, downward, tree.edges),
        "files_with_parents": find_cycles(names, tree.edges, None),
        "modules": [cycle for cycle in find_cycles(set(module.values()), contract(module), None)
                    if any(files_of[member] > 1 for member in cycle["members"])],
        "crates": find_cycles(set(crate.values()), contract(crate), None),
    }


def directory_of(file):
    """The directory of a module's children, as the start of their paths."""
    path = pathlib.PurePosixPath(file)
    return f"{path.parent}/" if path.name in ("mod.rs", "lib.rs", "main.rs") else f"{path.with_suffix('')}/"


def find_cycles(nodes, edges, names):
    cycles = []
    for members in rust_tree.strongly_connected(nodes, edges):
        if len(members) > 1:
            cycle = {"members": members}
            if names is not None:
                within = sorted((a, b) for a, b in edges if a in members and b in members)
                cycle["uses"] = [f"{a} -> {b}: {', '.join(sorted(names[a, b]))}" for a, b in within]
            cycles.append(cycle)
    return cycles


def measure_crates(tree):
    uses = collections.defaultdict(collections.Counter)
    for (source, target), names in tree.edges.items():
        uses[tree.package_of[source].name][tree.package_of[target].name] += len(names)
    crates = []
    for package in tree.packages:
        empty = lambda: {"files": 0, "lines": 0, "test_lines": 0, "uses": collections.Counter()}
        modules = collections.defaultdict(empty)
        for file in package.files.values():
            module = modules[package.module_of(file)]
            module["files"] += 1
            module["lines"] += file.line_count
            module["test_lines"] += file.test_line_count()
        for (source, target), names in tree.edges.items():
            if tree.package_of[source] is package is tree.package_of[target]:
                ends = [package.module_of(package.files[tree.top / name]) for name in (source, target)]
                if ends[0] != ends[1] and not source.startswith(directory_of(target)):
                    modules[ends[0]]["uses"][ends[1]] += len(names)
        crates.append({
            "name": package.name,
            "description": package.description,
            "files": len(package.files),
            "lines": sum(file.line_count for file in package.files.values()),
            "test_lines": sum(file.test_line_count() for file in package.files.values()),
            "integration_test_lines": sum(file.line_count for file in package.test_files),
            "uses": {name: count for name, count in sorted(uses[package.name].items()) if name != package.name},
            "modules": [{"name": name, **module} for name, module in sorted(modules.items())],
        })
    return crates


def figures_of(measured):
    """[(label, number)] of everything that is compared."""
    size, functions, cycles = measured["size"], measured["functions"], measured["cycles"]
    rows = [
        ("crates", size["crates"]),
        ("Rust files", size["files"]),
        ("Rust lines", size["lines"]),
        ("  outside of tests", size["source_lines"]),
        ("  unit tests", size["unit_test_lines"]),
        ("  integration tests and benches", size["integration_test_lines"]),
        ("functions outside of tests", functions["count"]),
        ("  median lines", functions["median_lines"]),
        ("  p90 lines", functions["p90_lines"]),
        ("  longest", functions["longest_lines"]),
        ("  above 70 lines, %", functions["percent_above_70_lines"]),
    ]
    for key, label in (
        ("files", "cycles between files"),
        ("files_with_parents", "cycles with uses of a parent's names"),
        ("modules", "cycles between modules"),
        ("crates", "cycles between crates"),
    ):
        largest = max((len(cycle["members"]) for cycle in cycles[key]), default=0)
        kind = "files, with uses of a parent's names," if key == "files_with_parents" else key
        rows += [(label, len(cycles[key])), (f"  {kind} in the largest", largest)]
    visibility = measured["visibility"]
    rows += [
        ("pub items", visibility["pub_items"]),
        ("pub(crate) and pub(super) items", visibility["restricted_items"]),
        ("pub fields", visibility["pub_fields"]),
        ("pub(crate) and pub(super) fields", visibility["restricted_fields"]),
    ]
    for key in ("comments", "documents"):
        words = measured["words"][key]
        rows.append((f"words of {key}", words["count"]))
        rows += [(f'  "{word}" per 1,000 words of {key}', words[word]) for word in WORDS]
    rows += [(key.replace("_", " "), value) for key, value in measured["figures"].items()]
    return rows


def number(value):
    if value is None:
        return "-"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


def table(header, rows):
    """Text columns: the first is aligned left, the others right."""
    text = lambda value: value if isinstance(value, str) else number(value)
    cells = [header, *([text(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                       for column, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def show(measured):
    parts = [table(["", "now"], figures_of(measured))]
    rows = []
    for crate in measured["crates"]:
        sizes = lambda part: (part["files"], part["lines"] - part["test_lines"], part["test_lines"])
        rows.append((crate["name"], *sizes(crate), crate["integration_test_lines"]))
        rows += [(f"  {module['name']}", *sizes(module), "") for module in crate["modules"]]
    parts.append(table(["crate and module", "files", "lines", "unit tests", "integration tests"], rows))
    lines = ["names used from other crates"]
    for crate in measured["crates"]:
        uses = ", ".join(f"{name} {count}" for name, count in crate["uses"].items())
        lines.append(f"  {crate['name']}: {uses or 'none'}")
    parts.append("\n".join(lines))
    parts.append(table(["largest files", "lines"], [(row["file"], row["lines"]) for row in measured["largest_files"]]))
    parts.append(table(["longest functions", "lines"],
                       [(f"{row['function']} ({row['at']})", row["lines"]) for row in measured["longest_functions"]]))
    for key in ("files", "modules", "crates"):
        for cycle in measured["cycles"][key]:
            uses = "".join(f"\n    {use}" for use in cycle.get("uses", []))
            parts.append(f"cycle of {len(cycle['members'])} {key}: {', '.join(cycle['members'])}{uses}")
    return "\n\n".join(parts)


def compare(before, after):
    old, new = dict(figures_of(before)), dict(figures_of(after))
    rows = []
    for label in [*old, *(label for label in new if label not in old)]:
        values = old.get(label), new.get(label)
        change = ""
        if None not in values and values[0] and values[0] != values[1]:
            change = f"{100 * (values[1] - values[0]) / values[0]:+.0f} %"
        rows.append((label, *values, change))
    return table(["", "before", "after", "change"], rows)


if __name__ == "__main__":
    main()
