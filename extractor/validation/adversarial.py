"""Ablated nodes chosen by an adversary, and kept nodes set to what they are in the full model (ours; after VPD and field practice).

adversarial   every ablated node has a value between its mean and its own value in the full model: mean + a * (own - mean). a is one number
              in [0, 1] for each node, shared by all prompts, so that it cannot be fitted to one of them. From a = 1/2 the sign of the
              gradient raises the loss in `STEPS` steps
interchange   random shares of the circuit's nodes are set to their values in the full model; the others follow. 1: all of them
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from extractor.circuits.circuit import Calibration
from extractor.circuits.graph import CircuitMask
from extractor.circuits.mean_activations import at_tokens
from extractor.circuits.reference import masked_logit_diff
from extractor.data.prompts import TaskBatch
from extractor.pruning.problem import PruningProblem
from extractor.validation.ablations import Rewrite, reference_logit_diffs

STEPS = 20
PAIRS = 32
STEP = 0.1  # of every number in each step
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def adversarial(problem: PruningProblem, graph: CircuitMask, calibration: Calibration, held_out: TaskBatch) -> dict[str, Any]:
    """{pairs, steps, before, loss, accuracy}: the circuit where an adversary chooses what ablated nodes are; loss and before in nats.

    before   the loss at a = 1/2;  loss, accuracy   the worst of all steps
    Raises Stopped.
    """
    batch, model = held_out.pick(torch.arange(min(PAIRS, held_out.pairs))), problem.model
    with torch.no_grad(), model.record() as own:
        model(input_ids=batch.ids, logits_to_keep=1)
    masks, means = problem.index.split(graph.nodes.float()), at_tokens(problem.means, batch.ids.shape[1])
    a = {site: torch.full_like(mean, 0.5) for site, mean in problem.means.items()}
    found: list[tuple[float, float]] = []
    for step in range(STEPS + 1):
        problem.tick(step, STEPS + 1)
        leaves = {site: value.requires_grad_() for site, value in a.items()}
        values = {site: means[site] + leaves[site] * (own[site] - means[site]) for site in leaves}
        with torch.enable_grad():
            diff = calibration.apply(masked_logit_diff(model, batch, masks, values, graph.edges))
            loss = batch.losses(diff).mean()
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        found.append((loss.item(), (batch.sign * diff > 0).double().mean().item()))
        a = {
            site: (value.detach() + STEP * (torch.zeros_like(value) if one is None else one.sign())).clamp(0, 1)
            for (site, value), one in zip(leaves.items(), gradients, strict=True)
        }
    worst = max(found)
    return {"pairs": batch.pairs, "steps": STEPS, "before": found[0][0], "loss": worst[0], "accuracy": worst[1]}


def interchange(problem: PruningProblem, graph: CircuitMask, calibration: Calibration, held_out: TaskBatch) -> list[list[float]]:
    """[[share, loss], ...] of the circuit, calibrated as its own, by the share of its nodes that have their full-model values."""
    batch = held_out.pick(torch.arange(min(PAIRS, held_out.pairs)))
    order = torch.rand(len(problem.index), generator=torch.Generator().manual_seed(problem.seed)).to(batch.ids.device)
    rows = []
    for share in SHARES:
        chosen = problem.index.split(graph.nodes & (order < share))
        diff = reference_logit_diffs(problem, graph, batch, partial(_set_to_full, problem, chosen))
        rows.append([share, batch.losses(calibration.apply(diff)).mean().item()])
    return rows


def _set_to_full(problem: PruningProblem, chosen: dict[str, Tensor], part: TaskBatch) -> Rewrite:
    with problem.model.record() as recorded:
        problem.model(input_ids=part.ids, logits_to_keep=1)
    full = dict(recorded)

    def rewrite(site: str, values: Tensor) -> Tensor:
        return torch.where(chosen[site], full[site], values)

    return rewrite
