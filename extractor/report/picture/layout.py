"""From a circuit to a scene: nodes as chips, edges and the residual stream as wires, and the labels.

Grey wires are the residual stream, not edges: a channel written by one node and read by a later one meets without a weight.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise

from extractor.circuits.circuit import Circuit, Edge, Node
from extractor.report.picture.arrange import BAR, GUTTER, HEADER, MARGIN, Arrangement, arrange
from extractor.report.picture.lanes import Stream
from extractor.report.picture.part import part_note, shown_part
from extractor.report.picture.rows import (
    GROUP_LEFT,
    GROUP_RIGHT,
    TOKEN_FONT,
    TOKEN_GAP,
    TOKEN_LINE,
    Detail,
    Row,
    Spot,
    shown_tokens,
    tokens_width,
)
from extractor.report.picture.scene import (
    CHANGED,
    FAINT,
    INK,
    NEGATIVE,
    PLACE_NAMES,
    POSITIVE,
    READS,
    SOFT,
    STREAM,
    WRITES,
    Box,
    Chip,
    Label,
    Scene,
    Wire,
    clip,
    describe,
    drawable,
    short_name,
    text_width,
)


def layout(circuit: Circuit, changed: Collection[str] = (), labels: Mapping[str, str] | None = None, note: str = "") -> Scene:
    """The scene of a circuit, of a very large one that of its `shown_part`. Edges to nodes that the circuit does not have are left out.

    changed   ids of nodes that have another role in the circuit than in the full model: they are marked
    labels    {id: what stands below its number, in place of the tokens it reads}
    note      stands beside the size, where all is shown
    """
    tips = {node.id: describe(node) for node in circuit.nodes}
    circuit = replace(circuit, nodes=tuple(_labelled(node, labels or {}) for node in circuit.nodes))
    shown = shown_part(circuit)
    names = {node.id for node in shown.nodes}
    edges = [e for e in shown.edges if e.source in names and e.target in names]
    return _compose(circuit, arrange(shown.nodes, edges, circuit.parallel), edges, part_note(circuit, shown) or note, changed, tips)


def _labelled(node: Node, labels: Mapping[str, str]) -> Node:
    return replace(node, reads=(labels[node.id],)) if node.id in labels else node


def _compose(circuit: Circuit, plan: Arrangement, edges: list[Edge], note: str, changed: Collection[str], tips: Mapping[str, str]) -> Scene:
    rows, width, floor = plan.rows, plan.width, plan.floor
    row_of = {s.node.id: row for row in rows for s in row.spots}
    spots = {s.node.id: s for row in rows for s in row.spots}
    ceiling, left, total = MARGIN + HEADER, MARGIN + GUTTER, MARGIN * 2 + GUTTER + width
    title = f"{drawable(circuit.task, ' ')} in {drawable(short_name(circuit.model), ' ')}"
    bands = [Box(MARGIN - 8, row.y - 9, width + GUTTER + 16, row.height + 18, "#f4f6f8", "none", 10) for row in rows]
    bars = [Box(left, y, width, BAR, "#e9edf2", FAINT, 10) for y in (ceiling, floor)]
    largest = max([abs(e.weight) for e in edges if math.isfinite(e.weight)], default=0.0)
    wires = [_stream_wire(spots, row_of, stream, ceiling + BAR, floor) for stream in plan.streams]
    wires += sorted((_edge_wire(spots, e, largest) for e in edges), key=lambda w: (w.width, w.source, w.target))
    chips = [_chip(spot, row, spot.node.id in changed, tips[spot.node.id]) for row in rows for spot in row.spots]
    labels = [Label(MARGIN, MARGIN + 18, clip(title, total - 2 * MARGIN, 21), 21, INK, "start")]
    sizes = f"{len(circuit.nodes)} nodes, {len(circuit.edges)} edges" + (f"; {note}" if note else "")
    labels.append(Label(MARGIN, MARGIN + 40, sizes, 13, SOFT, "start"))
    if any(spot.node.id in changed for row in rows for spot in row.spots):
        beside = MARGIN + text_width(sizes, 13) + 18
        labels.append(Label(beside, MARGIN + 40, "outlined: another role than in the full model", 13, CHANGED, "start"))
    labels += [label for row in rows for label in _row_labels(row)] + _bar_labels(circuit, ceiling, floor, width)
    groups = [_group(row, int(number)) for row in rows for number in sorted({s.group for s in row.spots}) if number]
    samples, legend = _legend(largest)
    return Scene(
        width=total,
        height=floor + BAR + MARGIN,
        title=title,
        boxes=(*bands, *(box for box, _ in groups), *bars),
        wires=(*wires, *samples),
        chips=tuple(chips),
        labels=(*labels, *(label for _, label in groups), *legend),
        note=note,
    )


def _group(row: Row, number: int) -> tuple[Box, Label]:
    """A panel around the queries, keys or values of a row, with its letter on the left."""
    spots = [s for s in row.spots if s.group == number]
    left = min(s.x - s.width / 2 for s in spots) - GROUP_LEFT
    right = max(s.x + s.width / 2 for s in spots) + GROUP_RIGHT
    middle = row.y + row.height / 2
    return Box(left, row.y - 5, right - left, row.height + 10, "#e9edf2", "none", 8), Label(left + 10, middle + 4, " qkv"[number], 12, SOFT)


def _rise(low: tuple[float, float], high: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    middle = (low[1] + high[1]) / 2
    return low, (low[0], middle), (high[0], middle), high


def _edge_wire(spots: dict[str, Spot], edge: Edge, largest: float) -> Wire:
    share = abs(edge.weight) / largest if largest and math.isfinite(edge.weight) else 0.0
    color = NEGATIVE if edge.weight < 0 else POSITIVE
    points = _rise(spots[edge.source].head, spots[edge.target].foot)
    return Wire(points, color, 0.8 + 3.7 * share, 0.28 + 0.62 * share, "edge", edge.source, edge.target, edge.weight)


def _stream_wire(spots: dict[str, Spot], row_of: dict[str, Row], stream: Stream, ceiling: float, floor: float) -> Wire:
    """A wire that is vertical inside rows and bends between them."""
    stops: list[tuple[float, float]] = []
    if stream.source:
        head = spots[stream.source.id].head
        stops += [head, (head[0], row_of[stream.source.id].y)]
    for row, lane in stream.lanes:
        stops += [(lane.x, row.y + row.height), (lane.x, row.y)]
    if stream.target:
        foot, row = spots[stream.target.id].foot, row_of[stream.target.id]
        stops += [(foot[0], row.y + row.height), foot]
    stops = [*([] if stream.source else [(stops[0][0], floor)]), *stops, *([] if stream.target else [(stops[-1][0], ceiling)])]
    stops = [stops[0], *(b for a, b in pairwise(stops) if a[0] != b[0] or a[1] - b[1] > 0.01)]
    bends = [stops[i] for i in range(1, len(stops) - 1) if not stops[i - 1][0] == stops[i][0] == stops[i + 1][0]]
    points = stops[:1]
    for low, high in pairwise([stops[0], *bends, stops[-1]]):
        points += _rise(low, high)[1:]
    names = (stream.source.id if stream.source else "", stream.target.id if stream.target else "")
    return Wire(tuple(points), STREAM, 1.0, 1.0, "stream", *names)


def _chip(spot: Spot, row: Row, is_changed: bool, tip: str) -> Chip:
    """The channel number in the middle, tokens that the node writes above it, its label or tokens that it reads below."""
    detail = row.detail
    reads, writes = shown_tokens(spot.node.reads, detail), shown_tokens(spot.node.writes, detail)
    baseline = spot.y + TOKEN_LINE * bool(writes) + detail.font + 2.5
    labels = [
        Label(spot.x, baseline, str(spot.node.channel), detail.font),
        *_token_labels(spot.x, spot.y + 12.5, writes, WRITES),
        *_token_labels(spot.x, baseline + 14, reads, READS),
    ]
    outline = CHANGED if is_changed else "#aab4bf"
    box = Box(spot.x - spot.width / 2, spot.y, spot.width, spot.height, "#ffffff", outline, 6 if detail.font > 10 else 4)
    return Chip(spot.node, box, tuple(labels), tip + ("\nanother role than in the full model" if is_changed else ""))


def _token_labels(x: float, y: float, tokens: list[str], color: str) -> Iterator[Label]:
    left = x - tokens_width(tokens) / 2
    for text in tokens:
        width = text_width(text, TOKEN_FONT)
        yield Label(left + width / 2, y, text, TOKEN_FONT, color)
        left += width + TOKEN_GAP


def _row_labels(row: Row) -> list[Label]:
    layer, _, place = row.sites[0].partition(".")
    middle = row.y + row.height / 2
    names = ", ".join(PLACE_NAMES.get(site.partition(".")[2], "") for site in row.sites)
    heading = f"layer {drawable(layer)} · {names}" if place in PLACE_NAMES else drawable(row.sites[0], " ")
    return _two_lines(middle, heading, "  ".join(drawable(site, " ") for site in row.sites))


def _two_lines(middle: float, heading: str, note: str) -> list[Label]:
    room = GUTTER - 8
    return [
        Label(MARGIN, middle - 1, clip(heading, room, 12), 12, INK, "start"),
        Label(MARGIN, middle + 12, clip(note, room, 10), 10, SOFT, "start"),
    ]


def _bar_labels(circuit: Circuit, ceiling: float, floor: float, width: float) -> list[Label]:
    middle = MARGIN + GUTTER + width / 2
    first, second = shown_tokens(circuit.answers, Detail(2, 24, 1, 12, 0)) or ("first answer", "second answer")
    return [
        Label(middle - 18, ceiling + 22, first, 15, INK, "end"),
        Label(middle, ceiling + 22, "or", 12, SOFT),
        Label(middle + 18, ceiling + 22, second, 15, INK, "start"),
        Label(middle, floor + 22, "tokens of the prompt", 12, SOFT),
        *_two_lines(ceiling + BAR / 2, "answer", "logits"),
        *_two_lines(floor + BAR / 2, "input", "token embeddings"),
    ]


def _legend(largest: float) -> tuple[list[Wire], list[Label]]:
    """Three lines under the title that explain wires and chips."""
    edges = (
        (POSITIVE, 3.5, "positive weight"),
        (NEGATIVE, 3.5, "negative weight"),
        ("", 0.0, f"the wider, the larger: up to {largest:.3g}"),
    )
    stream = ((STREAM, 1.2, "residual stream: a channel written, then read (not an edge)"),)
    chips = (
        (
            "",
            0.0,
            "below a number: the answer before which it is higher (AUC 0.9), and where; else tokens it reads. Above: tokens it writes",
        ),
    )
    wires, labels = [], []
    for y, entries in ((MARGIN + 66, edges), (MARGIN + 87, stream), (MARGIN + 108, chips)):
        x = MARGIN
        for color, width, text in entries:
            if color:
                wires.append(Wire(tuple((x + 26 * i / 3, y - 4) for i in range(4)), color, width, 0.9, "sample"))
                x += 34
            labels.append(Label(x, y, text, 12, SOFT, "start"))
            x += text_width(text, 12) + 28
    return wires, labels
