"""Attention with an optional sink: a learned logit per head in the softmax denominator whose value is zero (App. A.1).

`plain_attention` is the definition. For causal attention without padding `attend` gives the same without scores or mask of (T, T): torch's
fused attention, corrected for the sink. Travels with saved models: torch only.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_CPU_FORWARD = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_CPU_BACKWARD = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)
_ALIGNED = 8  # fused GPU kernels want head widths in multiples of this


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, sink_logit: Tensor | None = None) -> Tensor:
    """Mixed values (B, H, T, C) of queries (B, H, T, C), keys and values (B, H, S, C).

    mask        additive, broadcast to (B, H, T, S); None: causal, T = S, without padding
    sink_logit  (H,), or None for an ordinary softmax
    """
    if mask is not None:
        return plain_attention(q, k, v, mask, sink_logit)
    if sink_logit is None:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    if q.device.type == "cpu" and _CPU_FORWARD is not None and _CPU_BACKWARD is not None:
        return _CpuSinkAttention.apply(q, k, v, sink_logit)
    return token_sink_attention(q, k, v, sink_logit)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, sink_logit: Tensor | None) -> Tensor:
    """The definition, for any mask and device."""
    batch, _, length, width = q.shape
    scores = q @ k.transpose(-1, -2) / math.sqrt(width) + mask
    if sink_logit is not None:
        sink = sink_logit.to(scores.dtype).view(1, -1, 1, 1).expand(batch, -1, length, 1)
        scores = torch.cat([scores, sink], dim=-1)
    return scores.softmax(dim=-1)[..., : k.shape[-2]] @ v


def causal_mask(length: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """The additive mask (T, T) that `mask=None` stands for."""
    return torch.full((length, length), torch.finfo(dtype).min, dtype=dtype, device=device).triu(1)


def token_sink_attention(q: Tensor, k: Tensor, v: Tensor, sink_logit: Tensor) -> Tensor:
    """Causal attention with the sink as a token before the first, by whatever fused attention the device has.

    The token's key is zero but in a channel of its own, where it holds the logit and every query holds 1; its value is zero.
    """
    width = q.shape[-1]
    pad = (0, _ALIGNED - width % _ALIGNED, 1, 0)  # at least one channel behind, one token before
    q, k, v = functional.pad(q, pad), functional.pad(k, pad), functional.pad(v, pad)
    channel = functional.one_hot(torch.tensor(width, device=q.device), q.shape[-1]).to(q.dtype)
    token = functional.one_hot(torch.tensor(0, device=q.device), q.shape[-2]).to(q.dtype)
    logit = (sink_logit.to(q.dtype) * math.sqrt(width))[:, None, None]
    mixed = functional.scaled_dot_product_attention(
        q + channel, k + logit * token[:, None] * channel, v, is_causal=True, scale=1 / math.sqrt(width)
    )
    return mixed[..., 1:, :width]


class _CpuSinkAttention(torch.autograd.Function):
    """Torch's fused attention with the sink added to its softmax denominator afterwards.

    The fused backward pass recomputes weights as exp(score - log denominator). Given the corrected denominator and output it yields the
    gradients of the corrected attention, for the sink is one more key whose value is zero; the sink's own gradient is one sum more.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sink_logit: Tensor) -> Tensor:
        assert _CPU_FORWARD is not None
        ctx.scale = 1 / math.sqrt(q.shape[-1])
        mixed, log_sum = _CPU_FORWARD(q, k, v, 0.0, True, scale=ctx.scale)
        with_sink = torch.logaddexp(log_sum, sink_logit.to(log_sum.dtype)[:, None])  # (B, H, T)
        mixed = mixed * (log_sum - with_sink).exp().unsqueeze(-1).to(mixed.dtype)
        ctx.save_for_backward(q, k, v, mixed, with_sink, sink_logit)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        assert _CPU_BACKWARD is not None
        q, k, v, mixed, with_sink, sink_logit = ctx.saved_tensors
        grads = _CPU_BACKWARD(grad, q, k, v, mixed, with_sink, 0.0, True, scale=ctx.scale)
        weight = (sink_logit.to(with_sink.dtype)[:, None] - with_sink).exp()  # of the sink, (B, H, T)
        sink_grad = -(weight * (grad * mixed).sum(-1)).sum((0, 2)).to(sink_logit.dtype)
        return *grads, sink_grad
