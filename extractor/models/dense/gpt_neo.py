"""Hugging Face GPT-Neo as a list of sublayers: GPT-2's forward, except inside attention, where every other layer sees a window."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from extractor.models.dense.gpt2 import GPT2Sublayers, linear, plain


class GPTNeoSublayers(GPT2Sublayers):
    """See `extractor.models.dense.base.DenseSublayers`. The windows are inside the model's own attention modules."""

    def attention(self, attn: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inner = attn.attention
        # GPT-Neo does not divide its scores by sqrt(d_head).
        query = plain(inner.q_proj.weight) * inner.head_dim**0.5
        qkv = torch.cat([query, plain(inner.k_proj.weight), plain(inner.v_proj.weight)])
        return qkv, qkv.new_zeros(len(qkv)), *linear(inner.out_proj)


DENSE = GPTNeoSublayers
