"""What is on: nodes and edges of a model as masks, counted exactly, and cleared of what does nothing.

A node is on or off; an edge (a nonzero weight between two sites) counts when it is on and both its ends are. Without edge masks every edge
between nodes that are on is on. N nodes in one flat order: site by site, forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from extractor.circuit import links, live_nodes
from extractor.sites import widths

if TYPE_CHECKING:
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM

Link = tuple[str, str]  # source site, target site


@dataclass(frozen=True)
class NodeIndex:
    """All nodes of a model in one flat order."""

    widths: dict[str, int]

    @classmethod
    def of(cls, model: SparseGPTForCausalLM) -> NodeIndex:
        return cls(widths(model))

    def __len__(self) -> int:
        return sum(self.widths.values())

    def starts(self) -> dict[str, int]:
        """The flat index of each site's first channel."""
        found, start = {}, 0
        for site, width in self.widths.items():
            found[site] = start
            start += width
        return found

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """{site: (..., width)} views of a flat (..., N) tensor."""
        return dict(zip(self.widths, flat.split(list(self.widths.values()), dim=-1), strict=True))

    def join(self, by_site: Mapping[str, Tensor]) -> Tensor:
        """The flat (..., N) tensor of {site: (..., width)}."""
        return torch.cat([by_site[site] for site in self.widths], dim=-1)

    def flags(self, nodes: Tensor) -> Tensor:
        """(N,) bool, true at these flat indices."""
        flat = torch.zeros(len(self), dtype=torch.bool, device=nodes.device)
        flat[nodes] = True
        return flat


@dataclass(frozen=True)
class Graph:
    """Nodes that are on, (N,) bool, and per link the edges that are, (target width, source width) bool; None: all between them."""

    nodes: Tensor
    edges: Mapping[Link, Tensor] | None = None

    def channels(self, index: NodeIndex) -> dict[str, Tensor]:
        """{site: channels on, sorted}."""
        return {site: part.nonzero().flatten() for site, part in index.split(self.nodes).items()}


@torch.no_grad()
def present_edges(model: SparseGPTForCausalLM, graph: Graph) -> dict[Link, Tensor]:
    """Per link the edges that count, (target width, source width) bool."""
    on = NodeIndex.of(model).split(graph.nodes)
    found = {}
    for source, target, weight in links(model):
        there = (weight != 0) & on[target][:, None] & on[source]
        found[source, target] = there if graph.edges is None else there & graph.edges[source, target]
    return found


def edge_count(model: SparseGPTForCausalLM, graph: Graph) -> int:
    """How many edges count."""
    if graph.edges is not None:
        return sum(int(there.sum()) for there in present_edges(model, graph).values())
    kept = graph.channels(NodeIndex.of(model))
    return sum(int(weight[kept[target]][:, kept[source]].count_nonzero()) for source, target, weight in links(model))


def without_dead(model: SparseGPTForCausalLM, graph: Graph) -> Graph:
    """The graph without the nodes that are on no live path from the input to the logits (`circuit.live_nodes`), and without their edges."""
    index = NodeIndex.of(model)
    live = live_nodes(model, graph.channels(index), None if graph.edges is None else present_edges(model, graph))
    flags = {site: torch.zeros(width, dtype=torch.bool, device=graph.nodes.device) for site, width in index.widths.items()}
    for site, channels in live.items():
        flags[site][sorted(channels)] = True
    slim = replace(graph, nodes=index.join(flags) & graph.nodes)
    return slim if graph.edges is None else replace(slim, edges=present_edges(model, slim))
