"""What a motif is: a small graph of kinds of nodes and signs of edges, the same in whatever order its nodes are given. No torch."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import permutations
from typing import Any

from extractor.circuits.sites import PLACES

RESIDUAL, MEETS = "residual", "query-key"  # links, which need no weight
WEIGHT = "weight"  # an edge whose sign is not told
ARROWS = ("+", "-", WEIGHT, RESIDUAL, MEETS)
_OPEN = ("chain", "fan-out", "fan-in")  # shapes without a circle
# Arrows between places, and the places in levels from left to right. A query-key link has no direction: it goes from the earlier place.
SHAPES: dict[str, tuple[tuple[tuple[int, int], ...], tuple[tuple[int, ...], ...]]] = {
    "chain": (((0, 1), (1, 2)), ((0,), (1,), (2,))),
    "fan-out": (((0, 1), (0, 2)), ((0,), (1, 2))),
    "fan-in": (((0, 2), (1, 2)), ((0, 1), (2,))),
    "triangle": (((0, 1), (0, 2), (1, 2)), ((0,), (1, 2))),
    "bi-fan": (((0, 2), (0, 3), (1, 2), (1, 3)), ((0, 1), (2, 3))),
    "joined bi-fan": (((0, 2), (0, 3), (1, 2), (1, 3), (2, 3)), ((0, 1), (2, 3))),
    "diamond": (((0, 1), (0, 2), (1, 3), (2, 3)), ((0,), (1, 2), (3,))),
}
_RANK = {place: rank for rank, place in enumerate(PLACES)}

Arrow = tuple[int, int, str]  # index of the source, index of the target, one of ARROWS


@dataclass(frozen=True)
class Motif:
    """A motif in its canonical form; `motif_of` makes it.

    shape    a key of SHAPES
    kinds    of the nodes: sites without their layer, such as 'attn.q'
    heads    of the nodes: 0, 1, ... the heads of queries, keys and values in the order in which they come; -1 for other nodes, and where
             there is only one query, key or value
    arrows   in the order of the shape
    product  of the signs, '+' or '-', where the arrows have none (`without_signs`) and form a circle; else ''
    """

    shape: str
    kinds: tuple[str, ...]
    heads: tuple[int, ...]
    arrows: tuple[Arrow, ...]
    product: str = ""

    @property
    def varies(self) -> bool:
        """Whether its number may differ between circuits in which every node has the same degrees; see `motif_counts`."""
        return self.shape not in _OPEN or (self.shape != "chain" and max(self.heads) >= 0)

    def without_signs(self) -> Motif:
        """The motif with the product of the signs in place of each, where the arrows form a circle; elsewhere with no sign."""
        signs = "".join(kind for _, _, kind in self.arrows if kind in "+-")
        arrows = tuple((source, target, WEIGHT if kind in "+-" else kind) for source, target, kind in self.arrows)
        return replace(self, arrows=arrows, product="" if self.shape in _OPEN else "+-"[signs.count("-") % 2])

    def __str__(self) -> str:
        """'fan-out: attn.act_in -> attn.q (+), attn.v (-); one head': in brackets the arrows that end at a node, in the order of their
        sources; '~' between a query and a key that meet."""
        arrows = {(source, target): kind for source, target, kind in self.arrows}
        text = ""
        for level in SHAPES[self.shape][1]:
            joined = any(arrows.get((place - 1, place)) == MEETS for place in level)
            inside = " ~ " if joined and len(level) > 1 else ", "
            between = "" if not text else " ~ " if joined and len(level) == 1 else " -> "
            text += between + inside.join(self._node(place) for place in level)
        heads = len({head for head in self.heads if head >= 0})
        told = {0: "", 1: "; one head", 2: "; two heads"}.get(heads, f"; {heads} heads")
        return f"{self.shape}: {text}{told}" + {"": "", "+": "; balanced", "-": "; unbalanced"}[self.product]

    def _node(self, place: int) -> str:
        into = [kind for source, target, kind in self.arrows if target == place and kind not in (MEETS, WEIGHT)]
        return self.kinds[place] + (f" ({' '.join(into)})" if into else "")

    def parts(self) -> dict[str, Any]:
        """As JSON: {shape, product, nodes: [{kind, head: a number or None, level: 0 at the left}], edges: [{source, target, kind}]}.

        kind of an edge: one of ARROWS; source and target: indices of nodes.
        """
        levels = {place: level for level, places in enumerate(SHAPES[self.shape][1]) for place in places}
        nodes = [
            {"kind": kind, "head": head if head >= 0 else None, "level": levels[place]}
            for place, (kind, head) in enumerate(zip(self.kinds, self.heads, strict=True))
        ]
        edges = [{"source": source, "target": target, "kind": kind} for source, target, kind in self.arrows]
        return {"shape": self.shape, "product": self.product or None, "nodes": nodes, "edges": edges}


def motif_of(kinds: Sequence[str], heads: Sequence[Hashable], arrows: Sequence[Arrow]) -> tuple[Motif, tuple[int, ...]]:
    """The motif of nodes in any order, and the order in which they are its nodes: indices into what is given.

    kinds    of the nodes: places of `circuits.sites`
    heads    of the nodes: equal for those of one head, None for all but queries, keys and values
    arrows   one for each edge and link between the nodes, in any order

    Raises ValueError where the nodes have none of the shapes.
    """
    return _motif_of(tuple(kinds), _numbered(heads), tuple(arrows))


@lru_cache(maxsize=50_000)
def _motif_of(kinds: tuple[str, ...], heads: tuple[int, ...], arrows: tuple[Arrow, ...]) -> tuple[Motif, tuple[int, ...]]:
    for shape, (template, _) in SHAPES.items():
        if len(template) == len(arrows) and (found := list(_fits(template, kinds, heads, arrows))):
            _, order, own_heads, own_arrows = min(found)
            return Motif(shape, tuple(kinds[i] for i in order), own_heads, own_arrows), order
    raise ValueError(f"nodes {', '.join(kinds)} with edges {arrows} have none of the shapes {', '.join(SHAPES)}")


def _fits(
    template: tuple[tuple[int, int], ...], kinds: tuple[str, ...], heads: tuple[int, ...], arrows: tuple[Arrow, ...]
) -> Iterator[tuple[tuple, tuple[int, ...], tuple[int, ...], tuple[Arrow, ...]]]:
    """Every order of the nodes in which the arrows are those of a template: (what the smallest is chosen by, order, heads, arrows)."""
    for order in permutations(range(len(kinds))):
        place = {node: i for i, node in enumerate(order)}
        moved = [(place[source], place[target], kind) for source, target, kind in arrows]
        moved = sorted((min(a, b), max(a, b), kind) if kind == MEETS else (a, b, kind) for a, b, kind in moved)
        if tuple((source, target) for source, target, _ in moved) == template:
            own = _numbered([heads[i] if heads[i] >= 0 else None for i in order])
            rank = tuple(_RANK[kinds[i]] for i in order)
            yield (rank, [ARROWS.index(kind) for _, _, kind in moved], own), order, own, tuple(moved)


def _numbered(heads: Sequence[Hashable]) -> tuple[int, ...]:
    """Heads by number in the order in which they come; -1 for None, and for all where there is one node with a head."""
    known = [head for head in heads if head is not None]
    numbers = {head: i for i, head in enumerate(dict.fromkeys(known))}
    return tuple(-1 if head is None or len(known) < 2 else numbers[head] for head in heads)
