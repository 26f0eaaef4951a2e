"""A circuit as a typed graph: edges by sign, and the two links that need no weight. No torch.

residual    a write (attn.resid_delta, mlp.resid_delta) and every later read (act_in) of its channel: the stream is a sum, so a read has all
            earlier writes. The picture of a report draws only the nearest ones. Position channels are not part of the stream.
query-key   q and k of one channel of one layer: scores are sums of their products, channel by channel, within a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from extractor.circuits.circuit import Circuit, Edge, Node
from extractor.circuits.sites import GATED_PLACES, PLACES, node_id, stream_rank
from extractor.errors import BrokenArtifact
from extractor.files import read_json
from extractor.results.motif_forms import MEETS, RESIDUAL, Arrow, Motif, motif_of

HEADED = ("attn.q", "attn.k", "attn.v")
_TARGETS = {
    "attn.act_in": HEADED,
    "attn.v": ("attn.resid_delta",),
    "mlp.act_in": ("mlp.post_act", *GATED_PLACES),
    "mlp.post_act": ("mlp.resid_delta",),
}
MIDDLES = ("attn.v", "mlp.post_act")  # between two kinds of edges


class MotifNode(NamedTuple):
    """kind: its site without the layer; head: (layer, number) of queries, keys and values, else None."""

    id: str
    layer: int
    kind: str
    channel: int
    head: tuple[int, int] | None


class Instances(NamedTuple):
    """How often a motif occurs around some nodes, and one place: nodes by id, in the order of the motif."""

    motif: Motif
    number: int
    example: tuple[str, ...]


@dataclass(frozen=True)
class MotifGraph:
    """nodes by id; edges: (source, target, '+' or '-') by id; links: (source, target, RESIDUAL or MEETS) by id."""

    nodes: Mapping[str, MotifNode]
    edges: Sequence[tuple[str, str, str]]
    links: Sequence[tuple[str, str, str]] = field(default=())

    @classmethod
    def of(cls, circuit: Circuit, head_width: int, path: Path) -> MotifGraph:
        """head_width: channels per head; path: of the file, for messages. Raises BrokenArtifact for what is no circuit."""
        nodes: dict[str, MotifNode] = {}
        for node in circuit.nodes:
            own = _node(node, head_width)
            if own is None or own.id in nodes:
                raise BrokenArtifact(f"{path} is damaged: node {str(node.id)[:60]!r} is {'there twice' if own else 'no node of a site'}")
            nodes[own.id] = own
        edges: dict[tuple[str, str], str] = {}
        for edge in circuit.edges:
            if why := _fault(edge, nodes, edges):
                raise BrokenArtifact(f"{path} is damaged: the edge {str(edge.source)[:60]!r} to {str(edge.target)[:60]!r} {why}")
            edges[edge.source, edge.target] = "+" if edge.weight > 0 else "-"
        positions = {node.id for node in circuit.nodes if node.position}
        return cls(nodes, [(*ends, sign) for ends, sign in edges.items()], [*_links(nodes, positions, circuit.parallel)])

    def instances(self) -> Iterator[Instances]:
        """Every motif of the graph, in parts: two arrows at one node with the nodes at their other ends; two or four arrows between two
        pairs of nodes."""
        yield from self._threes()
        for kinds in (HEADED, ("mlp.post_act",)):
            yield from self._fours(kinds)

    def _threes(self) -> Iterator[Instances]:
        """Chains, fans and triangles, each where its middle is; a triangle where its two edges begin."""
        for centre, around in self._around.items():
            for (first, begins, kind), (second, starts, other) in combinations(around, 2):
                joins = [(1, 2, MEETS)] if meet(self.nodes[first], self.nodes[second]) else []
                yield self._instance((centre, first, second), [_turned(1, begins, kind), _turned(2, starts, other), *joins])

    def _fours(self, kinds: tuple[str, ...]) -> Iterator[Instances]:
        """Bi-fans and diamonds around two nodes of these kinds in one layer."""
        by_layer: dict[int, list[str]] = {}
        for node in self.nodes.values():
            if node.kind in kinds:
                by_layer.setdefault(node.layer, []).append(node.id)
        for ids in by_layer.values():
            for first, second in combinations(ids, 2):
                before, after = (self._shared(first, second, side) for side in (self._into, self._out_of))
                joins = [(2, 3, MEETS)] if meet(self.nodes[first], self.nodes[second]) else []
                yield from self._bi_fans(before, (first, second), joins, True)
                if self.nodes[first].kind in MIDDLES:
                    yield from self._bi_fans(after, (first, second), joins, False)
                    yield from self._diamonds(before, after, (first, second))

    def _bi_fans(self, shared: dict, pair: tuple[str, str], joins: list[Arrow], inwards: bool) -> Iterator[Instances]:
        groups = list(shared.items())
        for i, ((a, b), ones) in enumerate(groups):
            for (c, d), others in groups[i:]:
                same = (a, b) == (c, d)
                number = len(ones) * (len(ones) - 1) // 2 if same else len(ones) * len(others)
                if number:
                    arrows = [(0, 2, a), (0, 3, b), (1, 2, c), (1, 3, d)]
                    arrows = arrows if inwards else [(target, source, sign) for source, target, sign in arrows]
                    yield self._instance((ones[0], others[1 if same else 0], *pair), arrows + joins, number)

    def _diamonds(self, before: dict, after: dict, pair: tuple[str, str]) -> Iterator[Instances]:
        for (a, b), ones in before.items():
            for (c, d), others in after.items():
                arrows = [(0, 1, a), (0, 2, b), (1, 3, c), (2, 3, d)]
                yield self._instance((ones[0], *pair, others[0]), arrows, len(ones) * len(others))

    def _instance(self, ids: tuple[str, ...], arrows: list[Arrow], number: int = 1) -> Instances:
        nodes = [self.nodes[one] for one in ids]
        motif, order = motif_of([node.kind for node in nodes], [node.head for node in nodes], arrows)
        return Instances(motif, number, tuple(ids[i] for i in order))

    @staticmethod
    def _shared(first: str, second: str, side: Mapping[str, dict[str, str]]) -> dict[tuple[str, str], list[str]]:
        """Nodes that have an edge with both, by the signs of the two."""
        found: dict[tuple[str, str], list[str]] = {}
        one, other = side.get(first, {}), side.get(second, {})
        for node, sign in one.items():
            if node in other:
                found.setdefault((sign, other[node]), []).append(node)
        return found

    @cached_property
    def _into(self) -> dict[str, dict[str, str]]:
        """{target: {source: sign}}."""
        found: dict[str, dict[str, str]] = {}
        for source, target, sign in self.edges:
            found.setdefault(target, {})[source] = sign
        return found

    @cached_property
    def _out_of(self) -> dict[str, dict[str, str]]:
        """{source: {target: sign}}."""
        found: dict[str, dict[str, str]] = {}
        for source, target, sign in self.edges:
            found.setdefault(source, {})[target] = sign
        return found

    @cached_property
    def _around(self) -> dict[str, list[tuple[str, bool, str]]]:
        """{node: [(other end, whether the arrow begins here, its kind)]}, of edges and links."""
        found: dict[str, list[tuple[str, bool, str]]] = {}
        for source, target, kind in [*self.edges, *self.links]:
            found.setdefault(source, []).append((target, True, kind))
            found.setdefault(target, []).append((source, False, kind))
        return found


def meet(first: MotifNode, second: MotifNode) -> bool:
    """Whether they are a query and a key of one channel."""
    return {first.kind, second.kind} == {"attn.q", "attn.k"} and (first.layer, first.channel) == (second.layer, second.channel)


def head_width(folder: Path) -> int:
    """Channels per attention head of the sparse model of a result. Raises BrokenArtifact where its config.json does not say so."""
    path = folder / "model" / "config.json"
    found = read_json(path)
    config: dict[str, Any] = found if isinstance(found, dict) else {}
    width = config.get("d_head")
    if width is None:
        full, heads = (next((config[name] for name in names if name in config), None) for names in (_WIDTHS, _HEADS))
        if isinstance(full, int) and isinstance(heads, int) and heads > 0 and full % heads == 0:
            width = full // heads
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise BrokenArtifact(f"{path} does not say how many channels an attention head has (d_head); copy the result again")
    return width


_WIDTHS, _HEADS = ("d_model", "n_embd", "hidden_size"), ("n_head", "num_attention_heads", "num_heads")


def _node(node: Node, width: int) -> MotifNode | None:
    """None for what is no node of a known site."""
    if not isinstance(node.site, str) or not isinstance(node.channel, int) or isinstance(node.channel, bool) or node.channel < 0:
        return None
    layer, _, kind = node.site.partition(".")
    if not (layer.isascii() and layer.isdecimal() and len(layer) < 10 and kind in PLACES and node.id == node_id(node.site, node.channel)):
        return None
    number = int(layer)
    return MotifNode(node.id, number, kind, node.channel, (number, node.channel // width) if kind in HEADED else None)


def _fault(edge: Edge, nodes: Mapping[str, MotifNode], edges: Mapping[tuple[str, str], str]) -> str | None:
    """What is wrong with an edge."""
    if not (isinstance(edge.source, str) and isinstance(edge.target, str) and edge.source in nodes and edge.target in nodes):
        return "has no node at an end"
    source, target = nodes[edge.source], nodes[edge.target]
    if target.kind not in _TARGETS.get(source.kind, ()) or source.layer != target.layer:
        return "joins two sites between which there are no weights"
    if (edge.source, edge.target) in edges:
        return "is there twice"
    if not isinstance(edge.weight, int | float) or isinstance(edge.weight, bool) or not math.isfinite(edge.weight) or edge.weight == 0:
        return "has a weight that is no finite number other than 0"
    return None


def _links(nodes: Mapping[str, MotifNode], positions: set[str], parallel: bool) -> Iterator[tuple[str, str, str]]:
    written: dict[int, list[str]] = {}  # residual channel -> earlier nodes that write to it
    for node in sorted(nodes.values(), key=lambda one: (stream_rank(f"{one.layer}.{one.kind}", parallel), one.channel)):
        if node.kind.endswith("resid_delta"):
            written.setdefault(node.channel, []).append(node.id)
        elif node.kind.endswith("act_in") and node.id not in positions:
            yield from ((source, node.id, RESIDUAL) for source in written.get(node.channel, ()))
        elif node.kind == "attn.q":
            key = node_id(f"{node.layer}.attn.k", node.channel)
            if key in nodes:
                yield node.id, key, MEETS


def _turned(other: int, begins: bool, kind: str) -> Arrow:
    """The arrow between node 0 and another one."""
    return (0, other, kind) if begins else (other, 0, kind)
