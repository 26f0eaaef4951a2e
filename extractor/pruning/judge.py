"""How well circuits do, many at once, on one batch of pairs; and the smallest of a ranking that does well enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from extractor.objective import TaskBatch
from extractor.pruning.calibration import calibrate_all
from extractor.pruning.graph import Link, NodeIndex
from extractor.pruning.layers import Base, Masks
from extractor.pruning.network import Network

if TYPE_CHECKING:
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM

VALUES_AT_ONCE = 1 << 25  # of node values, prompts times tokens times sets times nodes: what one pass may hold


class Judge:
    """Losses of circuits on one batch, each under its own best calibration."""

    def __init__(self, model: SparseGPTForCausalLM, base: Base, batch: TaskBatch):
        self.model, self.base, self.batch = model, base, batch
        self.index = NodeIndex.of(model)

    def margins(self, nodes: Tensor, edges: dict[Link, Tensor] | None = None) -> Tensor:
        """Answer margins (P, 2 x pairs) of the circuits with these nodes (P, N) bool and edges (P, out, in) per link."""
        network = Network(self.model, self.base, nodes.any(0))
        prompts = network.prepare(self.batch)
        size = max(1, VALUES_AT_ONCE // max(1, len(network) * self.batch.ids.numel()))
        parts = []
        for rows in torch.arange(len(nodes), device=nodes.device).split(size):
            some = None if edges is None else {link: mask[rows].float() for link, mask in edges.items()}
            parts.append(network.margins(prompts, Masks(nodes[rows].float(), some)))
        return torch.cat(parts)

    @torch.no_grad()
    def losses(self, nodes: Tensor, edges: dict[Link, Tensor] | None = None) -> Tensor:
        """Calibrated task losses (P,) in nats."""
        return calibrate_all(self.margins(nodes, edges), self.batch.sign)[0]


def smallest(meets: Callable[[Tensor], Tensor], most: Tensor) -> Tensor:
    """The smallest k in [1, most] of each of P rankings that meets, if meeting is monotone in k; 0 where `most` does not meet.

    meets   k (P,) int64 -> (P,) bool, all rankings at once
    """
    low, high = torch.zeros_like(most), torch.ones_like(most)
    settled = meets(high)
    while not bool((settled | (high >= most)).all()):
        grows = ~settled & (high < most)
        low, high = torch.where(grows, high, low), torch.where(grows, torch.minimum(2 * high, most), high)
        settled = settled | (grows & meets(high))
    while bool((settled & (high - low > 1)).any()):
        middle = torch.where(high - low > 1, (low + high) // 2, high)
        good = meets(middle)
        high, low = torch.where(good, middle, high), torch.where(good, low, middle.clamp_max(high - 1))
    return torch.where(settled, high, 0)
