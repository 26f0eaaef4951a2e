"""The search for the smallest width: which widths it trains on loss curves that are known, and what it says of them."""

from __future__ import annotations

import pytest

from extractor.spec.schema import OptimSpec, SparseModelSpec, TrainSpec
from extractor.training.width_search import Match, WidthResult, at_width, search

SPEC = TrainSpec(model=SparseModelSpec(d_model=128, d_head=16), optim=OptimSpec(lr=0.15), match_loss=2.0)


def found(loss_of, target: float = 2.0, spec: TrainSpec = SPEC) -> tuple[Match, list[int]]:
    """The match where a width's loss is known, and the widths in the order of their training."""
    trained: list[int] = []

    def train(at: TrainSpec) -> WidthResult:
        trained.append(at.model.d_model)
        return WidthResult(at.model.d_model, 1000 * at.model.d_model, 10 * at.model.d_model, loss_of(at.model.d_model))

    return search(spec, target, train), trained


def test_the_learning_rate_of_another_width_lies_on_the_authors_line():
    assert at_width(SPEC, 1024).optim.lr == pytest.approx(0.15 / 8)
    authors = TrainSpec(model=SparseModelSpec(d_model=1024), optim=OptimSpec(lr=1.28e-2))
    assert at_width(authors, 128).optim.lr == pytest.approx(0.1024)
    assert at_width(SPEC, 64).model == SPEC.model.model_copy(update={"d_model": 64})
    assert at_width(SPEC, 64).match_loss is None


def test_a_width_that_is_too_wide_is_halved_and_bisected_to_neighbours():
    match, trained = found(lambda width: 2.0 if width >= 80 else 3.0 if width < 48 else 2.1, target=2.05)
    assert trained == [128, 64, 96, 80]
    assert (match.d_model, match.reached) == (80, True)
    assert [c.d_model for c in match.curve] == [64, 80, 96, 128]
    assert match.why == "width 80 reaches 2.05 nats with 2.0000; 64 has 2.1000"


def test_a_width_that_is_too_narrow_is_doubled_and_bisected():
    match, trained = found(lambda width: 400 / width, target=2.0)
    assert trained == [128, 256, 192, 224, 208]
    assert (match.d_model, match.reached) == (208, True)


def test_the_search_ends_within_two_percent_below_the_target():
    match, trained = found(lambda width: 256 / width, target=2.02)
    assert trained == [128]
    assert match.d_model == 128
    assert "nothing narrower was tried" in match.why


def test_a_loss_two_percent_above_the_target_is_not_reached():
    match, trained = found(lambda width: 258 / width, target=2.0)
    assert trained[:2] == [128, 256]
    assert match.d_model > 128


def test_a_loss_out_of_reach_keeps_the_closest_and_says_so():
    match, trained = found(lambda width: 2.5 if width < 512 else 2.6)
    assert trained == [128, 256, 512]
    assert (match.d_model, match.reached) == (128, False)
    assert "2 nats is out of reach: the best of 3 widths up to 512 is 128 with 2.5000, which is kept" in match.why


def test_a_search_that_used_up_its_trainings_says_that_it_is_not_done():
    narrow = SPEC.model_copy(update={"model": SparseModelSpec(d_model=512, d_head=2)})
    match, trained = found(lambda width: 1.0 if width >= 401 else 3.0, spec=narrow)
    assert len(trained) == 6
    assert match.reached
    assert match.d_model == min(c.d_model for c in match.curve if c.held_out_loss <= 2.0)
    assert "ended after 6 trainings" in match.why


def test_one_head_is_the_narrowest():
    match, trained = found(lambda width: 1.0)
    assert trained == [128, 64, 32, 16]
    assert match.d_model == 16
    assert "it is one head wide" in match.why


def test_every_width_is_a_multiple_of_the_head():
    spec = SPEC.model_copy(update={"model": SparseModelSpec(d_model=120, d_head=24)})
    _, trained = found(lambda width: 2.5 - width / 200, spec=spec)
    assert all(width % 24 == 0 for width in trained)
    assert len(set(trained)) == len(trained)
