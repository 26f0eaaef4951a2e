"""AbsTopK: keep the k largest magnitudes of the last axis (App. A.1). Travels with saved models: torch and numpy only.

`plain_abs_topk` is the definition. On a CPU `abs_topk` finds the same mask by sorting short pieces of each row, in blocks that fit the
cache, on torch's number of threads; on a GPU by a threshold search in one Triton kernel. Equal inputs give equal bits on any number of
threads.
"""

import functools
import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

# Magnitudes order like their bit patterns without the sign: integers of the same width stand in for floats.
_BITS = {torch.float32: torch.int32, torch.float64: torch.int64, torch.float16: torch.int16, torch.bfloat16: torch.int16}
_KERNEL_TYPES, _KERNEL_WIDTH = (torch.float32, torch.bfloat16, torch.float16), 16384
_BLOCK = 1 << 17  # entries worked on at once by a thread: with their copies and mask they fit a core's cache
_PIECE = 512  # numpy sorts rows up to this length by a SIMD network, several times faster per entry than longer ones
_STRIDE, _REACH = 16, 24  # of the sample that places a window in every sorted piece, and how far the window reaches to each side


def abs_topk(x: Tensor, k: int) -> Tensor:
    """Keep the k largest magnitudes of the last axis, zero the rest. Gradients pass where values pass.

    Entries whose magnitude ties with the k-th largest are kept too; so a row with fewer than k nonzeros passes whole, and a zero that may
    come alive still receives its gradient.
    """
    if k >= x.shape[-1]:
        return x
    if x.is_cuda and x.dtype in _KERNEL_TYPES and x.shape[-1] <= _KERNEL_WIDTH and (kernel := _kernel()) is not None:
        return kernel(x, k)
    if x.device.type == "cpu" and x.dtype in _BITS:
        return _AbsTopK.apply(x, k)
    return plain_abs_topk(x, k)


def plain_abs_topk(x: Tensor, k: int) -> Tensor:
    """The definition, for any device."""
    return x * abs_topk_mask(x, k)


def abs_topk_mask(x: Tensor, k: int) -> Tensor:
    """True at the k largest magnitudes of the last axis and at ties with the k-th."""
    magnitude = x.detach().abs()
    return magnitude >= magnitude.topk(min(k, x.shape[-1]), dim=-1).values[..., -1:]


@torch.no_grad()
def kth_magnitude(x: Tensor, k: int) -> Tensor:
    """The k-th largest magnitude of the last axis, (..., 1); k at most its length."""
    if x.device.type != "cpu" or x.dtype not in _BITS:
        return x.abs().topk(k, dim=-1).values[..., -1:]
    found = torch.empty((*x.shape[:-1], 1), dtype=x.dtype)
    source, out = _rows(x), found.view(_BITS[x.dtype]).reshape(-1).numpy()

    def work(start: int, stop: int) -> None:
        out[start:stop] = _thresholds(source[start:stop], k)[1]

    _in_blocks(len(source), x.shape[-1], work)
    return found


@functools.cache
def _kernel() -> Callable[[Tensor, int], Tensor] | None:
    """The GPU path, tried once; None where Triton is not installed or cannot build a kernel."""
    try:
        from .abs_topk_triton import abs_topk_triton
    except ImportError:
        return None
    try:
        abs_topk_triton(torch.ones(1, 64, device="cuda"), 2)
    except Exception as error:  # a missing C compiler, an old GPU: Triton has no common class for them
        warnings.warn(f"AbsTopK runs without its GPU kernel: {error}", stacklevel=2)
        return None
    return abs_topk_triton


class _AbsTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> Tensor:
        y = torch.empty(x.shape, dtype=x.dtype)
        width = x.shape[-1]
        packed = torch.empty((x.numel() // width, -(-width // 8)) if ctx.needs_input_grad[0] else (0, 0), dtype=torch.uint8)
        source, out, bits = _rows(x), _rows(y), packed.numpy()

        def work(start: int, stop: int) -> None:
            mask = _mask(source[start:stop], k)
            np.multiply(source[start:stop], mask, out=out[start:stop])
            if len(bits):
                bits[start:stop] = np.packbits(mask, axis=-1)

        _in_blocks(len(source), width, work)
        ctx.save_for_backward(packed)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Masked.apply(grad, *ctx.saved_tensors), None


class _Masked(torch.autograd.Function):
    """grad where its bit is set, else zero; differentiable again."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, packed: Tensor) -> Tensor:
        passed = torch.empty(grad.shape, dtype=grad.dtype)
        source, out, bits, width = _rows(grad), _rows(passed), packed.numpy(), grad.shape[-1]

        def work(start: int, stop: int) -> None:
            mask = np.unpackbits(bits[start:stop], axis=-1, count=width).view(np.bool_)
            np.multiply(source[start:stop], mask, out=out[start:stop])

        _in_blocks(len(source), width, work)
        ctx.save_for_backward(packed)
        return passed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Masked.apply(grad, *ctx.saved_tensors), None


def _rows(x: Tensor) -> np.ndarray:
    """The bit patterns of x as (rows, width); shares memory where x's strides allow."""
    return x.detach().view(_BITS[x.dtype]).reshape(-1, x.shape[-1]).numpy()


# Blocks of rows, on several threads. Numpy lets other threads run while it works.


def _in_blocks(rows: int, width: int, work: Callable[[int, int], None]) -> None:
    """Call work(start, stop) for all rows. Rows do not depend on each other, so neither do results on the split."""
    step = max(1, _BLOCK // width)
    blocks = -(-rows // step)
    threads = min(torch.get_num_threads(), blocks)

    def share(index: int) -> None:
        for block in range(index, blocks, threads):
            work(block * step, min(rows, (block + 1) * step))

    others = [_pool(os.getpid(), threads - 1).submit(share, index) for index in range(1, threads)]
    try:
        if threads:
            share(0)
    finally:
        for other in others:
            other.result()


@functools.lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads to help the calling one. Keyed by process, because a fork copies the pool without its threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix="abs_topk")


_own = threading.local()


def _workspace(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that this thread reuses: fresh memory costs more to touch than a row to sort."""
    size = shape[0] * shape[1]
    held = getattr(_own, dtype.name, None)
    if held is None or len(held) < size:
        held = np.empty(max(size, _BLOCK), dtype)
        setattr(_own, dtype.name, held)
    return held[:size].reshape(shape)


# The k-th largest of every row.


def _mask(source: np.ndarray, k: int) -> np.ndarray:
    """True where a bit pattern's magnitude is at least the k-th largest of its row."""
    magnitude, threshold = _thresholds(source, k)
    return magnitude >= threshold[:, None]


def _thresholds(source: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes as bit patterns, and the k-th largest of every row."""
    rows, width = source.shape
    wide = np.dtype(np.int32) if source.dtype == np.int16 else source.dtype  # not every machine sorts 16-bit integers by SIMD
    low = wide.type(np.iinfo(source.dtype).max)
    magnitude = np.bitwise_and(source, low, dtype=wide)
    pieces = -(-width // _PIECE)
    length = -(-width // pieces)
    scratch = _workspace((rows, pieces * length), wide)
    scratch[:, :width] = magnitude
    scratch[:, width:] = -1  # padding, below every magnitude
    threshold = _kth_largest(scratch, k) if pieces == 1 else _kth_largest_of_pieces(scratch.reshape(rows, pieces, length), k)
    return magnitude, threshold


def _kth_largest(values: np.ndarray, k: int) -> np.ndarray:
    place = values.shape[1] - k
    values.partition(place, axis=-1)
    return values[:, place].copy()


def _kth_largest_of_pieces(pieces: np.ndarray, k: int) -> np.ndarray:
    """The k-th largest of every row of (rows, pieces, length), reordering it.

    Sort the pieces, guess the threshold from every 16th entry, and look only at a window round the guess in every piece. What lies outside
    the windows proves the result. Where it does not, the guess may be right itself (many equal entries, as in a row of few nonzeros); else
    the row is partitioned whole.
    """
    rows, count, length = pieces.shape
    pieces.sort(axis=-1)
    guess, start = _windows(pieces, k)
    line, piece = np.arange(rows)[:, None], np.arange(count)[None]
    window = 2 * _REACH
    step, across, along = pieces.strides
    windows = as_strided(pieces, (rows, count, length - window + 1, window), (step, across, along, along))
    candidates = windows[line, piece, start].reshape(rows, -1)
    candidates.sort(axis=-1)
    above = count * (length - window) - start.sum(axis=1)  # entries beyond the windows
    place = candidates.shape[1] - (k - above)
    found = (place >= 0) & (place < candidates.shape[1])
    threshold = candidates[line[:, 0], np.where(found, place, 0)]
    largest = np.iinfo(pieces.dtype).max
    below = np.where(start > 0, pieces[line, piece, start - 1], -1).max(axis=1)
    end = start + window
    beyond = np.where(end < length, pieces[line, piece, np.minimum(end, length - 1)], largest).min(axis=1)
    missed = np.flatnonzero(~found | (below > threshold) | (beyond < threshold))
    if len(missed):
        whole, guess = pieces[missed].reshape(len(missed), -1), guess[missed, None]
        right = (_count(whole > guess) < k) & (k <= _count(whole >= guess))
        threshold[missed[right]] = guess[right, 0]
        if not right.all():
            threshold[missed[~right]] = _kth_largest(whole[~right], k)
    return threshold


def _count(mask: np.ndarray) -> np.ndarray:
    """True entries per row."""
    return np.bitwise_count(np.packbits(mask, axis=-1)).sum(axis=-1, dtype=np.int64)


def _windows(pieces: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The sample's k-th largest of every row, (rows,), and where the window round it begins in every sorted piece, (rows, pieces)."""
    rows, _, length = pieces.shape
    sample = np.ascontiguousarray(pieces[:, :, _STRIDE // 2 :: _STRIDE])
    kept = min(max(1, round(k / _STRIDE)), sample[0].size)
    guess = _kth_largest(sample.reshape(rows, -1).copy(), kept)
    centre = _STRIDE * np.count_nonzero(sample < guess[:, None, None], axis=-1)
    return guess, np.clip(centre - _REACH, 0, length - 2 * _REACH)
