"""Massive activations: sites of the dense model where one channel holds most of the variance, or the first token is far larger than others.

Pretrained models have them. What this project does about them: sites are scaled channel by channel, and beside models with rotary positions
without the first token (initialisation.py), which has means of its own under ablation (circuits/mean_activations.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from extractor.models.dense.base import residuals

if TYPE_CHECKING:
    from torch import Tensor

    from extractor.models.dense.base import DenseSublayers

LARGE_SHARE = 0.5  # of the variance, in one channel
LARGE_FIRST = 10.0  # times the median length of later tokens' residuals


class Outliers(NamedTuple):
    """What stands out at a site.

    share   fraction of the variance of all channels that the largest holds, over all tokens but the first
    first   mean length of the residuals at the first token over the median length at later ones
    """

    share: float
    first: float


@torch.no_grad()
def site_outliers(dense: DenseSublayers, ids: Tensor) -> list[Outliers]:
    """For each site of the dense model, on ids (B, T), T > 2."""
    found = []
    for h in residuals(dense, ids):
        length, variance = h.double().norm(dim=-1), h[:, 1:].double().flatten(0, 1).var(0)
        share = variance.max() / variance.sum().clamp_min(1e-30)
        found.append(Outliers(share.item(), (length[:, 0].mean() / length[:, 1:].median().clamp_min(1e-30)).item()))
    return found


def outliers_line(found: list[Outliers]) -> str | None:
    """The worst sites in one line; None where none stands out."""
    said = []
    site = max(range(len(found)), key=lambda i: found[i].share)
    if found[site].share >= LARGE_SHARE:
        many = sum(one.share >= LARGE_SHARE for one in found)
        said.append(f"one channel holds most of the variance at {many} of {len(found)} sites ({found[site].share:.0%} at site {site})")
    site = max(range(len(found)), key=lambda i: found[i].first)
    if found[site].first >= LARGE_FIRST:
        many = sum(one.first >= LARGE_FIRST for one in found)
        times = f"up to {found[site].first:,.0f} times as large as the others, at site {site}"
        said.append(f"the first token stands out at {many} of {len(found)} sites ({times})")
    return f"massive activations of the dense model: {'; '.join(said)}" if said else None
