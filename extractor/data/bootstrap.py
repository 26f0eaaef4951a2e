"""Confidence intervals of losses over held-out pairs: the percentile bootstrap.

Pairs are drawn, not prompts: the members of a pair share their text. All losses use the same draws.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

RESAMPLES = 1000
COVERED = 0.95


def intervals(losses: Mapping[str, Tensor], seed: int) -> dict[str, list[float]]:
    """{network: [low, high]}, 95 % confidence intervals of the mean of losses (2P,), nats; rows 2i and 2i + 1 are a pair."""
    by_pair = torch.stack([loss.double().cpu().view(-1, 2).mean(-1) for loss in losses.values()])  # (networks, P)
    pairs = by_pair.shape[1]
    drawn = torch.randint(pairs, (RESAMPLES, pairs), generator=torch.Generator().manual_seed(seed))
    times = torch.zeros(RESAMPLES, pairs, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    tail = (1 - COVERED) / 2
    edges = (times @ by_pair.T / pairs).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    return dict(zip(losses, edges.T.tolist(), strict=True))


def share_interval(hits: Tensor, counted: Tensor, seed: int) -> list[float]:
    """[low, high], the 95 % confidence interval of sum(hits) / sum(counted), (2P,) each; rows 2i and 2i + 1 are a pair.

    Draws without any counted prompt are left out.
    """
    by_pair = torch.stack([values.double().cpu().view(-1, 2).sum(-1) for values in (hits, counted)])  # (2, P)
    pairs = by_pair.shape[1]
    drawn = torch.randint(pairs, (RESAMPLES, pairs), generator=torch.Generator().manual_seed(seed))
    sums = by_pair[:, drawn].sum(-1)  # (2, RESAMPLES)
    shares = (sums[0] / sums[1])[sums[1] > 0]
    tail = (1 - COVERED) / 2
    edges: list[float] = shares.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return edges
