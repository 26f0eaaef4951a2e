"""Fused attention beside its definition: values and all gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from extractor.sparse.sink_attention import attend, causal_mask, plain_attention, token_sink_attention

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 5e-2}


def inputs(batch: int, heads: int, length: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v as a model makes them (heads split from channels), and sink logits, the largest of which outweighs all keys."""
    generator = torch.Generator().manual_seed(length)
    qkv = [torch.randn(batch, length, heads * width, generator=generator, dtype=torch.float64) for _ in range(3)]
    sink = torch.linspace(-3, 8, heads, dtype=torch.float64)
    return [t.to(dtype).requires_grad_() for t in (*qkv, sink)]


def run(attention, tensors: list[Tensor], heads: int) -> list[Tensor]:
    """The mixed values and the gradients of q, k, v and the sink logits, as float64."""
    *qkv, sink = tensors
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in qkv)
    mixed = attention(q, k, v, sink)
    weights = torch.randn(mixed.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(mixed.dtype)
    grads = torch.autograd.grad(mixed, tensors, weights, allow_unused=True)
    return [t.detach().double() for t in (mixed, *grads) if t is not None]


def assert_near(found: list[Tensor], expected: list[Tensor], tolerance: float):
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        assert one.shape == two.shape
        assert (one - two).abs().max().item() <= tolerance * max(1.0, two.abs().max().item())


SHAPES = [(2, 3, 1, 4), (1, 4, 4, 16), (2, 3, 17, 16), (3, 2, 64, 8), (1, 2, 300, 16)]


@pytest.mark.parametrize("attention", [lambda q, k, v, s: attend(q, k, v, None, s), token_sink_attention], ids=["attend", "token"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_causal_attention_with_sinks_equals_its_definition(shape, dtype, attention):
    tensors = inputs(*shape, dtype)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected = run(lambda q, k, v, s: plain_attention(q, k, v, causal_mask(q.shape[-2], q.dtype), s), exact, shape[1])
    assert len(expected) == 5
    assert_near(run(attention, tensors, shape[1]), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_causal_attention_without_sinks_equals_its_definition(shape, dtype):
    tensors = inputs(*shape, dtype)
    expected = run(lambda q, k, v, _: plain_attention(q, k, v, causal_mask(q.shape[-2], q.dtype), None), tensors, shape[1])
    assert len(expected) == 4
    assert_near(run(lambda q, k, v, _: attend(q, k, v, None, None), tensors, shape[1]), expected, TOLERANCE[dtype])


def test_a_sink_by_hand():
    q = torch.tensor([[[[1.0, 0.0], [1.0, 1.0]]]])
    mixed = attend(q, q, 2 * q, None, torch.tensor([math.log(3)]))
    one, two = math.exp(1 / math.sqrt(2)), math.exp(math.sqrt(2))
    assert mixed[0, 0, 0].tolist() == pytest.approx([2 * one / (one + 3), 0.0], abs=1e-6)
    assert mixed[0, 0, 1].tolist() == pytest.approx([2 * (one + two) / (one + two + 3), 2 * two / (one + two + 3)], abs=1e-6)


def test_a_sink_that_weighs_nothing_is_no_sink_and_one_that_weighs_all_mutes_the_head():
    q, k, v, _ = (t.detach().unflatten(-1, (3, -1)).transpose(1, 2) if t.dim() > 1 else t for t in inputs(2, 3, 9, 8, torch.float32))
    assert torch.allclose(attend(q, k, v, None, torch.full((3,), -60.0)), attend(q, k, v), atol=1e-6)
    assert attend(q, k, v, None, torch.full((3,), 60.0)).abs().max().item() < 1e-12


@pytest.mark.parametrize("sinks", [True, False])
def test_a_mask_of_padding_and_fewer_queries_than_keys(sinks: bool):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 2, 4), torch.randn(2, 3, 6, 4), torch.randn(2, 3, 6, 4)
    sink = torch.randn(3) if sinks else None
    mask = torch.zeros(2, 1, 2, 6)
    mask[0, :, :, :2] = torch.finfo(torch.float32).min
    mixed = attend(q, k, v, mask, sink)
    alone = attend(q[:1], k[:1, :, 2:], v[:1, :, 2:], torch.zeros(2, 4), sink)
    assert torch.allclose(mixed[:1], alone, atol=1e-6)


def test_no_score_matrix_is_kept_for_the_backward_pass():
    saved: list[int] = []
    tensors = inputs(1, 2, 256, 8, torch.float32)
    q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in tensors[:3])
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        attend(q, k, v, None, tensors[3])
    assert saved
    assert max(saved) <= 2 * 256 * 8
