"""Training a weight-sparse GPT from scratch.

One step (`SparseOptimizer`): divide the gradients by their common RMS, AdamW with eps 0.1 (close to momentum SGD), projection to the L0
of this step; with `optim.decay_order='after_projection'` weight decay comes last. Gradients and moments stay dense, so a weight that was
zeroed can become nonzero again. Paper: Sec. 2.1, App. A.2 and the authors' script.
"""

from __future__ import annotations

from typing import Any

import torch

from extractor.data.corpus import Corpus
from extractor.sparse.configuration_sparse_gpt import SparseGPTConfig
from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM
from extractor.spec.schema import MAX_BIGRAM_VOCABULARY, SparseModelSpec, TrainSpec
from extractor.spec.sizes import bigram_kind
from extractor.training.checkpoints import TrainState
from extractor.training.compute import Compute
from extractor.training.loop import Loop, LoopEnvironment, next_token_loss, run_loop
from extractor.training.optimizer import SparseOptimizer
from extractor.training.statistics import activation_statistics, weight_statistics

OBSERVED_ROWS = 16  # held-out sequences on which activation statistics are measured at every logged step


def new_sparse_gpt(
    shape: SparseModelSpec, n_layer: int, vocab_size: int, seed: int, logits_bias: bool = False, **further: Any
) -> SparseGPTForCausalLM:
    """An untrained model of the spec's shape; its bigram is of `bigram_kind`. further: fields of the config in place of the spec's."""
    torch.manual_seed(seed)
    fields: dict[str, Any] = {
        "vocab_size": vocab_size,
        "n_layer": n_layer,
        "d_model": shape.d_model,
        "d_head": shape.d_head,
        "d_mlp": shape.d_mlp,
        "heads": shape.heads,
        "gated": shape.gated,
        "n_ctx": shape.n_ctx,
        "activation": shape.activation,
        "activation_frac": shape.activation_frac,
        "d_pos_emb": shape.d_pos_emb,
        "added_positions": shape.added_positions,
        "sinks": shape.sinks,
        "bigram": bigram_kind(shape, vocab_size),
        "bigram_top": shape.bigram_top,
        "bigram_rank": shape.bigram_rank,
        "logits_bias": logits_bias,
    }
    return SparseGPTForCausalLM(SparseGPTConfig(**(fields | further)))


def fill_bigram(model: SparseGPTForCausalLM, corpus: Corpus, how: str = "counts") -> None:
    """Set the bigram to the corpus's smoothed log frequencies (ours), unless `how` is 'uniform' (the authors: random, near zero).

    With few training tokens, learning the table takes most of the training; counting takes a second. Sparse counts are always filled: the
    corpus decides which entries they keep.
    """
    kind, size = model.config.bigram, model.config.vocab_size
    if kind == "none" or (how == "uniform" and kind != "counts"):
        return
    model.set_bigram(corpus.bigram_counts(size) if size <= MAX_BIGRAM_VOCABULARY else corpus.bigram_triples(size))


def train_sparse(spec: TrainSpec, corpus: Corpus, vocab_size: int, seed: int, env: LoopEnvironment) -> SparseGPTForCausalLM:
    """Train from scratch; returns the model in eval mode. Raises what `run_loop` raises."""
    optim = spec.optim
    compute = Compute(optim, env.progress.note)
    model = new_sparse_gpt(spec.model, spec.model.n_layer, vocab_size, seed)
    fill_bigram(model, corpus, spec.model.bigram_init)
    model.to(compute.device)  # type: ignore[arg-type]
    optimizer = SparseOptimizer(model, optim, spec.sparsity)

    def step(index: int) -> dict[str, float]:
        rows = corpus.batch_rows(seed, index, optim.batch, optim.context, *compute.own_rows(optim.batch))
        loss, _ = compute.accumulate(rows, optim.batch, lambda ids: (next_token_loss(model, ids), ()), optimizer.parameters)
        return {"loss": loss} | optimizer.step(index)

    observed = corpus.held_out_batch(seed, OBSERVED_ROWS, optim.context).to(compute.device)

    def measure(_index: int) -> dict[str, float]:
        return weight_statistics(model, optimizer.constrained) | activation_statistics(model, observed)

    model.train()
    loop = Loop("train", optim.steps, step, optim.batch * optim.context, measure)
    run_loop(loop, TrainState({"model": model}, [optimizer.adam], compute.state), env, compute)
    return model.eval()
