"""Training a weight-sparse GPT from scratch, and the optimiser it shares with the bridges.

One step: gradients divided by their common RMS, Adam with eps 0.1 (close to momentum SGD), decay, projection to this step's L0.
Gradients and moments stay dense, so a weight that was cut can come back. Paper: Sec. 2.1, App. A.2 and the authors' script.
"""

from __future__ import annotations

import torch
from torch import nn

from extractor.corpus import Corpus
from extractor.sparse.configuration_sparse_gpt import SparseGPTConfig
from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM
from extractor.sparse.projection import constraints, project
from extractor.sparse.schedule import sharkfin
from extractor.specs import MAX_BIGRAM_VOCABULARY, OptimSpec, SparseModelSpec, SparsitySpec, TrainSpec
from extractor.training import LoopEnvironment, TrainState, place, run_loop


def new_sparse_gpt(shape: SparseModelSpec, n_layer: int, vocab_size: int, seed: int) -> SparseGPTForCausalLM:
    """An untrained model of the spec's shape. The bigram table is left out where the vocabulary is too large for one."""
    torch.manual_seed(seed)
    config = SparseGPTConfig(
        vocab_size=vocab_size,
        n_layer=n_layer,
        d_model=shape.d_model,
        d_head=shape.d_head,
        d_mlp=shape.mlp_ratio * shape.d_model,
        n_ctx=shape.n_ctx,
        activation=shape.activation,
        activation_frac=shape.activation_frac,
        d_pos_emb=shape.d_pos_emb,
        sinks=shape.sinks,
        bigram=bigram_kind(shape, vocab_size),
        bigram_top=shape.bigram_top,
        bigram_rank=shape.bigram_rank,
    )
    return SparseGPTForCausalLM(config)


def bigram_kind(shape: SparseModelSpec, vocab_size: int) -> str:
    """The kind asked for; a dense table gives way to sparse counts where the vocabulary is too large for one."""
    return "counts" if shape.bigram == "dense" and vocab_size > MAX_BIGRAM_VOCABULARY else shape.bigram


@torch.no_grad()
def fill_bigram(model: SparseGPTForCausalLM, corpus: Corpus) -> None:
    """Start the bigram table at the corpus's smoothed log frequencies, rows centred (ours; the authors start near zero).

    At small token budgets learning the table costs most of the training; counting it costs a second.
    """
    if model.bigram_table is None:
        return
    counts = torch.from_numpy(corpus.bigram_counts(model.config.vocab_size)).to(model.bigram_table)
    unigram = counts.sum(0, keepdim=True) + 1
    smoothed = counts + 8 * unigram / unigram.sum()
    table = (smoothed / smoothed.sum(1, keepdim=True)).log()
    model.bigram_table.copy_(table - table.mean(1, keepdim=True))


class SparseOptimizer:
    """Adam on normalised gradients plus the projection: the one way a sparse model's weights change."""

    def __init__(self, model: SparseGPTForCausalLM, optim: OptimSpec, sparsity: SparsitySpec):
        self.model, self.optim, self.sparsity = model, optim, sparsity
        self.constrained = constraints(model, sparsity)
        matrices = {id(c.tensor) for c in self.constrained if c.tensor.dim() == 2}
        groups = [
            {"params": [p for p in model.parameters() if id(p) in matrices], "weight_decay": optim.weight_decay},
            {"params": [p for p in model.parameters() if id(p) not in matrices], "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)

    def step(self, index: int) -> None:
        """Apply the gradients that are in place, then project to the L0 of step `index`."""
        normalise_gradients([c.tensor for c in self.constrained], list(self.model.parameters()))
        for group in self.adam.param_groups:
            group["lr"] = self.optim.lr * sharkfin(index, self.optim, self.sparsity)
        self.adam.step()
        project(self.constrained, index, self.optim.steps, self.sparsity)


def normalise_gradients(measured: list[torch.Tensor], scaled: list[nn.Parameter]) -> None:
    """Divide all gradients in `scaled` by the common RMS of those in `measured` (+1e-5).

    The RMS is taken over the L0-constrained tensors only: a bigram table is most of a small model's entries and nearly all of its
    gradient is zero, so it would make the measure one of vocabulary size.
    """
    grads = [p.grad for p in measured if p.grad is not None]
    total = torch.stack([g.square().sum() for g in grads]).sum()
    rms = (total / sum(g.numel() for g in grads)).sqrt()
    torch._foreach_div_([p.grad for p in scaled if p.grad is not None], rms + 1e-5)


def train_sparse(spec: TrainSpec, corpus: Corpus, vocab_size: int, seed: int, env: LoopEnvironment) -> SparseGPTForCausalLM:
    """Train from scratch; returns the model in eval mode. Raises what `run_loop` raises."""
    model = new_sparse_gpt(spec.model, spec.model.n_layer, vocab_size, seed)
    fill_bigram(model, corpus)
    device = place(model)
    optimizer = SparseOptimizer(model, spec.optim, spec.sparsity)

    def step(index: int) -> dict[str, float]:
        ids = corpus.batch(seed, index, spec.optim.batch, spec.optim.context).to(device)
        loss = model(input_ids=ids, labels=ids).loss
        model.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step(index)
        return {"loss": loss.item()}

    model.train()
    run_loop("train", spec.optim.steps, TrainState({"model": model}, [optimizer.adam]), step, env)
    return model.eval()
