"""A circuit as masks of its model: which nodes and edges are on, their exact number, and the removal of dead ones.

A node is on or ablated; an edge (a nonzero weight between two sites) counts when it is on and both its ends are. Without edge masks every
edge between nodes that are on is on. N nodes in one flat order: site by site, forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from extractor.circuits.circuit import Edge
from extractor.circuits.sites import GATED_PLACES, node_id, widths

if TYPE_CHECKING:
    from torch.nn import Embedding, Linear

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


@dataclass(frozen=True, eq=False)
class CircuitMask:
    """A circuit as masks of its model.

    nodes   (N,) bool: the nodes that are on
    edges   per link the edges that are on, (target width, source width) bool; None: every nonzero weight between nodes that are on
    """

    model: SparseGPTForCausalLM
    nodes: Tensor
    edges: Mapping[Link, Tensor] | None = None

    @classmethod
    def full(cls, model: SparseGPTForCausalLM) -> CircuitMask:
        """All nodes and all edges of a model."""
        return cls(model, torch.ones(len(NodeIndex.of(model)), dtype=torch.bool, device=model.device))

    @cached_property
    def index(self) -> NodeIndex:
        return NodeIndex.of(self.model)

    def complement(self) -> CircuitMask:
        """All nodes but these, and every edge between them."""
        return CircuitMask(self.model, ~self.nodes)

    def without_edges(self) -> CircuitMask:
        """All nodes of the model, and all its edges but this circuit's."""
        full, own = CircuitMask.full(self.model), self.present_edges()
        return replace(full, edges={link: on & ~own[link] for link, on in full.present_edges().items()})

    def channels(self) -> dict[str, Tensor]:
        """{site: channels that are on, sorted}."""
        return {site: part.nonzero().flatten() for site, part in self.index.split(self.nodes).items()}

    def node_ids(self) -> list[str]:
        """The nodes that are on, in flat order."""
        return [node_id(site, channel) for site, channels in self.channels().items() for channel in channels.tolist()]

    def node_count(self) -> int:
        return int(self.nodes.sum())

    @torch.no_grad()
    def present_edges(self) -> dict[Link, Tensor]:
        """Per link the edges that count, (target width, source width) bool: on, nonzero, both ends on."""
        on, found = self.index.split(self.nodes), {}
        for source, target, weight in links(self.model):
            present = (weight != 0) & on[target][:, None] & on[source]
            found[source, target] = present if self.edges is None else present & self.edges[source, target]
        return found

    def named_edges(self) -> list[Edge]:
        """The edges that count, link by link."""
        return list(edges_between(self.model, self.channels(), self.edges))

    @torch.no_grad()
    def edge_count(self) -> int:
        if self.edges is not None:
            return sum(int(present.sum()) for present in self.present_edges().values())
        kept = self.channels()
        return sum(int(weight[kept[target]][:, kept[source]].count_nonzero()) for source, target, weight in links(self.model))

    def with_edges(self) -> CircuitMask:
        """The same circuit, every edge listed."""
        return replace(self, edges=self.present_edges())

    @torch.no_grad()
    def without_dead(self) -> CircuitMask:
        """The circuit without the nodes that are on no live path from the input to the logits (`live_nodes`), and without their edges."""
        live = live_nodes(self.model, self.channels(), None if self.edges is None else self.present_edges())
        flags = {site: torch.zeros(width, dtype=torch.bool, device=self.nodes.device) for site, width in self.index.widths.items()}
        for site, channels in live.items():
            flags[site][sorted(channels)] = True
        slim = replace(self, nodes=self.index.join(flags) & self.nodes)
        return slim if self.edges is None else slim.with_edges()


def links(model: SparseGPTForCausalLM) -> Iterator[tuple[str, str, Tensor]]:
    """Every weight matrix between two sites: (source site, target site, weight (target width, source width))."""
    for layer, block in enumerate(model.blocks):
        for name, weight in zip("qkv", block.attn.c_attn.weight.detach().chunk(3), strict=True):
            yield f"{layer}.attn.act_in", f"{layer}.attn.{name}", weight
        yield f"{layer}.attn.v", f"{layer}.attn.resid_delta", block.attn.c_proj.weight.detach()
        for name, reader in block.mlp.readers.items():
            yield f"{layer}.mlp.act_in", f"{layer}.mlp.{name}", reader.weight.detach()
        yield f"{layer}.mlp.post_act", f"{layer}.mlp.resid_delta", block.mlp.c_proj.weight.detach()


def edges_between(
    model: SparseGPTForCausalLM, kept: dict[str, Tensor], edges: Mapping[tuple[str, str], Tensor] | None = None
) -> Iterator[Edge]:
    """The edges among kept nodes; `kept` maps a site to the channels (sorted, int64) that are on.

    edges   per link (source site, target site) which edges are on, (target width, source width) bool; None: every nonzero weight
    """
    for source, target, weight in links(model):
        block = weight[kept[target]][:, kept[source]]
        on = block != 0 if edges is None else edges[source, target][kept[target]][:, kept[source]] & (block != 0)
        for row, column in on.nonzero().tolist():
            yield Edge(node_id(source, int(kept[source][column])), node_id(target, int(kept[target][row])), float(block[row, column]))


def live_nodes(
    model: SparseGPTForCausalLM, kept: dict[str, Tensor], edges: Mapping[tuple[str, str], Tensor] | None = None
) -> dict[str, set[int]]:
    """The kept nodes on a path from the input to the logits: reached by a varying input, and reaching the unembedding.

    edges   per link (source site, target site) which edges are on, (target width, source width) bool; None: every nonzero weight

    Forward: a read is fed by an embedding column or an earlier kept write of its channel, a position channel by its column of the position
    table; any other node by an edge from a fed node.
    Backward: a write is used by the unembedding or a later used read of its channel; q and k are used when their head has a used v, and
    without sinks q only where its k varies (an ablated key of further blocks has another value at the first token).
    A gated neuron is fed by the gate or the up of its number, and uses both.
    """
    incoming: dict[str, list[tuple[str, Tensor]]] = {}  # target site -> (source site, which edges between kept nodes are on)
    for source, target, weight in links(model):
        on = weight != 0 if edges is None else edges[source, target]
        incoming.setdefault(target, []).append((source, on[kept[target]][:, kept[source]]))
    fed = _fed(model, kept, incoming)
    used = _used(model, kept, fed, incoming)
    return {site: set(kept[site][flags].tolist()) for site, flags in used.items()}


def _fed(model: SparseGPTForCausalLM, kept: dict[str, Tensor], incoming: dict) -> dict[str, Tensor]:
    """Per site which kept nodes vary with the input, (kept,) bool."""
    import torch

    width = model.config.d_model
    written = _nonzero_columns(model.transformer.wte, width + model.config.d_pos_emb, 0)
    if model.transformer.wpe is not None:
        written |= _nonzero_columns(model.transformer.wpe, len(written), 0 if model.config.added_positions else width)
    fed: dict[str, Tensor] = {}
    for site, channels in kept.items():
        if site.endswith("attn.act_in") or not model.config.parallel:
            before = written.clone()
        if site.endswith("act_in"):
            fed[site] = before[channels]
            continue
        fed[site] = sum((on[:, fed[source]].any(1) for source, on in incoming.get(site, ())), start=channels < 0)
        if site.endswith("post_act") and model.config.gated:
            for name in ("gate", "up"):
                factor = site.replace("post_act", name)
                fed[site] |= torch.isin(channels, kept[factor][fed[factor]])
        if site.endswith("resid_delta"):
            written[channels[fed[site]]] = True
    return fed


def _used(model: SparseGPTForCausalLM, kept: dict[str, Tensor], fed: dict[str, Tensor], incoming: dict) -> dict[str, Tensor]:
    """Per site which of the fed nodes something reads that reaches the logits, (kept,) bool."""
    import torch

    config = model.config
    read = _nonzero_columns(model.lm_head, config.d_model + config.d_pos_emb, 0)
    used = {site: flags & False for site, flags in fed.items()}
    alone = config.is_plain and not config.sinks
    for site in reversed(fed):
        channels = kept[site]
        if site.endswith("mlp.resid_delta") or not config.parallel:
            later = read.clone()
        if site.endswith("resid_delta"):
            used[site] = fed[site] & later[channels]
        elif site.endswith(("attn.q", "attn.k")):
            values = site[:-1] + "v"
            heads = torch.isin(channels // config.d_head, kept[values][used[values]] // config.d_head)
            used[site] = fed[site] & heads
            if site.endswith("q") and alone:  # a query on a constant key adds the same to every score
                keys = site[:-1] + "k"
                used[site] &= torch.isin(channels, kept[keys][fed[keys]])
        elif site.endswith("act_in"):
            read[channels[used[site]]] = True
        elif site.endswith(GATED_PLACES):
            neurons = site.rpartition(".")[0] + ".post_act"
            used[site] = fed[site] & torch.isin(channels, kept[neurons][used[neurons]])
        for source, on in incoming.get(site, []):
            used[source] |= on[used[site]].any(0) & fed[source]
    return used


def _nonzero_columns(module: Linear | Embedding, width: int, offset: int) -> Tensor:
    """(width,) bool, at offset + c whether column c of the module's weight holds anything."""
    import torch

    found = torch.zeros(width, dtype=torch.bool, device=module.weight.device)
    columns = module.weight.detach().any(0)
    found[offset : offset + len(columns)] = columns
    return found
