"""The fast paths of training beside their reference implementations, at the sizes of preset `tiny`.

Values: times faster than the reference.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional

from extractor.bridges.losses import Target
from extractor.sparse.abs_topk import abs_topk
from extractor.spec.schema import SparsitySpec
from extractor.training.projection import Constraint, Projector
from tests.benchmarks.measure import Row, times_faster


def rows(threads: int) -> Iterator[Row]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    for width in (128, 512):
        x = torch.randn(1536, width)
        yield Row(f"AbsTopK (1536, {width}), over torch.topk + scatter", times_faster(_fast(x), _reference(x)), ">= 2.0")
    weight = torch.randn(512, 128)
    yield Row("L0 projection (512, 128), over torch.topk", times_faster(_project(weight), _project_reference(weight)), ">= 1.0")
    logits = torch.randn(24, 48, 1024, requires_grad=True)
    target = Target.of(torch.randn(24, 48, 1024))
    yield Row(
        "KL with gradient (24, 48, 1024), over functional.kl_div",
        times_faster(_kl(target, logits), _kl_reference(target, logits)),
        ">= 1.2",
    )


def _fast(x):
    return lambda: abs_topk(x, x.shape[-1] // 4)


def _reference(x):
    k = x.shape[-1] // 4
    return lambda: torch.zeros_like(x).scatter(-1, (best := x.abs().topk(k).indices), x.gather(-1, best))


def _project(weight):
    item = Constraint("weight", weight.clone(), 1 / 16, 1)
    projector = Projector([item], SparsitySpec(min_per_neuron=4))
    return lambda: (item.tensor.copy_(weight), projector.project(99, 100))


def _project_reference(weight):
    def run():
        strongest = weight.abs().topk(4, dim=1).indices
        score = weight.abs().scatter(1, strongest, torch.inf).flatten()
        kept = score.topk(weight.numel() // 16).indices
        return weight * torch.zeros(weight.numel()).index_fill(0, kept, 1.0).view_as(weight)

    return run


def _kl(target, logits):
    return lambda: torch.autograd.grad(target.kl(logits).mean(), logits)


def _kl_reference(target, logits):
    log_p = target.p.log()

    def run():
        value = functional.kl_div(logits.log_softmax(-1), log_p, log_target=True, reduction="none").sum(-1)
        return torch.autograd.grad(value.mean(), logits)

    return run
