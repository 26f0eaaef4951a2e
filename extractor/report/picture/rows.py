"""Rows of places, bottom to top in forward order, and the detail of the chips that fits the width of a row.

There is one row per site with nodes; query, key and value share one. A row holds its chips and, between them, lanes for the residual
stream. Chips show several tokens where these fit, else fewer, else only channel numbers on several staggered lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from extractor.circuits.circuit import Node
from extractor.circuits.sites import stream_rank
from extractor.report.picture.scene import drawable, text_width

TOKEN_FONT, TOKEN_LINE, TOKEN_GAP = 10.0, 13.5, 7.0
GROUP_GAP, LINE_GAP = 34.0, 5.0
GROUP_LEFT, GROUP_RIGHT = 20.0, 6.0  # how far the panel of a group reaches beyond its chips
CLEAR = 10.0  # between a lane and its neighbours
_QKV = ("attn.q", "attn.k", "attn.v")
_MAX_WIDTH = 1240.0
_RESERVED_LANES = 8  # chips lose detail to make room for these; further lanes only where room is left


@dataclass(frozen=True)
class Detail:
    tokens: int
    chars: int
    lines: int
    font: float
    gap: float


_DETAILS = (Detail(2, 12, 1, 12, 10), Detail(1, 9, 1, 12, 8), Detail(1, 7, 2, 12, 8), Detail(0, 0, 2, 12, 7), Detail(0, 0, 3, 11, 6))


@dataclass(eq=False)
class Place:
    """A place in a row: a lane, or the spot of a chip. It is pulled towards the (neighbour, strength) below and above it."""

    channel: int
    name: str = ""
    group: float = 0.0
    width: float = 0.0
    x: float = 0.0  # its middle
    below: list[tuple[Place, float]] = field(default_factory=list)
    above: list[tuple[Place, float]] = field(default_factory=list)


@dataclass(eq=False)
class Spot(Place):
    node: Node = field(kw_only=True)
    height: float = 0.0
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
    spots: list[Spot]  # the chips
    places: list[Place] = field(default_factory=list)  # chips and lanes, left to right
    lanes: dict[int, Place] = field(default_factory=dict)  # by channel; several channels may share one
    most_lanes: int = 0
    detail: Detail = _DETAILS[0]
    y: float = 0.0  # top of the row

    @property
    def line_height(self) -> float:
        return max(s.height for s in self.spots)

    @property
    def height(self) -> float:
        return self.detail.lines * (self.line_height + LINE_GAP) - LINE_GAP

    @property
    def widest(self) -> float:
        return max(s.width for s in self.spots)

    def separations(self) -> list[float]:
        """Least distances between the centres of neighbours."""
        return [self._separation(a, b) for a, b in pairwise(self.places)]

    def _separation(self, a: Place, b: Place) -> float:
        """Least distance of two neighbours. On L staggered lines a chip is beside every L-th chip only, a lane beside all."""
        between = (a.width + b.width) / 2
        if not (isinstance(a, Spot) and isinstance(b, Spot)):
            panel = GROUP_RIGHT * (isinstance(a, Spot) and a.group > 0) + GROUP_LEFT * (isinstance(b, Spot) and b.group > 0)
            return between + CLEAR + panel
        if self.detail.lines > 1:
            between = self.widest
        if a.group != b.group:
            return between + self.detail.gap + GROUP_GAP
        return (between + self.detail.gap) / self.detail.lines

    def least_width(self, lanes: int) -> float:
        """A width that is enough for any order of the chips and of this number of lanes."""
        groups, gap = len({s.group for s in self.spots}), self.detail.gap
        apart = 2 * CLEAR + (self.widest if self.detail.lines > 1 else 0.0)
        around = (groups + 1) * GROUP_GAP + lanes * apart + self.widest
        if self.detail.lines == 1:
            return sum(s.width for s in self.spots) + gap * len(self.spots) + around
        steps = (len(self.spots) - groups) / self.detail.lines + groups - 1
        return (self.widest + gap) * steps + around


def build_rows(nodes: tuple[Node, ...]) -> list[Row]:
    """Nodes in rows, first row of the forward pass first."""
    rows: dict[tuple[str, str], Row] = {}
    for node in sorted({n.id: n for n in nodes}.values(), key=lambda n: (order(n.site), n.channel, n.id)):
        layer, _, place = node.site.partition(".")
        row = rows.setdefault((layer, "qkv" if place in _QKV else place), Row([], []))
        if node.site not in row.sites:
            row.sites.append(node.site)
        row.spots.append(Spot(node.channel, node.id, _QKV.index(place) + 1 if place in _QKV else 0, node=node))
    for row in rows.values():
        row.places = [*row.spots]
    return list(rows.values())


def order(site: str) -> tuple[int, int, str]:
    return *stream_rank(site, parallel=False), site


def fit(row: Row, streams: int) -> None:
    """Choose the most detail at which the row fits the page, and the number of lanes for `streams` channels that cross it."""
    for detail in _details(len(row.spots)):
        row.detail = detail
        for spot in row.spots:
            texts = [t for t in (shown_tokens(spot.node.reads, detail), shown_tokens(spot.node.writes, detail)) if t]
            spot.width = 12 + max([14.0, text_width(str(spot.node.channel), detail.font), *map(tokens_width, texts)])
            spot.height = detail.font + 8 + TOKEN_LINE * len(texts)
        if row.least_width(min(streams, _RESERVED_LANES)) <= _MAX_WIDTH:
            break
    row.most_lanes = min(streams, _RESERVED_LANES)
    while row.most_lanes < streams and row.least_width(row.most_lanes + 1) <= _MAX_WIDTH:
        row.most_lanes += 1


def _details(count: int) -> Iterator[Detail]:
    yield from _DETAILS
    for lines in range(3, count + 4):
        yield Detail(0, 0, lines, 9.5, 3)


def shown_tokens(tokens: tuple[str, ...], detail: Detail) -> list[str]:
    """The first tokens as labels, in ASCII: the PNG's bundled font has few characters."""
    shown = [drawable(t) for t in tokens[: detail.tokens]]
    return [t if len(t) <= detail.chars else t[: detail.chars - 1] + "…" for t in shown]


def tokens_width(tokens: list[str]) -> float:
    return sum(text_width(t, TOKEN_FONT) for t in tokens) + TOKEN_GAP * (len(tokens) - 1)
