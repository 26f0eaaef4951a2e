"""Passages and histograms of a node on ordinary text, against a plain computation from its values."""

from __future__ import annotations

import pytest
import torch

from extractor.validation import passages
from extractor.validation.passages import BINS, RANKS, _histogram, _passages

ROWS, CONTEXT = 40, 16


@pytest.fixture
def values() -> torch.Tensor:
    return torch.randn(ROWS, CONTEXT, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("each", [1, 3])
def test_at_every_rank_there_are_passages_of_different_rows_near_it(values, each):
    text = torch.arange(ROWS * CONTEXT).reshape(ROWS, CONTEXT)
    order = values.flatten().argsort(stable=True, descending=True)
    found = list(_passages(text, values, order, each))
    ranks = [*RANKS, *(1 - rank for rank in reversed(RANKS[:-1]))]
    assert len(found) == each * len(ranks)
    for number, rank in enumerate(ranks):
        some = found[each * number : each * (number + 1)]
        assert len({one.ids[one.at] // CONTEXT for one in some}) == each
        for one in some:
            assert one.rank == pytest.approx(rank, abs=10 / len(order))
            assert one.values[one.at] == values.flatten()[one.ids[one.at]]
            higher = (values > one.values[one.at]).double().mean().item()
            assert higher == pytest.approx(one.rank, abs=2 / len(order))


def test_few_rows_of_text_give_few_passages(values):
    order = values[:2].flatten().argsort(stable=True, descending=True)
    assert len(list(_passages(torch.zeros(2, CONTEXT, dtype=torch.long), values[:2], order, 5))) == 2 * 7


def test_every_token_is_in_the_histogram(values):
    low, high, counts = _histogram(values.flatten())
    assert len(counts) == BINS
    assert sum(counts) == values.numel()
    edges = torch.linspace(low, high, BINS + 1)
    inside = values.flatten().clamp(low, high)
    assert counts[3] == int(((inside >= edges[3]) & (inside < edges[4])).sum())


def test_a_node_that_never_changes_has_one_full_bin():
    assert _histogram(torch.full((7,), 2.0)) == (2.0, 2.0, (7, *(0,) * (BINS - 1)))


def test_small_circuits_have_more_passages(monkeypatch):
    assert passages.MOST_PASSAGES // 27 >= passages.MOST_EACH
    assert passages.MOST_PASSAGES // 300 == 1
