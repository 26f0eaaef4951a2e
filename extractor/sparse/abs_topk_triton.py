"""AbsTopK on a GPU: one Triton program per row finds the k-th largest magnitude by bisection and leaves a bit mask for the backward pass.

Imported only when a GPU tensor asks for it. Travels with saved models: torch and triton only.
"""

from typing import Any

import torch
from torch import Tensor

try:  # transformers demands what a model's files import, but for imports that may fail: without Triton the model must still load
    import triton
    import triton.language as tl
except ImportError:
    raise

# Low bits that are zero in every magnitude of this type once it is written as a float32: rounds the bisection can skip.
_IDLE_BITS = {torch.float32: 0, torch.bfloat16: 16, torch.float16: 13}


@triton.jit
def _forward(x, y, packed, row_stride, width, words, k, idle: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, block)
    inside = at < width
    value = tl.load(x + row * row_stride + at, mask=inside, other=0.0)
    # Magnitudes order like their bit patterns without the sign; places beyond the row lie below all of them.
    bits = tl.where(inside, value.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF, -1)
    threshold = tl.zeros((), dtype=tl.int32)
    for step in range(31 - idle):
        # The largest pattern that at least k magnitudes reach is the k-th largest magnitude: found bit by bit, highest first.
        trial = threshold | (1 << (30 - step))
        reached = tl.sum((bits >= trial).to(tl.int32), axis=0)
        threshold = tl.where(reached >= k, trial, threshold)
    kept = bits >= threshold
    tl.store(y + row * width + at, tl.where(kept, value, 0.0), mask=inside)
    lanes = tl.reshape(kept.to(tl.int32), (block // 32, 32))
    word = tl.sum(lanes << tl.arange(0, 32)[None, :], axis=1)
    place = tl.arange(0, block // 32)
    tl.store(packed + row * words + place, word, mask=place < words)


@triton.jit
def _backward(grad, passed, packed, row_stride, width, words, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, block)
    inside = at < width
    value = tl.load(grad + row * row_stride + at, mask=inside, other=0.0)
    word = tl.load(packed + row * words + at // 32, mask=inside, other=0)
    tl.store(passed + row * width + at, tl.where(((word >> (at % 32)) & 1) != 0, value, 0.0), mask=inside)


def _launch(width: int) -> dict[str, int]:
    block = max(32, triton.next_power_of_2(width))
    return {"block": block, "num_warps": min(16, max(1, block // 1024))}


def _rows(x: Tensor) -> Tensor:
    """x as (rows, width) with neighbouring entries side by side; copied only where its strides force it."""
    rows = x.detach().reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


class _AbsTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> Tensor:
        rows = _rows(x)
        count, width = rows.shape
        words = -(-width // 32)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        packed = torch.empty(count, words, dtype=torch.int32, device=x.device)
        if count:
            with torch.cuda.device_of(x):
                _forward[(count,)](rows, y, packed, rows.stride(0), width, words, k, idle=_IDLE_BITS[x.dtype], **_launch(width))
        ctx.save_for_backward(packed)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Masked.apply(grad, *ctx.saved_tensors), None


class _Masked(torch.autograd.Function):
    """grad where its bit is set, else zero; differentiable again."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, packed: Tensor) -> Tensor:
        rows = _rows(grad)
        count, width = rows.shape
        passed = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
        if count:
            with torch.cuda.device_of(grad):
                _backward[(count,)](rows, passed, packed, rows.stride(0), width, packed.shape[1], **_launch(width))
        ctx.save_for_backward(packed)
        return passed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Masked.apply(grad, *ctx.saved_tensors), None


def abs_topk_triton(x: Tensor, k: int) -> Tensor:
    """`abs_topk` for float32, bfloat16 and float16 tensors, 0 < k < width: the same mask, the same gradients."""
    return _AbsTopK.apply(x, k)
