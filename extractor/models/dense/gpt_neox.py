"""Hugging Face GPT-NeoX (Pythia) as a list of sublayers. Where attention and MLP read one residual, a block is one sublayer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from extractor.models.dense.base import DenseContext, causal_context


class GPTNeoXSublayers:
    """See `extractor.models.dense.base.DenseSublayers`. The model keeps its modules; nothing is copied or changed."""

    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm", "final_layer_norm")
    has_positions = False

    def __init__(self, model: Any):
        self.model, self.inner = model, model.gpt_neox
        self.n_sublayers = 2 * len(self.inner.layers)
        self.width: int = model.config.hidden_size

    def context(self, ids: Tensor, attention_mask: Tensor | None = None) -> DenseContext:
        context = causal_context(self.model.config, self.inner.embed_in, ids, attention_mask)
        # rotary_emb reads only dtype and device of its first argument.
        return replace(context, rotary=self.inner.rotary_emb(self.inner.embed_in.weight, position_ids=context.positions))

    def embed(self, ids: Tensor, context: DenseContext) -> Tensor:
        return self.inner.emb_dropout(self.inner.embed_in(ids))

    def sublayer(self, index: int, h: Tensor, context: DenseContext) -> Tensor:
        layer = self.inner.layers[index // 2]
        if index % 2 == 0:
            normed, at = layer.input_layernorm(h), context.positions
            return layer.attention(normed, attention_mask=context.mask, position_ids=at, position_embeddings=context.rotary)[0] + h
        return layer.mlp(layer.post_attention_layernorm(h)) + h

    def unembed(self, h: Tensor) -> Tensor:
        return self.model.lm_head(self.inner.final_layer_norm(h))

    def weights(self, context: int | None = None) -> None:
        return None


DENSE = GPTNeoXSublayers
