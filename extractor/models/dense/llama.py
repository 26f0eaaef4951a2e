"""Hugging Face Llama as a list of sublayers: RMSNorm, rotary positions, grouped queries, gated MLP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from extractor.models.dense.base import DenseContext, causal_context


class LlamaSublayers:
    """See `extractor.models.dense.base.DenseSublayers`. The model keeps its modules; nothing is copied or changed.

    Rotary angles need no table, so texts may be longer than max_position_embeddings, as in the model itself.
    """

    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm", "norm")
    has_positions = False

    def __init__(self, model: Any):
        self.model = model
        self.n_sublayers = 2 * len(model.model.layers)
        self.width: int = model.config.hidden_size

    def context(self, ids: Tensor, attention_mask: Tensor | None = None) -> DenseContext:
        inner = self.model.model
        context = causal_context(self.model.config, inner.embed_tokens, ids, attention_mask)
        # rotary_emb reads only dtype and device of its first argument.
        return replace(context, rotary=inner.rotary_emb(inner.embed_tokens.weight, position_ids=context.positions))

    def embed(self, ids: Tensor, context: DenseContext) -> Tensor:
        return self.model.model.embed_tokens(ids)

    def sublayer(self, index: int, h: Tensor, context: DenseContext) -> Tensor:
        layer = self.model.model.layers[index // 2]
        if index % 2 == 0:
            normed = layer.input_layernorm(h)
            attended, _ = layer.self_attn(
                normed, attention_mask=context.mask, position_ids=context.positions, position_embeddings=context.rotary
            )
            return h + attended
        return h + layer.mlp(layer.post_attention_layernorm(h))

    def unembed(self, h: Tensor) -> Tensor:
        return self.model.lm_head(self.model.model.norm(h))

    def weights(self, context: int | None = None) -> None:
        return None


DENSE = LlamaSublayers
