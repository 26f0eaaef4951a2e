"""Hugging Face Phi as a list of sublayers: parallel blocks, whose attention and MLP read one norm, and partly rotary positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from extractor.models.dense.base import BlockWeights, DenseContext, GPTWeights
from extractor.models.dense.gpt2 import linear, norm, plain
from extractor.models.dense.llama import LlamaSublayers, grouped, rotary_of
from extractor.models.dense.start import ACTIVATIONS, obstacle


class PhiSublayers(LlamaSublayers):
    """See `extractor.models.dense.base.DenseSublayers`. A block is one sublayer."""

    norms: tuple[str, ...] = ("input_layernorm", "final_layernorm")

    def __init__(self, model: Any):
        super().__init__(model)
        self.n_sublayers = len(model.model.layers)

    def embed(self, ids: Tensor, context: DenseContext) -> Tensor:
        return self.model.model.embed_dropout(self.model.model.embed_tokens(ids))

    def sublayer(self, index: int, h: Tensor, context: DenseContext) -> Tensor:
        layer = self.model.model.layers[index]
        normed = layer.input_layernorm(h)
        return self.attended(layer, normed, context.mask, context) + layer.mlp(normed) + h

    def unembed(self, h: Tensor) -> Tensor:
        return self.model.lm_head(self.model.model.final_layernorm(h))

    def weights(self, context: int | None = None) -> GPTWeights | None:
        inner, config = self.model.model, self.model.config
        if obstacle(config.to_dict(), context or config.max_position_embeddings):
            return None
        angles, scale = rotary_of(inner.rotary_emb)
        return GPTWeights(
            embedding=plain(inner.embed_tokens.weight),
            positions=None,
            unembedding=plain(self.model.lm_head.weight),
            d_head=config.hidden_size // config.num_attention_heads,
            final_norm=norm(inner.final_layernorm),
            blocks=tuple(map(_block, inner.layers)),
            eps=config.layer_norm_eps,
            activation=ACTIVATIONS[config.hidden_act],
            rotary=angles,
            rotary_scale=scale,
            logits_bias=None if self.model.lm_head.bias is None else plain(self.model.lm_head.bias),
        )


def _block(layer: Any) -> BlockWeights:
    attn = layer.self_attn
    both = norm(layer.input_layernorm)
    return BlockWeights(both, both, *grouped(attn), *linear(attn.dense), *linear(layer.mlp.fc1), *linear(layer.mlp.fc2))


DENSE = PhiSublayers
