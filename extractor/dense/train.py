"""Train an ordinary Hugging Face GPT-2 on a corpus: how the bundled `python-tiny` was made.

AdamW, warm-up, cosine decay to a tenth, gradient norm clipped to 1; weights in fp32.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from extractor.corpus import Corpus
from extractor.specs import TrainSpec
from extractor.training import LoopEnvironment, TrainState, place, run_loop

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
        n_inner=shape.mlp_ratio * shape.d_model,
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
    model = new_gpt2(spec, vocab_size, seed)
    device = place(model)
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps)

    def step(index: int) -> dict[str, float]:
        ids = corpus.batch(seed, index, optim.batch, optim.context).to(device)
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * cosine(index, optim.steps, optim.warmup)
        optimizer.step()
        return {"loss": loss.item()}

    model.train()
    run_loop("train", optim.steps, TrainState({"model": model}, [optimizer]), step, env)
    return model.eval()


def cosine(step: int, steps: int, warmup: float) -> float:
    """Learning-rate factor: linear warm-up, then cosine from 1 to 0.1."""
    warm = max(1, int(warmup * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
