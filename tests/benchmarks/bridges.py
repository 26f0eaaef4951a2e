"""A bridging step beside the one that would be written first: its time, its memory, and what equal time buys.

naive     every path of every site by itself, with all its logits: the sums of App. A.3 as they stand
no paths  the same step where no sequence crosses over: both models' own passes, cross-entropy, NMSE and plain KL

Weights are random but where a loss is compared; memory is the peak of what a fresh process holds beyond its imports. About eight minutes
on two cores. Then the rows of fidelity.py, which also run alone: `python -m tests.benchmarks fidelity`.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from extractor import files
from extractor.bridges import train
from extractor.bridges.crossing import Crossing
from extractor.bridges.faithfulness import faithfulness
from extractor.bridges.losses import bridge_loss, moments, sparse_residuals
from extractor.bridges.pair import BridgedPair
from extractor.bridges.train import BridgeTrainer
from extractor.data.build_corpus import build_corpus
from extractor.data.corpus import Corpus
from extractor.data.programs import programs
from extractor.jobs.cost.bridging import bridging_cost, largest_micro_batch
from extractor.jobs.cost.hardware import available_memory
from extractor.models.dense.base import residuals, tail
from extractor.models.load import DenseModel
from extractor.models.tokenizer import train_tokenizer
from extractor.progress import Progress
from extractor.spec.presets import bridge_spec, train_spec
from extractor.spec.schema import BridgeSpec, CorpusSpec, OptimSpec, SparseModelSpec, SparsitySpec, TrainSpec
from extractor.training.checkpoints import Checkpoints, MetricsLog
from extractor.training.compute import Compute
from extractor.training.loop import LoopEnvironment
from extractor.training.train_gpt2 import new_gpt2, train_gpt2
from tests.benchmarks import fidelity
from tests.benchmarks.measure import Row, in_fresh_process, times_faster
from tests.benchmarks.training import _peak as peak_resident

Loss = Callable[[BridgedPair, Tensor, Crossing, Tensor, BridgeSpec], tuple[Tensor, Tensor, Tensor]]
STEPS = 1000
SECONDS = 40.0  # of training, with each estimator
TICKS = 100_000  # of a schedule that goes by the clock: more than steps can be made
FULL = {"layers": 12, "dense": 768, "sparse": 1024, "vocabulary": 50_257}  # GPT-2, and a partner of the width of preset small
FULL_BYTES, GPU_TOKENS = 16e9, 10_000


def rows(threads: int) -> Iterator[Row]:
    torch.set_num_threads(threads)
    for layers in (4, 8, 12):
        split, naive = step_ratios(layers)
        yield Row(f"step of {layers} layers of 128 that crosses at every site, over no paths", split, "<= 1.8")
        yield Row(f"step of {layers} layers of 128, naive, over no paths", naive, ">= 1.8")
    yield Row(f"mean path KL after {SECONDS:.0f} s of training, over naive", equal_time_ratio(), "<= 1.0")
    yield Row("peak memory of steps at vocabulary 50,257, over naive", memory_ratio(threads), "<= 0.25")
    full = in_fresh_process(__name__, "full_size", threads, "fp32", 4, 64, 10)
    told = f"ten steps of 4 x 64 tokens at GPT-2's size, {full['micro_batch']} a pass, {full['seconds']:.1f} s each"
    yield Row(f"{told}: peak memory, over 16 GB", full["bytes"] / FULL_BYTES, "<= 1.0")
    yield from fidelity.rows(threads)
    if torch.cuda.is_available():
        full = in_fresh_process(__name__, "full_size", threads, "bf16", 64, 256, 10)
        told = f"GPU steps of 64 x 256 tokens at GPT-2's size in bf16, {full['micro_batch']} a pass"
        yield Row(f"{told}: tokens/s, over {GPU_TOKENS:,}", 64 * 256 / full["seconds"] / GPU_TOKENS, ">= 1.0")
        yield Row(f"{told}: peak GPU memory, over the planned", full["bytes"] / full["planned"], "<= 1.1")


# The reference implementations.


def naive_loss(pair: BridgedPair, ids: Tensor, crossing: Crossing, variance: Tensor, spec: BridgeSpec) -> tuple[Tensor, Tensor, Tensor]:
    """`bridge_loss` with every sequence crossing at every site, every tail run by itself and scored at every position."""
    with torch.no_grad():
        dense_h = residuals(pair.dense, ids)
        log_p = pair.dense.unembed(dense_h[-1]).log_softmax(-1)
    own = sparse_residuals(pair, ids)
    logits = pair.sparse.unembed(own[-1], ids)
    ce, kl_plain = functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()), _kl(logits, log_p)
    sparse_context, dense_context = pair.sparse.context(ids.shape[1]), pair.dense.context(ids)
    encoder, decoder, to_sparse, to_dense = [], [], [], []
    for start, (site, d, s) in enumerate(zip(pair.sites, dense_h, own, strict=True)):
        h, decoded = site.encode(d), site.decode(s)
        encoder.append((h - s.detach()).square().mean() / variance[start])
        decoder.append((site.normalised(decoded) - site.normalised(d)).square().mean())
        for index in range(start, pair.sparse.n_sublayers):
            h = pair.sparse.sublayer(index, h, sparse_context)
        to_sparse.append(_kl(pair.sparse.unembed(h, ids), log_p))
        to_dense.append(_kl(pair.dense.unembed(tail(pair.dense, start, decoded, dense_context)), log_p))
    sums = [torch.stack(terms).sum() for terms in (encoder, decoder, to_sparse, to_dense)]
    weights = (spec.nmse_coef, spec.nmse_coef, spec.kl_to_sparse_coef, spec.kl_to_dense_coef)
    per_site = 1 / len(pair.sites) if spec.over_sites == "mean" else 1.0
    loss = spec.ce_coef * ce + spec.kl_plain_coef * kl_plain + per_site * sum(w * s for w, s in zip(weights, sums, strict=True))
    return loss, torch.stack([ce, *(s / len(pair.sites) for s in sums), kl_plain]).detach(), moments(own)


def _kl(logits: Tensor, log_p: Tensor) -> Tensor:
    return functional.kl_div(logits.log_softmax(-1), log_p, reduction="none", log_target=True).sum(-1).mean()


def no_paths_loss(pair: BridgedPair, ids: Tensor, crossing: Crossing, variance: Tensor, spec: BridgeSpec) -> tuple[Tensor, Tensor, Tensor]:
    """`bridge_loss` where no sequence crosses over."""
    nowhere = [rows[:0] for rows in crossing.rows]
    return bridge_loss(pair, ids, replace(crossing, rows=nowhere, weights=crossing.weights[:0]), variance, spec)


@contextmanager
def trained_with(loss: Loss) -> Iterator[None]:
    """Inside the block every BridgeTrainer takes this loss."""
    train.bridge_loss = loss
    try:
        yield
    finally:
        train.bridge_loss = bridge_loss


LOSSES: dict[str, Loss] = {"split": bridge_loss, "naive": naive_loss, "no paths": no_paths_loss}


# Pairs to train.


def random_corpus(folder: Path, vocabulary: int, tokens: int = 200_000) -> Corpus:
    """Random tokens, left in `folder` as a corpus."""
    ids = np.random.default_rng(0).integers(vocabulary, size=tokens).astype(np.uint16)
    np.save(folder / "train.npy", ids)
    np.save(folder / "held_out.npy", ids[:10_000])
    files.write_json(folder / "corpus.json", {"sources": [{"train": ["train.npy"], "held_out": "held_out.npy"}]})
    return Corpus(folder)


def random_dense(layers: int, width: int, vocabulary: int, context: int) -> DenseModel:
    """A GPT-2 with random weights."""
    shape = SparseModelSpec(n_layer=layers, d_model=width, d_head=min(64, width // 2), n_ctx=context)
    recipe = TrainSpec(model=shape, optim=OptimSpec(context=context))
    return DenseModel(new_gpt2(recipe, vocabulary, 0).eval().requires_grad_(False), "random", {})


def spec_of(width: int, context: int, batch: int, **optim: object) -> BridgeSpec:
    """One in sixteen weights, every sequence crosses over."""
    return BridgeSpec(
        model=SparseModelSpec(d_model=width, n_ctx=context),
        sparsity=SparsitySpec(weight_frac=1 / 16),
        optim=OptimSpec(steps=STEPS, batch=batch, context=context, **optim),  # type: ignore[arg-type]
    )


def random_trainer(layers: int, dense_width: int, vocabulary: int, spec: BridgeSpec) -> BridgeTrainer:
    """A random GPT-2 and its partner, on random tokens."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = random_corpus(Path(folder), vocabulary)
        dense = random_dense(layers, dense_width, vocabulary, spec.optim.context)
        trainer = BridgeTrainer(dense, spec, corpus, 0, Compute(spec.optim))
    trainer.pair.sparse.train()
    return trainer


# Time.


def step_ratios(layers: int, rounds: int = 3) -> tuple[float, float]:
    """Times of a step that crosses, split and naive, over one that does not: two sequences a site, 32 tokens, vocabulary 1,024."""
    trainer = random_trainer(layers, 128, 1024, spec_of(128, 32, 2 * (2 * layers + 1)))
    steps = iter(range(STEPS))

    def call(name: str) -> Callable[[], None]:
        def step() -> None:
            with trained_with(LOSSES[name]):
                trainer.step(next(steps))

        return step

    return tuple(times_faster(call("no paths"), call(name), rounds) for name in ("split", "naive"))  # type: ignore[return-value]


def equal_time_ratio(seconds: float = SECONDS) -> float:
    """Mean exact KL of all paths on held-out text after equal seconds, split over naive: a GPT-2 of 4 layers of 64, generated programs."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tokenizer = train_tokenizer(programs(2000, 0), 1024)
        corpus = build_corpus(CorpusSpec(sources=("generated",), generated_programs=3000), tokenizer, folder)
        shape = SparseModelSpec(n_layer=4, d_model=64, d_head=16, n_ctx=48)
        recipe = train_spec("tiny", "gpt2")
        optim = recipe.optim.model_copy(update={"steps": 300, "context": 48})
        env = LoopEnvironment(Checkpoints(folder / ".work", "train"), MetricsLog(None), Progress())
        dense = train_gpt2(recipe.model_copy(update={"model": shape, "optim": optim}), corpus, 1024, 0, env).requires_grad_(False)
        split, naive = (_path_kl_after(seconds, loss, DenseModel(dense, "trained", {}), corpus) for loss in (bridge_loss, naive_loss))
    return split / naive


def _path_kl_after(seconds: float, loss: Loss, dense: DenseModel, corpus: Corpus) -> float:
    """The schedule of preset tiny goes by the clock: what a step takes longer, it moves on further."""
    recipe = bridge_spec("tiny")
    spec = recipe.model_copy(update={"crossing_share": 1.0, "optim": recipe.optim.model_copy(update={"steps": TICKS})})
    trainer = BridgeTrainer(replace(dense, model=copy.deepcopy(dense.model)), spec, corpus, 0, Compute(spec.optim))
    trainer.pair.sparse.train()
    began, tick = time.perf_counter(), 0
    with trained_with(loss):
        while tick < TICKS:
            trainer.step(tick)
            tick = max(tick + 1, int(TICKS * (time.perf_counter() - began) / seconds))
    told = faithfulness(trainer.finish(), corpus, spec.optim.context, 0, 32)["path_kl"]
    return sum(map(sum, told.values())) / sum(map(len, told.values()))


# Memory.


def memory_ratio(threads: int) -> float:
    """A sequence a site; four layers of 64."""
    split, naive = (
        in_fresh_process(__name__, "peak_of_steps", threads, name, 4, 64, 64, 50_257, 64, 9)["bytes"] for name in ("split", "naive")
    )
    return split / naive


def peak_of_steps(
    threads: int, loss: str, layers: int, dense: int, sparse: int, vocabulary: int, context: int, batch: int, micro_batch: int | None = None
) -> dict[str, float]:
    """`run_steps` of three steps with one of LOSSES; an argument for each number, as a fresh process takes them."""
    with trained_with(LOSSES[loss]):
        return run_steps(threads, layers, dense, vocabulary, spec_of(sparse, context, batch, micro_batch=micro_batch), 3)


def full_size(threads: int, precision: str, batch: int, context: int, steps: int) -> dict[str, float]:
    """`run_steps` at GPT-2's size with the micro-batch that memory allows; also that, and the bytes planned."""
    config = {"model_type": "gpt2", "n_layer": FULL["layers"], "n_embd": FULL["dense"], "n_head": 12, "n_positions": context}
    spec = spec_of(FULL["sparse"], context, batch, precision=precision)
    planned = bridging_cost(config | {"vocab_size": FULL["vocabulary"]}, spec)
    micro = largest_micro_batch(planned, available_memory())
    spec = spec_of(FULL["sparse"], context, batch, precision=precision, micro_batch=micro)
    found = run_steps(threads, FULL["layers"], FULL["dense"], FULL["vocabulary"], spec, steps)
    return found | {"micro_batch": micro, "planned": planned.bytes_needed(micro)}


def run_steps(threads: int, layers: int, dense: int, vocabulary: int, spec: BridgeSpec, steps: int) -> dict[str, float]:
    """Most bytes that a pair and its steps add to this process, or hold on the GPU, and the median seconds of a step."""
    torch.set_num_threads(threads)
    before = peak_resident()  # of the imports
    trainer = random_trainer(layers, dense, vocabulary, spec)
    seconds = []
    for index in range(steps):
        began = time.perf_counter()
        trainer.step(index)  # reads its loss back, and so waits for the GPU
        seconds.append(time.perf_counter() - began)
    gpu = torch.cuda.is_available()
    return {"bytes": torch.cuda.max_memory_allocated() if gpu else peak_resident() - before, "seconds": statistics.median(seconds)}
