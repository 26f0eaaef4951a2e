"""Replacement values that differ from prompt to prompt and token to token, and what follows from them whatever nodes are kept.

Shapes: B prompts, T tokens, C channels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from extractor.circuits.graph import Link, links
from extractor.sparse.modeling_sparse_gpt import attention_pattern
from extractor.sparse.sink_attention import causal_mask

if TYPE_CHECKING:
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM

FEW = 8  # what is sent to less than one of so many targets of a link is computed for them alone, and not kept
Values = Mapping[str, Tensor]  # site -> (B, T, width)


@dataclass(frozen=True)
class ReplacedStream:
    """h_r of B prompts: its squares before each norm, summed over channels, (2L + 1, B, T); its part of the logit difference, (B,)."""

    squares: Tensor
    readout: Tensor


class Replacements(Protocol):
    """The replacement values r of a batch's prompts, and what follows from them alone; rows (B,) of the batch, cut to `length` tokens.

    streams   h_r of parts of the batch that a network has computed; whatever nodes it keeps, they are the same
    """

    streams: dict[tuple[int, int], ReplacedStream]

    def of(self, site: str, rows: Tensor, length: int, channels: Tensor) -> Tensor:
        """r of a site's channels, (B, T, channels)."""

    def sent(self, link: Link, rows: Tensor, length: int, targets: Tensor) -> Tensor:
        """W r at these targets, (B, T, targets)."""

    def mixed(self, layer: int, rows: Tensor, length: int, channels: Tensor) -> Tensor:
        """pattern @ r of a layer's values at these channels, (B, T, channels); the pattern is that of the r of q and k."""


class PromptValues:
    """`Replacements` given as {site: (B, T, width)}; what follows from them for many channels is computed once."""

    def __init__(self, model: SparseGPTForCausalLM, values: Values):
        self.model, self.values = model, values
        self.prompts = len(next(iter(values.values())))
        self._weights: dict[Link, Tensor] = {(source, target): weight for source, target, weight in links(model)}
        self._sent: dict[Link, Tensor] = {}
        self._mixed: dict[int, Tensor] = {}
        self.streams: dict[tuple[int, int], ReplacedStream] = {}

    def of(self, site: str, rows: Tensor, length: int, channels: Tensor) -> Tensor:
        return _picked(self.values[site], rows, length, channels)

    def sent(self, link: Link, rows: Tensor, length: int, targets: Tensor) -> Tensor:
        weight = self._weights[link]
        if FEW * len(targets) <= len(weight):  # whatever is kept by now: the two ways round differently
            return functional.linear(self.values[link[0]][rows, :length], weight[targets])
        if link not in self._sent:
            self._sent[link] = functional.linear(self.values[link[0]], weight)
        return _picked(self._sent[link], rows, length, targets)

    def mixed(self, layer: int, rows: Tensor, length: int, channels: Tensor) -> Tensor:
        if layer not in self._mixed:
            q, k, v = (self.values[f"{layer}.attn.{name}"] for name in "qkv")
            by_head = v.unflatten(-1, (-1, self.model.config.d_head)).transpose(1, 2)
            self._mixed[layer] = (head_patterns(self.model, layer, q, k) @ by_head).transpose(1, 2).flatten(2)
        return _picked(self._mixed[layer], rows, length, channels)


class OnePrompt:
    """`Replacements` that are the same for every prompt: `values` are those of one prompt."""

    def __init__(self, values: PromptValues):
        self.values = values
        self.streams: dict[tuple[int, int], ReplacedStream] = {}

    def of(self, site: str, rows: Tensor, length: int, channels: Tensor) -> Tensor:
        return self.values.of(site, rows.new_zeros(1), length, channels).expand(len(rows), -1, -1)

    def sent(self, link: Link, rows: Tensor, length: int, targets: Tensor) -> Tensor:
        return self.values.sent(link, rows.new_zeros(1), length, targets).expand(len(rows), -1, -1)

    def mixed(self, layer: int, rows: Tensor, length: int, channels: Tensor) -> Tensor:
        return self.values.mixed(layer, rows.new_zeros(1), length, channels).expand(len(rows), -1, -1)


def _picked(values: Tensor, rows: Tensor, length: int, channels: Tensor) -> Tensor:
    """values (B, T, width) at these rows and channels, cut to `length` tokens."""
    if len(channels) == values.shape[-1]:  # all of them, in order
        return values[rows, :length]
    places = torch.arange(length, device=rows.device)
    return values[rows[:, None, None], places[:, None], channels]


def head_patterns(model: SparseGPTForCausalLM, layer: int, q: Tensor, k: Tensor) -> Tensor:
    """The attention (B, heads, T, T) of a layer's heads, of the values of its q and k (B, T, width). R5 of reference.py."""
    attn, angles = model.blocks[layer].attn, model.angles(torch.arange(q.shape[1], device=q.device))
    queries, keys = (
        attn.turned(x.unflatten(-1, (-1, attn.d_head)).transpose(1, 2), norm, angles) for x, norm in ((q, attn.q_norm), (k, attn.k_norm))
    )
    return attention_pattern(queries, keys, causal_mask(q.shape[1], q.dtype, q.device), attn.sink_logit)
