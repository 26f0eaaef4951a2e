"""The fast masked model where replacement values differ from prompt to prompt and token to token: another prompt's values, random subsets.

Read reference.py first. `network.FastMaskedModel` folds constants into biases; here there are none. What is computed is by how much values
deviate from their replacement values r, and a node or an edge that is ablated deviates by nothing:

  site    d = m * (AbsTopK(x among nodes that are on) - r)                           R3
  link    x = base + (W * M) d,          base = W r + bias, over all sources         R4
  heads   pattern from q = r + d and k = r + d, over all channels, normed and turned R5
          out = base + (W * M) pattern @ d,   base = pattern @ (W r) + bias          R6, R4
  gates   d = m * (activation(r + d of the gate) * (r + d of the up) - r)             R7, over the neurons that are kept
  h       = h_r + sum of d,              h_r = embedding + the r of all writes       R7

r, base and h_r are functions of the prompts alone, computed once per batch (`prepare`); only kept nodes have a d. Residual channels that no
kept node reads or writes enter by the sum of their squares alone, as in network.py. Paper: App. A.5.

Shapes: P mask sets, B prompts, T tokens (T' = T, or 1 where only the scored position is computed), R tracked residual channels, L layers,
H heads with a kept q, k or v, C channels of a head, n kept nodes of a site.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from extractor.circuits.graph import Link, NodeIndex, links
from extractor.circuits.layers import future, pick
from extractor.circuits.masks import Masks, compete, cut_edges
from extractor.circuits.network import LENGTH_GROUPS, direct_logit_diff, readout_of
from extractor.circuits.prompt_bases import AttentionBases, MLPBases, PromptGroup
from extractor.circuits.prompt_values import ReplacedStream, Replacements
from extractor.circuits.sites import sites
from extractor.data.prompts import TaskBatch

if TYPE_CHECKING:
    from extractor.sparse.modeling_sparse_gpt import Block, SparseGPTForCausalLM


class PromptMaskedModel:
    """A `MaskedModel` whose ablated nodes have the values that `ablate` gives for a batch.

    ablate       batch -> (the batch once or several times below itself; the replacement values of its rows)
    kept_nodes   (N,) bool: the nodes that are computed; all others are ablated
    """

    @torch.no_grad()
    def __init__(self, model: SparseGPTForCausalLM, ablate: Callable[[TaskBatch], tuple[TaskBatch, Replacements]], kept_nodes: Tensor):
        self.model, self.ablate, self.kept_nodes = model, ablate, kept_nodes
        self.index = NodeIndex.of(model)
        self._starts, self._k = self.index.starts(), {name: site.k for name, site in sites(model).items()}
        self._channels = {site: part.nonzero().flatten() for site, part in self.index.split(kept_nodes).items()}
        self._weights: dict[Link, Tensor] = {(source, target): weight for source, target, weight in links(model)}
        self._cut = {link: w[self._channels[link[1]]][:, self._channels[link[0]]] for link, w in self._weights.items()}
        self.tracked = self._tracked()
        self._place = torch.full((model.config.d_model,), -1, device=kept_nodes.device)
        self._place[self.tracked] = torch.arange(len(self.tracked), device=kept_nodes.device)
        self._heads = [self._computed_heads(layer) for layer in range(len(model.blocks))]
        self._columns = {f"{layer}.attn.{name}": self._places_in_heads(layer, name) for layer in range(len(model.blocks)) for name in "qkv"}
        self._meeting = {f"{layer}.mlp.{name}": self._meet(layer, name) for layer in range(len(model.blocks)) for name in self._factors}

    def __len__(self) -> int:
        return int(self.kept_nodes.sum())

    def cut(self, edges: Mapping[Link, Tensor]) -> dict[Link, Tensor]:
        return cut_edges(edges, self._channels)

    def logit_diffs(self, prompts: Sequence[PromptGroup], masks: Masks = Masks()) -> Tensor:  # noqa: B008 - frozen
        """Logit differences (P, rows of the batch that `ablate` returns) of every mask set. Differentiable in the masks."""
        order = torch.cat([group.rows for group in prompts]).argsort()
        return torch.cat([_Pass(self, group, masks).logit_diffs() for group in prompts], dim=1)[:, order]

    def prepare(self, batch: TaskBatch, groups: int = LENGTH_GROUPS) -> list[PromptGroup]:
        """Everything that does not depend on masks, in groups of prompts of similar length, each with all its copies."""
        return list(self.prepared(batch, groups))

    @torch.no_grad()
    def prepared(self, batch: TaskBatch, groups: int = LENGTH_GROUPS) -> Iterator[PromptGroup]:
        """The groups of `prepare`, one after the other: all of a large network fill memory."""
        repeated, values = self.ablate(batch)
        copies = torch.arange(0, len(repeated.ids), len(batch.ids), device=batch.ids.device)[:, None]
        rows = [(copies + some).flatten() for some in batch.last.argsort(stable=True).chunk(groups)]
        for place, some in enumerate(rows):
            yield self._group(repeated, values, some, (groups, place))

    # what depends on the kept nodes alone

    def _tracked(self) -> Tensor:
        width = self.model.config.d_model
        seen = torch.zeros(width, dtype=torch.bool, device=self.kept_nodes.device)
        for site, channels in self._channels.items():
            if site.endswith(("act_in", "resid_delta")):
                seen[channels[channels < width]] = True
        return seen.nonzero().flatten()

    def _computed_heads(self, layer: int) -> Tensor:
        """The heads of a layer with a kept q, k or v."""
        width = self.model.config.d_head
        return torch.cat([self._channels[f"{layer}.attn.{name}"] for name in "qkv"]).div(width, rounding_mode="floor").unique()

    def _places_in_heads(self, layer: int, name: str) -> Tensor:
        """The places of a site's kept channels among the channels of the computed heads."""
        width, channels = self.model.config.d_head, self._channels[f"{layer}.attn.{name}"]
        return torch.searchsorted(self._heads[layer], channels // width) * width + channels % width

    @property
    def _factors(self) -> tuple[str, ...]:
        """The sites whose product a neuron is; () without gates."""
        return ("gate", "up") if self.model.config.gated else ()

    def _meet(self, layer: int, name: str) -> tuple[Tensor, Tensor]:
        """(places among the kept channels of a gate or up whose neuron is kept, places of those neurons among the kept ones)."""
        factor, neurons = self._channels[f"{layer}.mlp.{name}"], self._channels[f"{layer}.mlp.post_act"]
        return torch.isin(factor, neurons).nonzero().flatten(), torch.isin(neurons, factor).nonzero().flatten()

    # what depends on the prompts

    def _group(self, batch: TaskBatch, values: Replacements, rows: Tensor, key: tuple[int, int]) -> PromptGroup:
        part, model = batch.rows(rows), self.model
        length = part.ids.shape[1]
        if key not in values.streams:
            values.streams[key] = self._stream(part, values, rows)
        whole = values.streams[key]
        h = model.embed(part.ids, model.context(length))[..., self.tracked]
        residual = [h]
        for site in _writes(model):
            residual.append(residual[-1] + values.of(site, rows, length, self.tracked))
        rest = [whole.squares[place] - h.square().sum(-1) for place, h in enumerate(residual)]
        readout = readout_of(model, part)[:, self.tracked]
        at_last = residual[-1][torch.arange(len(h), device=h.device), part.last]
        r = _Cut(self, values, rows, length)
        layers = [(self._attention(layer, block, r), self._mlp(layer, block, r)) for layer, block in enumerate(model.blocks)]
        return PromptGroup(
            rows=rows,
            last=part.last,
            residual=torch.stack(residual),
            rest=torch.stack(rest).clamp_min(0.0),
            layers=layers,
            readout=readout,
            rest_readout=whole.readout - (at_last * readout).sum(-1),
            direct=direct_logit_diff(model, part),
        )

    def _stream(self, part: TaskBatch, values: Replacements, rows: Tensor) -> ReplacedStream:
        """h_r of some rows, all channels: what does not depend on the kept nodes."""
        model, length = self.model, part.ids.shape[1]
        every = torch.arange(model.config.d_model, device=rows.device)
        h = model.embed(part.ids, model.context(length))
        squares = [h.square().sum(-1)]
        for site in _writes(model):
            h = h + values.of(site, rows, length, every)
            squares.append(h.square().sum(-1))
        at_last = h[torch.arange(len(h), device=h.device), part.last]
        return ReplacedStream(torch.stack(squares), (at_last * readout_of(model, part)).sum(-1))

    def _attention(self, layer: int, block: Block, r: _Cut) -> AttentionBases:
        prefix, attn, width = f"{layer}.attn.", block.attn, self.model.config.d_head
        written = self._channels[prefix + "resid_delta"]
        biases = dict(zip("qkv", attn.c_attn.bias.chunk(3), strict=True))
        bases = {name: r.base((prefix + "act_in", prefix + name), biases[name]) for name in "qkv"}
        of_heads = torch.arange(self.index.widths[prefix + "v"], device=written.device).view(-1, width)
        computed = torch.zeros(len(of_heads), dtype=torch.bool, device=written.device)
        computed[self._heads[layer]] = True
        inside, outside = of_heads[computed].flatten(), of_heads[~computed].flatten()
        weight = self._weights[prefix + "v", prefix + "resid_delta"][written]  # (n, heads * C)
        values, by_head = r.of(prefix + "v", inside).unflatten(-1, (-1, width)), weight[:, inside].unflatten(-1, (-1, width))
        writes = torch.einsum("bshc,nhc->bhsn", values, by_head).flatten(1, 2)
        out = functional.linear(r.mixed(layer, outside), weight[:, outside], attn.c_proj.bias[written])
        kept = {place: r.kept(prefix + place) for place in ("act_in", "q", "k", "v", "resid_delta")}
        every = {name: r.of(prefix + name, inside) for name in "qk"}
        return AttentionBases(kept, bases["q"], bases["k"], bases["v"], every["q"], every["k"], writes, out)

    def _mlp(self, layer: int, block: Block, r: _Cut) -> MLPBases:
        prefix, mlp = f"{layer}.mlp.", block.mlp
        into = {name: r.base((prefix + "act_in", prefix + name), reader.bias) for name, reader in mlp.readers.items()}
        proj = r.base((prefix + "post_act", prefix + "resid_delta"), mlp.c_proj.bias)
        kept = {place: r.kept(prefix + place) for place in ("act_in", *self._factors, "post_act", "resid_delta")}
        factors = {name: r.of(prefix + name, self._channels[prefix + "post_act"]) for name in self._factors}
        return MLPBases(kept, into, proj, factors)


def _writes(model: SparseGPTForCausalLM) -> list[str]:
    """The sites that write to the residual stream, in order."""
    return [f"{layer}.{kind}.resid_delta" for layer in range(len(model.blocks)) for kind in ("attn", "mlp")]


@dataclass(frozen=True)
class _Cut:
    """Replacements of some rows, at the kept nodes of a network."""

    network: PromptMaskedModel
    values: Replacements
    rows: Tensor
    length: int

    def of(self, site: str, channels: Tensor) -> Tensor:
        return self.values.of(site, self.rows, self.length, channels)

    def kept(self, site: str) -> Tensor:
        return self.of(site, self.network._channels[site])

    def base(self, link: Link, bias: Tensor) -> Tensor:
        """W r + bias at the kept targets, (B, T, n)."""
        kept = self.network._channels[link[1]]
        return self.values.sent(link, self.rows, self.length, kept) + bias[kept]

    def mixed(self, layer: int, channels: Tensor) -> Tensor:
        return self.values.mixed(layer, self.rows, self.length, channels)


class _Pass:
    """One pass of some prompts under all mask sets. d: deviations (P, B, T', n)."""

    def __init__(self, network: PromptMaskedModel, group: PromptGroup, masks: Masks):
        self.network, self.group, self.masks, self.model = network, group, masks, network.model
        self.angles = self.model.angles(torch.arange(group.residual.shape[2], device=group.residual.device))

    def logit_diffs(self) -> Tensor:
        """(P or 1, B)."""
        group, blocks = self.group, self.model.blocks
        d: Tensor = torch.zeros((), device=group.residual.device)
        for layer, (block, (attention, mlp)) in enumerate(zip(blocks, group.layers, strict=True)):
            last = group.last if layer == len(blocks) - 1 else None
            read = self._read(2 * layer, f"{layer}.attn.act_in", block.ln_1, block.ln_p1, attention.r["act_in"], d, None)
            before = self._at(d, last)
            d = before + self._written(f"{layer}.attn.resid_delta", self._attention(layer, block, attention, read, last))
            norm, seen = (2 * layer, before) if self.model.config.parallel else (2 * layer + 1, d)
            read = self._read(norm, f"{layer}.mlp.act_in", block.ln_2, block.ln_p2, mlp.r["act_in"], seen, last)
            d = d + self._written(f"{layer}.mlp.resid_delta", self._mlp(layer, block, mlp, read, last))
        h, scale = self._residual(2 * len(blocks), self.model.transformer.ln_f, d, group.last)
        return scale[..., 0, 0] * ((h[..., 0, :] * group.readout).sum(-1) + group.rest_readout) + group.direct

    def _at(self, d: Tensor, last: Tensor | None) -> Tensor:
        """Deviations (P, B, T, n) at the scored position, (P, B, 1, n)."""
        return d if last is None or d.dim() == 0 else pick(d, last)

    def _base(self, x: Tensor, last: Tensor | None) -> Tensor:
        """A base (B, T, n) at the scored position, (B, 1, n)."""
        return x if last is None else pick(x[None], last)[0]

    def _residual(self, norm: int, module, d: Tensor, last: Tensor | None) -> tuple[Tensor, Tensor]:
        """h = h_r + d of the tracked channels (P, B, T', R), and the norm's scale (..., 1). R2."""
        h, rest = self._base(self.group.residual[norm], last) + d, self._base(self.group.rest[norm][..., None], last)
        h = h if h.dim() == 4 else h[None]
        return h, torch.rsqrt((h.square().sum(-1, keepdim=True) + rest) / self.model.config.d_model + module.eps)

    def _read(self, norm: int, site: str, module, position_norm, r: Tensor, d: Tensor, last: Tensor | None) -> Tensor:
        """Deviations of a read. R2, R3."""
        channels, width = self.network._channels[site], self.model.config.d_model
        inside = channels[channels < width]
        h, scale = self._residual(norm, module, d, last)
        x = h[..., self.network._place[inside]] * scale * module.weight[inside]
        if len(inside) < len(channels):
            positions = self.model.transformer.wpe
            assert positions is not None  # a model with position channels has a table of them
            table = position_norm(positions.weight)[:, channels[len(inside) :] - width]
            there = table[: h.shape[-2]] if last is None else table[last][:, None]
            x = torch.cat([x, there.expand(*x.shape[:-1], -1)], dim=-1)
        return self._site(site, x, self._base(r, last))

    def _site(self, site: str, x: Tensor, r: Tensor) -> Tensor:
        """R3: deviations from values before AbsTopK."""
        start, k = self.network._starts[site], self.network._k[site]
        if self.masks.nodes is None:
            return compete(x, torch.ones_like(x, dtype=torch.bool), k) - r if x.shape[-1] else x
        mask = self.masks.nodes[:, self.network._channels[site] + start][:, None, None]
        return mask * (compete(x, mask > 0, k) - r) if x.shape[-1] else x.expand(len(mask), *x.shape[1:])

    def _link(self, source: str, target: str, d: Tensor) -> Tensor:
        """R4: (W * M) d."""
        weight = self.network._cut[source, target]
        if self.masks.edges is None:
            return functional.linear(d, weight)
        mask = self.masks.edges[source, target]
        return (d.expand(len(mask), *d.shape[1:]).flatten(1, -2) @ (weight * mask).mT).unflatten(1, d.shape[1:-1])

    def _written(self, site: str, d: Tensor) -> Tensor:
        """Deviations of a write (P, B, T', n) at the tracked channels (P, B, T', R). R7."""
        places = self.network._place[self.network._channels[site]]
        return d.new_zeros(*d.shape[:-1], len(self.network.tracked)).index_copy(-1, places, d)

    def _mlp(self, layer: int, block: Block, bases: MLPBases, read: Tensor, last: Tensor | None) -> Tensor:
        prefix = f"{layer}.mlp."
        into = {name: self._base(base, last) + self._link(prefix + "act_in", prefix + name, read) for name, base in bases.into.items()}
        for name, r in bases.factors.items():
            into[name] = self._factor(prefix + name, into[name], bases.r[name], r, last)
        post = self._site(prefix + "post_act", block.mlp.activated(into), self._base(bases.r["post_act"], last))
        out = self._base(bases.proj, last) + self._link(prefix + "post_act", prefix + "resid_delta", post)
        return self._site(prefix + "resid_delta", out, self._base(bases.r["resid_delta"], last))

    def _factor(self, site: str, x: Tensor, r: Tensor, r_of_neurons: Tensor, last: Tensor | None) -> Tensor:
        """The values (P, B, T', neurons) of a gate or up at the numbers of the kept neurons, from its kept channels before AbsTopK."""
        d = self._site(site, x, self._base(r, last))
        own, there = self.network._meeting[site]
        base = self._base(r_of_neurons, last)
        return base + d.new_zeros(*d.shape[:-1], base.shape[-1]).index_copy(-1, there, d[..., own])

    def _attention(self, layer: int, block: Block, bases: AttentionBases, read: Tensor, last: Tensor | None) -> Tensor:
        prefix = f"{layer}.attn."
        d = {}
        for name, base in (("q", bases.q), ("k", bases.k), ("v", bases.v)):
            at = last if name == "q" else None
            x = self._base(base, at) + self._link(prefix + "act_in", prefix + name, self._at(read, at))
            d[name] = self._heads(layer, name, self._site(prefix + name, x, self._base(bases.r[name], at)))
        out = self._base(bases.out, last)
        if len(self.network._heads[layer]):
            q = self._by_head(self._base(bases.all_q, last)) + d["q"]
            pattern = self._pattern(block.attn, q, self._by_head(bases.all_k) + d["k"], layer, last)
            out = out + pattern.transpose(-2, -3).flatten(-2) @ bases.writes
            mixed = (pattern @ d["v"]).transpose(-2, -3).flatten(-2)[..., self.network._columns[prefix + "v"]]
        else:
            mixed = read.new_zeros(*read.shape[:-1], 0) if last is None else read.new_zeros(*read.shape[:2], 1, 0)
        out = out + self._link(prefix + "v", prefix + "resid_delta", mixed)
        return self._site(prefix + "resid_delta", out, self._base(bases.r["resid_delta"], last))

    def _by_head(self, x: Tensor) -> Tensor:
        """(..., T, H * C) -> (..., H, T, C)."""
        return x.unflatten(-1, (-1, self.model.config.d_head)).transpose(-2, -3)

    def _heads(self, layer: int, name: str, d: Tensor) -> Tensor:
        """Deviations (P, B, T', n) at all channels of the computed heads, (P, B, H, T', C)."""
        full = d.new_zeros(*d.shape[:-1], len(self.network._heads[layer]) * self.model.config.d_head)
        return self._by_head(full.index_copy(-1, self.network._columns[f"{layer}.attn.{name}"], d))

    def _pattern(self, attn, q: Tensor, k: Tensor, layer: int, last: Tensor | None) -> Tensor:
        """R5: (P, B, H, T', T)."""
        angles = self.angles if self.angles is None or last is None else self.angles[last][:, None, None]  # (T, pairs), (B, 1, 1, pairs)
        q, k = attn.turned(q, attn.q_norm, angles), attn.turned(k, attn.k_norm, self.angles)
        scores = (q / math.sqrt(q.shape[-1])) @ k.mT
        scores = scores.masked_fill(future(k.shape[-2], last, k.device), -torch.inf)
        if attn.sink_logit is not None:
            sink = attn.sink_logit[self.network._heads[layer]][:, None, None].expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, sink], dim=-1)
        return scores.softmax(-1)[..., : k.shape[-2]]
