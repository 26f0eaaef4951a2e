"""How well circuits do, many at once, on one batch of pairs; and the smallest of a ranking that does well enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from extractor.objective import TaskBatch
from extractor.pruning.calibration import calibrate_all
from extractor.pruning.graph import Graph
from extractor.pruning.layers import Masks

if TYPE_CHECKING:
    from extractor.pruning.problem import Prunable

GRAPHS_AT_ONCE = 16  # masks of a large model fill memory
VALUES_AT_ONCE = 1 << 25  # node values: sets times prompts times tokens times nodes; what one pass may hold


class Judge:
    """Losses of circuits on one batch, each under its own best calibration.

    network   kept nodes (N,) bool -> the network that computes them
    """

    def __init__(self, network: Callable[[Tensor], Prunable], batch: TaskBatch):
        self.network, self.batch = network, batch

    @torch.no_grad()
    def margins(self, graphs: Sequence[Graph]) -> Tensor:
        """Answer margins (P, 2 x pairs)."""
        parts, at = [], 0
        while at < len(graphs):
            some = list(graphs[at : at + GRAPHS_AT_ONCE])
            network = self.network(torch.stack([graph.nodes for graph in some]).any(0))
            size = max(1, VALUES_AT_ONCE // max(1, len(network) * self.batch.ids.numel()))
            prompts = network.prepare(self.batch)
            parts += [network.margins(prompts, _masks(network, some[i : i + size])) for i in range(0, len(some), size)]
            at += len(some)
        return torch.cat(parts)

    def losses(self, graphs: Sequence[Graph]) -> Tensor:
        """Calibrated task losses (P,) in nats."""
        return calibrate_all(self.margins(graphs), self.batch.sign)[0]

    def loss(self, graph: Graph) -> float:
        return self.losses([graph])[0].item()


def _masks(network: Prunable, graphs: Sequence[Graph]) -> Masks:
    nodes = torch.stack([graph.nodes for graph in graphs]).float()
    if all(graph.edges is None for graph in graphs):
        return Masks(nodes)
    cut = [network.cut(graph.edges) for graph in graphs if graph.edges is not None]
    assert len(cut) == len(graphs), "graphs with and without edge masks cannot be judged together"
    return Masks(nodes, {link: torch.stack([one[link] for one in cut]).float() for link in cut[0]})


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
