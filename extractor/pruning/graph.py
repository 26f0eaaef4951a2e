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
from extractor.errors import BrokenArtifact
from extractor.sites import widths

if TYPE_CHECKING:
    from extractor.circuit import Circuit
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

    def others(self) -> Graph:
        """All nodes but these, and every edge between them."""
        return Graph(~self.nodes)

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


def with_edges(model: SparseGPTForCausalLM, graph: Graph) -> Graph:
    """The same graph with every edge named."""
    return Graph(graph.nodes, present_edges(model, graph))


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


@torch.no_grad()
def graph_of(circuit: Circuit, model: SparseGPTForCausalLM) -> Graph:
    """The nodes and edges that a circuit lists as masks of `model`; edges None where it lists every nonzero weight between its nodes.

    Raises BrokenArtifact for a node or an edge that the model does not have.
    """
    index, matrices = NodeIndex.of(model), {(source, target): weight for source, target, weight in links(model)}
    place = {node.id: (node.site, node.channel) for node in circuit.nodes}
    starts, chosen = index.starts(), []
    for site, channel in place.values():
        if site not in starts or not isinstance(channel, int) or not 0 <= channel < index.widths[site]:
            raise BrokenArtifact(f"the circuit of {circuit.task!r} does not fit the model: it has no node {site}.{channel}")
        chosen.append(starts[site] + channel)
    edges = {link: torch.zeros_like(weight, dtype=torch.bool) for link, weight in matrices.items()}
    for edge in circuit.edges:
        (source, column), (target, row) = place.get(edge.source, ("", 0)), place.get(edge.target, ("", 0))
        if (source, target) not in matrices or not matrices[source, target][row, column]:
            raise BrokenArtifact(f"the circuit of {circuit.task!r} does not fit the model: no weight joins {edge.source} to {edge.target}")
        edges[source, target][row, column] = True
    graph = Graph(index.flags(torch.tensor(chosen, dtype=torch.long, device=model.device)))
    return graph if edge_count(model, graph) == sum(int(mask.sum()) for mask in edges.values()) else replace(graph, edges=edges)
