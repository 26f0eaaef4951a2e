"""Attention with an optional sink: a learned logit per head in the softmax denominator whose value is zero (App. A.1).

Travels with saved models: torch only.
"""

import math

import torch
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, sink_logit: Tensor | None) -> Tensor:
    """Mixed values (B, H, T, C) of queries (B, H, T, C), keys and values (B, H, S, C).

    mask        additive, broadcast to (B, H, T, S)
    sink_logit  (H,), or None for an ordinary softmax
    """
    batch, _, length, width = q.shape
    scores = q @ k.transpose(-1, -2) / math.sqrt(width) + mask
    if sink_logit is not None:
        sink = sink_logit.to(scores.dtype).view(1, -1, 1, 1).expand(batch, -1, length, 1)
        scores = torch.cat([scores, sink], dim=-1)
    return scores.softmax(dim=-1)[..., : k.shape[-2]] @ v
