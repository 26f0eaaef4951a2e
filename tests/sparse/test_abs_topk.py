"""AbsTopK's fast paths beside its definition: the same bits, the same gradients, on one thread and on several, and in the GPU kernel."""

from __future__ import annotations

import importlib.util
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from worlds import ROOT, python

from extractor.sparse import abs_topk as module
from extractor.sparse.abs_topk import abs_topk, abs_topk_mask, plain_abs_topk

WIDTHS = [1, 2, 7, 128, 512, 513, 768, 1000, 1024, 1031, 2048, 4096]
KINDS = ["normal", "ties", "zeros", "one channel", "first half large", "sorted", "infinite"]


def values(kind: str, rows: int, width: int, seed: int = 0) -> Tensor:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    if kind == "ties":
        return x.mul(3).round()
    if kind == "zeros":
        return x * (torch.rand(x.shape, generator=torch.Generator().manual_seed(seed + 1)) < 0.1)
    if kind == "one channel":
        x[:, width // 3] = 1e30
    elif kind == "first half large":  # where a window round the middle of every piece would miss
        x[:, : width // 2] *= 1e6
    elif kind == "sorted":
        return x.sort(dim=-1).values
    elif kind == "infinite":
        x[:, :: max(1, width // 5)] = -math.inf
    return x


def some_k(width: int) -> list[int]:
    return sorted({1, max(1, width // 64), max(1, width // 4), max(1, width - 1), width})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", WIDTHS)
def test_values_and_gradients_equal_the_definition(width: int, kind: str):
    for k in some_k(width):
        x = values(kind, 9, width, k)
        fast, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
        one = abs_topk(fast, k)
        two = plain if k == width else torch.where(abs_topk_mask(plain, k), plain, 0.0)  # 0 times infinity is not zero
        assert torch.equal(one, two), k
        grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
        assert torch.equal(*(torch.autograd.grad(y, leaf, grad)[0] for y, leaf in ((one, fast), (two, plain)))), k


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(0, 40), width=st.integers(1, 1500), share=st.floats(0, 1), levels=st.integers(1, 400), seed=st.integers(0, 999))
def test_the_mask_with_few_distinct_magnitudes(rows: int, width: int, share: float, levels: int, seed: int):
    k = max(1, round(share * width))
    x = torch.randint(-levels, levels + 1, (rows, width), generator=torch.Generator().manual_seed(seed)).float()
    assert torch.equal(abs_topk(x, k), x if k == width else plain_abs_topk(x, k))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [30, 700])
def test_other_float_types(dtype: torch.dtype, width: int):
    x = values("normal", 5, width).to(dtype)  # half precision brings ties
    x[1] = 0
    fast, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    for k in some_k(width)[:-1]:
        one, two = abs_topk(fast, k), plain_abs_topk(plain, k)
        assert one.dtype == dtype
        assert torch.equal(one, two)
        grad = torch.ones_like(x)
        assert torch.equal(torch.autograd.grad(one, fast, grad)[0], torch.autograd.grad(two, plain, grad)[0])


def test_the_search_by_windows_finds_ordinary_rows_and_hands_on_the_rest(monkeypatch: pytest.MonkeyPatch):
    whole: list[int] = []
    plain = module._kth_largest

    def watched(entries: np.ndarray, k: int) -> np.ndarray:
        if entries.shape[1] == 8192:
            whole.append(len(entries))
        return plain(entries, k)

    monkeypatch.setattr(module, "_kth_largest", watched)
    for kind in ("normal", "first half large", "zeros", "ties"):
        abs_topk(values(kind, 50, 8192), 2048)
    assert sum(whole) <= 2  # none but by bad luck
    # 15 pieces of 512 in which the sample sees 128 of 135 large entries, one that holds all entries near the threshold.
    far = torch.cat([torch.full((135,), 1e6), torch.full((377,), 1e-6)]).repeat(15)
    hard = torch.cat([far + torch.rand(len(far)) * far, 100 + torch.arange(512.0)]).repeat(3, 1)
    assert torch.equal(abs_topk(hard, 15 * 135 + 256), plain_abs_topk(hard, 15 * 135 + 256))
    assert sum(whole) >= 3


def test_strided_rows_and_gradients_of_any_layout():
    wide = torch.randn(2, 5, 3 * 600).requires_grad_()
    for part in wide.chunk(3, dim=-1):
        assert torch.equal(abs_topk(part, 60), plain_abs_topk(part, 60))
    transposed = torch.randn(7, 6).T
    assert torch.equal(abs_topk(transposed, 2), plain_abs_topk(transposed, 2))
    one, two = (torch.autograd.grad(f(wide, 9).sum(), wide)[0] for f in (abs_topk, plain_abs_topk))  # the gradient is one expanded number
    assert torch.equal(one, two)


def test_gradients_of_gradients():
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: abs_topk(t, 3), x)
    assert torch.autograd.gradgradcheck(lambda t: abs_topk(t, 3) ** 2, x)


def test_the_number_of_threads_does_not_change_a_bit():
    x = torch.randn(5 * module._BLOCK // 1024 + 3, 1024, requires_grad=True)
    found, threads = [], torch.get_num_threads()
    try:
        for number in (1, 2, 3, 7):
            torch.set_num_threads(number)
            module._pool.cache_clear()
            y = abs_topk(x, 256)
            found.append((y, *torch.autograd.grad(y.square().sum(), x)))
            assert module._pool.cache_info().currsize == (number > 1)
    finally:
        torch.set_num_threads(threads)
    for y, grad in found[1:]:
        assert torch.equal(y, found[0][0])
        assert torch.equal(grad, found[0][1])


def test_threads_still_work_after_a_fork():
    code = """
import os, sys, torch
sys.path.insert(0, 'extractor/sparse')
torch.set_num_threads(2)
from abs_topk import abs_topk, _BLOCK
x = torch.randn(3 * _BLOCK // 128, 128)
before = abs_topk(x, 32)
child = os.fork()
if not child:
    os._exit(0 if torch.equal(abs_topk(x.clone(), 32), before) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert python(code).strip() == "0"


# The files are imported alone: the package around them takes seconds.
KERNEL = """
import sys, torch
sys.path.insert(0, 'extractor/sparse')
torch.set_num_threads(1)
from abs_topk import plain_abs_topk
from abs_topk_triton import abs_topk_triton
torch.manual_seed(0)
checked = 0
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for width in (2, 33, 1030):
        for k in {1, max(1, width // 4), width - 1}:
            x = torch.randn(5, width).to(dtype)
            x[1] = 0                            # nothing but zeros
            x[2, ::2] = 0
            x[3] = (3 * x[3]).round()           # ties
            x[4] = x[4] * 1e-4                  # subnormal in half precision
            fast, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
            one, two = abs_topk_triton(fast, k), plain_abs_topk(plain, k)
            assert torch.equal(one, two), (dtype, width, k)
            grad = torch.randn(5, width).to(dtype)
            one.backward(grad), two.backward(grad)
            assert torch.equal(fast.grad, plain.grad), (dtype, width, k)
            checked += 1
wide = torch.randn(4, 3 * 50)
for part in wide.chunk(3, dim=-1):              # strided rows
    assert torch.equal(abs_topk_triton(part, 7), plain_abs_topk(part, 7))
x = torch.randn(2, 9, dtype=torch.float32, requires_grad=True)
(slope,) = torch.autograd.grad(abs_topk_triton(x, 3).square().sum(), x, create_graph=True)
(curve,) = torch.autograd.grad(slope.sum(), x)
assert torch.equal(curve, 2.0 * (slope != 0))
print(checked)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_gpu_kernel_under_tritons_interpreter_equals_the_definition():
    assert int(python(KERNEL, env={"TRITON_INTERPRET": "1"})) >= 20


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_gpu_kernel_compiles_for_a_gpu_this_machine_need_not_have(tmp_path):
    code = """
import sys, triton
sys.path.insert(0, 'extractor/sparse')
import abs_topk_triton as kernels
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
common = {"packed": "*i32", "row_stride": "i32", "width": "i32", "words": "i32", "block": "constexpr"}
for element, idle in (("fp32", 0), ("bf16", 16), ("fp16", 13)):
    for width in (100, 8192):
        sizes = kernels._launch(width)
        for kernel, signature, constants in (
            (kernels._forward, {"x": "*" + element, "y": "*" + element, "k": "i32", "idle": "constexpr"}, {"idle": idle}),
            (kernels._backward, {"grad": "*" + element, "passed": "*" + element}, {}),
        ):
            ordered = {name: (signature | common)[name] for name in kernel.arg_names}
            source = ASTSource(kernel, signature=ordered, constexprs=constants | {"block": sizes["block"]})
            made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": sizes["num_warps"]})
            assert made.asm["cubin"]
            print(element, width)
"""
    out = python(code, env={"TRITON_CACHE_DIR": str(tmp_path)})
    assert len(out.splitlines()) == 12


def test_a_saved_model_does_not_demand_triton():
    from transformers.dynamic_module_utils import get_imports

    for name in ("abs_topk.py", "abs_topk_triton.py"):
        assert set(get_imports(ROOT / "extractor" / "sparse" / name)) <= {"torch", "numpy", *sys.stdlib_module_names}


def test_without_triton_a_gpu_takes_the_plain_path(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "extractor.sparse.abs_topk_triton", raising=False)
    module._kernel.cache_clear()
    try:
        assert module._kernel() is None
    finally:
        module._kernel.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_gpu_kernel_on_a_gpu_equals_the_definition(dtype: torch.dtype):
    assert module._kernel() is not None
    for width in (1, 33, 512, 1000, 2048, 8192):
        for kind in KINDS[:-1]:
            for k in some_k(width):
                x = values(kind, 70, width).to("cuda", dtype).nan_to_num()
                fast, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
                one, two = abs_topk(fast, k), plain if k == width else plain_abs_topk(plain, k)
                assert torch.equal(one, two), (width, kind, k)
                grad = torch.randn_like(x)
                assert torch.equal(*(torch.autograd.grad(y, leaf, grad)[0] for y, leaf in ((one, fast), (two, plain)))), (width, kind, k)
