"""Sparse training beside dense training of the same shape, and its fast paths beside their reference implementations.

Steps at d_model 512, 2 layers, vocabulary 1,024, 2,048 tokens; 1 weight in 64. The dense model is the same one without AbsTopK and without
projection. With a CUDA device also at d_model 1,024, 8 layers and 16,384 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from extractor.sparse.abs_topk import abs_topk
from extractor.sparse.configuration_sparse_gpt import SparseGPTConfig
from extractor.sparse.kernels import sparsify
from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM
from extractor.sparse.sink_attention import attend, causal_mask, plain_attention
from extractor.spec.schema import OptimSpec, SparsitySpec
from extractor.training.optimizer import SparseOptimizer
from extractor.training.projection import Constraint, Projector, constraints
from extractor.training.schedule import annealed_fraction
from tests.benchmarks.measure import Row, in_fresh_process, times_faster

STEPS = 1000
ANNEALING, ANNEALED = 250, 700  # steps, of STEPS
SPARSE = SparsitySpec(weight_frac=1 / 64)
DENSE = SparsitySpec(weight_frac=1.0, embedding_frac=1.0, bias_frac=1.0)
VOCABULARY = 1024


def rows(threads: int) -> Iterator[Row]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    yield Row("step (2 layers, d_model 512, 2,048 tokens), sparse over dense", _step_ratio("cpu", 2, 512, 32, 64), "<= 1.3")
    # With a low threshold malloc gives every buffer back at once: what is resident then is in use, not kept for later.
    in_use = _memory_ratio(threads, MALLOC_MMAP_THRESHOLD_="131072")
    yield Row("peak memory in use in three such steps, sparse over dense", in_use, "<= 1.1")
    yield Row("peak resident memory of three such steps, sparse over dense", _memory_ratio(threads), "<= 1.3")
    for width in (128, 512, 1024, 2048):
        yield Row(f"AbsTopK (2048, {width}), k a quarter, over topk + scatter", _abs_topk_ratio("cpu", 2048, width), ">= 2.0")
    yield Row("projection of all matrices while annealing, over one topk each", _projection_ratio("cpu", ANNEALING), ">= 3.0")
    yield Row("projection of all matrices at 1/64, over one topk each", _projection_ratio("cpu", ANNEALED), ">= 3.0")
    for length in (64, 256, 1024):
        yield Row(f"attention with sinks ({2048 // length}, 32, {length}, 16), over plain", _attention_ratio(length), ">= 1.0")
    for share in (64, 256, 1000):
        yield Row(f"linear (4096, 1024) with 1/{share} nonzero, over dense", _inference_ratio(1024, 1 / share), ">= 1.0")
    yield Row("linear (8192, 2048) with 1/1000 nonzero, over dense", _inference_ratio(2048, 1 / 1000), ">= 1.0")
    if torch.cuda.is_available():
        yield Row("GPU step (8 layers, d_model 1,024, 16,384 tokens), sparse over dense", _step_ratio("cuda", 8, 1024, 64, 256), "<= 1.15")
        yield Row("GPU AbsTopK (4096, 2048), k = 512, over topk + scatter", _abs_topk_ratio("cuda", 4096, 2048), ">= 10.0")
        yield Row("GPU projection of all matrices at 1/64, over one topk each", _projection_ratio("cuda", ANNEALED), ">= 3.0")


# Steps.


def _trainer(device: str, layers: int, width: int, batch: int, context: int, sparse: bool) -> Callable[[], None]:
    """One training step of a model that has been projected before."""
    torch.manual_seed(0)
    config = SparseGPTConfig(
        vocab_size=VOCABULARY,
        n_layer=layers,
        d_model=width,
        d_mlp=4 * width,
        d_head=16,
        n_ctx=context,
        activation_frac=0.25 if sparse else 1.0,
    )
    model = SparseGPTForCausalLM(config).to(device).train()
    optim = OptimSpec(steps=STEPS, batch=batch, context=context)
    optimizer = SparseOptimizer(model, optim, SPARSE if sparse else DENSE)
    ids = torch.randint(VOCABULARY, (batch, context), device=device)
    index = iter(range(ANNEALED, STEPS))

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(input_ids=ids, labels=ids).loss
        model.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step(next(index))

    return step


def _step_ratio(device: str, layers: int, width: int, batch: int, context: int) -> float:
    sparse, dense = (_trainer(device, layers, width, batch, context, kind) for kind in (True, False))
    return 1 / times_faster(sparse, dense, rounds=7)


def _memory_ratio(threads: int, **env: str) -> float:
    sparse, dense = (in_fresh_process(__name__, "peak_bytes", threads, kind, **env)["bytes"] for kind in (True, False))
    return sparse / dense


def peak_bytes(threads: int, sparse: bool) -> dict[str, int]:
    """Most resident bytes that a model and three of its steps add to this process."""
    torch.set_num_threads(threads)
    before = _peak()  # of the imports; rusage would also count the parent's
    step = _trainer("cpu", 2, 512, 32, 64, sparse)
    for _ in range(3):
        step()
    return {"bytes": _peak() - before}


def _peak() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


# The parts.


def topk_and_scatter(x: Tensor, k: int) -> Tensor:
    """AbsTopK as one would write it first."""
    best = x.abs().topk(k).indices
    return torch.zeros_like(x).scatter(-1, best, x.gather(-1, best))


def _abs_topk_ratio(device: str, count: int, width: int) -> float:
    x = torch.randn(count, width, device=device)
    return times_faster(lambda: abs_topk(x, width // 4), lambda: topk_and_scatter(x, width // 4))


def project_by_topk(constrained: list[Constraint], step: int, sparsity: SparsitySpec) -> None:
    """The projection as one would write it first: a topk for the protected entries and one for the rest."""
    for item in constrained:
        kept = item.kept(annealed_fraction(step, STEPS, item.target, sparsity), sparsity.min_per_neuron)
        score = item.tensor.detach().abs()
        if item.neuron_axis is not None:
            strongest = score.topk(sparsity.min_per_neuron, dim=item.neuron_axis).indices
            score = score.scatter(item.neuron_axis, strongest, torch.inf)
        best = score.flatten().topk(kept, sorted=False).indices
        mask = torch.zeros(item.tensor.numel(), device=score.device).index_fill(0, best, 1.0)
        item.tensor.detach().mul_(mask.view_as(item.tensor))


def _projection_ratio(device: str, step: int) -> float:
    """Both project the same weights: those of the step before, moved a little everywhere."""
    torch.manual_seed(0)
    config = SparseGPTConfig(vocab_size=VOCABULARY, n_layer=2, d_model=512, d_mlp=2048, d_head=16, bigram="none")
    constrained = constraints(SparseGPTForCausalLM(config).to(device), SPARSE)
    projector = Projector(constrained, SPARSE)
    projector.project(step - 1, STEPS)
    moved = [c.tensor.detach() + 1e-3 * torch.randn_like(c.tensor) for c in constrained]

    def before() -> None:
        for item, weight in zip(constrained, moved, strict=True):
            item.tensor.detach().copy_(weight)

    return times_faster(lambda: projector.project(step, STEPS), lambda: project_by_topk(constrained, step, SPARSE), 7, before)


def _attention_ratio(length: int) -> float:
    """Values and gradients; heads as a model of d_model 512 has them, 2,048 tokens."""
    q, k, v = (torch.randn(2048 // length, length, 32, 16).transpose(1, 2).requires_grad_() for _ in range(3))
    sink, mask = torch.zeros(32, requires_grad=True), causal_mask(length, torch.float32)

    def run(attention: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(attention().sum(), (q, k, v, sink))

    return times_faster(run(lambda: attend(q, k, v, None, sink)), run(lambda: plain_attention(q, k, v, mask, sink)), 7)


def _inference_ratio(width: int, share: float) -> float:
    """Values and input gradients of 2,048 tokens; whatever kernel `sparsify` measures to be fastest."""
    layers = [torch.nn.Linear(width, 4 * width).requires_grad_(False) for _ in range(2)]
    weight = torch.randn(4 * width, width) * (torch.rand(4 * width, width) < share)
    for layer in layers:
        layer.weight.copy_(weight)
    sparsify(layers[0])
    x = torch.randn(2048, width, requires_grad=True)
    sparse, dense = ((lambda layer=layer: torch.autograd.grad(layer(x).sum(), x)) for layer in layers)
    return times_faster(sparse, dense, 7)
