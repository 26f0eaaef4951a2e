"""Hugging Face GPT-2 as a list of sublayers, by direct calls to its own modules: bit-equal to its own forward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


class GPT2Sublayers:
    """See `extractor.dense.base.DenseSublayers`. The model keeps its modules; nothing is copied or changed."""

    def __init__(self, model: GPT2LMHeadModel):
        self.model = model
        self.n_sublayers = 2 * len(model.transformer.h)
        self.width = model.config.hidden_size

    def embed(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
        transformer = self.model.transformer
        return transformer.drop(transformer.wte(ids) + transformer.wpe(positions))

    def mask(self, h: Tensor) -> Tensor | None:
        # GPT-2's eager attention is not causal without a mask; this returns None only where the kernel is causal by itself.
        from transformers.masking_utils import create_causal_mask

        return create_causal_mask(  # type: ignore[return-value]
            config=self.model.config, inputs_embeds=h, attention_mask=None, past_key_values=None
        )

    def sublayer(self, index: int, h: Tensor, mask: Tensor | None) -> Tensor:
        block: Any = self.model.transformer.h[index // 2]
        if index % 2 == 0:
            return block.attn(block.ln_1(h), attention_mask=mask)[0] + h
        return h + block.mlp(block.ln_2(h))

    def unembed(self, h: Tensor) -> Tensor:
        return self.model.lm_head(self.model.transformer.ln_f(h))


DENSE = GPT2Sublayers
