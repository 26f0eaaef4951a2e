"""A circuit as a value: nodes, exact edges, calibration. Once built it needs no model.

An edge is a nonzero weight between two kept nodes: act_in -> q, k, v; v -> attn.resid_delta (through the output projection);
mlp.act_in -> post_act; post_act -> mlp.resid_delta. A write and a later read of one residual channel meet without a weight, q and k meet
inside a head: neither is an edge. The smallest MLP circuit is 3 nodes and 2 edges. Position channels are nodes of the reads that nothing
in the residual stream writes. Paper: Sec. 2.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from extractor.errors import UsageError
from extractor.sites import node_id

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Embedding, Linear

    from extractor.compiled import CompiledCircuit
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM


@dataclass(frozen=True)
class Node:
    """id '0.mlp.post_act.12'; `mean` is its value when ablated; `reads` and `writes` say in tokens what it responds to and promotes.

    position: a position channel of a read; it has no residual source, and `reads` says places in the prompt instead of tokens.
    """

    id: str
    site: str
    channel: int
    mean: float
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    position: bool = False


@dataclass(frozen=True)
class Edge:
    source: str
    target: str
    weight: float


@dataclass(frozen=True)
class Calibration:
    """Calibrated answer margin = scale * margin + shift, the margin being first answer's logit minus second answer's."""

    scale: float
    shift: float


@dataclass(frozen=True)
class Circuit:
    """`answers` are the two answers, first and second; `answer_ids` their tokens. Both are () where every pair of prompts has its own."""

    model: str
    task: str
    answers: tuple[str, str] | tuple[()]
    answer_ids: tuple[int, int] | tuple[()]
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    calibration: Calibration

    def to_json(self) -> dict:
        """The content of circuit.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> Circuit:
        nodes = tuple(Node(**{**n, "reads": tuple(n["reads"]), "writes": tuple(n["writes"])}) for n in data["nodes"])
        edges = tuple(Edge(**e) for e in data["edges"])
        answers, answer_ids = tuple(data["answers"]), tuple(data["answer_ids"])
        return cls(data["model"], data["task"], answers, answer_ids, nodes, edges, Calibration(**data["calibration"]))

    def compile(self, model: SparseGPTForCausalLM, means: Mapping[str, Tensor], answers: Tensor | None = None) -> CompiledCircuit:
        """The circuit as a small network of its own, whose margins are not calibrated yet.

        means     {site: (width,)} of means.safetensors
        answers   (A,) tokens that may be answers, where every pair of prompts has its own
        Raises BrokenArtifact where circuit or means do not fit the model, UsageError where there are no answers.
        """
        import torch

        from extractor.compiled import compile_circuit
        from extractor.pruning.graph import graph_of

        if answers is None and not self.answer_ids:
            raise UsageError(f"every pair of {self.task!r} has answers of its own: say which tokens may be answers")
        return compile_circuit(model, means, graph_of(self, model), torch.tensor(self.answer_ids) if answers is None else answers)


def links(model: SparseGPTForCausalLM) -> Iterator[tuple[str, str, Tensor]]:
    """Every weight matrix between two sites: (source site, target site, weight (target width, source width))."""
    for layer, block in enumerate(model.blocks):
        for name, weight in zip("qkv", block.attn.c_attn.weight.detach().chunk(3), strict=True):
            yield f"{layer}.attn.act_in", f"{layer}.attn.{name}", weight
        yield f"{layer}.attn.v", f"{layer}.attn.resid_delta", block.attn.c_proj.weight.detach()
        yield f"{layer}.mlp.act_in", f"{layer}.mlp.post_act", block.mlp.c_fc.weight.detach()
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


def count_edges(model: SparseGPTForCausalLM, kept: dict[str, Tensor]) -> int:
    """Number of edges among kept nodes."""
    return sum(int(weight[kept[target]][:, kept[source]].count_nonzero()) for source, target, weight in links(model))


def live_nodes(
    model: SparseGPTForCausalLM, kept: dict[str, Tensor], edges: Mapping[tuple[str, str], Tensor] | None = None
) -> dict[str, set[int]]:
    """The kept nodes on a path from the input to the logits: reached by a varying input, and reaching the unembedding.

    edges   per link (source site, target site) which edges are on, (target width, source width) bool; None: every nonzero weight

    Forward: a read is fed by an embedding column or an earlier kept write of its channel, a position channel by its column of the position
    table; any other node by an edge from a fed node.
    Backward: a write is used by the unembedding or a later used read of its channel; q and k are used when their head has a used v, and
    without sinks q only where its k varies.
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
    width = model.config.d_model
    written = _nonzero_columns(model.transformer.wte, width + model.config.d_pos_emb, 0)
    if model.transformer.wpe is not None:
        written |= _nonzero_columns(model.transformer.wpe, len(written), 0 if model.config.added_positions else width)
    fed: dict[str, Tensor] = {}
    for site, channels in kept.items():
        if site.endswith("act_in"):
            fed[site] = written[channels]
            continue
        fed[site] = sum((on[:, fed[source]].any(1) for source, on in incoming[site]), start=channels < 0)
        if site.endswith("resid_delta"):
            written[channels[fed[site]]] = True
    return fed


def _used(model: SparseGPTForCausalLM, kept: dict[str, Tensor], fed: dict[str, Tensor], incoming: dict) -> dict[str, Tensor]:
    """Per site which of the fed nodes something reads that reaches the logits, (kept,) bool."""
    import torch

    config = model.config
    read = _nonzero_columns(model.lm_head, config.d_model + config.d_pos_emb, 0)
    used = {site: flags & False for site, flags in fed.items()}
    for site in reversed(fed):
        channels = kept[site]
        if site.endswith("resid_delta"):
            used[site] = fed[site] & read[channels]
        elif site.endswith(("attn.q", "attn.k")):
            values = site[:-1] + "v"
            heads = torch.isin(channels // config.d_head, kept[values][used[values]] // config.d_head)
            used[site] = fed[site] & heads
            if site.endswith("q") and not config.sinks:  # a query on a constant key adds the same to every score
                keys = site[:-1] + "k"
                used[site] &= torch.isin(channels, kept[keys][fed[keys]])
        elif site.endswith("act_in"):
            read[channels[used[site]]] = True
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


def sites_of(nodes: Iterable[Node]) -> dict[str, list[Node]]:
    """Nodes grouped by site, in the order given."""
    found: dict[str, list[Node]] = {}
    for node in nodes:
        found.setdefault(node.site, []).append(node)
    return found
