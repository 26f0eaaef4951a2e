"""Losses of many circuits at once, on one batch of pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from extractor.circuits.graph import CircuitMask
from extractor.circuits.masks import Masks
from extractor.circuits.network import LENGTH_GROUPS
from extractor.circuits.prompt_network import PromptMaskedModel
from extractor.data.prompts import TaskBatch

if TYPE_CHECKING:
    from extractor.circuits.masks import MaskedModel
    from extractor.circuits.standard import Standard

CIRCUITS_AT_ONCE = 16  # masks of a large model fill memory
VALUES_AT_ONCE = 1 << 25  # most node values of one pass: mask sets * prompts * tokens * nodes


class CircuitScorer:
    """Losses of circuits on one batch, by a standard (`standard.py`)."""

    def __init__(self, standard: Standard, batch: TaskBatch):
        self.standard, self.batch = standard, batch

    @torch.no_grad()
    def logit_diffs(self, graphs: Sequence[CircuitMask]) -> Tensor:
        """Logit differences (P, 2 x pairs)."""
        parts, at = [], 0
        while at < len(graphs):
            some = list(graphs[at : at + CIRCUITS_AT_ONCE])
            network = self.standard.network(torch.stack([graph.nodes for graph in some]).any(0))
            parts.append(self._of(network, some))
            at += len(some)
        return torch.cat(parts)

    def _of(self, network: MaskedModel, graphs: list[CircuitMask]) -> Tensor:
        return self.of_masks(network, len(graphs), lambda i, j: _masks(network, graphs[i:j]))

    @torch.no_grad()
    def of_masks(self, network: MaskedModel, count: int, masks: Callable[[int, int], Masks]) -> Tensor:
        """Logit differences (count, 2 x pairs) of mask sets of one network; masks(i, j) makes those from i to j - 1.

        A network of prompts is computed group by group, as much as fits in memory.
        """
        values = max(1, len(network) * self.batch.ids.numel() * self.standard.copies)

        def every(prompts: Any, size: int) -> Tensor:
            parts = [network.logit_diffs(prompts, masks(i, min(i + size, count))) for i in range(0, count, size)]
            return torch.cat(parts)

        if not isinstance(network, PromptMaskedModel):
            return every(network.prepare(self.batch), max(1, VALUES_AT_ONCE // values))
        groups = min(len(self.batch.ids), max(LENGTH_GROUPS, -(-values // VALUES_AT_ONCE)))
        found, rows = [], []
        for group in network.prepared(self.batch, groups):
            found.append(every([group], max(1, groups * VALUES_AT_ONCE // values)))
            rows.append(group.rows.sort().values)
        return torch.cat(found, dim=1)[:, torch.cat(rows).argsort()]

    def losses(self, graphs: Sequence[CircuitMask]) -> Tensor:
        """Task losses (P,) in nats."""
        return self.standard.losses(self.logit_diffs(graphs), self.batch.sign)

    def loss(self, graph: CircuitMask) -> float:
        """Task loss, nats."""
        return self.losses([graph])[0].item()


def _masks(network: MaskedModel, graphs: Sequence[CircuitMask]) -> Masks:
    nodes = torch.stack([graph.nodes for graph in graphs]).float()
    if all(graph.edges is None for graph in graphs):
        return Masks(nodes)
    cut = [network.cut(graph.edges) for graph in graphs if graph.edges is not None]
    assert len(cut) == len(graphs), "circuits with and without edge masks cannot be scored together"
    return Masks(nodes, {link: torch.stack([one[link] for one in cut]).float() for link in cut[0]})
