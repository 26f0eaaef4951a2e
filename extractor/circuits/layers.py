"""The sublayers of a `network.FastMaskedModel`: matrices cut to the kept nodes, constants folded into their biases.

A *slot* is a column of a cut tensor. At most sites every slot is a kept node. At q, k and v all heads have the same number of slots, so
that heads stay one tensor axis; there a slot can also be padding, or an ablated q or k whose partner is kept, and then holds a constant.

R1 ... R8: the lines of `reference` that a step replaces. Shapes: P mask sets, B prompts, T tokens, T' = T, or 1 where only the scored
position is computed, R tracked residual channels, n slots of a site.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from extractor.circuits.masks import Masks, compete

if TYPE_CHECKING:
    from extractor.circuits.graph import Link

AblationValues = Mapping[str, Tensor]  # site -> (width,) replacement value of each node


@dataclass(frozen=True)
class Slots:
    """One site's slots.

    channels          (n,) -1 where a slot is no node
    nodes             (n,) flat indices; N where a slot is no node
    ablation_values   (n,) replacement values; 0 where a slot is no node
    k                 of the site's AbsTopK
    """

    channels: Tensor
    nodes: Tensor
    ablation_values: Tensor
    k: int

    @classmethod
    def of(cls, channels: Tensor, start: int, total: int, ablation_values: Tensor, k: int) -> Slots:
        real = channels >= 0
        nodes = torch.where(real, channels + start, total)
        return cls(channels, nodes, torch.where(real, ablation_values[channels.clamp_min(0)], 0.0), k)

    def apply(self, x: Tensor, masks: Masks) -> Tensor:
        """R3: node values (P, B, T, n) from values before AbsTopK (P or 1, B, T, n). Slots that are no node keep theirs."""
        real = self.channels >= 0
        if masks.nodes is None:
            return self._competed(x, real, real)
        mask = functional.pad(masks.nodes, (0, 1), value=1.0)[:, self.nodes][:, None, None]  # (P, 1, 1, n)
        return self.ablation_values + mask * (self._competed(x, (mask > 0) & real, real) - self.ablation_values)

    def _competed(self, x: Tensor, on: Tensor, real: Tensor) -> Tensor:
        new = compete(x, on, self.k)
        return new if new is x or bool(real.all()) else torch.where(real, new, x)


@dataclass(frozen=True)
class Matrix:
    """One link, cut.

    weight            (out, in) slots
    bias              (out,) the link's bias, and what ablated sources send
    ablation_values   (in,) replacement values of the kept sources: what an ablated edge carries
    rows, columns     places of the slots among the kept channels of target and source, 0 for slots that are no node
    """

    link: Link
    weight: Tensor
    bias: Tensor
    ablation_values: Tensor
    rows: Tensor
    columns: Tensor

    def mask(self, masks: Masks) -> Tensor | None:
        """This link's edge masks (P, out, in); None: all edges are on."""
        if masks.edges is None or not masks.edges[self.link].numel():
            return None
        return masks.edges[self.link][:, self.rows[:, None], self.columns]

    def apply(self, x: Tensor, masks: Masks) -> Tensor:
        """R4: (P, B, T, out) from (P or 1, B, T, in). An ablated edge moves weight * replacement value into the bias."""
        mask = self.mask(masks)
        if mask is None:
            return functional.linear(x, self.weight, self.bias)
        weight = self.weight * mask
        bias = self.bias + (self.weight - weight) @ self.ablation_values
        flat = x.expand(len(weight), *x.shape[1:]).flatten(1, -2)
        return torch.baddbmm(bias[:, None], flat, weight.mT).unflatten(1, x.shape[1:-1])


@dataclass(frozen=True)
class Read:
    """Nodes that read the residual stream.

    tracked     (n residual reads,) their places among the tracked channels
    gain        (n residual reads,) of the norm
    positions   (n_ctx, position reads) values of the position channels, normed; (0, 0) where there are none
    eps, width  of the norm
    """

    slots: Slots
    tracked: Tensor
    gain: Tensor
    positions: Tensor
    eps: float
    width: int

    def apply(self, h: Tensor, rest: Tensor, last: Tensor | None, masks: Masks) -> Tensor:
        """R2 and R3: (P, B, T', n) from tracked channels (P or 1, B, T', R) and the other channels' sum of squares (B, T').

        last   (B,) the scored position, where T' = 1; None: all positions
        """
        scale = torch.rsqrt((h.square().sum(-1) + rest) / self.width + self.eps)
        x = h[..., self.tracked] * scale[..., None] * self.gain
        if self.positions.shape[1]:
            there = self.positions[: h.shape[-2]] if last is None else self.positions[last][:, None]
            x = torch.cat([x, there.expand(*x.shape[:-1], -1)], dim=-1)
        return self.slots.apply(x, masks)


@dataclass(frozen=True)
class Write:
    """A sublayer's write. tracked (n,): places of its nodes among the tracked channels; constant (R,): what its ablated nodes write."""

    slots: Slots
    tracked: Tensor
    constant: Tensor

    def add(self, h: Tensor, out: Tensor, masks: Masks) -> Tensor:
        """R7: the tracked channels (P, B, T', R) after the sublayer."""
        out = self.slots.apply(out, masks)
        return (h + self.constant).expand(len(out), *h.shape[1:]).index_add(-1, self.tracked, out)


@dataclass(frozen=True)
class SinkTerms:
    """What ablated values write through heads with a sink: the share of attention that the sink leaves depends on the prompt.

    logit           (heads,) sink logits, less what constant q and k add to every score
    write           (out, heads) what a head's ablated values write, per share of attention
    constant_logit, constant_write   the same for heads without kept q, k or v: their share depends on the number of tokens only
    """

    logit: Tensor
    write: Tensor
    constant_logit: Tensor
    constant_write: Tensor


@dataclass(frozen=True)
class PrunedAttention:
    """The heads that are computed, with the same number of slots each for q and k, and for v."""

    read: Read
    write: Write
    q: Matrix
    k: Matrix
    v: Matrix
    out: Matrix
    sites: tuple[Slots, Slots, Slots]
    heads: int
    d_head: int
    sinks: SinkTerms | None  # None: the model has no sinks

    def apply(self, h: Tensor, x: Tensor, last: Tensor | None, masks: Masks) -> Tensor:
        """R4 to R7: tracked channels after the sublayer, from those before (P, B, T', R) and the read (P, B, T, n). last: as for `Read`."""
        if not self.heads:
            return self.write.add(h, self.out.bias.expand(*h.shape[:-1], -1) + self._constant_heads(x, last), masks)
        queries = x if last is None else pick(x, last)
        q, k, v = (
            site.apply(matrix.apply(t, masks), masks).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            for matrix, site, t in zip((self.q, self.k, self.v), self.sites, (queries, x, x), strict=True)
        )  # R4, R3: (P, B, heads, T, slots)
        scores = (q / math.sqrt(self.d_head)) @ k.mT
        scores = scores.masked_fill(future(x.shape[-2], last, scores.device), -torch.inf)
        if self.sinks is not None:
            sink = self.sinks.logit[:, None, None].expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, sink], dim=-1)
        pattern = scores.softmax(-1)[..., : x.shape[-2]]  # R5
        mixed = (pattern @ v).transpose(-2, -3).flatten(-2)  # R6
        return self.write.add(h, self._out(mixed, pattern, masks) + self._constant_heads(x, last), masks)

    def _constant_heads(self, x: Tensor, last: Tensor | None) -> Tensor | float:
        """(T, out), or (B, 1, out) at `last`: what heads with constant scores write. Their share: s / (s + e^sink) for s visible tokens."""
        if self.sinks is None or not len(self.sinks.constant_logit):
            return 0.0
        seen = 1.0 + (torch.arange(x.shape[-2], device=x.device)[:, None] if last is None else last[:, None, None])
        return functional.linear(torch.sigmoid(seen.to(x.dtype).log() - self.sinks.constant_logit), self.sinks.constant_write)

    def _out(self, mixed: Tensor, pattern: Tensor, masks: Masks) -> Tensor:
        """R4 of the output projection: (P, B, T', out). With sinks, ablated values write in proportion to the share of attention."""
        if self.sinks is None:
            return self.out.apply(mixed, masks)
        share = pattern.sum(-1).mT  # (P, B, T', heads), what the sink leaves
        mask, write = self.out.mask(masks), self.sinks.write
        by_head = (self.out.weight * self.out.ablation_values).unflatten(-1, (self.heads, -1))
        if mask is None:
            return functional.linear(mixed, self.out.weight, self.out.bias) + functional.linear(share, write)
        weight = self.out.weight * mask
        write = write + (by_head * (1 - mask.unflatten(-1, (self.heads, -1)))).sum(-1)  # (P, out, heads)
        sent = mixed.expand(len(weight), *mixed.shape[1:]).flatten(1, -2) @ weight.mT
        left = share.expand(len(weight), *share.shape[1:]).flatten(1, -2) @ write.mT
        return (sent + left + self.out.bias).unflatten(1, mixed.shape[1:-1])


@dataclass(frozen=True)
class PrunedMLP:
    """The neurons that are computed."""

    read: Read
    write: Write
    fc: Matrix
    proj: Matrix
    site: Slots
    activation: torch.nn.Module

    def apply(self, h: Tensor, x: Tensor, masks: Masks) -> Tensor:
        """R4, R3 and R7: tracked channels after the sublayer, from those before (P, B, T', R) and the read (P, B, T', n)."""
        post = self.site.apply(self.activation(self.fc.apply(x, masks)), masks)
        return self.write.add(h, self.proj.apply(post, masks), masks)


def pick(x: Tensor, last: Tensor) -> Tensor:
    """(P, B, 1, n): the position `last` (B,) of x (P, B, T, n)."""
    return x[:, torch.arange(x.shape[1], device=x.device), last][:, :, None]


def future(length: int, last: Tensor | None, device: torch.device) -> Tensor:
    """True at tokens that a query must not see: (T, T), or (B, 1, 1, T) for queries at `last` only."""
    places = torch.arange(length, device=device)
    return places > places[:, None] if last is None else places > last[:, None, None, None]
