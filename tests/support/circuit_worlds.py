"""Random models of every kind with random circuits, for tests of what computes circuits in other ways."""

from __future__ import annotations

import pytest
import torch
from test_sparse_model import small_model
from torch import Tensor

from extractor.circuits.circuit import Calibration, Circuit, Edge, Node
from extractor.circuits.compiled import CompiledCircuit, compile_circuit
from extractor.circuits.graph import CircuitMask, NodeIndex, links
from extractor.circuits.reference import masked_logit_diff
from extractor.circuits.sites import node_id
from extractor.data.prompts import TaskBatch

WORDS = 50
KINDS: dict[str, dict] = {
    "sinks": {},
    "no_sinks": {"sinks": False, "bigram": "none", "activation_frac": 1.0},
    "half": {"activation_frac": 0.5, "activation": "relu", "n_layer": 3},
    "gelu_tanh": {"activation": "gelu_tanh"},
    "position_channels": {"d_pos_emb": 6, "bigram": "counts", "bigram_top": 5},
    "added_positions": {"added_positions": True, "logits_bias": True, "sinks": False, "activation_frac": 0.5},
    "added_positions_sinks": {"added_positions": True, "bigram": "low_rank", "bigram_rank": 4, "n_layer": 1},
    "few_kept": {"site_k": {"attn.act_in": 7, "attn.q": 3, "attn.v": 2, "mlp.post_act": 9, "mlp.resid_delta": 2}, "logits_bias": True},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


class World:
    """A random model of a kind with nothing left at zero, values for nodes that are off, and prompts with answers of their own."""

    def __init__(self, kind: str, seed: int = 0, **changes):
        self.model = small_model(**(KINDS[kind] | changes)).requires_grad_(False)
        self.random = torch.Generator().manual_seed(seed)
        for name, parameter in self.model.named_parameters():
            if parameter.dim() == 1 or name.startswith(("bigram", "transformer.wpe")):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=self.random))
            elif name == "transformer.wte.weight":
                parameter.mul_(5)
            else:
                parameter.mul_(torch.rand(parameter.shape, generator=self.random) < 0.5)
        self.index = NodeIndex.of(self.model)
        self.base = {site: 0.3 * torch.randn(width, generator=self.random) for site, width in self.index.widths.items()}
        self.batch = self.prompts(6, 12)

    def prompts(self, pairs: int, longest: int) -> TaskBatch:
        first = torch.randint(WORDS, (pairs,), generator=self.random)
        second = (first + 1 + torch.randint(WORDS - 1, (pairs,), generator=self.random)) % WORDS
        return TaskBatch(
            torch.randint(WORDS, (2 * pairs, longest), generator=self.random),
            torch.randint(longest, (2 * pairs,), generator=self.random),
            torch.stack([first, second], 1).flatten(),
            torch.stack([second, first], 1).flatten(),
            torch.tensor([1.0, -1.0]).repeat(pairs),
        )

    def graph(self, share: float, edges: float | None) -> CircuitMask:
        """A share of all nodes, and of the weights between them; None: all."""
        nodes = torch.rand(len(self.index), generator=self.random) < share
        if edges is None:
            return CircuitMask(self.model, nodes)
        masks = {(s, t): torch.rand(weight.shape, generator=self.random) < edges for s, t, weight in links(self.model)}
        return CircuitMask(self.model, nodes, masks)

    def wanted(self, graph: CircuitMask) -> Tensor:
        return masked_logit_diff(self.model, self.batch, self.index.split(graph.nodes.float()), self.base, graph.edges)

    def compiled(self, graph: CircuitMask) -> CompiledCircuit:
        return compile_circuit(self.model, self.base, graph, torch.cat([self.batch.correct, self.batch.wrong]))

    def circuit(self, graph: CircuitMask) -> Circuit:
        """As circuit.json has it: the edges that are on are listed."""
        kept = [(site, c) for site, channels in graph.channels().items() for c in channels.tolist()]
        nodes = tuple(Node(node_id(site, c), site, c, self.base[site][c].item()) for site, c in kept)
        edges = tuple(
            Edge(node_id(source, column), node_id(target, row), weight[row, column].item())
            for (source, target, weight), mask in zip(links(self.model), graph.present_edges().values(), strict=True)
            for row, column in mask.nonzero().tolist()
        )
        return Circuit("m", "t", (), (), nodes, edges, Calibration(0.7, 0.2))
