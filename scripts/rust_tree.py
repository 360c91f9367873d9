"""Reads the Rust packages of a checkout: tokens, modules, functions, and the names that files use from each other.

Resolves `use` declarations and paths through modules, re-exports and globs to the file that defines the name. It does
not expand macros or infer types, so method calls are not resolved.
"""
import bisect
import dataclasses
import pathlib
import re
import tomllib

TOKEN = re.compile(
    r"""
    (?P<comment>//[^\n]*|/\*)
    |(?P<string>[bc]?r(?P<hashes>\#*)".*?"(?P=hashes)|[bc]?"(?:[^"\\]|\\.)*")
    |(?P<char>b?'(?:[^'\\\n]|\\(?:x[0-9a-fA-F]{2}|u\{[0-9a-fA-F_]+\}|.))')
    |(?P<lifetime>'[A-Za-z_]\w*)
    |(?P<name>(?:r\#)?[A-Za-z_]\w*)
    |(?P<number>\d\w*(?:\.\d\w*)?)
    |(?P<sign>::|->|=>|[^\s])
    """,
    re.VERBOSE | re.DOTALL,
)
BLOCK_COMMENT_EDGE = re.compile(r"/\*|\*/")
CLOSING = {"{": "}", "(": ")", "[": "]"}
VISIBILITIES = ("pub", "pub(crate)", "pub(super)")
# Items that end at their semicolon, whatever braces they hold; every other item ends at its first block or semicolon.
ENDS_AT_SEMICOLON = {"use", "const", "static", "type", "let"}
NAMED_ITEMS = {"fn", "struct", "enum", "trait", "union", "type", "const", "static"}
ITEM_WORDS = NAMED_ITEMS | {"mod", "use", "unsafe", "async", "extern"}


@dataclasses.dataclass
class Function:
    name: str
    line: int
    lines: int
    is_test: bool


@dataclasses.dataclass
class Import:
    """One name of a `use` declaration; `name` is None for a glob."""

    name: str | None
    path: tuple
    is_reexport: bool


class File:
    """The tokens of one file. `match[i]` is the index of the token that closes the bracket at `i`."""

    def __init__(self, path, top):
        self.path = path
        self.name = path.relative_to(top).as_posix()
        text = path.read_text(encoding="utf-8")
        self.line_count = len(text.splitlines())
        self.kinds, self.tokens, self.comments, starts = [], [], [], []
        position = 0
        while found := TOKEN.search(text, position):
            position = found.end()
            if found.lastgroup == "comment" and found.group() == "/*":
                position = end_of_block_comment(text, position)
                self.comments.append(text[found.start():position])
            elif found.lastgroup == "comment":
                self.comments.append(found.group())
            else:
                self.kinds.append(found.lastgroup)
                self.tokens.append(found.group().removeprefix("r#") if found.lastgroup == "name" else found.group())
                starts.append(found.start())
        ends_of_lines = [at for at, char in enumerate(text) if char == "\n"]
        self.lines = [bisect.bisect_left(ends_of_lines, start) + 1 for start in starts]
        self.match = match_brackets(self.kinds, self.tokens)
        self.is_test = False
        self.test_ranges = list(self.find_test_ranges())

    def is_sign(self, index, sign):
        return index < len(self.tokens) and self.kinds[index] == "sign" and self.tokens[index] == sign

    def is_name(self, index, *names):
        return index < len(self.tokens) and self.kinds[index] == "name" and (not names or self.tokens[index] in names)

    def skip_attributes(self, index):
        while self.is_sign(index, "#"):
            bracket = index + 2 if self.is_sign(index + 1, "!") else index + 1
            if not self.is_sign(bracket, "["):
                break
            index = self.match[bracket] + 1
        return index

    def skip_visibility(self, index):
        if self.is_name(index, "pub"):
            index = self.match[index + 1] + 1 if self.is_sign(index + 1, "(") else index + 1
        return index

    def end_of_item(self, index):
        """The index behind the item that starts at `index`, which is behind its attributes."""
        first = self.skip_visibility(index)
        to_semicolon = self.is_name(first, *ENDS_AT_SEMICOLON) and not self.is_name(first + 1, "fn", "unsafe", "async")
        index = first
        while index < len(self.tokens):
            if self.kinds[index] == "sign":
                sign = self.tokens[index]
                if sign == ";":
                    return index + 1
                if sign in ("}", ")", "]"):
                    return index
                if sign in CLOSING:
                    if sign == "{" and not to_semicolon:
                        return self.match[index] + 1
                    index = self.match[index]
            index += 1
        return index

    def find_test_ranges(self):
        """Ranges of tokens that only tests compile."""
        index = 0
        while index < len(self.tokens):
            if self.is_sign(index, "#") and self.is_sign(index + 1, "["):
                close = self.match[index + 1]
                if "".join(self.tokens[index + 2:close]).startswith(("cfg(test)", "cfg(all(test")):
                    end = self.end_of_item(self.skip_attributes(close + 1))
                    yield index, end
                    index = end
                    continue
                index = close
            index += 1

    def is_in_tests(self, index):
        return self.is_test or any(start <= index < end for start, end in self.test_ranges)

    def test_line_count(self):
        if self.is_test:
            return self.line_count
        return sum(self.lines[end - 1] - self.lines[start] + 1 for start, end in self.test_ranges)

    def functions(self):
        """Every function with a body: free, method, nested, or in a macro."""
        for index in range(len(self.tokens) - 1):
            if not self.is_name(index, "fn") or not (self.is_name(index + 1) or self.is_sign(index + 1, "$")):
                continue
            end = self.end_of_item(index)
            if self.is_sign(end - 1, "}"):
                lines = self.lines[end - 1] - self.lines[index] + 1
                yield Function(self.tokens[index + 1], self.lines[index], lines, self.is_in_tests(index))

    def visibilities(self):
        """Yields (visibility, whether it is an item's) for every `pub` outside of tests; a field's is no item's."""
        for index in range(len(self.tokens)):
            if not self.is_name(index, "pub") or self.is_in_tests(index):
                continue
            after = self.skip_visibility(index)
            text = "".join(self.tokens[index:after])
            yield (text if text in VISIBILITIES else "pub(in)"), self.is_name(after, *ITEM_WORDS)


def end_of_block_comment(text, position):
    depth = 1
    while depth and (edge := BLOCK_COMMENT_EDGE.search(text, position)):
        depth += 1 if edge.group() == "/*" else -1
        position = edge.end()
    return position if depth == 0 else len(text)


def match_brackets(kinds, tokens):
    match, opened = {}, []
    for index, (kind, token) in enumerate(zip(kinds, tokens)):
        if kind != "sign":
            continue
        if token in CLOSING:
            opened.append(index)
        elif opened and token == CLOSING[tokens[opened[-1]]]:
            match[opened.pop()] = index
    match.update((index, len(tokens) - 1) for index in opened)
    return match


class Module:
    """A module with the names in its scope. An inline module shares the file of its parent."""

    def __init__(self, root, parent, path, file):
        self.root = root or self
        self.parent = parent
        self.path = path
        self.file = file
        self.children, self.items = {}, set()
        self.imports, self.globs = {}, []
        self.references = []
        self.names = set()


class Package:
    """A Cargo package: its library, its binaries, and the files of its tests."""

    def __init__(self, directory, top):
        manifest = tomllib.loads((directory / "Cargo.toml").read_text(encoding="utf-8"))
        self.directory = directory
        self.name = manifest["package"]["name"]
        self.description = manifest["package"].get("description", "")
        self.library_name = manifest.get("lib", {}).get("name", self.name.replace("-", "_"))
        self.files = {path: File(path, top) for path in sorted((directory / "src").rglob("*.rs"))}
        self.test_files = [File(path, top) for kind in ("tests", "benches", "examples")
                           for path in sorted((directory / kind).rglob("*.rs"))]
        self.roots, self.reached = [], set()
        binaries = sorted((directory / "src/bin").glob("*.rs"))
        for path in (directory / "src/lib.rs", directory / "src/main.rs", *binaries):
            if path in self.files:
                self.roots.append(self.read_module(None, None, (), self.files[path], path.parent))

    @property
    def library(self):
        return self.roots[0] if self.roots and self.roots[0].file.path.name == "lib.rs" else None

    def module_of(self, file):
        """The top-level module that a file belongs to; the crate's roots are in none."""
        first = file.path.relative_to(self.directory / "src").parts[0].removesuffix(".rs")
        return "(root)" if first in ("lib", "main") else first

    def read_module(self, root, parent, path, file, directory):
        module = Module(root, parent, path, file)
        self.reached.add(file.path)
        self.read_items(module, 0, len(file.tokens), directory)
        return module

    def read_items(self, module, index, end, directory):
        """Reads the items of `module` in the given range of tokens; `directory` has the files of its child modules."""
        file = module.file
        while index < end:
            attributes = index
            index = file.skip_attributes(index)
            if index >= end:
                break
            if not file.is_in_tests(index):
                self.read_item(module, attributes, index, directory)
            elif file.is_name(index, "mod") and file.is_sign(index + 2, ";"):
                self.read_child(module, attributes, index, directory, is_test=True)
            after = file.end_of_item(index)
            if after > index and file.is_sign(after - 1, "}") and file.is_sign(after, ";"):
                after += 1
            index = max(after, index + 1)

    def read_item(self, module, attributes, index, directory):
        file = module.file
        end = file.end_of_item(index)
        word = file.skip_visibility(index)
        while file.is_name(word, "async", "const", "unsafe") and file.is_name(word + 1, "fn", "trait", "unsafe"):
            word += 1
        if file.is_name(word, "use"):
            self.read_use(module, word, end, is_reexport=word > index)
        elif file.is_name(word, "mod") and file.is_sign(word + 2, ";"):
            self.read_child(module, attributes, word, directory, is_test=False)
        elif file.is_name(word, "mod") and file.is_sign(word + 2, "{"):
            name = file.tokens[word + 1]
            child = module.children[name] = Module(module.root, module, (*module.path, name), file)
            self.read_items(child, word + 3, end - 1, directory / name)
        else:
            if file.is_name(word, *NAMED_ITEMS):
                module.items.add(file.tokens[word + 1])
            elif file.is_name(word, "macro_rules"):
                module.items.add(file.tokens[word + 2])
            self.read_references(module, index, end)

    def read_child(self, module, attributes, index, directory, is_test):
        file, name = module.file, module.file.tokens[index + 1]
        candidates = [directory / f"{name}.rs", directory / name / "mod.rs"]
        text = "".join(file.tokens[attributes:index])
        if found := re.search(r'#\[path="([^"]+)"\]', text):
            candidates = [file.path.parent / found.group(1)]
        path = next((path for path in candidates if path in self.files), None)
        if path is None:
            return
        child_file = self.files[path]
        child_file.is_test = is_test or file.is_test
        below = path.parent if path.name == "mod.rs" else path.with_suffix("")
        child = self.read_module(module.root, module, (*module.path, name), child_file, below)
        if not child_file.is_test:
            module.children[name] = child

    def read_use(self, module, index, end, is_reexport):
        file = module.file

        def read_tree(index, prefix):
            """Reads one tree of a `use` declaration and returns the index behind it."""
            path = prefix
            while True:
                if file.is_sign(index, "{"):
                    close = file.match[index]
                    index += 1
                    while index < close:
                        index = read_tree(index, path)
                        index += 1 if file.is_sign(index, ",") else 0
                    return close + 1
                if file.is_sign(index, "*"):
                    module.globs.append(Import(None, path, is_reexport))
                    return index + 1
                if file.is_sign(index, "::"):
                    index += 1
                    continue
                if file.tokens[index] != "self" or not path:
                    path = (*path, file.tokens[index])
                index += 1
                if not file.is_sign(index, "::"):
                    break
            name = path[-1]
            if file.is_name(index, "as"):
                name, index = file.tokens[index + 1], index + 2
            module.imports.setdefault(name, []).append(Import(name, path, is_reexport))
            return index

        index = read_tree(index + 1, ())
        assert index == end - 1, f"{file.name}:{file.lines[index]}: this `use` was not understood"

    def read_references(self, module, index, end):
        """Collects the paths of more than one part, and all names, of an item that is no module and no import."""
        file = module.file
        while index < end:
            if file.is_in_tests(index):
                index = next(stop for start, stop in file.test_ranges if start <= index < stop)
            # `use<'a>` is a bound of a return type and no declaration.
            elif file.is_name(index, "use") and not file.is_sign(index + 1, "<"):
                stop = file.end_of_item(index)
                self.read_use(module, index, stop, is_reexport=False)
                index = stop
            elif file.is_name(index):
                path = [file.tokens[index]]
                follows = index > 0 and (file.is_sign(index - 1, ".") or file.is_sign(index - 1, "::"))
                module.names.add(path[0])
                while file.is_sign(index + 1, "::") and file.is_name(index + 2):
                    path.append(file.tokens[index + 2])
                    index += 2
                if len(path) > 1 and not follows:
                    module.references.append(tuple(path))
                index += 1
            else:
                index += 1


class Tree:
    """All packages of a checkout, and the references between their files."""

    def __init__(self, top):
        self.top = top
        manifest = tomllib.loads((top / "Cargo.toml").read_text(encoding="utf-8"))
        directories = [top] if "package" in manifest else []
        for pattern in manifest.get("workspace", {}).get("members", []):
            directories += sorted(path for path in top.glob(pattern) if (path / "Cargo.toml").is_file() and path != top)
        self.packages = [Package(directory, top) for directory in directories]
        self.libraries = {package.library_name: package.library for package in self.packages if package.library}
        self.package_of = {file.name: package for package in self.packages for file in package.files.values()}
        self.edges = self.find_edges()

    def unreached(self):
        """Files below `src` that no `mod` declaration leads to, so that their uses are not known."""
        return sorted(file.name for package in self.packages for file in package.files.values()
                      if file.path not in package.reached)

    def lookup(self, module, name, seen):
        """What `name` means in `module`: a module, or (module, name) of an item; None if it is unknown."""
        if (module, name) in seen:
            return None
        seen = seen | {(module, name)}
        if name in module.items:
            return module, name
        if name in module.children:
            return module.children[name]
        for imported in module.imports.get(name, []):
            if (found := self.resolve(module, imported.path, seen)) is not None:
                return found
        for glob in module.globs:
            target = self.resolve(module, glob.path, seen)
            if isinstance(target, Module) and (found := self.lookup(target, name, seen)) is not None:
                return found
        return None

    def resolve(self, module, path, seen=frozenset()):
        """What `path` means in `module`, as `lookup` returns it; None if it leads out of the checkout."""
        first = path[0]
        if first == "crate":
            found = module.root
        elif first == "self":
            found = module
        elif first == "super":
            found = module.parent
        elif (found := self.lookup(module, first, seen)) is None:
            found = self.libraries.get(first)
        for name in path[1:]:
            if not isinstance(found, Module):
                break
            # A name that is not found comes from a macro of this module.
            found = found.parent if name == "super" else self.lookup(found, name, seen) or (found, name)
        return found

    def find_edges(self):
        """{(file, file): names}: which names of the second file the first one uses, outside of tests."""
        edges = {}

        def add(module, target, name):
            file = target.file if isinstance(target, Module) else target[0].file
            name = name if isinstance(target, Module) else target[1]
            if file is not module.file and not file.is_test:
                edges.setdefault((module.file.name, file.name), set()).add(name)

        def visit(module):
            # A re-export counts only if the file uses the name itself.
            for imports in module.imports.values():
                for imported in imports:
                    is_used = not imported.is_reexport or imported.name in module.names
                    if is_used and (target := self.resolve(module, imported.path)) is not None:
                        add(module, target, imported.path[-1])
            for glob in module.globs:
                target = self.resolve(module, glob.path)
                for name in module.names if isinstance(target, Module) else ():
                    if (found := self.lookup(target, name, frozenset())) is not None:
                        add(module, found, name)
            for path in module.references:
                if (target := self.resolve(module, path)) is not None:
                    add(module, target, path[-1])
            for child in module.children.values():
                if not child.file.is_test:
                    visit(child)

        for package in self.packages:
            for root in package.roots:
                visit(root)
        return edges


def strongly_connected(nodes, edges):
    """The strongly connected components of a graph (Tarjan), largest first; `edges` are pairs of nodes."""
    targets = {node: [] for node in nodes}
    for source, target in sorted(edges):
        targets[source].append(target)
    order, low, stack, on_stack, components = {}, {}, [], set(), []
    for start in sorted(nodes):
        if start in order:
            continue
        visits = [(start, iter(targets[start]))]
        order[start] = low[start] = len(order)
        stack.append(start)
        on_stack.add(start)
        while visits:
            node, remaining = visits[-1]
            for target in remaining:
                if target not in order:
                    order[target] = low[target] = len(order)
                    stack.append(target)
                    on_stack.add(target)
                    visits.append((target, iter(targets[target])))
                    break
                if target in on_stack:
                    low[node] = min(low[node], order[target])
            else:
                visits.pop()
                if visits:
                    low[visits[-1][0]] = min(low[visits[-1][0]], low[node])
                if low[node] == order[node]:
                    component = []
                    while not component or component[-1] != node:
                        component.append(stack.pop())
                        on_stack.discard(component[-1])
                    components.append(sorted(component))
    return sorted(components, key=lambda component: (-len(component), component))


def read_tree(top):
    return Tree(pathlib.Path(top).resolve())
