"""Sparse kernels for trained models: a linear layer with few nonzeros uses one where it is measured to be faster than the dense kernel.

A switched layer stays the same object with the same parameters, so hooks, names and saved weights do not change. Gradients with respect to
inputs are computed by the sparse kernel (pruning needs them); where the weight needs a gradient, the layer uses the dense kernel.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

DENSEST = 1 / 8  # nonzero fraction above which no sparse kernel is tried
_BLOCK = 256  # tokens multiplied at once, so that their output is transposed while it is in the cache
_ROUNDS = 5


def sparsify(model: nn.Module, tokens: int = 2048) -> dict[str, str]:
    """Time every linear layer on `tokens` tokens, forward and input gradient, and switch it to the fastest kernel.

    Returns the kernel of every layer by its name: 'dense', 'csr' or 'csc'. As timings vary, choices may differ between calls; values agree
    to rounding. `densify` undoes it.
    """
    densify(model)
    chosen = {}
    for name, module in model.named_modules():
        if type(module) is nn.Linear:
            chosen[name] = _fastest(module, tokens)
            if chosen[name] != "dense":
                SparseLinear.switch(module, chosen[name])
    return chosen


def densify(model: nn.Module) -> None:
    """Switch every layer back to dense kernels."""
    for module in model.modules():
        if type(module) is SparseLinear:
            module.switch_back()


class SparseLinear(nn.Linear):
    """A linear layer that multiplies a compressed copy of its weight; the copy is renewed when the weight changes."""

    _kernel: str
    _compressed: tuple[tuple, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None

    @staticmethod
    def switch(linear: nn.Linear, kernel: str) -> None:
        """Turn a linear layer into a sparse one, in place; `kernel` is 'csr' or 'csc'."""
        linear.__class__ = SparseLinear
        linear._kernel, linear._compressed = kernel, None  # type: ignore[assignment]

    def switch_back(self) -> None:
        """Turn the layer into a dense one again, in place."""
        del self._kernel, self._compressed
        self.__class__ = nn.Linear  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        learning = torch.is_grad_enabled() and self.weight.requires_grad
        if learning or x.dtype != self.weight.dtype or torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        onward, backward = self._products()
        y: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), onward, backward)
        y = y.view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def _products(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """The functions x -> x W^T and g -> g W, for x (N, in) and g (N, out)."""
        weight = self.weight.detach()
        state = weight.data_ptr(), self.weight._version, weight.device
        if self._compressed is None or self._compressed[0] != state:
            self._compressed = state, _product(weight, self._kernel), _product(weight.t(), self._kernel)
        return self._compressed[1:]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, onward: Callable[[Tensor], Tensor], backward: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.products = backward, onward
        return onward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(grad, *ctx.products), None, None


def _product(matrix: Tensor, kernel: str) -> Callable[[Tensor], Tensor]:
    """The function x (N, in) -> x matrix^T (N, out) for a matrix (out, in)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR|CSC)")
        if kernel == "csc":
            compressed = matrix.t().to_sparse_csc()
            return lambda x: x @ compressed
        compressed = matrix.to_sparse_csr()

    def by_blocks(x: Tensor) -> Tensor:
        y = x.new_empty(len(x), compressed.shape[0])
        for start in range(0, len(x), _BLOCK):
            y[start : start + _BLOCK] = (compressed @ x[start : start + _BLOCK].t()).t()
        return y

    return by_blocks


def _fastest(linear: nn.Linear, tokens: int) -> str:
    weight = linear.weight.detach()
    if weight.dtype not in (torch.float32, torch.float64) or int(weight.count_nonzero()) > DENSEST * weight.numel():
        return "dense"
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(tokens, width, generator=generator).to(weight) for width in reversed(weight.shape))
    calls: dict[str, Callable[[], object]] = {"dense": lambda: (functional.linear(x, weight), grad @ weight)}
    for kernel in ("csr", "csc"):
        onward, backward = _product(weight, kernel), _product(weight.t(), kernel)
        calls[kernel] = lambda onward=onward, backward=backward: (onward(x), backward(grad))  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for _ in range(1 + _ROUNDS):
            for name, call in calls.items():
                seconds[name].append(_time(call, weight.device))
    return min(seconds, key=lambda name: statistics.median(seconds[name][1:]))


def _time(call: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
