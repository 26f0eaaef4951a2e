"""The elements that pruning removes: the nodes or the edges of a circuit. Both give masks for a masked model, and the circuit that is left.

E elements, P mask sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from extractor.circuits.graph import CircuitMask, Link, NodeIndex
from extractor.circuits.masks import Masks


class Elements(Protocol):
    """Nodes or edges of a circuit, in a fixed order."""

    ties: Tensor

    def __len__(self) -> int:
        """E."""

    def masks(self, on: Tensor) -> Masks:
        """Masks for a masked model of the circuit's nodes, from (P, E), 1 where an element is on. Differentiable."""

    def graph(self, on: Tensor) -> CircuitMask:
        """The circuit with only these elements, (E,) bool."""

    def places(self, graph: CircuitMask) -> Tensor:
        """(E,) bool: which elements are on in another circuit."""


class Nodes:
    """The nodes of a circuit. `ties` (E,): k of a channel shares the element of its q where both are nodes of the circuit."""

    def __init__(self, graph: CircuitMask):
        self.index, self.circuit = graph.index, graph
        self.nodes = graph.nodes.nonzero().flatten()
        self.ties = _tied(self.index, self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def masks(self, on: Tensor) -> Masks:
        flat = on.new_zeros(len(on), len(self.index))
        return Masks(nodes=flat.index_copy(1, self.nodes, on))

    def graph(self, on: Tensor) -> CircuitMask:
        return CircuitMask(self.circuit.model, self.index.flags(self.nodes[on]))

    def places(self, graph: CircuitMask) -> Tensor:
        return graph.nodes[self.nodes]


class Edges:
    """The edges of a circuit, link by link."""

    def __init__(self, graph: CircuitMask):
        self.circuit, self.present = graph, graph.present_edges()
        self.kept = graph.channels()
        self._ends = {link: mask.nonzero(as_tuple=True) for link, mask in self.present.items()}
        self.ties = torch.arange(len(self), device=graph.nodes.device)

    def __len__(self) -> int:
        return sum(len(rows) for rows, _ in self._ends.values())

    def masks(self, on: Tensor) -> Masks:
        found: dict[Link, Tensor] = {}
        for (link, (rows, columns)), part in zip(self._ends.items(), on.split(self._sizes(), dim=1), strict=True):
            source, target = (self.kept[site] for site in link)
            places = torch.searchsorted(target, rows) * len(source) + torch.searchsorted(source, columns)
            mask = on.new_zeros(len(on), len(target) * len(source)).index_copy(1, places, part)
            found[link] = mask.view(len(on), len(target), len(source))
        return Masks(edges=found)

    def graph(self, on: Tensor) -> CircuitMask:
        left: dict[Link, Tensor] = {}
        for (link, (rows, columns)), part in zip(self._ends.items(), on.split(self._sizes()), strict=True):
            left[link] = torch.zeros_like(self.present[link])
            left[link][rows[part], columns[part]] = True
        return replace(self.circuit, edges=left)

    def places(self, graph: CircuitMask) -> Tensor:
        assert graph.edges is not None
        return torch.cat([graph.edges[link][ends] for link, ends in self._ends.items()])

    def _sizes(self) -> list[int]:
        return [len(rows) for rows, _ in self._ends.values()]


ELEMENTS: Mapping[str, type[Nodes] | type[Edges]] = {"node": Nodes, "edge": Edges}


def _tied(index: NodeIndex, nodes: Tensor) -> Tensor:
    """(E,) for every node the element whose mask it shares: k has that of its q, all others, and a k without its q, their own."""
    partner = torch.arange(len(index), device=nodes.device)
    starts = index.starts()
    for site, width in index.widths.items():
        if site.endswith("attn.k"):
            partner[starts[site] : starts[site] + width] -= starts[site] - starts[site[:-1] + "q"]
    place = torch.full((len(index),), -1, device=nodes.device)
    place[nodes] = torch.arange(len(nodes), device=nodes.device)
    shared = place[partner[nodes]]
    return torch.where(shared < 0, place[nodes], shared)
