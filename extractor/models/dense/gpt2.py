"""Hugging Face GPT-2 as a list of sublayers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from extractor.models.dense.base import BlockWeights, DenseContext, GPTWeights, Norm, causal_context
from extractor.models.dense.start import ACTIVATIONS, obstacle


class GPT2Sublayers:
    """See `extractor.models.dense.base.DenseSublayers`. The model keeps its modules; nothing is copied or changed."""

    norms: tuple[str, ...] = ("ln_1", "ln_2", "ln_f")
    has_positions = True

    def __init__(self, model: Any):
        self.model = model
        self.n_sublayers = 2 * len(model.transformer.h)
        self.width: int = model.config.hidden_size

    def context(self, ids: Tensor, attention_mask: Tensor | None = None) -> DenseContext:
        transformer = self.model.transformer
        # On a GPU an index beyond the table fails an assertion that makes CUDA unusable.
        if ids.shape[1] > transformer.wpe.num_embeddings:
            raise ValueError(f"{ids.shape[1]} tokens do not fit the model's {transformer.wpe.num_embeddings} positions; use shorter texts")
        return causal_context(self.model.config, transformer.wte, ids, attention_mask)

    def embed(self, ids: Tensor, context: DenseContext) -> Tensor:
        transformer = self.model.transformer
        return transformer.drop(transformer.wte(ids) + transformer.wpe(context.positions))

    def sublayer(self, index: int, h: Tensor, context: DenseContext) -> Tensor:
        block = self.model.transformer.h[index // 2]
        if index % 2 == 0:
            return block.attn(block.ln_1(h), attention_mask=context.mask, position_ids=context.positions)[0] + h
        return h + block.mlp(block.ln_2(h))

    def unembed(self, h: Tensor) -> Tensor:
        return self.model.lm_head(self.model.transformer.ln_f(h))

    def weights(self, context: int | None = None) -> GPTWeights | None:
        transformer, config = self.model.transformer, self.model.config
        if obstacle(config.to_dict(), context or transformer.wpe.num_embeddings):
            return None
        return GPTWeights(
            embedding=plain(transformer.wte.weight),
            positions=plain(transformer.wpe.weight),
            unembedding=plain(self.model.lm_head.weight),
            d_head=config.hidden_size // config.num_attention_heads,
            final_norm=norm(transformer.ln_f),
            eps=config.layer_norm_epsilon,
            activation=ACTIVATIONS[config.activation_function],
            blocks=tuple(
                BlockWeights(norm(b.ln_1), norm(b.ln_2), *self.attention(b.attn), *linear(b.mlp.c_fc), *linear(b.mlp.c_proj))
                for b in transformer.h
            ),
        )

    def attention(self, attn: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """qkv, qkv_bias, attn_out, attn_out_bias."""
        return *linear(attn.c_attn), *linear(attn.c_proj)


def plain(weight: Tensor) -> Tensor:
    return weight.detach().float()


def norm(module: Any) -> Norm:
    """Gain and bias of a norm; an RMSNorm has no bias."""
    gain, bias = plain(module.weight), getattr(module, "bias", None)
    return Norm(gain, torch.zeros_like(gain) if bias is None else plain(bias))


def linear(layer: Any) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias (out,) of a Conv1D or Linear; a bias that is not there is zero."""
    weight = plain(layer.weight.t() if isinstance(layer, Conv1D) else layer.weight)
    return weight, weight.new_zeros(len(weight)) if layer.bias is None else plain(layer.bias)


DENSE = GPT2Sublayers
