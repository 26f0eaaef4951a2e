"""The position of every node: first its row, then order and x within the row, then y.

1. Order and x: sweeps up and down move every node towards the mean of its neighbours and keep nodes apart.
2. Lanes: the residual stream gets places of its own in the rows it crosses; then the sweeps run again over chips and lanes.
3. y: rows are stacked, with larger gaps where many edges arrive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from extractor.circuits.circuit import Edge, Node
from extractor.report.picture.lanes import Stream, locate, open_lanes, residual_streams, straighten
from extractor.report.picture.rows import GROUP_GAP, LINE_GAP, Place, Row, Spot, build_rows, fit

GUTTER, MARGIN, HEADER, BAR = 176.0, 24.0, 137.0, 34.0
_MIN_WIDTH = 640.0  # pixels, of the drawing to the right of the row labels
_SWEEPS = 12


@dataclass
class Arrangement:
    """Rows with positioned places, the streams through them, the width of the drawing without row labels, y of the input bar (pixels)."""

    rows: list[Row]
    streams: list[Stream]
    width: float
    floor: float


def arrange(nodes: tuple[Node, ...], edges: list[Edge], parallel: bool = False) -> Arrangement:
    rows, streams = build_rows(nodes), residual_streams(nodes, parallel)
    for row, crossing in zip(rows, locate(streams, rows), strict=True):
        fit(row, len(crossing))
    width = max([_MIN_WIDTH, *(row.least_width(row.most_lanes) for row in rows)])
    spots: dict[str, Place] = {s.name: s for row in rows for s in row.spots}
    for row in rows:
        for i, spot in enumerate(row.spots):
            spot.x = width * (i + 0.5) / len(row.spots)
    for stage in ("chips", "chips and lanes"):
        if stage != "chips":
            open_lanes(streams, rows, spots)
        _tie(edges, streams, spots)
        _sweep(rows, width)
    straighten(streams, spots, width)
    return Arrangement(rows, streams, _center(rows), _stack(rows, edges, streams))


def _tie(edges: list[Edge], streams: list[Stream], spots: dict[str, Place]) -> None:
    """Set the neighbours of every place and the strength of their pull."""
    for spot in spots.values():
        spot.below, spot.above = [], []
    ties = [(spots[e.source], spots[e.target], 1.0) for e in sorted(edges, key=lambda e: (e.source, e.target))]
    for stream in streams:
        path = stream.path(spots)
        ties += [(low, high, 0.3 if isinstance(low, Spot) or isinstance(high, Spot) else 1.0) for low, high in pairwise(path)]
    for low, high, strength in ties:
        low.above.append((high, strength))
        high.below.append((low, strength))


def _sweep(rows: list[Row], width: float) -> None:
    """Set the x of every place: rows are reordered by the positions of their neighbours, alternating upwards and downwards."""
    for sweep in range(_SWEEPS):
        upwards = sweep % 2 == 0
        for row in rows if upwards else reversed(rows):
            pulls = {id(p): _pull(p, p.below if upwards else p.above) for p in row.places}
            _pass_beside_groups(row, pulls)
            row.places.sort(key=lambda p: (p.group, pulls[id(p)], p.channel, p.name))
            _settle(row, pulls, width)
    for row in [*rows, *reversed(rows)]:
        _settle(row, {id(p): _pull(p, p.below + p.above) for p in row.places}, width)
    for row in rows:
        row.spots = [p for p in row.places if isinstance(p, Spot)]


def _pull(place: Place, neighbours: list[tuple[Place, float]]) -> float:
    total = sum(strength for _, strength in neighbours)
    return sum(p.x * strength for p, strength in neighbours) / total if total else place.x


def _pass_beside_groups(row: Row, pulls: dict[int, float]) -> None:
    """Keep queries, keys and values together: move each lane to the nearest gap between these groups."""
    chips = [p for p in row.places if isinstance(p, Spot)]
    groups = sorted({s.group for s in chips})
    if groups == [0.0]:
        return
    ends = [(min(s.x for s in chips if s.group == g), max(s.x for s in chips if s.group == g)) for g in groups]
    gaps = zip(
        [groups[0] - 0.5, *(g + 0.5 for g in groups)], [-math.inf, *(e[1] for e in ends)], [*(e[0] for e in ends), math.inf], strict=True
    )
    slots = list(gaps)
    for lane in row.places:
        if not isinstance(lane, Spot):
            x = pulls[id(lane)]
            lane.group = min((max(low - x, x - high, 0.0), group) for group, low, high in slots)[1]


def _settle(row: Row, pulls: dict[int, float], width: float) -> None:
    """Set the positions nearest to the pulls that keep order and separations: isotonic regression after subtracting the offsets."""
    offsets = [0.0]
    for gap in row.separations():
        offsets.append(offsets[-1] + gap)
    blocks: list[tuple[float, int]] = []  # (mean, members)
    for place, offset in zip(row.places, offsets, strict=True):
        mean, members = pulls[id(place)] - offset, 1
        while blocks and blocks[-1][0] > mean:
            before, others = blocks.pop()
            mean, members = (mean * members + before * others) / (members + others), members + others
        blocks.append((mean, members))
    edge = row.widest / 2
    free = [mean for mean, members in blocks for _ in range(members)]
    for place, offset, mean in zip(row.places, offsets, free, strict=True):
        place.x = min(max(mean, edge), width - edge - offsets[-1]) + offset


def _center(rows: list[Row]) -> float:
    """Centre all places to the right of the row labels; returns the width of the drawing in pixels."""
    places = list({id(p): p for row in rows for p in row.places}.values())
    left = min((p.x - p.width / 2 for p in places), default=0.0) - GROUP_GAP
    right = max((p.x + p.width / 2 for p in places), default=0.0) + GROUP_GAP
    width = max(_MIN_WIDTH, math.ceil(right - left))
    for place in places:
        place.x += MARGIN + GUTTER + (width - left - right) / 2
    return width


def _stack(rows: list[Row], edges: list[Edge], streams: list[Stream]) -> float:
    """Set the y of rows and spots below the bar of answers; gaps with many edges are taller. Returns the y of the input bar."""
    row_of = {s.name: i for i, row in enumerate(rows) for s in row.spots}
    spots: dict[str, Place] = {s.name: s for row in rows for s in row.spots}
    crowd = [0.0] * (len(rows) + 1)
    for edge in edges:
        crowd[row_of[edge.target]] += 1
    for stream in streams:
        xs = [p.x for p in stream.path(spots)]
        for i, (x, above) in enumerate(pairwise(xs), stream.low + 1 if stream.source else 1):
            crowd[i] += min(abs(above - x) / 100, 0.5)
    y = MARGIN + HEADER + BAR + 40
    for i in reversed(range(len(rows))):
        row = rows[i]
        row.y = y
        for place, spot in enumerate(row.spots):
            spot.y = y + (place % row.detail.lines) * (row.line_height + LINE_GAP) + (row.line_height - spot.height) / 2
        y += row.height + min(44 + 1.1 * crowd[i], 130)
    return y
