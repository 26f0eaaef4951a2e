"""How often motifs occur in each of many shuffles of a circuit, in numpy. No torch.

Counted are motifs around two middle nodes, q, k or v of one layer or neurons of one layer: fans that end or begin at the two, bi-fans and
diamonds. Only these vary between shuffles. A chain, or a fan whose ends have no heads, is as frequent in every shuffle: its number is a sum
over its middle node of products of degrees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby, pairwise

import numpy as np

from extractor.results.motif_forms import MEETS, Arrow, Motif, motif_of
from extractor.results.motif_graph import HEADED, MIDDLES, MotifGraph, MotifNode, meet
from extractor.results.motif_shuffles import Array

_CELLS = 1 << 20  # entries of an array of several shuffles, about: what fits the cache is fast
_EXACT = 1 << 12  # float32 has all whole numbers up to the square of it
_SIGNS = [(first, second) for first in "+-" for second in "+-"]
_OUTER = {True: ("attn.act_in", "attn.resid_delta"), False: ("mlp.act_in", "mlp.resid_delta")}  # by whether the middle has heads

Edges = Sequence[tuple[int, MotifNode, MotifNode, str]]  # number of the edge in its circuit, source, target, sign


def counts(graph: MotifGraph, edges: Sequence[tuple[str, str, str]], ids: Sequence[str], targets: Array) -> dict[Motif, Array]:
    """{motif: its number in each shuffle, (shuffles,) int64}.

    edges     of the circuit before the shuffle
    targets   in each shuffle, (shuffles, edges) indices into `ids`
    """
    found: dict[Motif, Array] = {}
    ends = [(i, graph.nodes[source], graph.nodes[target], sign) for i, (source, target, sign) in enumerate(edges)]
    for kinds in (HEADED, ("mlp.post_act",)):
        for layer in sorted({source.layer for _, source, _, _ in ends}):
            part = _part([edge for edge in ends if edge[1].layer == layer], ids, kinds)
            step = max(1, _CELLS // part.cells) if part else 1
            for start in range(0, len(targets) if part else 0, step):
                rows = slice(start, start + step)
                for motif, numbers in part.counts(targets[rows]) if part else ():
                    found.setdefault(motif, np.zeros(len(targets), dtype=np.int64))[rows] += numbers
    return found


@dataclass(frozen=True)
class _Side:
    """The edges into, or out of, the middle nodes of a layer, sorted by their outer end as long as nothing is shuffled.

    columns   which of the circuit's edges, (edges,);  signs: 0: +, 1: -, (edges,)
    middle    of edges out of the middle: index of the middle node, (edges,)
    place     of an id of targets: its index among the middle nodes for edges into the middle, else among the outer ones, (ids,)
    wedges    two edges with one outer end: (2, wedges) places in the order by outer ends. They are the same in every shuffle, which keeps
              the number of edges of every node
    """

    inwards: bool
    columns: Array
    signs: Array
    middle: Array
    place: Array
    wedges: Array

    def shared(self, targets: Array, pair_of: Array, pairs: int) -> Array:
        """Outer nodes that have edges with both middle nodes of a pair, by the signs of these: (4, pairs, shuffles) float.

        Sums over pairs of products of two of these are at most the square of the number of wedges: exact in the chosen precision.
        """
        rows = np.arange(len(targets))[:, None]
        moved = self.place[targets[:, self.columns]]
        if self.inwards:
            middle, signs = moved, np.broadcast_to(self.signs, moved.shape)
        else:
            order = np.argsort(moved, axis=1)
            middle, signs = self.middle[order], self.signs[order]
        one, other = self.wedges
        first, second = middle[:, one], middle[:, other]
        sign, other_sign = signs[:, one], signs[:, other]
        kind = np.where(first < second, 2 * sign + other_sign, sign + 2 * other_sign)
        places = (kind * pairs + pair_of[first, second]) * len(targets) + rows
        found = np.zeros(4 * pairs * len(targets), dtype=np.float32 if self.wedges.shape[1] <= _EXACT else np.float64)
        np.add.at(found, places.ravel(), found.dtype.type(1))
        return found.reshape(4, pairs, len(targets))


@dataclass(frozen=True)
class _Part:
    """One layer's attention or MLP.

    pair_of   number of the pair of two middle nodes, (middle nodes, middle nodes); pairs of one sort follow each other
    sorts     of pairs: a pair of each;  starts: the number of the first pair of each, (sorts,);  pairs: how many pairs there are
    sides     into the middle, out of it; None without two edges at one outer node
    """

    pair_of: Array
    sorts: Sequence[tuple[MotifNode, MotifNode]]
    starts: Array
    pairs: int
    sides: tuple[_Side | None, _Side | None]

    @property
    def has_heads(self) -> bool:
        """Without heads, fans are as frequent in every shuffle."""
        return self.sorts[0][0].head is not None

    @property
    def cells(self) -> int:
        return max(4 * self.pairs, *(side.wedges.shape[1] for side in self.sides if side))

    def counts(self, targets: Array) -> Iterator[tuple[Motif, Array]]:
        into, out_of = (side.shared(targets, self.pair_of, self.pairs) if side else None for side in self.sides)
        for shared, inwards in ((into, True), (out_of, False)):
            if shared is not None:
                outer = _OUTER[self.has_heads][not inwards]
                yield from self._fans(shared, outer, inwards)
                yield from self._bi_fans(shared, outer, inwards)
        if into is not None and out_of is not None:
            yield from self._diamonds(into, out_of)

    def _fans(self, shared: Array, outer: str, inwards: bool) -> Iterator[tuple[Motif, Array]]:
        for numbers, (a, b) in zip(shared if self.has_heads else (), _SIGNS, strict=False):
            yield from self._named(self._sums(numbers), [outer], _turned([(2, 0, a), (2, 1, b)], inwards))

    def _bi_fans(self, shared: Array, outer: str, inwards: bool) -> Iterator[tuple[Motif, Array]]:
        for i, (a, b) in enumerate(_SIGNS):
            for j, (c, d) in enumerate(_SIGNS[i:], i):
                sums = self._sums(shared[i] * shared[j])
                sums = (sums - self._sums(shared[i])) // 2 if i == j else sums
                yield from self._named(sums, [outer, outer], _turned([(2, 0, a), (2, 1, b), (3, 0, c), (3, 1, d)], inwards))

    def _diamonds(self, into: Array, out_of: Array) -> Iterator[tuple[Motif, Array]]:
        first = next(i for i, (one, other) in enumerate(self.sorts) if {one.kind, other.kind} <= {*MIDDLES})
        into, out_of = (shared[:, self.starts[first] :] for shared in (into, out_of))
        for one, (a, b) in zip(into, _SIGNS, strict=True):
            for other, (c, d) in zip(out_of, _SIGNS, strict=True):
                sums = self._sums(one * other, first)
                yield from self._named(sums, [*_OUTER[self.has_heads]], [(2, 0, a), (2, 1, b), (0, 3, c), (1, 3, d)], first)

    def _sums(self, numbers: Array, first: int = 0) -> Array:
        """Over the pairs of each sort from the first: (sorts, shuffles) int64."""
        ends = [*self.starts[first:].tolist(), self.pairs]
        return np.stack([numbers[start - ends[0] : end - ends[0]].sum(0) for start, end in pairwise(ends)]).astype(np.int64)

    def _named(self, sums: Array, outer: list[str], arrows: list[Arrow], first: int = 0) -> Iterator[tuple[Motif, Array]]:
        """Sums of each sort from the first. arrows: nodes 0 and 1 are the pair, others outer."""
        for row, (one, other) in zip(sums, self.sorts[first:], strict=True):
            if row.any():
                joins = [(0, 1, MEETS)] if meet(one, other) else []
                heads = [one.head, other.head, *(None for _ in outer)]
                yield motif_of([one.kind, other.kind, *outer], heads, arrows + joins)[0], row


def _part(edges: Edges, ids: Sequence[str], kinds: tuple[str, ...]) -> _Part | None:
    """Of the edges of one layer; None without two edges at one outer node, or two middle nodes."""
    into = [edge for edge in edges if edge[2].kind in kinds]
    out_of = [edge for edge in edges if edge[1].kind in kinds]
    middles = sorted({edge[2] for edge in into} | {edge[1] for edge in out_of}, key=lambda node: (kinds.index(node.kind), node.channel))
    index = {node.id: i for i, node in enumerate(middles)}
    sides = (_side(into, index, ids, True), _side(out_of, index, ids, False))
    if len(middles) < 2 or sides == (None, None):
        return None
    by_sort: dict[tuple, list[tuple[int, int]]] = {}
    for (i, first), (j, second) in combinations(enumerate(middles), 2):
        sort = (kinds.index(first.kind), kinds.index(second.kind), first.head == second.head, meet(first, second))
        by_sort.setdefault(sort, []).append((i, j))
    ordered = [by_sort[sort] for sort in sorted(by_sort)]
    starts = np.cumsum([0, *map(len, ordered)])
    pair_of = np.zeros((len(middles), len(middles)), dtype=np.int64)
    first, second = np.array([pair for pairs in ordered for pair in pairs]).T
    pair_of[first, second] = pair_of[second, first] = np.arange(len(first))
    return _Part(pair_of, [(middles[pairs[0][0]], middles[pairs[0][1]]) for pairs in ordered], starts[:-1], len(first), sides)


def _side(edges: Edges, index: dict[str, int], ids: Sequence[str], inwards: bool) -> _Side | None:
    """None where no outer node has two edges. index: of the middle nodes."""
    outer = [(source if inwards else target).id for _, source, target, _ in edges]
    outers = {node: i for i, node in enumerate(dict.fromkeys(outer))}
    order = sorted(range(len(edges)), key=lambda i: outers[outer[i]])
    together = [[place for place, _ in found] for _, found in groupby(enumerate(order), key=lambda pair: outer[pair[1]])]
    wedges = [pair for places in together for pair in combinations(places, 2)]
    if not wedges:
        return None
    place = index if inwards else outers
    return _Side(
        inwards,
        np.array([edges[i][0] for i in order]),
        np.array([int(edges[i][3] == "-") for i in order]),
        np.array([-1 if inwards else index[edges[i][1].id] for i in order]),
        np.array([place.get(one, -1) for one in ids]),
        np.array(wedges).T,
    )


def _turned(arrows: list[Arrow], inwards: bool) -> list[Arrow]:
    """Arrows into the middle, or out of it."""
    return arrows if inwards else [(target, source, sign) for source, target, sign in arrows]
