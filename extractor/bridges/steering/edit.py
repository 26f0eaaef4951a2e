"""An edit of a sparse node, carried into the dense model through its bridge (Sec. 3.3, App. A.4).

A prompt is presented; another of the same length says what the node would be instead. The node's change d, per token (there minus here), is
a change of the dense model's residual:

    act_in.c        d * rms_s / gain_c  along  G[:, c]           it reads x_c / rms_s * gain_c of the sparse residual x
    resid_delta.c   d                   along  G[:, c]           it is itself what the sublayer adds to channel c
    post_act.c      d                   along  G @ P[:, c]       P the sublayer's output matrix
    v.c             attention @ d       along  G @ P[:, c]       attention: the presented run's pattern of the head

G (D, S) is the linear part of the decoder where the node reads, or next after it writes, rms_s the presented run's RMS of x at that token.
Two ways to put such a change e into the dense run:

    read     e / rms_d * gain, added after the dense norm there, where one sublayer alone reads it: what the node is in the sparse model.
             rms_d is the norm's divisor in the presented run (LayerNorm's, which first centres e, as it does here). With norms held like
             this the changes of all channels of a read add up to the counterfactual's read, exactly, wherever the decoder is exact.
             This is the paper's edit.
    stream   e, added to the dense residual there: every later sublayer reads it too. Ours; the only way for nodes that write.

RMS norms are taken token by token: GPT-2's first residual is a hundred times longer than the others, and a mean over tokens is nobody's.
AbsTopK of what is written is not applied to the change. Several nodes of one site add their changes. Attention patterns move with q and k
in no fixed direction: these are refused.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from extractor.circuits.sites import PLACES
from extractor.errors import UsageError
from extractor.models.dense.base import residuals, tail

if TYPE_CHECKING:
    from extractor.bridges.pair import BridgedPair
    from extractor.bridges.tuner import BridgeSite

Way = Literal["read", "stream"]
# Place -> the dense site that carries it, counted from the block's first.
CARRIED = {"attn.act_in": 0, "attn.v": 1, "attn.resid_delta": 1, "mlp.act_in": 1, "mlp.post_act": 2, "mlp.resid_delta": 2}
_NODE = re.compile(rf"(\d+)\.({'|'.join(map(re.escape, PLACES))})\.(\d+)")


@dataclass(frozen=True)
class SteeredNode:
    """A node that can be steered with, and the dense site that carries it."""

    id: str
    layer: int
    place: str
    channel: int
    site: int

    @property
    def source(self) -> str:
        """The name of the sparse site it is a channel of."""
        return f"{self.layer}.{self.place}"

    @property
    def reads(self) -> bool:
        return self.place.endswith("act_in")


@dataclass(frozen=True)
class ResidualEdit:
    """amount (B, T, N) times directions (N, D), one for each node: of the residual at a dense site, or (`way='read'`) behind its norm."""

    site: int
    way: Way
    amount: Tensor
    directions: Tensor

    def of(self, strength: float) -> Tensor:
        """So much of it, (B, T, D)."""
        return (strength * self.amount) @ self.directions


def find_node(pair: BridgedPair, node: str, known: Iterable[str] = ()) -> SteeredNode:
    """A node by its id. Raises UsageError where there is none, naming close ones of `known`, and for one that cannot be steered."""
    config, match = pair.sparse.config, _NODE.fullmatch(node)
    if match is None or int(match[1]) >= config.n_layer:
        close = difflib.get_close_matches(node, list(known), 3, 0.4)
        hint = f"close: {', '.join(close)}" if close else "nodes are called as 0.attn.act_in.12"
        raise UsageError(f"there is no node {node!r} in this model of {config.n_layer} layers; {hint}")
    layer, place, channel = int(match[1]), match[2], int(match[3])
    if place not in CARRIED:
        raise UsageError(f"node {node} cannot be steered: queries and keys move attention in no fixed direction; take {_steerable(layer)}")
    width = config.d_mlp if place == "mlp.post_act" else config.d_model
    if channel >= width:
        if place.endswith("act_in") and channel < config.d_model + config.d_pos_emb:
            raise UsageError(f"node {node} cannot be steered: it is a position channel, which has no place in the dense residual")
        raise UsageError(f"there is no node {node!r}: {layer}.{place} has {width} channels")
    return SteeredNode(node, layer, place, channel, 2 * layer + CARRIED[place])


def _steerable(layer: int) -> str:
    return ", ".join(f"{layer}.{place}.N" for place in CARRIED)


def steerable(pair: BridgedPair, nodes: Iterable[str]) -> list[SteeredNode]:
    """Those of the nodes that can be steered with, in the order given."""
    found = []
    for node in nodes:
        try:
            found.append(find_node(pair, node))
        except UsageError:
            continue
    return found


class CounterfactualRun:
    """Prompts as presented and the prompts they are steered toward, token ids (B, T) each, right padded; last (B,) is their last token.

    What both models make of them is computed once and serves every node. Raises ValueError for shapes that differ.
    """

    def __init__(self, pair: BridgedPair, presented: Tensor, toward: Tensor, last: Tensor):
        if presented.shape != toward.shape:
            raise ValueError(f"both prompts must have the same number of tokens, not {tuple(presented.shape)} to {tuple(toward.shape)}")
        self.pair, self.presented, self.toward, self.last = pair, presented, toward, last
        with torch.no_grad():
            self.context = pair.dense.context(presented)
            self.residuals = residuals(pair.dense, presented)

    @cached_property
    def here(self) -> dict[str, Tensor]:
        return self._observe(self.presented)

    @cached_property
    def there(self) -> dict[str, Tensor]:
        return self._observe(self.toward)

    @torch.no_grad()
    def _observe(self, ids: Tensor) -> dict[str, Tensor]:
        layers = range(self.pair.sparse.config.n_layer)
        points = [f"{layer}.{place}" for layer in layers for place in CARRIED]
        points += [_residual_of(layer, attends) for layer in layers for attends in (True, False)]
        points += [f"blocks.{layer}.attn.hook_pattern" for layer in layers]
        with self.pair.sparse.record(points) as seen:
            self.pair.sparse(input_ids=ids, logits_to_keep=1)
        return seen

    @torch.no_grad()
    def change(self, nodes: Sequence[SteeredNode], way: Way = "read") -> ResidualEdit:
        """What the change of these nodes, all of one site, means to the dense model. Nodes that write go the way of the stream."""
        if len({node.source for node in nodes}) != 1:
            raise UsageError(f"nodes are steered together at one site, not at {', '.join(sorted({n.source for n in nodes})) or 'none'}")
        way = way if nodes[0].reads else "stream"
        parts = [self._read(node, way) if node.reads else self._write(node) for node in nodes]
        return ResidualEdit(nodes[0].site, way, torch.stack([p[0] for p in parts], -1), torch.stack([p[1] for p in parts]))

    def _delta(self, node: SteeredNode) -> Tensor:
        return (self.there[node.source] - self.here[node.source])[..., node.channel]

    def _read(self, node: SteeredNode, way: Way) -> tuple[Tensor, Tensor]:
        """Amount (B, T) and direction (D,) of a node that reads."""
        block, site, attends = self.pair.sparse.blocks[node.layer], self.pair.sites[node.site], node.place == "attn.act_in"
        norm, x = block.ln_1 if attends else block.ln_2, self.here[_residual_of(node.layer, attends)]
        gain = norm.weight[node.channel]
        if gain == 0:  # the node is silent, whatever the residual says
            return torch.zeros_like(x[..., 0]), torch.zeros_like(self.residuals[node.site][0, 0])
        amount = self._delta(node) * (x.square().mean(-1) + norm.eps).sqrt() / gain
        direction = _decoded(site, _unit(node.channel, x))
        return _normed(site.base_layer, amount, direction, self.residuals[node.site]) if way == "read" else (amount, direction)

    def _write(self, node: SteeredNode) -> tuple[Tensor, Tensor]:
        """Amount (B, T) and direction (D,) of a node that writes."""
        delta, block, site = self._delta(node), self.pair.sparse.blocks[node.layer], self.pair.sites[node.site]
        if node.place == "mlp.post_act":
            return delta, _decoded(site, block.mlp.c_proj.weight[:, node.channel])
        if node.place == "attn.v":
            pattern = self.here[f"blocks.{node.layer}.attn.hook_pattern"][:, node.channel // block.attn.d_head]
            return (pattern @ delta[..., None])[..., 0], _decoded(site, block.attn.c_proj.weight[:, node.channel])
        return delta, _decoded(site, _unit(node.channel, self.here[node.source]))

    @torch.no_grad()
    def plain_logits(self) -> Tensor:
        """The dense model's logits (B, V) after each prompt, as it is."""
        return self._unembed(self.residuals[-1])

    @torch.no_grad()
    def logits(self, change: ResidualEdit, strength: float = 1.0) -> Tensor:
        """The dense model's logits (B, V) after each prompt, with so much of the change. Disabled adapters change nothing."""
        dense, site, h = self.pair.dense, self.pair.sites[change.site], self.residuals[change.site]
        moved = change.of(strength)
        if change.way == "stream" and not site.disable_adapters:
            h = h + moved
        with site.steered(moved) if change.way == "read" else nullcontext():
            final = tail(dense, change.site, h, self.context)
        return self._unembed(final)

    def _unembed(self, h: Tensor) -> Tensor:
        return self.pair.dense.unembed(h[torch.arange(len(h), device=h.device), self.last])


def random_directions(change: ResidualEdit, draws: int, seed: int) -> list[ResidualEdit]:
    """The change turned at random in the dense space: at every token as long as it was, and its nodes at the same angles."""
    generator = torch.Generator().manual_seed(seed)
    axes, shape = torch.linalg.qr(change.directions.T)
    drawn = torch.randn(draws, *axes.shape, generator=generator).to(axes)
    return [replace(change, directions=shape.T @ turned.T) for turned in torch.linalg.qr(drawn).Q]


def _residual_of(layer: int, attends: bool) -> str:
    return f"blocks.{layer}.{'hook_resid_pre' if attends else 'hook_resid_mid'}"


def _unit(channel: int, like: Tensor) -> Tensor:
    return nn.functional.one_hot(torch.tensor(channel, device=like.device), like.shape[-1]).to(like.dtype)


def _decoded(site: BridgeSite, x: Tensor) -> Tensor:
    """The dense direction (D,) of a sparse one (S,): the decoder without its bias."""
    return site.decode(x) - site.decode(torch.zeros_like(x))


def _normed(norm: nn.Module, amount: Tensor, direction: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The same change behind a dense norm, whose divisor is held at that of the residual h (B, T, D)."""
    gain = norm.get_parameter("weight")
    if isinstance(norm, nn.LayerNorm):
        divisor = (h.var(-1, unbiased=False) + norm.eps).sqrt()
        return amount / divisor, (direction - direction.mean()) * gain
    eps = getattr(norm, "variance_epsilon", 0.0)
    return amount / (h.square().mean(-1) + eps).sqrt(), direction * gain
