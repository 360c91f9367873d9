"""Draws crates and modules from the measures of `structure.py`: a box per crate, with its modules and their lines.

Each crate is in a layer above the crates that it uses. Uses that follow from drawn arrows, and uses within a cycle,
have no arrow; the box lists them. A checkout with a single package is drawn with a box per module.
"""
import dataclasses
import html
import itertools
import math

import rust_tree

WIDTH = 1200
MARGIN = 24
TITLE_HEIGHT = 84
LAYER_GAP = 64
STUB = 20  # the straight start of an arrow, where its count stands
BOX_GAP = 28
CHANNEL = 12  # the width of the gap for an arrow that passes a layer
COLUMN_MIN, COLUMN_MAX = 176, 250
ROWS_MIN = 4  # a box with more rows gets a further column where there is room
PADDING = 12
HEADER = 42
ROW = 19
LINE = 15
CHARACTER = 5.8  # average width of a character at 11 px
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
STYLE = """
    text { fill: #1e293b; font-size: 12px; }
    .title { font-size: 20px; font-weight: 600; fill: #0f172a; }
    .note { font-size: 12px; fill: #475569; }
    .box { fill: #f8fafc; stroke: #94a3b8; stroke-width: 1; }
    .name { font-size: 14px; font-weight: 600; fill: #0f172a; }
    .lines { fill: #475569; text-anchor: end; }
    .small { font-size: 11px; fill: #64748b; }
    .cycle { fill: #b91c1c; }
    .bar { fill: #dbeafe; }
    .arrow { fill: none; stroke: #64748b; }
    .head { fill: #64748b; }
    .count { font-size: 11px; fill: #334155; text-anchor: middle; }
    .count { stroke: #ffffff; stroke-width: 4px; paint-order: stroke; }
"""


@dataclasses.dataclass(eq=False)
class Box:
    """A crate or a module. A box without a name is the gap through which an arrow passes a layer."""

    name: str
    lines: int = 0
    rows: list = dataclasses.field(default_factory=list)
    description: str = ""
    also_uses: list = dataclasses.field(default_factory=list)
    cycle: list = dataclasses.field(default_factory=list)
    columns: int = 1
    x: float = 0
    y: float = 0
    width: float = CHANNEL
    height: float = 0

    @property
    def center(self):
        return self.x + self.width / 2

    @property
    def row_count(self):
        return math.ceil(len(self.rows) / self.columns)

    def subtitle(self):
        return self.wrap(self.description.split(), " ")

    def footer(self):
        """[(line, whether it speaks of a cycle)]"""
        lines = []
        for label, uses in (("also uses", self.also_uses), ("in a cycle with", self.cycle)):
            parts = [f"{name} {count}" for name, count in uses]
            if parts:
                parts[0] = f"{label} {parts[0]}"
            lines += [(line, uses is self.cycle) for line in self.wrap(parts, " · ")]
        return lines

    def header_height(self):
        return HEADER + LINE * len(self.subtitle()) + (2 if self.description else 0)

    def wrap(self, parts, separator):
        lines, limit = [], (self.width - 2 * PADDING) / CHARACTER
        for part in parts:
            if lines and len(lines[-1]) + len(separator) + len(part) <= limit:
                lines[-1] += separator + part
            else:
                lines.append(part)
        return lines


def draw(measured):
    boxes, uses, noun = read_boxes(measured)
    cycles = rust_tree.strongly_connected(boxes, uses)
    components = {name: number for number, names in enumerate(cycles) for name in names}
    arrows = without_implied(uses, components)
    for (source, target), count in sorted(uses.items()):
        if components[source] == components[target]:
            boxes[source].cycle.append((target, count))
        elif (source, target) not in arrows:
            boxes[source].also_uses.append((target, count))
    layers, paths = route(split_wide(assign_layers(boxes, arrows, components), boxes), boxes, arrows)
    arrange(layers, paths)
    height = place_rows(layers)
    return render(measured, noun, height, boxes.values(), paths, uses)


def read_boxes(measured):
    """({name: box}, {(user, used): count}, noun) of crates, or of the modules of the only crate."""
    crates = measured["crates"]
    if len(crates) > 1:
        prefix = crates[0]["name"] + "-"
        short = {crate["name"]: crate["name"].removeprefix(prefix) for crate in crates}
        boxes, uses = {}, {}
        for crate in crates:
            name = short[crate["name"]]
            boxes[name] = Box(name, outside_tests(crate), rows_of(crate), crate["description"])
            uses.update(((name, short[used]), count) for used, count in crate["uses"].items())
        return boxes, uses, "crate"
    modules = [module for module in crates[0]["modules"] if module["name"] != "(root)"]
    boxes = {module["name"]: Box(module["name"], outside_tests(module)) for module in modules}
    uses = {(module["name"], used): count
            for module in modules for used, count in module["uses"].items() if used in boxes}
    return boxes, uses, "module"


def outside_tests(measured):
    return measured["lines"] - measured["test_lines"]


def rows_of(crate):
    rows = [(module["name"], outside_tests(module)) for module in crate["modules"] if module["name"] != "(root)"]
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def without_implied(uses, components):
    """The arrows that do not follow from others. Of several between two cycles the one with the highest count stays."""
    strongest = {}
    for edge, count in sorted(uses.items()):
        between = components[edge[0]], components[edge[1]]
        if between[0] != between[1] and count > uses.get(strongest.get(between), 0):
            strongest[between] = edge

    def reaches(start, goal):
        return start == goal or any(reaches(target, goal) for source, target in strongest if source == start)

    return {edge for (start, goal), edge in strongest.items()
            if not any(reaches(target, goal) for source, target in strongest if source == start and target != goal)}


def assign_layers(boxes, arrows, components):
    """Layers of names from the top. A name is above everything that it uses.

    Boxes gather at the bottom or right below their users, whichever makes the arrows shorter.
    """
    between = {(components[a], components[b]) for a, b in arrows if components[a] != components[b]}

    def depths(edges):
        depth = {}

        def visit(node):
            if node not in depth:
                depth[node] = 1 + max((visit(target) for source, target in edges if source == node), default=-1)
            return depth[node]

        return {node: visit(node) for node in set(components.values())}

    up = depths(between)
    down = depths({(b, a) for a, b in between})
    from_bottom = {node: max(up.values()) - depth for node, depth in up.items()}
    span = lambda layer: sum(layer[b] - layer[a] for a, b in between)
    layer = min(from_bottom, down, key=span)
    layers = [[] for _ in range(max(layer.values()) + 1)]
    for name in sorted(boxes):
        layers[layer[components[name]]].append(name)
    return layers


def split_wide(layers, boxes):
    """Splits layers that are too wide for the picture."""
    most = (WIDTH - 2 * MARGIN + BOX_GAP) // (COLUMN_MIN + 2 * PADDING + BOX_GAP)
    broken = []
    for names in layers:
        parts = math.ceil(len(names) / most)
        size = math.ceil(len(names) / parts)
        broken += [[boxes[name] for name in names[start:start + size]] for start in range(0, len(names), size)]
    return broken


def route(layers, boxes, arrows):
    """Adds a gap to every layer that an arrow passes. Returns the layers, and the path of boxes of every arrow."""
    at = {box.name: number for number, layer in enumerate(layers) for box in layer}
    paths = []
    for source, target in sorted(arrows):
        passing = [Box("") for _ in range(at[source] + 1, at[target])]
        for number, box in enumerate(passing, at[source] + 1):
            layers[number].append(box)
        paths.append([boxes[source], *passing, boxes[target]])
    return layers, paths


def arrange(layers, paths):
    """Orders the boxes of every layer so that arrows are short and cross little."""
    links = [(a, b) for path in paths for a, b in itertools.pairwise(path)]
    for layer in layers:
        place_columns(layer)
    for _ in range(4):
        for layer in [*layers, *reversed(layers)]:
            near = [(a, b) for a, b in links if (a in layer) != (b in layer)]

            def cost(order):
                place_columns(order)
                length = sum(abs(a.center - b.center) for a, b in near)
                crossings = sum(crosses(one, other) for one, other in itertools.combinations(near, 2))
                return length + 300 * crossings

            if len(layer) <= 6:
                best = min(itertools.permutations(layer), key=cost)
            else:
                wanted = {box: [(b if a is box else a).center for a, b in near if box in (a, b)] for box in layer}
                best = sorted(layer, key=lambda box: sum(wanted[box]) / len(wanted[box]) if wanted[box] else box.center)
            layer[:] = best
            place_columns(layer)


def crosses(one, other):
    ends = [(link[0].center, link[1].center) for link in (one, other)]
    return (ends[0][0] - ends[1][0]) * (ends[0][1] - ends[1][1]) < 0


def place_columns(layer):
    """Divides the width of the picture among the boxes of a layer; the tallest get more columns while there is room."""
    real = [box for box in layer if box.name]
    free = WIDTH - 2 * MARGIN - BOX_GAP * (len(layer) - 1) - CHANNEL * (len(layer) - len(real))
    for box in real:
        box.columns = 1
        free -= COLUMN_MIN + 2 * PADDING
    while free >= COLUMN_MIN:
        tall = [box for box in real if len(box.rows) > ROWS_MIN * box.columns]
        if not tall:
            break
        max(tall, key=lambda box: box.row_count).columns += 1
        free -= COLUMN_MIN
    stretch = min(free / max(sum(box.columns for box in real), 1), COLUMN_MAX - COLUMN_MIN)
    for box in real:
        box.width = box.columns * (COLUMN_MIN + stretch) + 2 * PADDING
    used = sum(box.width for box in layer) + BOX_GAP * (len(layer) - 1)
    x = (WIDTH - used) / 2
    for box in layer:
        box.x = x
        x += box.width + BOX_GAP


def place_rows(layers):
    """Sets the heights, and returns the height of the picture."""
    y = TITLE_HEIGHT + MARGIN
    for layer in layers:
        for box in layer:
            footer = len(box.footer()) * LINE + 4 if box.footer() else 0
            box.height = box.header_height() + box.row_count * ROW + footer + (PADDING - 4 if box.rows or footer else 0)
        tallest = max(box.height for box in layer)
        for box in layer:
            box.y = y
            box.height = tallest if not box.name else box.height
        y += tallest + LAYER_GAP
    return y - LAYER_GAP + MARGIN


def render(measured, noun, height, boxes, paths, uses):
    size = measured["size"]
    name = measured["crates"][0]["name"]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'width="{WIDTH}" height="{height:.0f}" font-family="{FONT}" role="img">',
        f"<title>The {noun}s of {name}, their sizes and what they use</title>",
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>',
        text(MARGIN, 40, f"{name}: {noun}s{' and modules' if noun == 'crate' else ''}", "title"),
        text(MARGIN, 62, f"{size['source_lines']:,} lines of Rust outside of tests. "
             f"Arrows point to the {noun} that is used; their numbers count the names used.", "note"),
        text(MARGIN, 79, "Uses that follow from other arrows are listed in the boxes.", "note"),
    ]
    largest = max((lines for box in boxes for _, lines in box.rows), default=1)
    parts += [part for number, path in enumerate(paths) for part in draw_arrow(path, paths, uses)]
    parts += [part for box in boxes for part in draw_box(box, largest)]
    return "\n".join([*parts, "</svg>", ""])


def text(x, y, content, kind=""):
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{kind}>{html.escape(content)}</text>'


def rectangle(x, y, width, height, radius, kind):
    return (f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'rx="{radius}" class="{kind}"/>')


def draw_box(box, largest):
    yield rectangle(box.x, box.y, box.width, box.height, 6, "box")
    yield text(box.x + PADDING, box.y + 26, box.name, "name")
    yield text(box.x + box.width - PADDING, box.y + 26, f"{box.lines:,} lines", "lines")
    for number, line in enumerate(box.subtitle()):
        yield text(box.x + PADDING, box.y + 43 + number * LINE, line, "small")
    top = box.y + box.header_height()
    column_width = (box.width - 2 * PADDING) / box.columns
    for number, (name, lines) in enumerate(box.rows):
        x = box.x + PADDING + column_width * (number // box.row_count)
        y = top + ROW * (number % box.row_count)
        right = column_width - (PADDING if box.columns > 1 and number // box.row_count < box.columns - 1 else 0)
        yield rectangle(x, y, max(right * lines / largest, 1), ROW - 3, 2, "bar")
        yield text(x + 4, y + 12, name)
        yield text(x + right - 2, y + 12, f"{lines:,}", "lines")
    for number, (line, is_cycle) in enumerate(box.footer()):
        y = top + box.row_count * ROW + 14 + number * LINE
        yield text(box.x + PADDING, y, line, "small cycle" if is_cycle else "small")


def port(box, path, end, paths):
    """The x where an arrow leaves (`end` 0) or meets (`end` -1) a box, in the order of the arrows' other ends."""
    next_box = 1 if end == 0 else -2
    here = sorted((other for other in paths if other[end] is box), key=lambda other: other[next_box].center)
    step = min(box.width / (len(here) + 1), 90)
    return box.center + step * (here.index(path) - (len(here) - 1) / 2)


def draw_arrow(path, paths, uses):
    source, target = path[0], path[-1]
    count = uses[source.name, target.name]
    x, y = port(source, path, 0, paths), source.y + source.height
    bottom = lambda box: max(other.y + other.height for walk in paths for other in walk if other.y == box.y)
    start = (x, y)
    y = max(bottom(source), y + STUB)
    steps = [f"M{x:.1f},{start[1]:.1f}", f"V{y:.1f}"]
    for box in path[1:]:
        to = port(box, path, -1, paths) if box is target else box.center
        end = box.y - (7 if box is target else 0)
        middle = (y + end) / 2
        steps.append(f"C{x:.1f},{middle:.1f} {to:.1f},{middle:.1f} {to:.1f},{end:.1f}")
        x, y = to, end
        if box is not target:
            y = bottom(box)
            steps.append(f"V{y:.1f}")
    width = 1 + 0.5 * math.log10(max(count, 1))
    yield f'<path d="{" ".join(steps)}" class="arrow" stroke-width="{width:.2f}"/>'
    yield f'<path d="M{x - 4.5:.1f},{y - 2:.1f} h9 l-4.5,9 z" class="head"/>'
    yield text(start[0], start[1] + 14, f"{count:,}", "count")
