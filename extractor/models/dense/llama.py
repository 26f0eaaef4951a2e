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

    def is_windowed(self, layer: int) -> bool:
        """Whether the attention of a layer sees a window of the last tokens only."""
        return False

    def context(self, ids: Tensor, attention_mask: Tensor | None = None) -> DenseContext:
        inner = self.model.model
        has_windows = any(self.is_windowed(layer) for layer in range(self.n_sublayers // 2))
        context = causal_context(self.model.config, inner.embed_tokens, ids, attention_mask, has_windows)
        # rotary_emb reads only dtype and device of its first argument.
        return replace(context, rotary=inner.rotary_emb(inner.embed_tokens.weight, position_ids=context.positions))

    def embed(self, ids: Tensor, context: DenseContext) -> Tensor:
        return self.model.model.embed_tokens(ids)

    def sublayer(self, index: int, h: Tensor, context: DenseContext) -> Tensor:
        layer = self.model.model.layers[index // 2]
        if index % 2 == 0:
            return h + self.attended(
                layer, layer.input_layernorm(h), context.windowed if self.is_windowed(index // 2) else context.mask, context
            )
        return h + layer.mlp(layer.post_attention_layernorm(h))

    def attended(self, layer: Any, normed: Tensor, mask: Tensor | None, context: DenseContext) -> Tensor:
        """What the attention of a layer computes of the normed residual."""
        return layer.self_attn(normed, attention_mask=mask, position_ids=context.positions, position_embeddings=context.rotary)[0]

    def unembed(self, h: Tensor) -> Tensor:
        return self.model.lm_head(self.model.model.norm(h))

    def weights(self, context: int | None = None) -> None:
        return None


DENSE = LlamaSublayers
