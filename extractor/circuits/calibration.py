"""Scale and shift of the logit difference (App. A.5): a pruned network's logits are uncalibrated.

`calibrate` is the paper's: L-BFGS on one circuit. `calibrate_all` finds the same optimum for many circuits at once by Newton's method, for
comparing thousands of circuits. Both minimise the task loss plus a slight regularisation with scale >= 0, because perfectly
separated logit differences have no finite optimum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from extractor.circuits.circuit import Calibration
from extractor.data.prompts import task_loss

LEAST_SCALE = 1e-6
_TRACE = 1e-5
_NEWTON_STEPS = 12


def calibrate(diff: Tensor, sign: Tensor) -> Calibration:
    """The best scale and shift of logit differences (n,): 16 L-BFGS steps in fp64."""
    standard, spread, middle = _standard(diff[None])
    sign = sign.double().cpu()
    parameters = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)  # scale, shift, in units of the spread
    lbfgs = torch.optim.LBFGS([parameters], max_iter=16, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        lbfgs.zero_grad()
        loss = task_loss(parameters[0] * standard[0] + parameters[1], sign) + _TRACE * parameters.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        lbfgs.step(closure)
    found = parameters.detach()
    if found[0] < 0:
        found = torch.zeros(2, dtype=torch.float64)
    scale = max(found[0].item() / spread.item(), LEAST_SCALE)
    return Calibration(scale=scale, shift=found[1].item() - scale * middle.item())


def calibrated_loss(diff: Tensor, sign: Tensor, calibration: Calibration) -> float:
    """Task loss in nats of calibrated logit differences."""
    return task_loss(calibration.apply(diff), sign).item()


@torch.no_grad()
def calibrate_all(diffs: Tensor, sign: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(losses, scales, shifts), (P,) fp64 each, of logit differences (P, n): every row with its own best calibration."""
    standard, spread, middle = _standard(diffs)
    sign = sign.double().cpu()
    found = torch.tensor([1.0, 0.0], dtype=torch.float64).repeat(len(standard), 1)
    value = _objective(standard, sign, found)
    for _ in range(_NEWTON_STEPS):
        step = _newton_step(standard, sign, found)
        for _ in range(4):  # halved where it overshoots
            new = _objective(standard, sign, found - step)
            step = torch.where((new <= value)[:, None], step, step / 2)
        new = _objective(standard, sign, found - step)
        better = new <= value
        found, value = torch.where(better[:, None], found - step, found), torch.where(better, new, value)
    found = torch.where(found[:, :1] < 0, 0.0, found)
    losses = _losses(standard, sign, found)
    scale = (found[:, 0] / spread).clamp_min(LEAST_SCALE)
    return losses, scale, found[:, 1] - scale * middle


def _standard(diffs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    diffs = diffs.detach().double().cpu()
    spread, middle = diffs.std(-1).clamp_min(1e-6), diffs.mean(-1)
    return (diffs - middle[:, None]) / spread[:, None], spread, middle


def _losses(standard: Tensor, sign: Tensor, found: Tensor) -> Tensor:
    return torch.nn.functional.softplus(-sign * (found[:, :1] * standard + found[:, 1:])).mean(-1)


def _objective(standard: Tensor, sign: Tensor, found: Tensor) -> Tensor:
    return _losses(standard, sign, found) + _TRACE * found.square().sum(-1)


def _newton_step(standard: Tensor, sign: Tensor, found: Tensor) -> Tensor:
    wrong = torch.sigmoid(-sign * (found[:, :1] * standard + found[:, 1:]))  # (P, n)
    pull, curve = -sign * wrong, wrong * (1 - wrong)
    gradient = torch.stack([(pull * standard).mean(-1), pull.mean(-1)], dim=-1) + 2 * _TRACE * found
    cross = (curve * standard).mean(-1)
    one, two = (curve * standard.square()).mean(-1) + 2 * _TRACE, curve.mean(-1) + 2 * _TRACE
    determinant = one * two - cross.square()
    return (
        torch.stack([two * gradient[:, 0] - cross * gradient[:, 1], one * gradient[:, 1] - cross * gradient[:, 0]], -1)
        / determinant[:, None]
    )
