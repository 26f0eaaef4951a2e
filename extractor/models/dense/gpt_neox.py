"""Hugging Face GPT-NeoX (Pythia) as a list of sublayers. Where attention and MLP read one residual, a block is one sublayer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from extractor.models.dense.base import BlockWeights, DenseContext, GPTWeights, causal_context
from extractor.models.dense.gpt2 import linear, norm, plain
from extractor.models.dense.llama import rotary_of
from extractor.models.dense.start import ACTIVATIONS, obstacle


class GPTNeoXSublayers:
    """See `extractor.models.dense.base.DenseSublayers`. The model keeps its modules; nothing is copied or changed."""

    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm", "final_layer_norm")
    has_positions = False

    def __init__(self, model: Any):
        self.model, self.inner = model, model.gpt_neox
        self.is_parallel: bool = model.config.use_parallel_residual
        self.n_sublayers = len(self.inner.layers) * (1 if self.is_parallel else 2)
        if self.is_parallel:  # the norm of the MLP reads the same residual
            self.norms = ("input_layernorm", "final_layer_norm")
        self.width: int = model.config.hidden_size

    def context(self, ids: Tensor, attention_mask: Tensor | None = None) -> DenseContext:
        context = causal_context(self.model.config, self.inner.embed_in, ids, attention_mask)
        # rotary_emb reads only dtype and device of its first argument.
        return replace(context, rotary=self.inner.rotary_emb(self.inner.embed_in.weight, position_ids=context.positions))

    def embed(self, ids: Tensor, context: DenseContext) -> Tensor:
        return self.inner.emb_dropout(self.inner.embed_in(ids))

    def sublayer(self, index: int, h: Tensor, context: DenseContext) -> Tensor:
        if self.is_parallel:
            layer = self.inner.layers[index]
            attended = self.attended(layer, h, context)  # as in the model, before the MLP runs
            return layer.mlp(layer.post_attention_layernorm(h)) + attended + h
        layer = self.inner.layers[index // 2]
        if index % 2 == 0:
            return self.attended(layer, h, context) + h
        return layer.mlp(layer.post_attention_layernorm(h)) + h

    def attended(self, layer: Any, h: Tensor, context: DenseContext) -> Tensor:
        normed, at = layer.input_layernorm(h), context.positions
        return layer.attention(normed, attention_mask=context.mask, position_ids=at, position_embeddings=context.rotary)[0]

    def unembed(self, h: Tensor) -> Tensor:
        return self.model.lm_head(self.inner.final_layer_norm(h))

    def weights(self, context: int | None = None) -> GPTWeights | None:
        config = self.model.config
        if obstacle(config.to_dict(), context or config.max_position_embeddings):
            return None
        angles, scale = rotary_of(self.inner.rotary_emb)
        return GPTWeights(
            embedding=plain(self.inner.embed_in.weight),
            positions=None,
            unembedding=plain(self.model.lm_head.weight),
            d_head=config.hidden_size // config.num_attention_heads,
            final_norm=norm(self.inner.final_layer_norm),
            blocks=tuple(map(_block, self.inner.layers)),
            eps=config.layer_norm_eps,
            activation=ACTIVATIONS[config.hidden_act],
            rotary=angles,
            rotary_scale=scale,
        )


def _block(layer: Any) -> BlockWeights:
    attn, heads = layer.attention, layer.attention.config.num_attention_heads
    # Rows of query_key_value are q, k, v of the first head, then of the second.
    qkv, bias = (part.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2) for part in linear(attn.query_key_value))
    norms = norm(layer.input_layernorm), norm(layer.post_attention_layernorm)
    return BlockWeights(*norms, qkv, bias, *linear(attn.dense), *linear(layer.mlp.dense_h_to_4h), *linear(layer.mlp.dense_4h_to_h))


DENSE = GPTNeoXSublayers
