"""Integrated gradients (Sec. 3.1's control).

Score: -d(task loss)/d(mask) with all masks at alpha, averaged over alpha from 0 to 1: to first order, by how many nats turning the element
on lowers the loss. Signed: elements that harm the task come last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from extractor.pruning.elements import Edges, Nodes
from extractor.pruning.problem import PruningProblem

POINTS = 5
PAIRS = 128


def rank(problem: PruningProblem) -> Tensor:
    """Scores (N,), nats; a channel's q and k share the sum of both."""
    return scores(problem, Nodes(problem.full_mask()))


def scores(problem: PruningProblem, elements: Nodes | Edges) -> Tensor:
    """Scores (E,), nats, of nodes or edges; those that share a mask share the sum of their scores."""
    batch = problem.draw(0, max(1, PAIRS // problem.standard.copies))
    network = problem.network(elements.circuit.nodes)
    prompts = network.prepare(batch)
    total = torch.zeros(len(elements), device=problem.model.device)
    for point in range(POINTS):
        problem.tick(point, POINTS)
        on = torch.full((1, len(elements)), (point + 0.5) / POINTS, device=problem.model.device, requires_grad=True)
        loss = problem.standard.objective(network.logit_diffs(prompts, elements.masks(on)), batch.sign).mean()
        total -= torch.autograd.grad(loss, on)[0][0] / POINTS
    return torch.zeros_like(total).index_add(0, elements.ties, total)[elements.ties]
