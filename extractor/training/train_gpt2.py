"""Training a Hugging Face GPT-2 from scratch. The bundled `python-tiny` was made by it.

AdamW, warm-up, cosine decay to a tenth, gradient norm clipped to 1; weights in fp32.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from extractor.data.corpus import Corpus
from extractor.spec.schema import TrainSpec
from extractor.training.checkpoints import TrainState
from extractor.training.compute import Compute
from extractor.training.loop import Loop, LoopEnvironment, next_token_loss, run_loop

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


def new_gpt2(spec: TrainSpec, vocab_size: int, seed: int) -> GPT2LMHeadModel:
    """An untrained GPT2LMHeadModel of the spec's shape, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    shape = spec.model
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=shape.n_ctx,
        n_embd=shape.d_model,
        n_layer=shape.n_layer,
        n_head=shape.d_model // shape.d_head,
        n_inner=shape.d_mlp,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def train_gpt2(spec: TrainSpec, corpus: Corpus, vocab_size: int, seed: int, env: LoopEnvironment) -> GPT2LMHeadModel:
    """Train from scratch; returns the model in eval mode on its device. Raises what `run_loop` raises."""
    optim = spec.optim
    compute = Compute(optim, env.progress.note)
    model = new_gpt2(spec, vocab_size, seed).to(compute.device)  # type: ignore[arg-type]
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps)

    def step(index: int) -> dict[str, float]:
        rows = corpus.batch_rows(seed, index, optim.batch, optim.context, *compute.own_rows(optim.batch))
        loss, _ = compute.accumulate(rows, optim.batch, lambda ids: (next_token_loss(model, ids), ()), parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0).item()
        lr = optim.lr * cosine(index, optim.steps, optim.warmup)
        for group in optimizer.param_groups:
            group["lr"] = lr
        if math.isfinite(norm):
            optimizer.step()
        return {"loss": loss, "gradient_norm": norm, "lr": lr}

    model.train()
    loop = Loop("train", optim.steps, step, optim.batch * optim.context)
    run_loop(loop, TrainState({"model": model}, [optimizer], compute.state), env, compute)
    return model.eval()


def cosine(step: int, steps: int, warmup: float) -> float:
    """Learning-rate factor: linear warm-up, then cosine from 1 to 0.1."""
    warm = max(1, int(warmup * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
