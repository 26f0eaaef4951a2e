"""Hugging Face Gemma 2 as a list of sublayers: what attention and MLP write is normed too, and logits have a soft cap."""

from __future__ import annotations

import torch
from torch import Tensor

from extractor.models.dense.base import DenseContext
from extractor.models.dense.qwen2 import Qwen2Sublayers


class Gemma2Sublayers(Qwen2Sublayers):
    """See `extractor.models.dense.base.DenseSublayers`. Scores have their soft cap inside the model's own attention."""

    norms: tuple[str, ...] = ("input_layernorm", "pre_feedforward_layernorm", "norm")

    def sublayer(self, index: int, h: Tensor, context: DenseContext) -> Tensor:
        layer = self.model.model.layers[index // 2]
        if index % 2 == 0:
            mask = context.windowed if self.is_windowed(index // 2) else context.mask
            return h + layer.post_attention_layernorm(self.attended(layer, layer.input_layernorm(h), mask, context))
        return h + layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(h)))

    def unembed(self, h: Tensor) -> Tensor:
        logits, cap = super().unembed(h), self.model.config.final_logit_softcapping
        return logits if cap is None else torch.tanh(logits / cap) * cap


DENSE = Gemma2Sublayers
