"""Integrated gradients (Sec. 3.1's control).

Score: -d(task loss)/d(mask) with all masks at alpha, averaged over alpha from 0 to 1: to first order, by how many nats turning the element
on lowers the loss. Signed: elements that harm the task come last.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from extractor.circuits.masks import MaskedModel
from extractor.circuits.prompt_network import PromptMaskedModel
from extractor.data.prompts import TaskBatch
from extractor.pruning.elements import Edges, Nodes
from extractor.pruning.problem import PruningProblem

POINTS = 5
PAIRS = 128
FEWEST_PAIRS = 16
MOST_VALUES = 1 << 27  # node values of all prompts: fewer pairs of a model with more
VALUES_AT_ONCE = 1 << 26  # node values of the prompts of one pass; a batch of a large model with more is computed in parts


def rank(problem: PruningProblem) -> Tensor:
    """Scores (N,), nats; a channel's q and k share the sum of both."""
    return scores(problem, Nodes(problem.full_mask()))


def scores(problem: PruningProblem, elements: Nodes | Edges) -> Tensor:
    """Scores (E,), nats, of nodes or edges; those that share a mask share the sum of their scores."""
    network = problem.network(elements.circuit.nodes)
    batch = problem.draw(0, _pairs(problem, network))
    total = torch.zeros(len(elements), device=problem.model.device)
    done = 0  # prompts and points
    for prompts, sign in _parts(problem, network, batch):
        share = len(sign) / len(batch.sign)
        for point in range(POINTS):
            problem.tick(done, POINTS * len(batch.sign))
            done += len(sign)
            on = torch.full((1, len(elements)), (point + 0.5) / POINTS, device=problem.model.device, requires_grad=True)
            loss = problem.standard.objective(network.logit_diffs(prompts, elements.masks(on)), sign).mean()
            total -= share * torch.autograd.grad(loss, on)[0][0] / POINTS
    return torch.zeros_like(total).index_add(0, elements.ties, total)[elements.ties]


def _pairs(problem: PruningProblem, network: MaskedModel) -> int:
    each = 2 * problem.train.ids.shape[1] * len(network) * problem.standard.copies
    return min(max(1, PAIRS // problem.standard.copies), max(FEWEST_PAIRS, MOST_VALUES // max(1, each)))


def _parts(problem: PruningProblem, network: MaskedModel, batch: TaskBatch) -> Iterator[tuple[Any, Tensor]]:
    """(prompts, their signs) of a batch in parts that fit into memory; gradients keep the values of all nodes."""
    values = len(network) * batch.ids.numel() * problem.standard.copies
    if values <= VALUES_AT_ONCE or not isinstance(network, PromptMaskedModel):
        yield network.prepare(batch), batch.sign
        return
    for group in network.prepared(batch, min(len(batch.ids), -(-values // VALUES_AT_ONCE))):
        rows = group.rows[: len(group.rows) // problem.standard.copies]  # in the order of `logit_diffs`: ascending
        yield [group], batch.sign[rows.sort().values]
