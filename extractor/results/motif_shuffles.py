"""Shuffles of the edges of circuits that keep every node's degrees: many at once, in numpy. No torch.

A class of edges: those from one site to one other (layers included) with one sign, which the same circuits have. A shuffle exchanges the
targets of two edges of a class, again and again. It keeps of every node, in every circuit, the number of edges that begin and that end
there, by site of the other end and by sign. It makes no edge twice and no edge that another class has.

A round: all edges of a class are paired at random, half of the pairs are proposed, and a proposal is taken unless one of its edges, old or
new, belongs to something else: to the circuits, or to another proposal. Whether it is taken is the same for the way back, so all graphs
that can be reached are equally frequent in the long run. In a small circuit edges may block each other, and some graphs with its degrees
are not reached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from extractor.results.motif_graph import MotifGraph

CHAINS = 100  # shuffles that begin at the circuits; each further one goes on from one of these
ROUNDS, BETWEEN = 50, 12  # up to a chain's first shuffle, and to each further one; in a round an edge is in a proposal with probability 1/2
_CELLS = 1 << 24  # entries of an array of several shuffles, about
_ONE = np.uint16(1)  # of the type of the counts: numpy is ten times slower with another

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class PooledEdges:
    """The edges of circuits of one sparse model, each once.

    ends      [(source, target, sign)] by id
    owners    (edges, circuits) bool: which circuits have an edge
    """

    ends: Sequence[tuple[str, str, str]]
    owners: Array

    @classmethod
    def of(cls, graphs: Sequence[MotifGraph]) -> PooledEdges:
        numbers: dict[tuple[str, str, str], int] = {}
        for graph in graphs:
            for edge in graph.edges:
                numbers.setdefault(edge, len(numbers))
        owners = np.zeros((len(numbers), len(graphs)), dtype=bool)
        for i, graph in enumerate(graphs):
            owners[[numbers[edge] for edge in graph.edges], i] = True
        return cls(list(numbers), owners)

    def of_circuit(self, number: int) -> list[int]:
        """Indices of the edges of a circuit."""
        found: list[int] = np.flatnonzero(self.owners[:, number]).tolist()
        return found

    def classes(self) -> Array:
        """(edges,) int: the class of each edge."""
        keys = [
            (_site(source), _site(target), sign, own.tobytes()) for (source, target, sign), own in zip(self.ends, self.owners, strict=True)
        ]
        numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        return np.array([numbers[key] for key in keys], dtype=np.int64)


def shuffled(pool: PooledEdges, shuffles: int, random: np.random.Generator) -> tuple[list[str], Array]:
    """Targets of the edges in each shuffle: (ids, (shuffles, edges) indices into ids)."""
    ids, first, base, cells = _cells(pool)
    found = np.tile(first, (shuffles, 1))
    classes = pool.classes()
    left, right = _pairs(classes)
    if not len(left):
        return ids, found
    chains = min(shuffles, CHAINS, max(1, _CELLS // cells))
    rows = found[:chains].copy()
    taken = np.zeros(chains * cells, dtype=np.uint16)  # how many edges there are, or would be, between two nodes
    np.add.at(taken, (np.arange(chains)[:, None] * cells + base + rows).ravel(), _ONE)
    for start in range(0, shuffles, chains):
        for _ in range(BETWEEN if start else ROUNDS):
            order = random.permutation(len(classes)).astype(np.int32)
            order = order[np.argsort(classes[order], kind="stable")]
            _exchange(rows, taken, base, order[left], order[right], random)
        found[start : start + chains] = rows[: shuffles - start]
    return ids, found


def moved(pool: PooledEdges, targets: Array) -> float:
    """How many edges a shuffle moves, in the mean over shuffles; an edge whose place another one takes has not moved."""
    _, first, base, _ = _cells(pool)
    places = np.sort(base + first)
    found = np.minimum(np.searchsorted(places, base + targets), max(len(places) - 1, 0))
    return float((places[found] != base + targets).sum() / max(len(targets), 1)) if len(places) else 0.0


def _exchange(rows: Array, taken: Array, base: Array, ones: Array, others: Array, random: np.random.Generator) -> None:
    """One round, in place: exchange the targets of edges `ones` and `others`, (pairs,) each, where that is chosen and possible."""
    chains, edges = rows.shape
    flat = rows.reshape(-1)
    chosen = np.flatnonzero(random.random(chains * len(ones), dtype=np.float32) < 0.5).astype(np.int32)
    row, pair = np.divmod(chosen, np.int32(len(ones)))
    one, other = row * np.int32(edges) + ones[pair], row * np.int32(edges) + others[pair]
    first, second = flat[one], flat[other]  # their targets
    start = row * np.int32(len(taken) // chains)
    from_one, from_other = start + base[ones][pair], start + base[others][pair]
    old, new = (from_one + first, from_other + second), (from_one + second, from_other + first)
    for places in new:
        np.add.at(taken, places, _ONE)
    good = np.flatnonzero(np.logical_and.reduce([taken[places] == 1 for places in (*old, *new)]))
    for places in new:
        np.subtract.at(taken, places, _ONE)
    for places in old:
        taken[places[good]] = 0
    for places in new:
        taken[places[good]] = 1
    flat[one[good]], flat[other[good]] = second[good], first[good]


def _cells(pool: PooledEdges) -> tuple[list[str], Array, Array, int]:
    """A number for each two nodes of two sites with edges: base of the edge's source + index of the target's id.

    Returns ids of all targets, indices of the edges' targets (edges,), bases (edges,), how many numbers there are.
    """
    ids = sorted({target for _, target, _ in pool.ends}, key=lambda one: (_site(one), one))
    index = {one: i for i, one in enumerate(ids)}
    widths = Counter(map(_site, ids))
    first_of = {_site(one): i for one, i in reversed(index.items())}
    starts: dict[tuple[str, str], int] = {}
    cells = 0
    for source, target, _ in pool.ends:
        site = _site(target)
        if (source, site) not in starts:
            starts[source, site] = cells - first_of[site]
            cells += widths[site]
    base = [starts[source, _site(target)] for source, target, _ in pool.ends]
    return ids, np.array([index[target] for _, target, _ in pool.ends], dtype=np.int32), np.array(base, dtype=np.int32), cells


def _pairs(classes: Array) -> tuple[Array, Array]:
    """Places of the edges of a pair in an order that is sorted by class: (pairs,), (pairs,)."""
    sizes = np.unique(classes, return_counts=True)[1].tolist()
    ends = np.cumsum(sizes, dtype=np.int64).tolist()
    left = [np.arange(end - size, end - 1, 2) for end, size in zip(ends, sizes, strict=True)]
    found = np.concatenate(left) if left else np.zeros(0, dtype=np.int64)
    return found, found + 1


def _site(node: str) -> str:
    return node.rpartition(".")[0]
