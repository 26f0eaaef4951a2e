"""Integrated gradients (Sec. 3.1's control).

Score: -d(task loss)/d(mask) with all masks at alpha, averaged over alpha from 0 to 1: to first order, by how many nats turning the node on
lowers the loss. Signed: nodes that harm the task come last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from extractor.pruning.elements import Nodes
from extractor.pruning.problem import PruningProblem

POINTS = 16
PAIRS = 256


def rank(problem: PruningProblem) -> Tensor:
    """Scores (N,), nats; a channel's q and k share the sum of both."""
    full, batch = problem.full_mask(), problem.draw(0, max(1, PAIRS // problem.standard.copies))
    nodes, network = Nodes(full), problem.network(full.nodes)
    prompts = network.prepare(batch)
    total = torch.zeros(len(nodes), device=problem.model.device)
    for point in range(POINTS):
        problem.tick(point, POINTS)
        on = torch.full((1, len(nodes)), (point + 0.5) / POINTS, device=problem.model.device, requires_grad=True)
        loss = problem.standard.objective(network.logit_diffs(prompts, nodes.masks(on)), batch.sign).mean()
        total -= torch.autograd.grad(loss, on)[0][0] / POINTS
    return torch.zeros_like(total).index_add(0, nodes.ties, total)[nodes.ties]
