"""Massive activations of a dense model are named before it is bridged."""

from __future__ import annotations

import pytest
import torch
from worlds import random_gpt2

from extractor.bridges.outliers import Outliers, outliers_line, site_outliers
from extractor.models.dense.base import residuals, wrap_dense

IDS = torch.randint(0, 50, (4, 12), generator=torch.Generator().manual_seed(0))


def test_nothing_is_said_of_a_model_without_them():
    found = site_outliers(wrap_dense(random_gpt2(n_layer=2)), IDS)
    assert len(found) == 5
    assert outliers_line(found) is None


@torch.no_grad()
def test_a_large_first_token_and_a_large_channel_are_found():
    """Position 0 is a hundred times larger from the start; a channel of the second block's output varies more than all others together."""
    model = random_gpt2(n_layer=2)
    model.transformer.wpe.weight[0] *= 1000
    model.transformer.h[1].mlp.c_proj.weight[:, 3] *= 1000
    dense = wrap_dense(model)
    found, h = site_outliers(dense, IDS), residuals(dense, IDS)
    assert [one.share > 0.9 for one in found] == [False] * 4 + [True]
    variance = h[4][:, 1:].flatten(0, 1).double().var(0)
    assert found[4].share == pytest.approx((variance[3] / variance.sum()).item())
    length = h[2].double().norm(dim=-1)
    assert found[2].first == pytest.approx((length[:, 0].mean() / length[:, 1:].median()).item())
    line = outliers_line(found)
    assert line is not None
    assert "at 1 of 5 sites" in line
    assert "the first token stands out at" in line


def test_the_worst_site_is_named():
    found = [Outliers(0.1, 1.0), Outliers(0.6, 1200.0), Outliers(0.98, 20.0)]
    assert outliers_line(found) == (
        "massive activations of the dense model: one channel holds most of the variance at 2 of 3 sites (98% at site 2); "
        "the first token stands out at 2 of 3 sites (up to 1,200 times as large as the others, at site 1)"
    )
