"""Whose behaviour a task is: the dense model's and the sparse model's answers to the same prompts, and the circuit's through the bridges.

A sparse model may do what its dense model does not: the text of its training may have taught it. Then a circuit of it says nothing of the
dense model. `why_not_dense` draws that line; thresholds: `spec.thresholds`. Shapes and symbols: `extractor.bridges`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from extractor.bridges.chunked_loss import LOGITS_AT_ONCE, Target
from extractor.bridges.faithfulness import path_logits
from extractor.bridges.losses import sparse_residuals
from extractor.bridges.pair import BridgedPair
from extractor.circuits.calibration import calibrate, calibrated_loss
from extractor.circuits.graph import CircuitMask, NodeIndex
from extractor.circuits.network import LENGTH_GROUPS
from extractor.circuits.reference import masked_logit_diff, masked_residuals
from extractor.data.bootstrap import intervals
from extractor.data.prompts import TaskBatch, accuracy, logit_diff, task_loss
from extractor.files import rounded
from extractor.models.dense.base import residuals, tail
from extractor.spec.thresholds import DENSE_FAILS_RAW, MOST_DISAGREEMENT, RIGHT_ENOUGH

PATH_PAIRS = 64  # pairs whose prompts cross at every site


@torch.no_grad()
def behaviour(pair: BridgedPair, held_out: TaskBatch, select: TaskBatch, seed: int) -> dict:
    """The answers of both models to held-out prompts.

    agreement           fraction of prompts for which both prefer the same answer of the two
    loss, calibrated    {dense, sparse}: task loss in nats per prompt; with the scale and shift that are best on the select split
    accuracy            {dense, sparse}: fraction of prompts answered rightly, not calibrated
    interval            {agreement, dense, sparse}: [low, high] of the agreement and of both accuracies, 95 %, bootstrapped over pairs
    kl                  {sparse, to_sparse, to_dense}: KL from the dense model's prediction of the answer's token, mean over prompts, nats;
                        one number, or one for each site, these on the first PATH_PAIRS pairs
    """
    models = {"dense": dense_logit_diffs, "sparse": _sparse_logit_diffs}
    diffs = {name: diffs_of(pair, held_out) for name, diffs_of in models.items()}
    fitted = {name: calibrate(diffs_of(pair, select), select.sign) for name, diffs_of in models.items()}
    agreeing = ((diffs["dense"] > 0) == (diffs["sparse"] > 0)).double()
    right = {name: (held_out.sign * diff > 0).double() for name, diff in diffs.items()}
    return rounded(
        {
            "agreement": agreeing.mean().item(),
            "loss": {name: task_loss(diff, held_out.sign).item() for name, diff in diffs.items()},
            "calibrated": {name: calibrated_loss(diff, held_out.sign, fitted[name]) for name, diff in diffs.items()},
            "accuracy": {name: ones.mean().item() for name, ones in right.items()},
            "interval": intervals({"agreement": agreeing} | right, seed),
            "kl": answer_kl(pair, held_out.pick(torch.arange(min(PATH_PAIRS, held_out.pairs)))),
        }
    )


def why_not_dense(found: Mapping[str, Any], prompts: str = "held-out") -> str | None:
    """Why a circuit of the sparse model says nothing of the dense one, in one line; None where it does. `found`: of `behaviour`.

    A dense model that is right, but unsure of it, does the task. With its own answers as the right ones it always does.
    """
    loss, right = found["loss"]["dense"], found["accuracy"]["dense"]
    if loss >= DENSE_FAILS_RAW and right < RIGHT_ENOUGH:
        scaled = f"{found['calibrated']['dense']:.3g} with the best scale and shift"
        return (
            f"the dense model does not do this task: {loss:.3g} nats on {prompts} prompts, {right:.1%} right ({scaled}); "
            "--labels model asks for what it does instead"
        )
    apart = round(1 - found["agreement"], 6)
    if apart > MOST_DISAGREEMENT:
        low, high = (1 - end for end in reversed(found["interval"]["agreement"]))
        return (
            f"the sparse model prefers another answer than the dense model on {apart:.1%} of the {prompts} prompts "
            f"({low:.1%} to {high:.1%}), more than {MOST_DISAGREEMENT:.0%}; more bridge.optim.steps bring them together"
        )
    return None


@torch.no_grad()
def answer_kl(pair: BridgedPair, batch: TaskBatch) -> dict:
    """KL from the dense model's prediction at the end of the prompts: {sparse, to_sparse, to_dense}, mean nats, see `behaviour`."""
    sums: Tensor | None = None
    rows_at_once = max(1, LOGITS_AT_ONCE // pair.sparse.config.vocab_size)
    for rows in _by_length(batch):
        for few in rows.split(rows_at_once):
            part = _last_kls(pair, batch.rows(few)).sum(1).double()
            sums = part if sums is None else sums + part
    assert sums is not None
    own, *paths = (sums / len(batch.ids)).tolist()
    return {"sparse": own} | pair.by_site({"to_sparse": paths[::2], "to_dense": paths[1::2]})


def _last_kls(pair: BridgedPair, batch: TaskBatch) -> Tensor:
    """KLs (1 + 2 S, B) at the last token: of the sparse model, then of both hybrid passes of each of the S sites that passes cross at."""
    dense_h, sparse_h = residuals(pair.dense, batch.ids), sparse_residuals(pair, batch.ids)
    ends = torch.arange(len(batch.ids), device=batch.ids.device), batch.last
    target = Target.of(pair.dense.unembed(dense_h[-1][ends]))
    own = pair.sparse.unembed(sparse_h[-1][ends], batch.ids[ends])
    return torch.stack([target.kl(own), *map(target.kl, path_logits(pair, batch.ids, dense_h, sparse_h, batch.last))])


def _sparse_logit_diffs(pair: BridgedPair, batch: TaskBatch) -> Tensor:
    """The sparse model's logit differences, (B,)."""
    return masked_logit_diff(pair.sparse, batch, {}, {})


@torch.no_grad()
def dense_logit_diffs(pair: BridgedPair, batch: TaskBatch) -> Tensor:
    """The dense model's own logit differences, one for each prompt of the batch, (B,)."""
    diffs = torch.empty(len(batch.ids), device=batch.ids.device)
    for rows in _by_length(batch):
        part = batch.rows(rows)
        context = pair.dense.context(part.ids)
        diffs[rows] = _dense_logit_diff(pair, tail(pair.dense, 0, pair.dense.embed(part.ids, context), context), part)
    return diffs


@torch.no_grad()
def circuit_through_bridges(
    pair: BridgedPair, batch: TaskBatch, graph: CircuitMask, base: Mapping[str, Tensor], calibrate_on: TaskBatch
) -> dict:
    """How the dense model continues from the circuit alone: at site i the circuit's residual is decoded, and the dense model runs on.

    base             ablation values of the nodes outside the circuit, as for `masked_logit_diff`
    calibrate_on     the select split; scale and shift of the logit difference are fitted there, separately for every site

    Returns {loss, raw_loss, accuracy}, one number for each site, None where no passes cross: task loss in nats per prompt, calibrated
    and not, and the fraction of prompts that the calibrated logit difference answers correctly. At site 0 no node has acted yet: there the
    bridge alone is measured.
    """
    found: dict[str, list[float]] = {"loss": [], "raw_loss": [], "accuracy": []}
    select = _logit_diffs_through_bridges(pair, calibrate_on, graph, base)
    for chosen, diff in zip(select, _logit_diffs_through_bridges(pair, batch, graph, base), strict=True):
        calibration = calibrate(chosen, calibrate_on.sign)
        found["loss"].append(calibrated_loss(diff, batch.sign, calibration))
        found["raw_loss"].append(task_loss(diff, batch.sign).item())
        found["accuracy"].append(accuracy(calibration.apply(diff), batch.sign))
    return pair.by_site(rounded(found))


def _logit_diffs_through_bridges(pair: BridgedPair, batch: TaskBatch, graph: CircuitMask, base: Mapping[str, Tensor]) -> Tensor:
    """Logit differences (S, B) of the hybrid passes that start in the circuit alone and end in the dense model, for `pair.crossed`."""
    diffs = torch.empty(len(pair.crossed), len(batch.ids), device=batch.ids.device)
    masks = NodeIndex.of(pair.sparse).split(graph.nodes.float())
    for rows in _by_length(batch):
        part = batch.rows(rows)
        context = pair.dense.context(part.ids)
        residuals = masked_residuals(pair.sparse, part.ids, masks, base, graph.edges)[:: 2 if pair.sparse.config.parallel else 1]
        for place, index in enumerate(pair.crossed):
            h = pair.sites[index].decode(residuals[index])
            diffs[place, rows] = _dense_logit_diff(pair, tail(pair.dense, index, h, context), part)
    return diffs


def _by_length(batch: TaskBatch) -> tuple[Tensor, ...]:
    """Rows in groups of similar length. Prompts are padded on the right; with causal attention, padding does not affect the last token."""
    return batch.last.argsort(stable=True).chunk(LENGTH_GROUPS)


def _dense_logit_diff(pair: BridgedPair, h: Tensor, batch: TaskBatch) -> Tensor:
    """Logit differences (B,) from the dense model's final residuals (B, T, D)."""
    return logit_diff(pair.dense.unembed(h[torch.arange(len(h), device=h.device), batch.last]), batch)
