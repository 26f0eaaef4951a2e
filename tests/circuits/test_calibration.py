"""Scale and shift of the logit difference: the paper's way for one circuit, Newton's for many, one optimum."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extractor.circuits.calibration import LEAST_SCALE, calibrate, calibrate_all, calibrated_loss
from extractor.circuits.circuit import Calibration
from extractor.data.prompts import task_loss

CHANCE = math.log(2)
SIGN = torch.tensor([1.0, -1.0]).repeat(32)


def logit_diffs(seed: int, spread: float = 1.0, offset: float = 0.0, skill: float = 1.0) -> torch.Tensor:
    noise = torch.randn(64, generator=torch.Generator().manual_seed(seed))
    return spread * (skill * SIGN + noise) + offset


def test_calibration_recovers_a_known_scale_and_shift():
    generator = torch.Generator().manual_seed(0)
    true = 1.5 * torch.randn(40_000, generator=generator, dtype=torch.float64)
    sign = torch.where(torch.rand(40_000, generator=generator, dtype=torch.float64) < torch.sigmoid(true), 1.0, -1.0)
    found = calibrate((true - 0.7) / 4, sign)  # so that 4 x diff + 0.7 is the truth
    assert found.scale == pytest.approx(4, rel=0.05)
    assert found.shift == pytest.approx(0.7, abs=0.06)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), spread=st.floats(1e-3, 50), offset=st.floats(-5, 5), skill=st.floats(-2, 3))
def test_calibration_never_raises_the_loss(seed: int, spread: float, offset: float, skill: float):
    """Up to the regularisation that the unscaled differences, or any multiple of them, would cost."""
    diff = logit_diffs(seed, spread, offset, skill)
    paid = 1e-5 * (diff.var().item() + diff.mean().item() ** 2)
    allowed = min(task_loss(factor * diff, SIGN).item() + factor**2 * paid for factor in (1.0, 0.5, 0.2, 0.1, 0.01))
    assert calibrated_loss(diff, SIGN, calibrate(diff, SIGN)) <= allowed + 1e-4


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 9999), skill=st.floats(-3, 3))
def test_calibrated_no_network_is_worse_than_chance(seed: int, skill: float):
    diff = logit_diffs(seed, skill=skill)
    assert calibrated_loss(diff, SIGN, calibrate(diff, SIGN)) <= CHANCE + 1e-2
    assert calibrate_all(diff[None], SIGN)[0].item() <= CHANCE + 1e-2


def test_the_scale_stays_positive_and_constant_margins_are_borne():
    sign = SIGN[:16]
    assert calibrate(-3 * sign, sign).scale > 0
    constant = torch.full((16,), 2.5)
    found = calibrate(constant, sign)
    assert math.isfinite(found.scale)
    assert math.isfinite(found.shift)
    assert calibrated_loss(constant, sign, found) == pytest.approx(CHANCE, abs=1e-3)
    losses, scales, shifts = calibrate_all(torch.stack([-3 * sign, constant, torch.zeros(16)]), sign)
    assert losses.tolist() == pytest.approx([CHANCE] * 3, abs=1e-3)
    assert (scales >= LEAST_SCALE).all()
    assert shifts.isfinite().all()


def test_the_plain_calibration_changes_nothing():
    diff, sign = torch.tensor([1.0, 2.0]), torch.tensor([1.0, -1.0])
    assert calibrated_loss(diff, sign, Calibration(1.0, 0.0)) == task_loss(diff, sign).item()


# many at once


@st.composite
def any_diffs(draw) -> torch.Tensor:
    """Of a good network, a perfect one, a useless one, one that is wrong; scaled and shifted."""
    seed, spread, offset = draw(st.integers(0, 9999)), 10 ** draw(st.floats(-3, 2)), draw(st.floats(-20, 20))
    kind = draw(st.sampled_from(["skilled", "separable", "useless", "anti-correlated", "nearly constant", "one outlier"]))
    noise = torch.randn(64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = {
        "skilled": draw(st.floats(0.1, 3)) * SIGN + noise,
        "separable": SIGN * (0.1 + noise.abs()),
        "useless": noise,
        "anti-correlated": noise - draw(st.floats(0.5, 5)) * SIGN,
        "nearly constant": SIGN + 1e-3 * noise,
        "one outlier": SIGN + noise + 50 * (torch.arange(64) == seed % 64),
    }[kind]
    return spread * found + offset


@settings(max_examples=80, deadline=None)
@given(st.lists(any_diffs(), min_size=1, max_size=4))
def test_newtons_optimum_is_the_papers(rows: list[torch.Tensor]):
    losses, scales, shifts = calibrate_all(torch.stack(rows), SIGN)
    for row, loss, scale, shift in zip(rows, losses.tolist(), scales.tolist(), shifts.tolist(), strict=True):
        assert loss == pytest.approx(calibrated_loss(row, SIGN.double(), calibrate(row, SIGN)), abs=1e-3)
        assert loss == pytest.approx(calibrated_loss(row, SIGN.double(), Calibration(scale, shift)), abs=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.lists(any_diffs(), min_size=2, max_size=5))
def test_a_row_does_not_depend_on_its_neighbours(rows: list[torch.Tensor]):
    together = calibrate_all(torch.stack(rows), SIGN)
    for number, row in enumerate(rows):
        alone = calibrate_all(row[None], SIGN)
        assert all(torch.allclose(one[number], other[0], rtol=1e-6) for one, other in zip(together, alone, strict=True))


def test_unequal_answers_are_calibrated_alike():
    sign = torch.where(torch.arange(60) % 5 == 0, 1.0, -1.0)
    diff = sign + torch.randn(60, generator=torch.Generator().manual_seed(0))
    loss = calibrate_all(diff[None], sign)[0].item()
    assert loss == pytest.approx(calibrated_loss(diff, sign, calibrate(diff, sign)), abs=1e-3)
    assert loss < task_loss(diff, sign).item()


def test_no_gradient_is_kept():
    diff = logit_diffs(0).requires_grad_()
    assert not any(found.requires_grad for found in calibrate_all(diff[None], SIGN))
    assert isinstance(calibrate(diff, SIGN).scale, float)
