"""Checks what the Markdown files say against the repository: links, fenced code, targets of make, values of the chart.

Run from anywhere; prints each mistake as FILE:LINE and exits with 1 if there is one.
"""
import ast
import json
import pathlib
import re
import subprocess
import sys

import yaml

TOP = pathlib.Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:docs|scripts|helm|tests|proto|src|data)/[\w./-]*\w/?)`")
MAKE = re.compile(r"(?:^|`|\s&&\s)make ([a-z][a-z-]*)", re.MULTILINE)
GRPCURL_DATA = re.compile(r"grpcurl[^\n]* -d '([^']*)' ")
VALUE = re.compile(r"`((?:bundle|persistence|probes|service|metrics|image|retrain)\.[\w.]+)`|--set(?:-string)? ([\w.]+)=")


def files():
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"], cwd=TOP,
                            capture_output=True, text=True, check=True)
    return [TOP / name for name in listed.stdout.splitlines()]


def anchors(text):
    """The anchors of a file's headings, as the usual Markdown pages make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def check_links(file, text):
    for match in LINK.finditer(FENCE.sub(lambda fence: "\n" * fence.group().count("\n"), text)):
        target, _, anchor = match.group(1).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (file.parent / target).resolve() if target else file
        if not path.exists():
            yield match.start(), f"there is no {target}"
        elif anchor and path.suffix == ".md" and anchor not in anchors(path.read_text(encoding="utf-8")):
            yield match.start(), f"{path.name} has no heading for #{anchor}"
    for match in PATH.finditer(text):
        if not (TOP / match.group(1)).exists():
            yield match.start(), f"there is no {match.group(1)}"


def check_code(text):
    for match in FENCE.finditer(text):
        _, language, code = match.groups()
        if language == "python":
            try:
                ast.parse(code)
            except SyntaxError as error:
                yield match.start(), f"the Python code does not parse: {error}"
        elif language in ("bash", "sh"):
            parsed = subprocess.run(["bash", "-n"], input=code, capture_output=True, text=True, check=False)
            if parsed.returncode != 0:
                yield match.start(), f"the shell code does not parse: {parsed.stderr.strip()}"
    for match in GRPCURL_DATA.finditer(text):
        try:
            json.loads(match.group(1))
        except ValueError as error:
            yield match.start(), f"the request is not JSON: {error}"


def check_names(text, targets, values):
    for match in MAKE.finditer(text):
        if match.group(1) not in targets:
            yield match.start(), f"the Makefile has no target {match.group(1)}"
    for match in VALUE.finditer(text):
        name = match.group(1) or match.group(2)
        value = values
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            yield match.start(), f"the chart has no value {name}"


def main():
    targets = set(re.findall(r"^([a-z-]+):", (TOP / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    values = yaml.safe_load((TOP / "helm/lodestone/values.yaml").read_text(encoding="utf-8"))
    mistakes = 0
    checked = files()
    for file in checked:
        text = file.read_text(encoding="utf-8")
        for found in (check_links(file, text), check_code(text), check_names(text, targets, values)):
            for position, mistake in found:
                mistakes += 1
                line = text.count("\n", 0, position) + 1
                print(f"{file.relative_to(TOP)}:{line}: {mistake}", file=sys.stderr)
    print(f"docs: {len(checked)} files checked, {mistakes} mistakes")
    return 1 if mistakes or not checked else 0


sys.exit(main())
