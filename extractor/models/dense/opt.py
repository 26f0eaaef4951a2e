"""Hugging Face OPT as a list of sublayers. Of the family's models only those that norm before a sublayer: all but opt-350m."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from extractor.models.dense.base import BlockWeights, DenseContext, GPTWeights, causal_context
from extractor.models.dense.gpt2 import linear, norm, plain
from extractor.models.dense.start import ACTIVATIONS, obstacle

EPS = 1e-5  # of every LayerNorm: an OPT has no setting for it


class OPTSublayers:
    """See `extractor.models.dense.base.DenseSublayers`. The model keeps its modules; nothing is copied or changed.

    `start.refused` names the others.
    """

    norms: tuple[str, ...] = ("self_attn_layer_norm", "final_layer_norm", "final_layer_norm")
    has_positions = True

    def __init__(self, model: Any):
        self.model, self.inner = model, model.model.decoder
        self.n_sublayers = 2 * len(self.inner.layers)
        self.width: int = model.config.hidden_size

    def context(self, ids: Tensor, attention_mask: Tensor | None = None) -> DenseContext:
        most = self.inner.max_target_positions
        # On a GPU an index beyond the table fails an assertion that makes CUDA unusable.
        if ids.shape[1] > most:
            raise ValueError(f"{ids.shape[1]} tokens do not fit the model's {most} positions; use shorter texts")
        context = causal_context(self.model.config, self.inner.embed_tokens, ids, attention_mask)
        if attention_mask is None or bool(attention_mask.all()):
            return context
        return replace(context, positions=(attention_mask.cumsum(1) * attention_mask - 1).long())  # -1 at padding, as in the model

    def embed(self, ids: Tensor, context: DenseContext) -> Tensor:
        table = self.inner.embed_positions
        return self.inner.embed_tokens(ids) + torch.nn.functional.embedding(context.positions + table.offset, table.weight)

    def sublayer(self, index: int, h: Tensor, context: DenseContext) -> Tensor:
        layer = self.inner.layers[index // 2]
        if index % 2 == 0:
            normed = layer.self_attn_layer_norm(h)
            return h + layer.self_attn(normed, position_ids=context.positions, attention_mask=context.mask)[0]
        normed = layer.final_layer_norm(h).reshape(-1, h.shape[-1])  # the model's MLP takes all tokens of a batch in one row
        return h + layer.fc2(layer.activation_fn(layer.fc1(normed))).view(h.shape)

    def unembed(self, h: Tensor) -> Tensor:
        return self.model.lm_head(self.inner.final_layer_norm(h)).contiguous()

    def weights(self, context: int | None = None) -> GPTWeights | None:
        config, table = self.model.config, self.inner.embed_positions
        if obstacle(config.to_dict(), context or config.max_position_embeddings):
            return None
        return GPTWeights(
            embedding=plain(self.inner.embed_tokens.weight),
            positions=plain(table.weight)[table.offset :],
            unembedding=plain(self.model.lm_head.weight),
            d_head=config.hidden_size // config.num_attention_heads,
            final_norm=norm(self.inner.final_layer_norm),
            blocks=tuple(map(_block, self.inner.layers)),
            eps=EPS,
            activation=ACTIVATIONS[config.activation_function],
        )


def _block(layer: Any) -> BlockWeights:
    attn = layer.self_attn
    weights, biases = zip(*(linear(part) for part in (attn.q_proj, attn.k_proj, attn.v_proj)), strict=True)
    norms = norm(layer.self_attn_layer_norm), norm(layer.final_layer_norm)
    return BlockWeights(*norms, torch.cat(weights), torch.cat(biases), *linear(attn.out_proj), *linear(layer.fc1), *linear(layer.fc2))


DENSE = OPTSublayers
