"""A second device without a GPU: its tensors compute on the CPU, say that they are elsewhere, and refuse to meet tensors of the CPU.

Inside `foreign_device()` everything that is made on the device, or moved to it, becomes a `ForeignTensor`. As on a GPU, an operation takes
tensors of one device, beside scalars (tensors without dimensions) of the CPU; an index may be a CPU tensor. What moves to the CPU is a
plain tensor again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "foreign"
_aten = torch.ops.aten
_MOVES = {_aten._to_copy.default, _aten.copy_.default}
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}


class ForeignTensor(Tensor):
    """A tensor of the second device; `inner` holds its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> ForeignTensor:
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = Tensor._make_wrapper_subclass(cls, inner.size(), device=torch.device(NAME, 0), **layout)
        made.inner = inner
        return made

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"ForeignTensor({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Catches what is made on the second device from nothing, and moves from the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat, _ = tree_flatten((args, kwargs))
    tensors = [one for one in flat if isinstance(one, Tensor)]
    is_foreign = [isinstance(one, ForeignTensor) for one in tensors]
    wanted = kwargs.get("device")
    wanted = None if wanted is None else torch.device(wanted)
    if any(is_foreign) and not all(is_foreign) and func not in _MOVES:
        is_index = func in _INDEXED and is_foreign[0]
        met = [one for one, foreign in zip(tensors, is_foreign, strict=True) if not foreign and one.dim() > 0]
        if any(one.is_floating_point() or not is_index for one in met):
            shapes = [f"{one.device.type} {tuple(one.shape)}" for one in tensors]
            raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got {', '.join(shapes)}")
    inner = lambda one: one.inner if isinstance(one, ForeignTensor) else one  # noqa: E731
    plain = {name: torch.device("cpu") if name == "device" and value is not None else value for name, value in kwargs.items()}
    found = func(*tree_map(inner, args), **tree_map(inner, plain))
    to_foreign = wanted.type == NAME if wanted is not None else any(is_foreign)
    if func is _aten.copy_.default:
        return args[0]
    if not to_foreign or func is _aten._local_scalar_dense.default:
        return found
    owners = {id(one.inner): one for one in tensors if isinstance(one, ForeignTensor)}
    return tree_map(lambda one: _owner(one, owners), found)


def _owner(one: Any, owners: dict[int, ForeignTensor]) -> Any:
    """A result as a foreign tensor: of an operation in place, the one that it changed."""
    if not isinstance(one, Tensor):
        return one
    return owners[id(one)] if id(one) in owners else ForeignTensor(one)


class _Module(_DummyBackendModule):
    """What torch asks of a device."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]


@cache
def _registered() -> None:
    """Once in a process: torch's autograd engine asks every device for its guard."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())


@contextmanager
def foreign_device() -> Iterator[torch.device]:
    _registered()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) makes a tensor of the CPU first, which then moves
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with _Factories(), sdpa_kernel(SDPBackend.MATH):  # fused attention is one kernel of a device
            yield torch.device(NAME, 0)
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        torch.__future__.set_swap_module_params_on_conversion(before)
