"""The sublayers of a `network.FastMaskedModel`: matrices cut to the nodes that are computed, constants folded into their biases.

A *slot* is a column of a cut tensor. At most sites it is a node; q, k and v have as many slots in every head, so that heads stay one tensor
axis: a slot can also be padding, or a q or k that is off beside its partner that is on, and then holds a constant.
P mask sets, B prompts, T tokens.
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

Kept = Mapping[str, Tensor]  # site -> channels computed, sorted
Base = Mapping[str, Tensor]  # site -> (width,) values of nodes that are off


@dataclass(frozen=True)
class Slots:
    """One site's slots. channels (n,): -1 where a slot is no node; nodes (n,): flat indices, N there; base (n,); k: of AbsTopK."""

    channels: Tensor
    nodes: Tensor
    base: Tensor
    k: int

    @classmethod
    def of(cls, channels: Tensor, start: int, total: int, base: Tensor, k: int) -> Slots:
        real = channels >= 0
        nodes = torch.where(real, channels + start, total)
        return cls(channels, nodes, torch.where(real, base[channels.clamp_min(0)], 0.0), k)

    def apply(self, x: Tensor, masks: Masks) -> Tensor:
        """Node values (P, B, T, n) from values before AbsTopK (P or 1, B, T, n)."""
        real = self.channels >= 0
        if masks.nodes is None:
            return self._competed(x, real, real)
        mask = functional.pad(masks.nodes, (0, 1), value=1.0)[:, self.nodes][:, None, None]  # (P, 1, 1, n)
        return self.base + mask * (self._competed(x, (mask > 0) & real, real) - self.base)

    def _competed(self, x: Tensor, on: Tensor, real: Tensor) -> Tensor:
        new = compete(x, on, self.k)
        return new if new is x or bool(real.all()) else torch.where(real, new, x)


@dataclass(frozen=True)
class Matrix:
    """One link, cut. weight (out, in) slots; bias (out,) holds every constant but those of its own inputs, base (in,).

    rows, columns   places of the slots among the kept channels of target and source, 0 for slots that are no node
    """

    link: Link
    weight: Tensor
    bias: Tensor
    base: Tensor
    rows: Tensor
    columns: Tensor

    def mask(self, masks: Masks) -> Tensor | None:
        """This link's edges that are on, (P, out, in) slots; None: all."""
        if masks.edges is None or not masks.edges[self.link].numel():
            return None
        return masks.edges[self.link][:, self.rows[:, None], self.columns]

    def apply(self, x: Tensor, masks: Masks) -> Tensor:
        """(P, B, T, out) from (P or 1, B, T, in)."""
        mask = self.mask(masks)
        if mask is None:
            return functional.linear(x, self.weight, self.bias)
        weight = self.weight * mask
        bias = self.bias + (self.weight - weight) @ self.base
        flat = x.expand(len(weight), *x.shape[1:]).flatten(1, -2)
        return torch.baddbmm(bias[:, None], flat, weight.mT).unflatten(1, x.shape[1:-1])


@dataclass(frozen=True)
class Read:
    """Nodes that read the residual.

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
        """(P, B, T, n) from tracked residual channels (P or 1, B, T, R) and the others' sum of squares (B, T).

        last   (B,) the place in the prompt of the only position there is; None: they are 0 ... T - 1
        """
        scale = torch.rsqrt((h.square().sum(-1) + rest) / self.width + self.eps)
        x = h[..., self.tracked] * scale[..., None] * self.gain
        if self.positions.shape[1]:
            there = self.positions[: h.shape[-2]] if last is None else self.positions[last][:, None]
            x = torch.cat([x, there.expand(*x.shape[:-1], -1)], dim=-1)
        return self.slots.apply(x, masks)


@dataclass(frozen=True)
class Write:
    """What a sublayer adds to the residual. tracked (n,): places of its nodes among the tracked channels; constant (R,): the others'."""

    slots: Slots
    tracked: Tensor
    constant: Tensor

    def add(self, h: Tensor, out: Tensor, masks: Masks) -> Tensor:
        out = self.slots.apply(out, masks)
        return (h + self.constant).expand(len(out), *h.shape[1:]).index_add(-1, self.tracked, out)


@dataclass(frozen=True)
class AttentionCut:
    """Heads that matter, with `score` slots each for q and k, and `value` slots for v."""

    read: Read
    write: Write
    q: Matrix
    k: Matrix
    v: Matrix
    out: Matrix
    sites: tuple[Slots, Slots, Slots]
    heads: int
    d_head: int
    sink: Tensor | None  # (heads,) logits, less what constant q and k give to every score
    leak: Tensor | None  # (out, heads): what values that are off give, times the share that the sink leaves
    # The same of heads that have nothing but a leak, which know only how many tokens there are: (heads,), (out, heads).
    still_sink: Tensor | None
    still_leak: Tensor | None

    def apply(self, h: Tensor, x: Tensor, last: Tensor | None, masks: Masks) -> Tensor:
        """Residual after, from the one before (P, B, T', R) and what is read (P, B, T, n); with `last` (B,) T' = 1: only there."""
        if not self.heads:
            return self.write.add(h, self.out.bias.expand(*h.shape[:-1], -1) + self._still(x, last), masks)
        queries = x if last is None else pick(x, last)
        q, k, v = (
            site.apply(matrix.apply(t, masks), masks).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            for matrix, site, t in zip((self.q, self.k, self.v), self.sites, (queries, x, x), strict=True)
        )  # (P, B, heads, T, slots)
        scores = (q / math.sqrt(self.d_head)) @ k.mT
        scores = scores.masked_fill(_future(x.shape[-2], last, scores.device), -torch.inf)
        if self.sink is not None:
            sink = self.sink[:, None, None].expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, sink], dim=-1)
        pattern = scores.softmax(-1)[..., : x.shape[-2]]
        mixed = (pattern @ v).transpose(-2, -3).flatten(-2)
        return self.write.add(h, self._out(mixed, pattern, masks) + self._still(x, last), masks)

    def _still(self, x: Tensor, last: Tensor | None) -> Tensor | float:
        """(T, out), or (B, 1, out) at `last`: what heads give whose scores are all alike."""
        if self.still_sink is None or self.still_leak is None or not len(self.still_sink):
            return 0.0
        seen = 1.0 + (torch.arange(x.shape[-2], device=x.device)[:, None] if last is None else last[:, None, None])
        return functional.linear(torch.sigmoid(seen.to(x.dtype).log() - self.still_sink), self.still_leak)

    def _out(self, mixed: Tensor, pattern: Tensor, masks: Masks) -> Tensor:
        if self.leak is None:
            return self.out.apply(mixed, masks)
        share = pattern.sum(-1).mT  # (P, B, T', heads), what the sink leaves
        mask, leak = self.out.mask(masks), self.leak
        by_head = (self.out.weight * self.out.base).unflatten(-1, (self.heads, -1))
        if mask is None:
            return functional.linear(mixed, self.out.weight, self.out.bias) + functional.linear(share, leak)
        weight = self.out.weight * mask
        leak = leak + (by_head * (1 - mask.unflatten(-1, (self.heads, -1)))).sum(-1)  # (P, out, heads)
        sent = mixed.expand(len(weight), *mixed.shape[1:]).flatten(1, -2) @ weight.mT
        left = share.expand(len(weight), *share.shape[1:]).flatten(1, -2) @ leak.mT
        return (sent + left + self.out.bias).unflatten(1, mixed.shape[1:-1])


@dataclass(frozen=True)
class NeuronsCut:
    read: Read
    write: Write
    fc: Matrix
    proj: Matrix
    site: Slots
    activation: torch.nn.Module

    def apply(self, h: Tensor, x: Tensor, masks: Masks) -> Tensor:
        """Residual after, from the one before (P, B, T', R) and what is read (P, B, T', n)."""
        post = self.site.apply(self.activation(self.fc.apply(x, masks)), masks)
        return self.write.add(h, self.proj.apply(post, masks), masks)


def pick(x: Tensor, last: Tensor) -> Tensor:
    """(P, B, 1, n): the position `last` (B,) of x (P, B, T, n)."""
    return x[:, torch.arange(x.shape[1], device=x.device), last][:, :, None]


def _future(length: int, last: Tensor | None, device: torch.device) -> Tensor:
    """True where a query must not look: (T, T), or (B, 1, 1, T) for queries at `last` only."""
    places = torch.arange(length, device=device)
    return places > places[:, None] if last is None else places > last[:, None, None, None]
