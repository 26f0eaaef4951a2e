"""An edit of a sparse node, carried into the dense model through its bridge (Sec. 3.3, App. A.4).

The node's change d, for each token, is its value on a counterfactual prompt minus its value on the presented prompt; both have T tokens. In
the dense model's residual it becomes an amount for each token times a direction:

    act_in.c        d * rms_s / gain_c  along  G[:, c]           it reads x_c / rms_s * gain_c of the sparse residual x
    resid_delta.c   d                   along  G[:, c]           it is itself what the sublayer adds to channel c
    post_act.c      d                   along  G @ P[:, c]       P the sublayer's output matrix
    v.c             attention @ d       along  G @ P[:, c]       attention: the presented run's pattern of the head

G (D, S) is the linear part of the decoder at the site that the node reads, or at the next site after it writes; rms_s is the RMS of x at
that token in the presented run. There are two ways to add such a change e to the dense run:

    read     add e / rms_d * gain after the dense norm of that site, so that only one sublayer reads it, as in the sparse model. rms_d is
             the norm's divisor in the presented run (a LayerNorm also centres e). With divisors held fixed, the changes of all channels of
             a read add up exactly to the counterfactual read wherever the decoder is exact. This is the paper's edit.
    stream   add e to the dense residual of that site: all later sublayers read it too. Ours; the only way for nodes that write.

RMS norms are taken at each token: GPT-2's first residual is a hundred times longer than the others, so a mean over tokens fits none of
them. AbsTopK of the written values is not applied to the change. Changes of several nodes of one site are added. Queries and keys change
attention patterns, which is no fixed direction of the residual: they cannot be edited. Shapes: `extractor.bridges`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from extractor.circuits.reference import masked_residuals
from extractor.circuits.sites import GATED_PLACES, PLACES
from extractor.errors import UsageError
from extractor.models.dense.base import residuals

if TYPE_CHECKING:
    from extractor.bridges.pair import BridgedPair
    from extractor.bridges.tuner import BridgeSite

Way = Literal["read", "stream"]
WAYS: tuple[Way, ...] = ("read", "stream")
# Place -> the dense site that carries it, counted from the block's first.
CARRIED = {"attn.act_in": 0, "attn.v": 1, "attn.resid_delta": 1, "mlp.act_in": 1, "mlp.post_act": 2, "mlp.resid_delta": 2}
_NODE = re.compile(rf"(\d+)\.({'|'.join(map(re.escape, PLACES))})\.(\d+)")


@dataclass(frozen=True)
class SteeredNode:
    """A node that can be edited, and the site of the dense model at which its edit is added."""

    id: str
    layer: int
    place: str
    channel: int
    site: int

    @property
    def source(self) -> str:
        """The sparse site of the node, such as 0.attn.act_in."""
        return f"{self.layer}.{self.place}"

    @property
    def reads(self) -> bool:
        return self.place.endswith("act_in")


@dataclass(frozen=True)
class ResidualEdit:
    """amount (B, T, N) @ directions (N, D), for N nodes: added to the residual at a dense site, or after its norm (`way='read'`)."""

    site: int
    way: Way
    amount: Tensor
    directions: Tensor

    def of(self, strength: float) -> Tensor:
        """The change (B, T, D) at a strength, a fraction in [0, 1]."""
        return (strength * self.amount) @ self.directions


def find_node(pair: BridgedPair, node: str, known: Iterable[str] = ()) -> SteeredNode:
    """A node by its id. Raises UsageError for unknown nodes, with similar ones of `known`, and for nodes that cannot be steered."""
    config, match = pair.sparse.config, _NODE.fullmatch(node)
    if match is None or int(match[1]) >= config.n_layer:
        close = difflib.get_close_matches(node, list(known), 3, 0.4)
        hint = f"close: {', '.join(close)}" if close else "node names look like 0.attn.act_in.12"
        raise UsageError(f"there is no node {node!r} in this model of {config.n_layer} layers; {hint}")
    layer, place, channel = int(match[1]), match[2], int(match[3])
    if place not in CARRIED:
        why = (
            "a gate and its partner write only as a product"
            if place in GATED_PLACES
            else "queries and keys move attention in no fixed direction"
        )
        raise UsageError(f"node {node} cannot be steered: {why}; use {_steerable(layer)}")
    width = config.d_mlp if place == "mlp.post_act" else config.n_head * config.d_head if place == "attn.v" else config.d_model
    if channel >= width:
        if place.endswith("act_in") and channel < config.d_model + config.d_pos_emb:
            raise UsageError(f"node {node} cannot be steered: it is a position channel, which has no place in the dense residual")
        raise UsageError(f"there is no node {node!r}: {layer}.{place} has {width} channels")
    if config.parallel and place == "mlp.act_in":
        raise UsageError(
            f"node {node} cannot be steered: attention and MLP of a block read the same residual; use {_steerable(layer, parallel=True)}"
        )
    site = layer + (place != "attn.act_in") if config.parallel else 2 * layer + CARRIED[place]
    return SteeredNode(node, layer, place, channel, site)


def _steerable(layer: int, parallel: bool = False) -> str:
    return ", ".join(f"{layer}.{place}.N" for place in CARRIED if not (parallel and place == "mlp.act_in"))


def steerable(pair: BridgedPair, nodes: Iterable[str]) -> list[SteeredNode]:
    """Those of the nodes that can be edited, in the given order."""
    found = []
    for node in nodes:
        try:
            found.append(find_node(pair, node))
        except UsageError:
            continue
    return found


class CounterfactualRun:
    """Both models on presented and counterfactual prompts: token ids (B, T) each, right padded; last (B,) is the index of the last token.

    Residuals and node values are computed once for all nodes. Raises ValueError if the shapes differ.
    """

    def __init__(self, pair: BridgedPair, presented: Tensor, toward: Tensor, last: Tensor):
        if presented.shape != toward.shape:
            raise ValueError(
                f"presented and counterfactual prompts must have the same shape, not {tuple(presented.shape)} and {tuple(toward.shape)}"
            )
        self.pair, self.presented, self.counterfactual, self.last = pair, presented, toward, last
        with torch.no_grad():
            self.context = pair.dense.context(presented)
            self.residuals = residuals(pair.dense, presented)

    @cached_property
    def presented_values(self) -> dict[str, Tensor]:
        return self._observe(self.presented)

    @cached_property
    def counterfactual_values(self) -> dict[str, Tensor]:
        return self._observe(self.counterfactual)

    @torch.no_grad()
    def _observe(self, ids: Tensor) -> dict[str, Tensor]:
        layers = range(self.pair.sparse.config.n_layer)
        points = [f"{layer}.{place}" for layer in layers for place in CARRIED]
        both = (True,) if self.pair.sparse.config.parallel else (True, False)
        points += [_residual_of(layer, attends) for layer in layers for attends in both]
        points += [f"blocks.{layer}.attn.hook_pattern" for layer in layers]
        with self.pair.sparse.record(points) as seen:
            self.pair.sparse(input_ids=ids, logits_to_keep=1)
        return seen

    @torch.no_grad()
    def edit(self, nodes: Sequence[SteeredNode], way: Way = "read", changes: Mapping[str, Tensor] | None = None) -> ResidualEdit:
        """The edit of the dense model for these nodes, all of one site. For nodes that write, the way is always 'stream'.

        changes   of each node by its id, (B, T); None: from the presented to the counterfactual prompt
        """
        if len({node.source for node in nodes}) != 1:
            raise UsageError(f"nodes are steered together at one site, not at {', '.join(sorted({n.source for n in nodes})) or 'none'}")
        way = way if nodes[0].reads else "stream"
        deltas = [self._delta(node) if changes is None else changes[node.id] for node in nodes]
        parts = [self._read(node, d, way) if node.reads else self._write(node, d) for node, d in zip(nodes, deltas, strict=True)]
        return ResidualEdit(nodes[0].site, way, torch.stack([p[0] for p in parts], -1), torch.stack([p[1] for p in parts]))

    def edits(self, chosen: Sequence[tuple[SteeredNode, Way]]) -> list[ResidualEdit]:
        """An edit for each node of a set, which may be of several sites.

        The change of a node is what is left of it once the nodes before it have their counterfactual values: else a change that passes
        through two nodes of the set would be added twice.
        """
        changes = self._remaining([node for node, _ in chosen])
        return [self.edit([node], way, changes) for node, way in chosen]

    @torch.no_grad()
    def _remaining(self, nodes: Sequence[SteeredNode]) -> dict[str, Tensor]:
        """For each node its counterfactual value minus its value after the nodes before it have theirs, (B, T)."""
        found: dict[str, Tensor] = {}

        def patch(site: str, values: Tensor) -> Tensor:
            values = values.clone()
            for node in nodes:
                if node.source == site:
                    target = self.counterfactual_values[site][..., node.channel]
                    found[node.id] = target - values[..., node.channel]
                    values[..., node.channel] = target
            return values

        masked_residuals(self.pair.sparse, self.presented, {}, {}, rewrite=patch)
        return found

    def _delta(self, node: SteeredNode) -> Tensor:
        return (self.counterfactual_values[node.source] - self.presented_values[node.source])[..., node.channel]

    def _read(self, node: SteeredNode, delta: Tensor, way: Way) -> tuple[Tensor, Tensor]:
        """Amount (B, T) and direction (D,) for a node that reads."""
        block, site, attends = self.pair.sparse.blocks[node.layer], self.pair.sites[node.site], node.place == "attn.act_in"
        norm, x = block.ln_1 if attends else block.ln_2, self.presented_values[_residual_of(node.layer, attends)]
        gain = norm.weight[node.channel]
        if gain == 0:  # the node is always zero
            return torch.zeros_like(x[..., 0]), torch.zeros_like(self.residuals[node.site][0, 0])
        amount = delta * (x.square().mean(-1) + norm.eps).sqrt() / gain
        direction = _decoded(site, _unit(node.channel, x))
        return _normed(site.base_layer, amount, direction, self.residuals[node.site]) if way == "read" else (amount, direction)

    def _write(self, node: SteeredNode, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Amount (B, T) and direction (D,) for a node that writes."""
        block, site = self.pair.sparse.blocks[node.layer], self.pair.sites[node.site]
        if node.place == "mlp.post_act":
            return delta, _decoded(site, block.mlp.c_proj.weight[:, node.channel])
        if node.place == "attn.v":
            pattern = self.presented_values[f"blocks.{node.layer}.attn.hook_pattern"][:, node.channel // block.attn.d_head]
            return (pattern @ delta[..., None])[..., 0], _decoded(site, block.attn.c_proj.weight[:, node.channel])
        return delta, _decoded(site, _unit(node.channel, self.presented_values[node.source]))

    @torch.no_grad()
    def plain_logits(self) -> Tensor:
        """The dense model's logits (B, V) after each presented prompt, without an edit."""
        return self.pair.dense.unembed(self._at_ends(self.residuals[-1])[:, 0])

    @torch.no_grad()
    def logits(self, edit: ResidualEdit | Sequence[ResidualEdit], strength: float = 1.0) -> Tensor:
        """The dense model's logits (B, V) after each presented prompt, with the edit, or with several. Disabled adapters leave them out.

        The last sublayer is an MLP, which reads each token alone: from there on, only the last tokens are needed. A parallel block attends.
        """
        edits = [edit] if isinstance(edit, ResidualEdit) else list(edit)
        first, final = min(one.site for one in edits), self.pair.dense.n_sublayers
        cut = max(first, final if self.pair.sparse.config.parallel else final - 1)
        at: dict[tuple[int, Way], Tensor] = {}
        for one in edits:
            key, change = (one.site, one.way), one.of(strength)
            change = change if one.site < cut else self._at_ends(change)
            at[key] = at[key] + change if key in at else change
        h = self.residuals[first]
        for index in range(first, final + 1):
            site, moved, read = self.pair.sites[index], at.get((index, "stream")), at.get((index, "read"))
            if index == cut:
                h = self._at_ends(h)
            if moved is not None and not site.disable_adapters:
                h = h + moved
            if index < final:
                with nullcontext() if read is None else site.steered(read):
                    h = self.pair.dense.sublayer(index, h, self.context)
        return self.pair.dense.unembed(h[:, 0])

    def _at_ends(self, values: Tensor) -> Tensor:
        """Values (B, T, D) at each prompt's last token, (B, 1, D)."""
        return values[torch.arange(len(values), device=values.device), self.last][:, None]


def random_directions(edit: ResidualEdit, draws: int, seed: int) -> list[ResidualEdit]:
    """The edit, rotated at random in the dense space: the norm at each token and the angles between nodes stay the same."""
    generator = torch.Generator().manual_seed(seed)
    axes, shape = torch.linalg.qr(edit.directions.T)
    drawn = torch.randn(draws, *axes.shape, generator=generator).to(axes)
    return [replace(edit, directions=shape.T @ turned.T) for turned in torch.linalg.qr(drawn).Q]


def _residual_of(layer: int, attends: bool) -> str:
    return f"blocks.{layer}.{'hook_resid_pre' if attends else 'hook_resid_mid'}"


def _unit(channel: int, like: Tensor) -> Tensor:
    return nn.functional.one_hot(torch.tensor(channel, device=like.device), like.shape[-1]).to(like.dtype)


def _decoded(site: BridgeSite, x: Tensor) -> Tensor:
    """The dense direction (D,) of a sparse one (S,): the decoder without its bias."""
    return site.decode(x) - site.decode(torch.zeros_like(x))


def _normed(norm: nn.Module, amount: Tensor, direction: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The same change after a dense norm, with the divisor that the norm has for the residual h (B, T, D)."""
    if isinstance(norm, nn.LayerNorm):
        divisor = (h.var(-1, unbiased=False) + norm.eps).sqrt()
        return amount / divisor, (direction - direction.mean()) * norm.get_parameter("weight")
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0))
    gain = norm(torch.ones_like(direction)) * (1 + eps) ** 0.5  # Gemma's norms hold the gain less one
    return amount / (h.square().mean(-1) + eps).sqrt(), direction * gain
