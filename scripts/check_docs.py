"""Checks the documents against the repository, and the language of documents, comments and type names.

- Makefile: every benchmark and test runs in `make test`, at least with SHORT=1
- Markdown: links, anchors, paths, fenced code, JSON of grpcurl lines, targets of make, values of the chart; the index
  docs/README.md links to every document.
- Guides, docs/guides/*.md: one form, see check_guides. tests/clients/run.py runs their blocks against a server.
- References to docs/*.md in code: the file must exist.
- Language: words per 1,000 words of prose and of comments that stand for an unusual style (LIMITS).
- Names of public types in Rust and of messages and enums in proto: none has a word of the last column of the table
  "Avoid and use" in docs/glossary.md.

Run from anywhere. Prints the densities, and each mistake as FILE:LINE; exits with 1 if there is a mistake.
"""
import ast
import io
import json
import pathlib
import re
import subprocess
import sys
import tokenize

import yaml

TOP = pathlib.Path(__file__).resolve().parent.parent
GLOSSARY = TOP / "docs/glossary.md"

FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:\A|(?<=\n\n))(?: {4}[^\n]*\n)+", re.MULTILINE)
INLINE_CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:docs|scripts|helm|tests|proto|src|data|crates|benches)/[\w./-]*\w/?)`")
MAKE = re.compile(r"(?:^|`|\s&&\s)make ([a-z][a-z-]*)", re.MULTILINE)
GRPCURL_DATA = re.compile(r"grpcurl[^\n]* -d '([^']*)' ")
VALUE = re.compile(r"`((?:bundle|persistence|probes|service|security|metrics|image|retrain|networkPolicy|tracing|drain)\.[\w.]+)`|--set(?:-string)? ([\w.]+)=")
DOCUMENT = re.compile(r"docs/(?:guides/)?[\w-]+\.md")

# Strings are matched too, so that a `//` inside one begins no comment.
C_TOKEN = re.compile(r'r(#*)".*?"\1|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\\n])\'|//[^\n]*|/\*.*?\*/', re.DOTALL)
HASH_COMMENT = re.compile(r"^\s*#(?!!)(.*)$", re.MULTILINE)
RUST_TYPE = re.compile(r"^\s*pub(?:\([^)]*\))?\s+(?:struct|enum|union|trait|type)\s+(\w+)", re.MULTILINE)
PROTO_TYPE = re.compile(r"^\s*(?:message|enum)\s+(\w+)", re.MULTILINE)
CAMEL_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*")

WORDS = ["what", "beside", "because", "returns?", "gives?"]
# Most occurrences per 1,000 words, in prose and in comments.
LIMITS = {"what": 4.0, "beside": 0.5}


def listed(*patterns):
    """Files of the repository, tracked or new, that match."""
    found = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns], cwd=TOP,
                           capture_output=True, text=True, check=True)
    return [path for name in found.stdout.splitlines() if (path := TOP / name).is_file()]


def read(path):
    return path.read_text(encoding="utf-8")


# --- Markdown


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
        elif anchor and path.suffix == ".md" and anchor not in anchors(read(path)):
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


def check_markdown(files):
    targets = set(re.findall(r"^([a-z-]+):", read(TOP / "Makefile"), re.MULTILINE))
    values = yaml.safe_load(read(TOP / "helm/lodestone/values.yaml"))
    for file in files:
        text = read(file)
        for found in (check_links(file, text), check_code(text), check_names(text, targets, values)):
            for position, mistake in found:
                yield file, text.count("\n", 0, position) + 1, mistake


def check_short_forms():
    """Benchmarks and tests of the Makefile that `make test` runs neither completely nor with SHORT=1."""
    makefile = TOP / "Makefile"
    text = read(makefile)
    run = set(re.search(r"^test:([^#\n]*)", text, re.MULTILINE)[1].split())
    run |= set(re.search(r"^SHORT_FORMS := (.*)", text, re.MULTILINE)[1].split())
    for match in re.finditer(r"^(bench[a-z-]*|test-[a-z-]+|simulate):", text, re.MULTILINE):
        if match[1] not in run:
            yield makefile, text.count("\n", 0, match.start()) + 1, f"make test does not run {match[1]}; add it to SHORT_FORMS"


def check_references(files):
    """Documents that code, scripts and the chart name."""
    for file in files:
        for number, line in enumerate(read(file).splitlines(), 1):
            for match in DOCUMENT.finditer(line):
                if not (TOP / match.group()).exists():
                    yield file, number, f"there is no {match.group()}"


def check_index(files):
    """Documents that the index does not link to."""
    index = TOP / "docs/README.md"
    linked = {(index.parent / target).resolve() for target in LINK.findall(read(index))}
    for file in files:
        if index.parent in file.parents and file != index and file not in linked:
            yield index, 1, f"the index does not link to {file.name}"


def check_guides(files):
    """Guides that are not of the one form: a first line that says what must have been sent before, a link to the setup, one
    block for the shell and one for Python."""
    for file in files:
        if file.parent != TOP / "docs/guides":
            continue
        text = read(file)
        if not re.match(r"# [^\n]+\n\nNeeds ", text):
            yield file, 3, "the first line does not begin with 'Needs'"
        if "(../clients.md#setup)" not in text:
            yield file, 1, "the guide does not link to the setup, ../clients.md#setup"
        languages = [match.group(2) for match in FENCE.finditer(text)]
        if languages != ["bash", "python"]:
            yield file, 1, f"the blocks are {languages}, not one of bash and one of python"


# --- Language


def prose(text):
    """The text of a Markdown file without code, link targets and numbers."""
    for code in (FENCE, INDENTED, INLINE_CODE):
        text = code.sub(" ", text)
    return re.sub(r"\]\([^)\n]*\)", "]", text)


def python_comments(text):
    found = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text))
             if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return found + [token.string for token in tokens if token.type == tokenize.COMMENT]


def comments(path):
    """The comments of a source file, without code spans."""
    text = read(path)
    if path.suffix in (".rs", ".proto"):
        found = [match.group() for match in C_TOKEN.finditer(text) if match.group().startswith("/")]
    elif path.suffix == ".py":
        found = python_comments(text)
    else:
        found = HASH_COMMENT.findall(text)
    return INLINE_CODE.sub(" ", "\n".join(found))


class Density:
    """Counts the words of WORDS over a set of files."""

    def __init__(self, name):
        self.name, self.total, self.counts, self.files = name, 0, dict.fromkeys(WORDS, 0), []

    def add(self, path, text):
        words = re.findall(r"[a-z]+", text.lower())
        self.files.append((path, {word: words.count(word) for word in LIMITS}))
        self.total += len(words)
        joined = " ".join(words)
        for word in WORDS:
            self.counts[word] += len(re.findall(rf"\b{word}\b", joined))

    def per_thousand(self, word):
        return 1000 * self.counts[word] / max(self.total, 1)

    def row(self):
        return f"  {self.name:9}{self.total:8}" + "".join(f"{self.per_thousand(word):10.2f}" for word in WORDS)

    def mistakes(self):
        """The files with the most occurrences of each word that is over its limit."""
        for word, limit in LIMITS.items():
            if self.per_thousand(word) <= limit:
                continue
            worst = sorted(self.files, key=lambda file: -file[1][word])[:5]
            where = ", ".join(f"{path.relative_to(TOP)} ({counts[word]})" for path, counts in worst)
            yield (f"{self.name}: '{word}' comes {self.per_thousand(word):.2f} times in 1,000 words, at most {limit}; "
                   f"most in {where}")


def avoided_type_words():
    """The words in code spans of the last column of "Avoid and use"."""
    _, _, table = read(GLOSSARY).partition("## Avoid and use")
    rows = re.findall(r"^\|[^\n]*\|([^|\n]*)\|$", table, re.MULTILINE)
    return {word for row in rows for word in re.findall(r"`(\w+)`", row)}


def check_types(files, avoided):
    for file in files:
        text = read(file)
        for match in (RUST_TYPE if file.suffix == ".rs" else PROTO_TYPE).finditer(text):
            words = avoided.intersection(CAMEL_WORD.findall(match.group(1)))
            if words:
                line = text.count("\n", 0, match.start(1)) + 1
                yield file, line, f"the type {match.group(1)} has {', '.join(sorted(words))}, see docs/glossary.md"


def main():
    documents = listed("*.md")
    sources = listed("*.rs", "*.proto", "*.py", "*.sh", "*.toml", "*.yaml", "*.tpl", "Makefile", "Dockerfile")
    types = [file for file in sources if re.match(r"(?:crates/[^/]+/)?(?:src|proto)/", str(file.relative_to(TOP)))]
    avoided = avoided_type_words()

    mistakes = [*check_markdown(documents), *check_index(documents), *check_guides(documents), *check_references(sources),
                *check_short_forms(), *check_types(types, avoided)]
    for file, line, mistake in mistakes:
        print(f"{file.relative_to(TOP)}:{line}: {mistake}", file=sys.stderr)

    densities = [Density("prose"), Density("comments")]
    for file in documents:
        densities[0].add(file, prose(read(file)))
    for file in sources:
        densities[1].add(file, comments(file))
    print("  per 1,000    words" + "".join(f"{word:>10}" for word in WORDS))
    for density in densities:
        print(density.row())
        for mistake in density.mistakes():
            mistakes.append(mistake)
            print(mistake, file=sys.stderr)

    if not documents or not avoided:
        sys.exit("there are no documents, or docs/glossary.md has no table of words to avoid")
    print(f"docs: {len(documents)} documents and {len(sources)} sources checked, {len(mistakes)} mistakes")
    return 1 if mistakes else 0


sys.exit(main())
