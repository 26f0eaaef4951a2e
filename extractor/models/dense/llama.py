"""Hugging Face Llama as a list of sublayers: RMSNorm, rotary positions, grouped queries, gated MLP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from extractor.models.dense.base import BlockWeights, DenseContext, GPTWeights, causal_context
from extractor.models.dense.gpt2 import linear, norm, plain
from extractor.models.dense.start import ACTIVATIONS, obstacle


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

    def weights(self, context: int | None = None) -> GPTWeights | None:
        inner, config = self.model.model, self.model.config
        if obstacle(config.to_dict(), context or config.max_position_embeddings):
            return None
        angles, scale = rotary_of(inner.rotary_emb)
        return GPTWeights(
            embedding=plain(inner.embed_tokens.weight),
            positions=None,
            unembedding=plain(self.model.lm_head.weight),
            d_head=inner.layers[0].self_attn.head_dim,
            final_norm=norm(inner.norm),
            blocks=tuple(self.block(layer) for layer in inner.layers),
            centred=False,
            eps=config.rms_norm_eps,
            activation=ACTIVATIONS[config.hidden_act],
            rotary=angles,
            rotary_scale=scale,
        )

    def block(self, layer: Any) -> BlockWeights:
        attn, mlp = layer.self_attn, layer.mlp
        norms = [plain(getattr(attn, name).weight) if hasattr(attn, name) else None for name in ("q_norm", "k_norm")]
        return BlockWeights(
            norm(layer.input_layernorm),
            norm(layer.post_attention_layernorm),
            *grouped(attn),
            *linear(attn.o_proj),
            *linear(mlp.up_proj),
            *linear(mlp.down_proj),
            *linear(mlp.gate_proj),
            *norms,
        )


def grouped(attn: Any) -> tuple[Tensor, Tensor]:
    """qkv and qkv_bias of an attention whose queries may share keys and values in groups."""
    heads, qkv = attn.config.num_attention_heads, [linear(part) for part in (attn.q_proj, attn.k_proj, attn.v_proj)]
    weight, bias = (torch.cat([by_head(one[i], heads, attn.head_dim) for one in qkv]) for i in range(2))
    return weight, bias


def by_head(rows: Tensor, heads: int, d_head: int) -> Tensor:
    """Rows (groups * C, ...) of grouped keys or values as those of every head, (heads * C, ...)."""
    groups = rows.unflatten(0, (-1, d_head))
    return groups.repeat_interleave(heads // len(groups), 0).flatten(0, 1)


def rotary_of(embedding: Any) -> tuple[tuple[float, ...], float]:
    """The angle of each pair of channels per token, and the factor, of a model's rotary embedding whose angles are always the same."""
    return tuple(embedding.inv_freq.double().tolist()), float(embedding.attention_scaling)


DENSE = LlamaSublayers
