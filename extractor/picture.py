"""A circuit as a picture: one layout, drawn as SVG and as PNG. Same circuit, same bytes; no model and no torch needed.

1. Rows, bottom to top in forward order: one per site that has nodes, query, key and value sharing one.
2. Detail per row: as many tokens on a node as fit, then fewer, then bare numbers on several staggered lines.
3. Order and x: sweeps up and down pull every node to the mean of its neighbours, keeping nodes apart.
4. Shapes: boxes, labels, wires and chips in pixels, which the two renderers draw as they are.

Grey wires are the residual stream, not edges: a channel written by one node and read by a later one meets without a weight.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from extractor.artifacts import explain_full_disk
from extractor.circuit import Circuit, Edge, Node
from extractor.sites import PLACES

POSITIVE, NEGATIVE = "#0072b2", "#d55e00"  # Okabe and Ito's pair: told apart under every common colour blindness
INK, SOFT, FAINT, STREAM = "#1b1f24", "#57606a", "#c8d0d9", "#a3adb8"
READS, WRITES = "#57606a", "#6a3d9a"
PLACE_NAMES = dict(
    zip(
        PLACES,
        ("attention read", "query", "key", "value", "attention write", "MLP read", "neurons", "MLP write"),
        strict=True,
    )
)
_QKV = ("attn.q", "attn.k", "attn.v")
_GUTTER, _MARGIN, _HEADER, _BAR = 176.0, 24.0, 116.0, 34.0
_NARROWEST, _WIDEST = 640.0, 1240.0  # of the drawing right of the row labels
_GROUP_GAP, _LINE_GAP = 34.0, 5.0
_SWEEPS = 12
_CURVE = [i / 24 for i in range(25)]
_STRIP, _SMOOTH = 512, 2  # the PNG is drawn in strips at twice its size, so that memory stays small
_MOST_PIXELS = 40e6
_LONGEST_NAME = 48


@dataclass(frozen=True)
class Label:
    """Text on its baseline; anchor is 'start', 'middle' or 'end'."""

    x: float
    y: float
    text: str
    size: float
    color: str = INK
    anchor: str = "middle"


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float
    fill: str
    stroke: str
    radius: float = 6.0


@dataclass(frozen=True)
class Wire:
    """A cubic curve from one node up to another. kind: 'edge', 'stream' (residual, not an edge) or 'sample' (in the legend)."""

    points: tuple[tuple[float, float], ...]
    color: str
    width: float
    opacity: float
    kind: str
    source: str = ""
    target: str = ""
    weight: float = 0.0


@dataclass(frozen=True)
class Chip:
    """One node: its box, its labels, and what a pointer over it tells."""

    node: Node
    box: Box
    labels: tuple[Label, ...]
    tip: str


@dataclass(frozen=True)
class Scene:
    """Everything to draw, in pixels, y downwards, in drawing order: boxes, wires, chips, labels."""

    width: float
    height: float
    title: str
    boxes: tuple[Box, ...]
    wires: tuple[Wire, ...]
    chips: tuple[Chip, ...]
    labels: tuple[Label, ...]


@dataclass(frozen=True)
class _Detail:
    tokens: int
    chars: int
    lines: int
    font: float
    gap: float


_DETAILS = (_Detail(2, 12, 1, 12, 10), _Detail(1, 9, 1, 12, 8), _Detail(1, 7, 2, 12, 8), _Detail(0, 0, 2, 12, 7), _Detail(0, 0, 3, 11, 6))
_TOKEN_FONT, _TOKEN_LINE, _TOKEN_GAP = 10.0, 13.5, 7.0


@dataclass
class _Spot:
    node: Node
    group: int
    width: float = 0.0
    height: float = 0.0
    x: float = 0.0  # middle of the chip
    y: float = 0.0  # top of the chip

    @property
    def head(self) -> tuple[float, float]:
        return self.x, self.y

    @property
    def foot(self) -> tuple[float, float]:
        return self.x, self.y + self.height


@dataclass
class _Row:
    sites: list[str]
    spots: list[_Spot]
    detail: _Detail = _DETAILS[0]
    y: float = 0.0  # top of the row

    @property
    def height(self) -> float:
        return self.detail.lines * (self.spots[0].height + _LINE_GAP) - _LINE_GAP

    def shows(self, kind: str) -> bool:
        """Whether chips keep a line for 'reads' or 'writes'."""
        return self.detail.tokens > 0 and any(getattr(s.node, kind) for s in self.spots)

    def separations(self) -> list[float]:
        """Least distance between the centres of neighbours; on L staggered lines a chip meets only every L-th one."""
        found = []
        for a, b in pairwise(self.spots):
            between = (a.width + b.width) / 2 if self.detail.lines == 1 else max(s.width for s in self.spots)
            if a.group != b.group:
                found.append(between + self.detail.gap + _GROUP_GAP)
            else:
                found.append((between + self.detail.gap) / self.detail.lines)
        return found

    def least_width(self) -> float:
        """Enough for any order of the spots."""
        widths = [s.width for s in self.spots]
        if self.detail.lines == 1:
            return sum(widths) + self.detail.gap * len(widths) + 3 * _GROUP_GAP + max(widths)
        return sum(self.separations()) + max(widths) + _GROUP_GAP


@dataclass
class _Ties:
    """Who pulls whom: per node the (neighbour, strength) below and above it."""

    below: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    above: dict[str, list[tuple[str, float]]] = field(default_factory=dict)

    def add(self, source: str, target: str, strength: float) -> None:
        self.above.setdefault(source, []).append((target, strength))
        self.below.setdefault(target, []).append((source, strength))


def visible(text: str, space: str = "·") -> str:
    """A token as one can see it: spaces become `space`, what does not print becomes its escape (\\n, \\x00)."""
    return "".join(space if c == " " else c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def short_name(model: str) -> str:
    """A model's name fit for a title: of a path, or of an endless name, the last part."""
    text = model.rstrip("/")
    if text.startswith(("/", ".", "~")) or len(text) > _LONGEST_NAME:
        text = text.rpartition("/")[2]
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…"


def describe(node: Node) -> str:
    """A node in a few lines: name, mean, what it reads and writes."""
    lines = [visible(node.id), f"mean {node.mean:.4g}"]
    lines += [f"reads {'  '.join(map(visible, node.reads))}"] if node.reads else []
    lines += [f"writes {'  '.join(map(visible, node.writes))}"] if node.writes else []
    return "\n".join(lines)


def layout(circuit: Circuit) -> Scene:
    """Place a circuit of any size, even an empty one. Edges that name a node the circuit does not hold are left out."""
    names = {node.id for node in circuit.nodes}
    edges = [e for e in circuit.edges if e.source in names and e.target in names]
    streams = _streams(circuit.nodes)
    rows = _rows(circuit.nodes)
    for row in rows:
        _fit(row)
    width = max([_NARROWEST, *(row.least_width() for row in rows)])
    _arrange(rows, _ties(edges, streams), width)
    width = _center(rows)
    floor = _stack(rows, edges)
    return _compose(circuit, rows, edges, streams, width, floor)


def _order(site: str) -> tuple[int, int, str]:
    layer, _, place = site.partition(".")
    return int(layer) if layer.isdecimal() else 10**9, PLACES.index(place) if place in PLACES else len(PLACES), site


def _rows(nodes: tuple[Node, ...]) -> list[_Row]:
    """Nodes in rows, first row of the forward pass first."""
    rows: dict[tuple[str, str], _Row] = {}
    for node in sorted({n.id: n for n in nodes}.values(), key=lambda n: (_order(n.site), n.channel, n.id)):
        layer, _, place = node.site.partition(".")
        row = rows.setdefault((layer, "qkv" if place in _QKV else place), _Row([], []))
        if node.site not in row.sites:
            row.sites.append(node.site)
        row.spots.append(_Spot(node, _QKV.index(place) + 1 if place in _QKV else 0))
    return list(rows.values())


def _streams(nodes: tuple[Node, ...]) -> list[tuple[str, str]]:
    """The residual stream as (source, target): a write to the next read of its channel, a read back to the last write before it.

    An empty source is the input, for reads with no write before them; an empty target the answers, for writes with no read after.
    """
    found: list[tuple[str, str]] = []
    last: dict[int, str] = {}
    unread: dict[int, list[str]] = {}
    for node in sorted(nodes, key=lambda n: (_order(n.site), n.channel)):
        if node.site.endswith("resid_delta"):
            last[node.channel] = node.id
            unread.setdefault(node.channel, []).append(node.id)
        elif node.site.endswith("act_in"):
            sources = unread.pop(node.channel, None) or [last.get(node.channel, "")]
            found += [(source, node.id) for source in sources]
    return found + [(source, "") for sources in unread.values() for source in sources]


def _ties(edges: list[Edge], streams: list[tuple[str, str]]) -> _Ties:
    ties = _Ties()
    for edge in edges:
        ties.add(edge.source, edge.target, 1.0)
    for source, target in streams:
        if source and target:
            ties.add(source, target, 0.3)
    return ties


def _fit(row: _Row) -> None:
    """Choose the richest detail at which the row is no wider than the page."""
    for detail in _details(len(row.spots)):
        row.detail = detail
        for spot in row.spots:
            told = [_tokens(spot.node.reads, detail), _tokens(spot.node.writes, detail)]
            spot.width = 12 + max([14.0, _text_width(str(spot.node.channel), detail.font), *map(_told_width, told)])
        if row.least_width() <= _WIDEST:
            break
    for spot in row.spots:
        spot.height = row.detail.font + 8 + _TOKEN_LINE * (row.shows("reads") + row.shows("writes"))


def _details(count: int) -> Iterator[_Detail]:
    yield from _DETAILS
    for lines in range(3, count + 4):
        yield _Detail(0, 0, lines, 9.5, 3)


def _told_width(tokens: list[str]) -> float:
    return sum(_text_width(t, _TOKEN_FONT) for t in tokens) + _TOKEN_GAP * (len(tokens) - 1)


def _tokens(tokens: tuple[str, ...], detail: _Detail) -> list[str]:
    """The first tokens as labels, in the few characters that the PNG's bundled font has."""
    shown = [_drawable(t) for t in tokens[: detail.tokens]]
    return [t if len(t) <= detail.chars else t[: detail.chars - 1] + "…" for t in shown]


def _drawable(text: str, space: str = "·") -> str:
    return visible(text, "\0").encode("ascii", "backslashreplace").decode().replace("\0", space)


def _clip(text: str, width: float, size: float) -> str:
    if _text_width(text, size) <= width:
        return text
    while text and _text_width(text + "…", size) > width:
        text = text[:-1]
    return text + "…"


def _arrange(rows: list[_Row], ties: _Ties, width: float) -> None:
    """Give every spot its x; nodes of a row are reordered by where their neighbours are, alternating upwards and downwards."""
    x: dict[str, float] = {}
    for row in rows:
        for i, spot in enumerate(row.spots):
            x[spot.node.id] = width * (i + 0.5) / len(row.spots)
    for sweep in range(_SWEEPS):
        side = ties.below if sweep % 2 == 0 else ties.above
        for row in rows if sweep % 2 == 0 else reversed(rows):
            pulls = {s.node.id: _pull(s.node.id, x, side.get(s.node.id, [])) for s in row.spots}
            row.spots.sort(key=lambda s: (s.group, pulls[s.node.id], s.node.channel, s.node.id))
            _settle(row, pulls, x, width)
    for row in [*rows, *reversed(rows)]:
        both = {s.node.id: ties.below.get(s.node.id, []) + ties.above.get(s.node.id, []) for s in row.spots}
        _settle(row, {name: _pull(name, x, pull) for name, pull in both.items()}, x, width)
    for row in rows:
        for spot in row.spots:
            spot.x = x[spot.node.id]


def _center(rows: list[_Row]) -> float:
    """Move all spots to the middle of the drawing, right of the row labels; returns the drawing's width."""
    spots = [s for row in rows for s in row.spots]
    left = min((s.x - s.width / 2 for s in spots), default=0.0) - _GROUP_GAP
    right = max((s.x + s.width / 2 for s in spots), default=0.0) + _GROUP_GAP
    width = max(_NARROWEST, math.ceil(right - left))
    for spot in spots:
        spot.x += _MARGIN + _GUTTER + (width - left - right) / 2
    return width


def _pull(name: str, x: dict[str, float], neighbours: list[tuple[str, float]]) -> float:
    total = sum(strength for _, strength in neighbours)
    return sum(x[n] * strength for n, strength in neighbours) / total if total else x[name]


def _settle(row: _Row, pulls: dict[str, float], x: dict[str, float], width: float) -> None:
    """The positions nearest to the pulls that keep the order and the separations: isotonic regression after removing offsets."""
    offsets = [0.0]
    for gap in row.separations():
        offsets.append(offsets[-1] + gap)
    blocks: list[tuple[float, int]] = []  # (mean, members)
    for spot, offset in zip(row.spots, offsets, strict=True):
        mean, members = pulls[spot.node.id] - offset, 1
        while blocks and blocks[-1][0] > mean:
            before, others = blocks.pop()
            mean, members = (mean * members + before * others) / (members + others), members + others
        blocks.append((mean, members))
    edge = max(s.width for s in row.spots) / 2
    free = [mean for mean, members in blocks for _ in range(members)]
    for spot, offset, mean in zip(row.spots, offsets, free, strict=True):
        x[spot.node.id] = min(max(mean, edge), width - edge - offsets[-1]) + offset


def _stack(rows: list[_Row], edges: list[Edge]) -> float:
    """Give rows and spots their y, answers' bar on top; returns the y of the input bar. Crowded gaps are taller."""
    row_of = {s.node.id: i for i, row in enumerate(rows) for s in row.spots}
    crowd = [0] * len(rows)
    for edge in edges:
        crowd[row_of[edge.target]] += 1
    y = _MARGIN + _HEADER + _BAR + 40
    for i in reversed(range(len(rows))):
        row = rows[i]
        row.y = y
        for place, spot in enumerate(row.spots):
            spot.y = y + (place % row.detail.lines) * (spot.height + _LINE_GAP)
        y += row.height + min(44 + 1.1 * crowd[i], 130)
    return y


def _compose(circuit: Circuit, rows: list[_Row], edges: list[Edge], streams: list[tuple[str, str]], width: float, floor: float) -> Scene:
    spots = {s.node.id: s for row in rows for s in row.spots}
    ceiling, left, total = _MARGIN + _HEADER, _MARGIN + _GUTTER, _MARGIN * 2 + _GUTTER + width
    title = f"{_drawable(circuit.task, ' ')} in {_drawable(short_name(circuit.model), ' ')}"
    bands = [Box(_MARGIN - 8, row.y - 9, width + _GUTTER + 16, row.height + 18, "#f4f6f8", "none", 10) for row in rows]
    bars = [Box(left, y, width, _BAR, "#e9edf2", FAINT, 10) for y in (ceiling, floor)]
    largest = max([abs(e.weight) for e in edges if math.isfinite(e.weight)], default=0.0)
    wires = [_stream_wire(spots, s, t, ceiling + _BAR, floor) for s, t in streams]
    wires += sorted((_edge_wire(spots, e, largest) for e in edges), key=lambda w: (w.width, w.source, w.target))
    chips = [_chip(spot, row) for row in rows for spot in row.spots]
    labels = [Label(_MARGIN, _MARGIN + 18, _clip(title, total - 2 * _MARGIN, 21), 21, INK, "start")]
    labels.append(Label(_MARGIN, _MARGIN + 40, f"{len(circuit.nodes)} nodes, {len(circuit.edges)} edges", 13, SOFT, "start"))
    labels += [label for row in rows for label in _row_labels(row)] + _bar_labels(circuit, ceiling, floor, width)
    groups = [_group(row, number) for row in rows for number in sorted({s.group for s in row.spots}) if number]
    samples, legend = _legend(largest)
    return Scene(
        width=total,
        height=floor + _BAR + _MARGIN,
        title=title,
        boxes=(*bands, *(box for box, _ in groups), *bars),
        wires=(*wires, *samples),
        chips=tuple(chips),
        labels=(*labels, *(label for _, label in groups), *legend),
    )


def _group(row: _Row, number: int) -> tuple[Box, Label]:
    """A panel round the queries, keys or values of a row, with its letter at the left."""
    spots = [s for s in row.spots if s.group == number]
    left = min(s.x - s.width / 2 for s in spots) - 20
    right = max(s.x + s.width / 2 for s in spots) + 6
    middle = row.y + row.height / 2
    return Box(left, row.y - 5, right - left, row.height + 10, "#e9edf2", "none", 8), Label(left + 10, middle + 4, " qkv"[number], 12, SOFT)


def _rise(low: tuple[float, float], high: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    middle = (low[1] + high[1]) / 2
    return low, (low[0], middle), (high[0], middle), high


def _edge_wire(spots: dict[str, _Spot], edge: Edge, largest: float) -> Wire:
    share = abs(edge.weight) / largest if largest and math.isfinite(edge.weight) else 0.0
    color = NEGATIVE if edge.weight < 0 else POSITIVE
    points = _rise(spots[edge.source].head, spots[edge.target].foot)
    return Wire(points, color, 0.8 + 3.7 * share, 0.28 + 0.62 * share, "edge", edge.source, edge.target, edge.weight)


def _stream_wire(spots: dict[str, _Spot], source: str, target: str, ceiling: float, floor: float) -> Wire:
    low = spots[source].head if source else (spots[target].x, floor)
    high = spots[target].foot if target else (spots[source].x, ceiling)
    return Wire(_rise(low, high), STREAM, 1.0, 0.75, "stream", source, target)


def _chip(spot: _Spot, row: _Row) -> Chip:
    """The number in the middle, what the node writes above it, what it reads below: the way the signal runs."""
    detail = row.detail
    baseline = spot.y + _TOKEN_LINE * row.shows("writes") + detail.font + 2.5
    labels = [
        Label(spot.x, baseline, str(spot.node.channel), detail.font),
        *_told_labels(spot.x, spot.y + 12.5, _tokens(spot.node.writes, detail), WRITES),
        *_told_labels(spot.x, baseline + 14, _tokens(spot.node.reads, detail), READS),
    ]
    box = Box(spot.x - spot.width / 2, spot.y, spot.width, spot.height, "#ffffff", "#aab4bf", 6 if detail.font > 10 else 4)
    return Chip(spot.node, box, tuple(labels), describe(spot.node))


def _told_labels(x: float, y: float, tokens: list[str], color: str) -> Iterator[Label]:
    left = x - _told_width(tokens) / 2
    for text in tokens:
        width = _text_width(text, _TOKEN_FONT)
        yield Label(left + width / 2, y, text, _TOKEN_FONT, color)
        left += width + _TOKEN_GAP


def _row_labels(row: _Row) -> list[Label]:
    layer, _, place = row.sites[0].partition(".")
    middle = row.y + row.height / 2
    names = ", ".join(PLACE_NAMES.get(site.partition(".")[2], "") for site in row.sites)
    heading = f"layer {_drawable(layer)} · {names}" if place in PLACE_NAMES else _drawable(row.sites[0], " ")
    return _two_lines(middle, heading, "  ".join(_drawable(site, " ") for site in row.sites))


def _two_lines(middle: float, heading: str, note: str) -> list[Label]:
    room = _GUTTER - 8
    return [
        Label(_MARGIN, middle - 1, _clip(heading, room, 12), 12, INK, "start"),
        Label(_MARGIN, middle + 12, _clip(note, room, 10), 10, SOFT, "start"),
    ]


def _bar_labels(circuit: Circuit, ceiling: float, floor: float, width: float) -> list[Label]:
    middle = _MARGIN + _GUTTER + width / 2
    first, second = _tokens(circuit.answers, _Detail(2, 24, 1, 12, 0))
    return [
        Label(middle - 18, ceiling + 22, first, 15, INK, "end"),
        Label(middle, ceiling + 22, "or", 12, SOFT),
        Label(middle + 18, ceiling + 22, second, 15, INK, "start"),
        Label(middle, floor + 22, "tokens of the prompt", 12, SOFT),
        *_two_lines(ceiling + _BAR / 2, "answer", "logits"),
        *_two_lines(floor + _BAR / 2, "input", "token embeddings"),
    ]


def _legend(largest: float) -> tuple[list[Wire], list[Label]]:
    """Two lines under the title: what the lines mean, what a node says."""
    edges = (
        (POSITIVE, 3.5, "positive weight"),
        (NEGATIVE, 3.5, "negative weight"),
        ("", 0.0, f"the wider, the larger: up to {largest:.3g}"),
    )
    others = (
        (STREAM, 1.2, "residual stream: a channel written, then read (not an edge)"),
        ("", 0.0, "below a number: tokens it reads; above: tokens it writes"),
    )
    wires, labels = [], []
    for y, entries in ((_MARGIN + 66, edges), (_MARGIN + 87, others)):
        x = _MARGIN
        for color, width, text in entries:
            if color:
                wires.append(Wire(tuple((x + 26 * i / 3, y - 4) for i in range(4)), color, width, 0.9, "sample"))
                x += 34
            labels.append(Label(x, y, text, 12, SOFT, "start"))
            x += _text_width(text, 12) + 28
    return wires, labels


def to_svg(scene: Scene) -> str:
    """The scene as one SVG document, self-contained. Nodes carry data-id, edges data-source, data-target and data-weight."""
    width, height = _number(scene.width), _number(scene.height)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="circuit" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{escape(scene.title)}" font-family="Aileron, \'Helvetica Neue\', Arial, sans-serif">',
        f"<title>{escape(scene.title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *map(_svg_box, scene.boxes),
        *map(_svg_wire, scene.wires),
        *map(_svg_chip, scene.chips),
        *map(_svg_label, scene.labels),
    ]
    return "\n".join([*parts, "</svg>", ""])


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _svg_box(box: Box) -> str:
    x, y, width, height, radius = map(_number, (box.x, box.y, box.width, box.height, box.radius))
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" fill="{box.fill}" stroke="{box.stroke}"/>'


def _svg_label(label: Label) -> str:
    place = f'x="{_number(label.x)}" y="{_number(label.y)}" font-size="{_number(label.size)}"'
    return f'<text {place} fill="{label.color}" text-anchor="{label.anchor}">{escape(label.text)}</text>'


def _svg_wire(wire: Wire) -> str:
    start, *rest = (f"{_number(x)} {_number(y)}" for x, y in wire.points)
    look = f'fill="none" stroke="{wire.color}" stroke-width="{_number(wire.width)}" stroke-opacity="{_number(wire.opacity)}"'
    curve = f'd="M{start} C{", ".join(rest)}" {look}'
    source, target = escape(visible(wire.source)), escape(visible(wire.target))
    if wire.kind != "edge":
        return f'<path class="{wire.kind}" data-source="{source}" data-target="{target}" {curve}/>'
    sign = "negative" if wire.color == NEGATIVE else "positive"
    data = f'data-source="{source}" data-target="{target}" data-weight="{wire.weight:.4g}"'
    return f'<path class="edge {sign}" {data} {curve}><title>{source} to {target}: {wire.weight:+.4g}</title></path>'


def _svg_chip(chip: Chip) -> str:
    inside = "".join([_svg_box(chip.box), *map(_svg_label, chip.labels)])
    return f'<g class="node" data-id="{escape(visible(chip.node.id))}"><title>{escape(chip.tip)}</title>{inside}</g>'


def write_png(scene: Scene, path: Path, scale: float = 2) -> None:
    """Draw the scene into a PNG, `scale` pixels to a scene pixel (fewer for a scene too large for that). Written atomically."""
    scale = min(scale, math.sqrt(_MOST_PIXELS / (scene.width * scene.height)))
    width, height = round(scene.width * scale), round(scene.height * scale)
    image = Image.new("RGB", (width, height))
    for top in range(0, height, _STRIP):
        rows = min(_STRIP, height - top)
        strip = Image.new("RGB", (width * _SMOOTH, rows * _SMOOTH), "#ffffff")
        _draw(scene, strip, scale * _SMOOTH, top * _SMOOTH)
        image.paste(strip.resize((width, rows), Image.Resampling.BOX), (0, top))
    temporary = path.with_name(path.name + ".tmp")
    with explain_full_disk(path):
        image.save(temporary, format="PNG", optimize=False)
        os.replace(temporary, path)


def _draw(scene: Scene, strip: Image.Image, scale: float, top: int) -> None:
    """The part of the scene that shows in a strip whose first line is `top`, both in strip pixels."""
    pen = ImageDraw.Draw(strip, "RGBA")  # this mode blends translucent fills
    for box in scene.boxes:
        _draw_box(pen, box, scale, top)
    for wire in scene.wires:
        _draw_wire(pen, wire, scale, top, strip.height)
    for chip in scene.chips:
        _draw_box(pen, chip.box, scale, top)
    for label in [*(label for chip in scene.chips for label in chip.labels), *scene.labels]:
        y = label.y * scale - top
        if -100 * scale < y < strip.height + 100 * scale:
            anchor = {"start": "ls", "middle": "ms", "end": "rs"}[label.anchor]
            pen.text((label.x * scale, y), label.text, fill=label.color, font=_font(label.size * scale), anchor=anchor)


def _draw_box(pen: ImageDraw.ImageDraw, box: Box, scale: float, top: int) -> None:
    corners = (box.x * scale, box.y * scale - top, (box.x + box.width) * scale, (box.y + box.height) * scale - top)
    stroke = None if box.stroke == "none" else box.stroke
    pen.rounded_rectangle(corners, box.radius * scale, fill=box.fill, outline=stroke, width=round(scale) if stroke else 0)


def _draw_wire(pen: ImageDraw.ImageDraw, wire: Wire, scale: float, top: int, height: int) -> None:
    """One polygon along the curve: overlapping segments would blend twice."""
    ys = [y * scale - top for _, y in wire.points]
    if max(ys) < -wire.width * scale or min(ys) > height + wire.width * scale:
        return
    left, right = [], []
    for x, y, dx, dy in _samples(wire.points):
        reach = wire.width * scale / 2 / (math.hypot(dx, dy) or 1.0)
        left.append(_pixel(x * scale - dy * reach, y * scale - top + dx * reach))
        right.append(_pixel(x * scale + dy * reach, y * scale - top - dx * reach))
    alpha = f"{round(255 * wire.opacity):02x}"
    pen.polygon(left + right[::-1], fill=wire.color + alpha)


def _pixel(x: float, y: float) -> tuple[int, int]:
    return math.floor(x + 0.5001), math.floor(y + 0.5001)  # half pixels go one way, or straight lines show notches


def _samples(points: tuple[tuple[float, float], ...]) -> Iterator[tuple[float, float, float, float]]:
    """Points of a cubic curve with its direction there: (x, y, dx, dy)."""
    for t in _CURVE:
        u = 1 - t
        weights = (u**3, 3 * u * u * t, 3 * u * t * t, t**3)
        slopes = (-3 * u * u, 3 * u * u - 6 * u * t, 6 * u * t - 3 * t * t, 3 * t * t)
        x, y = (sum(w * p[axis] for w, p in zip(weights, points, strict=True)) for axis in (0, 1))
        dx, dy = (sum(s * p[axis] for s, p in zip(slopes, points, strict=True)) for axis in (0, 1))
        yield x, y, dx, dy


@lru_cache(maxsize=64)
def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _text_width(text: str, size: float) -> float:
    return _font(100.0).getlength(text) * size / 100
