"""The residual stream between the chips: a wire has a lane in every row that it crosses, and as few bends as possible.

A lane belongs to a channel, so wires of the same channel share it. Where a row has no room for a lane per channel, neighbouring channels
share one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from extractor.circuits.circuit import Node
from extractor.circuits.sites import GATED_PLACES, stream_rank
from extractor.report.picture.rows import Place, Row

_STRAIGHTEN_ROUNDS = 3


@dataclass
class Stream:
    """A channel from the node that writes it (None: the input) up to the node that reads it (None: the answers)."""

    source: Node | None
    target: Node | None
    channel: int
    low: int = -1  # row of the source
    high: int = 0  # row of the target
    lanes: list[tuple[Row, Place]] = field(default_factory=list)  # one in every row between them

    @property
    def rows(self) -> range:
        return range(self.low + 1, self.high)

    def path(self, spots: dict[str, Place]) -> list[Place]:
        """The chips at its ends and the lanes between them, upwards."""
        ends = [[spots[node.id]] if node else [] for node in (self.source, self.target)]
        return [*ends[0], *(lane for _, lane in self.lanes), *ends[1]]


def residual_streams(nodes: Iterable[Node], parallel: bool = False) -> list[Stream]:
    """A stream from every write to the next reads of its channel, and to every read from the last write before it.

    A read without an earlier write comes from the input, a write without a later read goes to the answers. Position channels are not part
    of the residual stream. Gates and ups are joined to the neuron of their number, in which they meet: no weight is between them either.

    parallel   attention and MLP of a block read the same residual
    """
    nodes = list(nodes)
    found = _gates(nodes)
    last: dict[int, Node] = {}
    unread: dict[int, list[Node]] = {}
    for node in sorted(nodes, key=lambda n: (stream_rank(n.site, parallel), n.channel)):
        if node.site.endswith("resid_delta"):
            last[node.channel] = node
            unread.setdefault(node.channel, []).append(node)
        elif node.site.endswith("act_in") and not node.position:
            sources: list[Node | None] = [*unread.pop(node.channel, [])] or [last.get(node.channel)]
            found += [Stream(source, node, node.channel) for source in sources]
    return found + [Stream(source, None, source.channel) for sources in unread.values() for source in sources]


def _gates(nodes: list[Node]) -> list[Stream]:
    """A stream from every gate and up to its neuron; their channels are counted below zero, apart from those of the residual stream."""
    neurons = {(node.site, node.channel): node for node in nodes if node.site.endswith("mlp.post_act")}
    found = []
    for node in nodes:
        layer, _, place = node.site.partition(".")
        target = neurons.get((f"{layer}.mlp.post_act", node.channel)) if place in GATED_PLACES else None
        if target is not None:
            found.append(Stream(node, target, -1 - node.channel))
    return found


def locate(streams: list[Stream], rows: list[Row]) -> list[set[int]]:
    """Set the rows of every stream; returns the channels that cross each row."""
    row_of = {s.name: i for i, row in enumerate(rows) for s in row.spots}
    crossing: list[set[int]] = [set() for _ in rows]
    for stream in streams:
        stream.low = row_of[stream.source.id] if stream.source else -1
        stream.high = row_of[stream.target.id] if stream.target else len(rows)
        for i in stream.rows:
            crossing[i].add(stream.channel)
    return crossing


def open_lanes(streams: list[Stream], rows: list[Row], spots: dict[str, Place]) -> None:
    """Make a lane for every channel that crosses a row, first on the straight line between its chips."""
    wanted: list[dict[int, list[float]]] = [{} for _ in rows]
    for stream in streams:
        ends = [spots[node.id].x for node in (stream.source, stream.target) if node]
        for i in stream.rows:
            share = (i - stream.low) / (stream.high - stream.low)
            wanted[i].setdefault(stream.channel, []).append(ends[0] + (ends[-1] - ends[0]) * share)
    for row, found in zip(rows, wanted, strict=True):
        _share_lanes(row, {channel: sum(xs) / len(xs) for channel, xs in found.items()})
        row.places += {id(lane): lane for lane in row.lanes.values()}.values()
    for stream in streams:
        stream.lanes = [(rows[i], rows[i].lanes[stream.channel]) for i in stream.rows]


def _share_lanes(row: Row, wanted: dict[int, float]) -> None:
    """Make the lanes of a row; where there are too few, the channels closest to each other share one."""
    channels = sorted(wanted, key=lambda c: (wanted[c], c))
    far_first = sorted(range(1, len(channels)), key=lambda i: (wanted[channels[i - 1]] - wanted[channels[i]], i))
    cuts = [0, *sorted(far_first[: max(row.most_lanes - 1, 0)]), len(channels)]
    for start, stop in pairwise(cuts):
        shared = channels[start:stop]
        if shared:
            lane = Place(min(shared), x=sum(wanted[c] for c in shared) / len(shared))
            row.lanes |= dict.fromkeys(shared, lane)


def straighten(streams: list[Stream], spots: dict[str, Place], width: float) -> None:
    """Move lanes between their neighbours so that every wire has as few bends as possible."""
    for _ in range(_STRAIGHTEN_ROUNDS):  # a lane that moves makes room for others
        done: set[int] = set()
        for stream in sorted(streams, key=lambda s: (-len(s.lanes), s.channel, s.low, s.high)):
            anchor = stream.source or stream.target
            x = spots[anchor.id].x if anchor else 0.0
            lanes = stream.lanes if stream.source else stream.lanes[::-1]
            while lanes:
                run = _straight_run(lanes, done, x, width)
                x = lanes[0][1].x
                done.update(id(lane) for _, lane in lanes[:run])
                lanes = lanes[run:]


def _straight_run(lanes: list[tuple[Row, Place]], done: set[int], x: float, width: float) -> int:
    """Move as many of the first lanes as possible to one common x, near the given one; returns their number."""
    low, high, run = -math.inf, math.inf, 0
    for row, lane in lanes:
        left, right = (lane.x, lane.x) if id(lane) in done else _room(row, lane, width)
        if max(low, left) > min(high, right):
            break
        low, high, run = max(low, left), min(high, right), run + 1
    for _, lane in lanes[:run]:
        lane.x = min(max(x, low), high)
    return run


def _room(row: Row, lane: Place, width: float) -> tuple[float, float]:
    """The leftmost and the rightmost x that a lane can have."""
    i, apart = row.places.index(lane), row.separations()
    low = row.places[i - 1].x + apart[i - 1] if i else 0.0
    high = row.places[i + 1].x - apart[i] if i + 1 < len(row.places) else width
    return min(low, lane.x), max(high, lane.x)
