"""Where every node goes: nodes in rows, as much detail as fits, then order, x and y.

1. Rows, bottom to top in forward order: one per site that has nodes, query, key and value sharing one.
2. Detail per row: as many tokens on a node as fit, then fewer, then bare numbers on several staggered lines.
3. Order and x: sweeps up and down pull every node to the mean of its neighbours, keeping nodes apart.
4. y: rows are stacked, farther apart where many edges arrive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from extractor.circuit import Edge, Node
from extractor.picture.scene import drawable, text_width
from extractor.sites import PLACES

GUTTER, MARGIN, HEADER, BAR = 176.0, 24.0, 116.0, 34.0
TOKEN_FONT, TOKEN_LINE, TOKEN_GAP = 10.0, 13.5, 7.0
_QKV = ("attn.q", "attn.k", "attn.v")
_NARROWEST, _WIDEST = 640.0, 1240.0  # of the drawing right of the row labels
_GROUP_GAP, _LINE_GAP = 34.0, 5.0
_SWEEPS = 12


@dataclass(frozen=True)
class Detail:
    tokens: int
    chars: int
    lines: int
    font: float
    gap: float


_DETAILS = (Detail(2, 12, 1, 12, 10), Detail(1, 9, 1, 12, 8), Detail(1, 7, 2, 12, 8), Detail(0, 0, 2, 12, 7), Detail(0, 0, 3, 11, 6))


@dataclass
class Spot:
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
class Row:
    sites: list[str]
    spots: list[Spot]
    detail: Detail = _DETAILS[0]
    y: float = 0.0  # top of the row

    @property
    def line_height(self) -> float:
        return max(s.height for s in self.spots)

    @property
    def height(self) -> float:
        return self.detail.lines * (self.line_height + _LINE_GAP) - _LINE_GAP

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


def arrange(nodes: tuple[Node, ...], edges: list[Edge], streams: list[tuple[str, str]]) -> tuple[list[Row], float, float]:
    """The rows with every spot placed, the width of the drawing right of the row labels, and the y of the input bar."""
    rows = _rows(nodes)
    for row in rows:
        _fit(row)
    width = max([_NARROWEST, *(row.least_width() for row in rows)])
    _sweep(rows, _ties(edges, streams), width)
    return rows, _center(rows), _stack(rows, edges)


def residual_streams(nodes: tuple[Node, ...]) -> list[tuple[str, str]]:
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


def shown_tokens(tokens: tuple[str, ...], detail: Detail) -> list[str]:
    """The first tokens as labels, in the few characters that the PNG's bundled font has."""
    shown = [drawable(t) for t in tokens[: detail.tokens]]
    return [t if len(t) <= detail.chars else t[: detail.chars - 1] + "…" for t in shown]


def told_width(tokens: list[str]) -> float:
    return sum(text_width(t, TOKEN_FONT) for t in tokens) + TOKEN_GAP * (len(tokens) - 1)


def _order(site: str) -> tuple[int, int, str]:
    layer, _, place = site.partition(".")
    return int(layer) if layer.isdecimal() else 10**9, PLACES.index(place) if place in PLACES else len(PLACES), site


def _rows(nodes: tuple[Node, ...]) -> list[Row]:
    """Nodes in rows, first row of the forward pass first."""
    rows: dict[tuple[str, str], Row] = {}
    for node in sorted({n.id: n for n in nodes}.values(), key=lambda n: (_order(n.site), n.channel, n.id)):
        layer, _, place = node.site.partition(".")
        row = rows.setdefault((layer, "qkv" if place in _QKV else place), Row([], []))
        if node.site not in row.sites:
            row.sites.append(node.site)
        row.spots.append(Spot(node, _QKV.index(place) + 1 if place in _QKV else 0))
    return list(rows.values())


def _ties(edges: list[Edge], streams: list[tuple[str, str]]) -> _Ties:
    ties = _Ties()
    for edge in edges:
        ties.add(edge.source, edge.target, 1.0)
    for source, target in streams:
        if source and target:
            ties.add(source, target, 0.3)
    return ties


def _fit(row: Row) -> None:
    """Choose the richest detail at which the row is no wider than the page."""
    for detail in _details(len(row.spots)):
        row.detail = detail
        for spot in row.spots:
            told = [t for t in (shown_tokens(spot.node.reads, detail), shown_tokens(spot.node.writes, detail)) if t]
            spot.width = 12 + max([14.0, text_width(str(spot.node.channel), detail.font), *map(told_width, told)])
            spot.height = detail.font + 8 + TOKEN_LINE * len(told)
        if row.least_width() <= _WIDEST:
            break


def _details(count: int) -> Iterator[Detail]:
    yield from _DETAILS
    for lines in range(3, count + 4):
        yield Detail(0, 0, lines, 9.5, 3)


def _sweep(rows: list[Row], ties: _Ties, width: float) -> None:
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


def _pull(name: str, x: dict[str, float], neighbours: list[tuple[str, float]]) -> float:
    total = sum(strength for _, strength in neighbours)
    return sum(x[n] * strength for n, strength in neighbours) / total if total else x[name]


def _settle(row: Row, pulls: dict[str, float], x: dict[str, float], width: float) -> None:
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


def _center(rows: list[Row]) -> float:
    """Move all spots to the middle of the drawing, right of the row labels; returns the drawing's width."""
    spots = [s for row in rows for s in row.spots]
    left = min((s.x - s.width / 2 for s in spots), default=0.0) - _GROUP_GAP
    right = max((s.x + s.width / 2 for s in spots), default=0.0) + _GROUP_GAP
    width = max(_NARROWEST, math.ceil(right - left))
    for spot in spots:
        spot.x += MARGIN + GUTTER + (width - left - right) / 2
    return width


def _stack(rows: list[Row], edges: list[Edge]) -> float:
    """Give rows and spots their y, answers' bar on top; returns the y of the input bar. Crowded gaps are taller."""
    row_of = {s.node.id: i for i, row in enumerate(rows) for s in row.spots}
    crowd = [0] * len(rows)
    for edge in edges:
        crowd[row_of[edge.target]] += 1
    y = MARGIN + HEADER + BAR + 40
    for i in reversed(range(len(rows))):
        row = rows[i]
        row.y = y
        for place, spot in enumerate(row.spots):
            spot.y = y + (place % row.detail.lines) * (row.line_height + _LINE_GAP) + (row.line_height - spot.height) / 2
        y += row.height + min(44 + 1.1 * crowd[i], 130)
    return y
