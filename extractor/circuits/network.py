"""The fast masked model: only the kept nodes, for many mask sets at once, and only the answers' logit difference (all of this is ours).

Read reference.py first: this module computes what `reference.masked_logit_diff` defines in its lines R1 to R8. W and b are a link's weight
and bias, r replacement values, norms n = 0 .. 2L (before each sublayer, and the last). Residual channels that a kept node reads or writes
are *tracked*; the value of an untracked channel before norm n is known before any mask is: embedding[token, c] + c_n[c].

Once per set of kept nodes (`FastMaskedModel`):
  1. Ablated nodes become constants: their rows and columns of W go, b' = b + W r (R3, R4), except in heads: see `_heads`, layers.py.
  2. c_n, the sum of what ablated nodes write before norm n, is a constant vector (R7).
Once per batch (`prepare`):
  3. Tracked embeddings (R1), and of the untracked channels only s_n = sum_c (embedding[c] + c_n[c])^2 before each norm, and their part of
     the logit difference. Prompts run in groups of similar length.
Once per mask set, P of them as one more batch dimension (`run`):
  4. Read: x = h * gain / sqrt((sum h^2 + s_n) / width + eps), h the tracked channels, gain the norm's weight; then R3 (R2).
  5. Attention and MLP with the cut matrices (R3 to R7). In the last layer only keys and values run at every
     position; queries, neurons and writes at the scored one.
  6. Logit difference = norm scale * (h . readout + rest_readout) + direct, readout = (unembedding[first] - unembedding[second]) * gain: one
     dot product in place of the unembedding (R8).

Paper: App. A.5. Shapes: P mask sets, B prompts, T tokens, R tracked channels, S residual width, L layers, N nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from extractor.circuits.graph import Link, NodeIndex
from extractor.circuits.layers import AblationValues, Matrix, PrunedAttention, PrunedMLP, Read, SinkTerms, Slots, Write, pick
from extractor.circuits.masks import Masks, cut_edges
from extractor.data.prompts import TaskBatch

if TYPE_CHECKING:
    from extractor.sparse.modeling_sparse_gpt import MLP, Attention, RMSNorm, SparseGPTForCausalLM

LENGTH_GROUPS = 4


@dataclass(frozen=True)
class PreparedPrompts:
    """What the mask sets share of some prompts (step 3).

    rows         (B,) their places in the batch
    tracked      (1, B, T, R) embeddings, positions added
    rest         (2L + 1, B, T) s_n, the sum of squares of the other channels before each norm
    last         (B,) the scored position
    readout      (B, R) weights of the tracked channels, normed, in the logit difference
    direct       (B,) the part of the logit difference that depends on no sublayer and no norm: bigrams, biases
    rest_readout (B,) the other channels' part, before the norm's scale
    """

    rows: Tensor
    tracked: Tensor
    rest: Tensor
    last: Tensor
    readout: Tensor
    direct: Tensor
    rest_readout: Tensor


def run(layers: Sequence[tuple[PrunedAttention, PrunedMLP]], prompts: PreparedPrompts, masks: Masks) -> Tensor:
    """Logit differences (P or 1, B): steps 4 to 6."""
    h, rest, last = prompts.tracked, list(prompts.rest), prompts.last
    for number, (attention, neurons) in enumerate(layers):
        x = attention.read.apply(h, rest[2 * number], None, masks)
        if number < len(layers) - 1:
            h = attention.apply(h, x, None, masks)
            h = neurons.apply(h, neurons.read.apply(h, rest[2 * number + 1], None, masks), masks)
        else:
            h = attention.apply(pick(h, last), x, last, masks)
            h = neurons.apply(h, neurons.read.apply(h, _at(rest[-2], last), last, masks), masks)
    read = layers[-1][1].read
    scale = torch.rsqrt((h.square().sum(-1) + _at(rest[-1], last)) / read.width + read.eps)[..., 0]
    return scale * ((h[:, :, 0] * prompts.readout).sum(-1) + prompts.rest_readout) + prompts.direct


def readout_of(model: SparseGPTForCausalLM, part: TaskBatch) -> Tensor:
    """The weights of the residual channels in the logit difference, before the last norm's scale, (B, S). R8."""
    weight = model.lm_head.weight
    return (weight[part.first] - weight[part.second]) * model.transformer.ln_f.weight


def direct_logit_diff(model: SparseGPTForCausalLM, part: TaskBatch) -> Tensor:
    """What bigrams and biases add to the logit difference, (B,)."""
    rows = torch.arange(len(part.ids), device=part.ids.device)
    current = part.ids[rows, part.last]
    logits = model.bigram.add(model, model.lm_head.weight.new_zeros(len(rows), model.config.vocab_size), current)
    if model.logits_bias is not None:
        logits = logits + model.logits_bias
    return logits[rows, part.first] - logits[rows, part.second]


def _at(rest: Tensor, last: Tensor) -> Tensor:
    """(B, 1) of (B, T): the position `last`."""
    return rest.gather(1, last[:, None])


class FastMaskedModel:
    """A `MaskedModel`: steps 1 and 2.

    ablation_values   {site: (width,)} replacement value of every node
    kept_nodes        (N,) bool: the nodes that are computed; all others are ablated
    """

    @torch.no_grad()
    def __init__(self, model: SparseGPTForCausalLM, ablation_values: AblationValues, kept_nodes: Tensor):
        self.model, self.ablation_values, self.kept_nodes = model, ablation_values, kept_nodes
        self.index = NodeIndex.of(model)
        self._starts = self.index.starts()
        self._channels = {site: part.nonzero().flatten() for site, part in self.index.split(kept_nodes).items()}
        self.tracked, self.constants = self._residual()
        self._place = torch.full((model.config.d_model,), -1, device=kept_nodes.device)
        self._place[self.tracked] = torch.arange(len(self.tracked), device=kept_nodes.device)
        self.layers = [
            (self._attention(f"{layer}.attn.", block), self._mlp(f"{layer}.mlp.", block)) for layer, block in enumerate(model.blocks)
        ]

    def __len__(self) -> int:
        return int(self.kept_nodes.sum())

    def logit_diffs(self, prompts: Sequence[PreparedPrompts], masks: Masks = Masks()) -> Tensor:  # noqa: B008 - frozen
        """Logit differences (P, 2 x pairs) of every mask set, in the batch's order. Differentiable in the masks."""
        parts = [run(self.layers, group, masks) for group in prompts]
        order = torch.cat([group.rows for group in prompts]).argsort()
        return torch.cat(parts, dim=1)[:, order]

    @torch.no_grad()
    def prepare(self, batch: TaskBatch, groups: int = LENGTH_GROUPS) -> list[PreparedPrompts]:
        """The part of a batch's computation that does not depend on masks (step 3), in groups of prompts of similar length."""
        return [self._prompts(batch, rows) for rows in batch.last.argsort(stable=True).chunk(groups)]

    def cut(self, edges: Mapping[Link, Tensor]) -> dict[Link, Tensor]:
        return cut_edges(edges, self._channels)

    def _prompts(self, batch: TaskBatch, rows: Tensor) -> PreparedPrompts:
        part, model = batch.rows(rows), self.model
        context = model.context(part.ids.shape[1])
        h = model.embed(part.ids, context)
        others = torch.ones(h.shape[-1], dtype=torch.bool, device=h.device)
        others[self.tracked] = False
        squares = torch.stack([(h[..., others] + constant[others]).square().sum(-1) for constant in self.constants])
        readout = readout_of(model, part)
        at_last = h[torch.arange(len(h), device=h.device), part.last] + self.constants[-1]
        return PreparedPrompts(
            rows=rows,
            tracked=h[None, ..., self.tracked],
            rest=squares,
            last=part.last,
            readout=readout[:, self.tracked],
            direct=direct_logit_diff(model, part),
            rest_readout=(at_last * readout)[:, others].sum(-1),
        )

    # cutting: steps 1 and 2

    def _residual(self) -> tuple[Tensor, Tensor]:
        """Channels that a kept node reads or writes, (R,); c_n, what ablated nodes have written before each norm, (2L + 1, S)."""
        width = self.model.config.d_model
        seen = torch.zeros(width, dtype=torch.bool, device=self.kept_nodes.device)
        constants = [torch.zeros(width, device=self.kept_nodes.device)]
        for layer in range(len(self.model.blocks)):
            for part in ("attn", "mlp"):
                read, written = self._channels[f"{layer}.{part}.act_in"], self._channels[f"{layer}.{part}.resid_delta"]
                seen[read[read < width]] = True
                seen[written] = True
                constants.append(constants[-1] + self._constant_write(f"{layer}.{part}.resid_delta"))
        return seen.nonzero().flatten(), torch.stack(constants)

    def _constant_write(self, site: str) -> Tensor:
        return self.ablation_values[site].index_fill(0, self._channels[site], 0.0)

    def _slots(self, site: str, k: int, channels: Tensor | None = None) -> Slots:
        return Slots.of(
            self._channels[site] if channels is None else channels, self._starts[site], len(self.index), self.ablation_values[site], k
        )

    def _read(self, site: str, k: int, norm: RMSNorm, position_norm: RMSNorm | None) -> Read:
        width, channels, table = self.model.config.d_model, self._channels[site], self.model.transformer.wpe
        inside, positions = channels[channels < width], torch.zeros(0, 0, device=channels.device)
        if position_norm is not None and table is not None and len(channels) > len(inside):
            positions = position_norm(table.weight)[:, channels[len(inside) :] - width]
        return Read(self._slots(site, k), self._place[inside], norm.weight[inside], positions, norm.eps, width)

    def _write(self, site: str, k: int) -> Write:
        return Write(self._slots(site, k), self._place[self._channels[site]], self._constant_write(site)[self.tracked])

    def _matrix(self, link: Link, weight: Tensor, bias: Tensor, rows: Tensor, columns: Tensor, folded: bool = True) -> Matrix:
        """A link's weight (target width, source width) at slots with these channels, -1 where a slot is no node: b' = b + W r.

        folded   whether the bias takes what ablated sources send
        """
        source, target = link
        replacement, real, inputs = self.ablation_values[source], rows >= 0, columns >= 0
        constant = bias + weight @ replacement.index_fill(0, columns[inputs], 0.0) if folded else bias
        at, sources = rows.clamp_min(0), columns.clamp_min(0)
        return Matrix(
            link,
            weight[at][:, sources] * real[:, None] * inputs,
            torch.where(real, constant[at], 0.0),
            torch.where(inputs, replacement[sources], 0.0),
            torch.searchsorted(self._channels[target], at).clamp_max(max(0, len(self._channels[target]) - 1)),
            torch.searchsorted(self._channels[source], sources).clamp_max(max(0, len(self._channels[source]) - 1)),
        )

    def _attention(self, prefix: str, block) -> PrunedAttention:
        attn: Attention = block.attn
        reads, names = prefix + "act_in", [prefix + name for name in "qkv"]
        score, value, computed, constant_heads = self._heads(prefix, attn)
        weights, biases = attn.c_attn.weight.chunk(3), attn.c_attn.bias.chunk(3)
        matrices, sites = [], []
        for name, weight, bias, wanted, site in zip(names, weights, biases, (score, score, value), (attn.q, attn.k, attn.v), strict=True):
            on = self._is_kept(name, wanted)
            channels = torch.where(on, wanted, -1)
            matrix = self._matrix((reads, name), weight, bias, channels, self._channels[reads])
            constant = torch.where((wanted >= 0) & ~on, self.ablation_values[name][wanted.clamp_min(0)], matrix.bias)
            matrices.append(replace(matrix, bias=constant))
            sites.append(self._slots(name, site.k, channels))
        sinks, value_slots = attn.sink_logit is not None, sites[2].channels
        written = prefix + "resid_delta"
        out = self._matrix((names[2], written), attn.c_proj.weight, attn.c_proj.bias, self._channels[written], value_slots, not sinks)
        terms = None
        if attn.sink_logit is not None:
            ablated_write = self._ablated_write(names[2], attn)[self._channels[written]]
            logit = attn.sink_logit - self._constant_score(prefix, score, attn)
            terms = SinkTerms(
                logit=logit[computed],
                write=ablated_write[:, computed],
                constant_logit=logit[constant_heads],
                constant_write=ablated_write[:, constant_heads],
            )
        q, k, v = matrices
        return PrunedAttention(
            read=self._read(reads, attn.act_in.k, block.ln_1, block.ln_p1),
            write=self._write(written, attn.resid_delta.k),
            q=q,
            k=k,
            v=v,
            out=out,
            sites=(sites[0], sites[1], sites[2]),
            heads=len(computed),
            d_head=attn.d_head,
            sinks=terms,
        )

    def _is_kept(self, site: str, channels: Tensor) -> Tensor:
        return (channels >= 0) & torch.isin(channels, self._channels[site])

    def _heads(self, prefix: str, attn: Attention) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Channels of score slots and of value slots, flat, padded with -1 per head; computed heads; heads with constant scores.

        A sink takes a share of attention that depends on the scores; what ablated values write is proportional to the rest.

        kept v   kept q or k   sink, and ablated v that write   head
        yes      any           any                              computed
        no       yes           yes                              computed: the share that the sink leaves varies
        no       no            yes                              constant scores: see `SinkTerms.constant_logit`
        no       any           no                               gone: a constant in the output bias; but computed where its q or k
                                                                compete with those of other heads for the places that AbsTopK leaves
        """
        either = torch.cat([self._channels[prefix + "q"], self._channels[prefix + "k"]]).unique()
        values = self._channels[prefix + "v"]
        has_values, has_scores, ablated_write = (
            torch.zeros(len(self.ablation_values[prefix + "v"]) // attn.d_head, dtype=torch.bool, device=values.device) for _ in range(3)
        )
        has_values[values // attn.d_head] = True
        has_scores[either // attn.d_head] = True
        if attn.sink_logit is not None:
            ablated_write = self._ablated_write(prefix + "v", attn)[self._channels[prefix + "resid_delta"]].any(0)
        competes = any(len(self._channels[prefix + name]) > site.k for name, site in (("q", attn.q), ("k", attn.k)))
        computed = (has_values | (ablated_write | competes) & has_scores).nonzero().flatten()
        constant = (ablated_write & ~has_scores & ~has_values).nonzero().flatten()
        return _padded(either, computed, attn.d_head), _padded(values, computed, attn.d_head), computed, constant

    def _ablated_write(self, site: str, attn: Attention) -> Tensor:
        """What the ablated values of each head write, per share of attention, (S, heads)."""
        ablated = self.ablation_values[site].index_fill(0, self._channels[site], 0.0)
        return (attn.c_proj.weight * ablated).unflatten(1, (-1, attn.d_head)).sum(-1)

    def _constant_score(self, prefix: str, slots: Tensor, attn: Attention) -> Tensor:
        """What channels whose q and k are both ablated add to every score of a head, (heads,)."""
        product = self.ablation_values[prefix + "q"] * self.ablation_values[prefix + "k"]
        product = product.index_fill(0, slots[slots >= 0], 0.0)
        return product.view(-1, attn.d_head).sum(-1) / attn.d_head**0.5

    def _mlp(self, prefix: str, block) -> PrunedMLP:
        mlp: MLP = block.mlp
        reads, post, written = prefix + "act_in", prefix + "post_act", prefix + "resid_delta"
        ids = self._channels
        return PrunedMLP(
            read=self._read(reads, mlp.act_in.k, block.ln_2, block.ln_p2),
            write=self._write(written, mlp.resid_delta.k),
            fc=self._matrix((reads, post), mlp.c_fc.weight, mlp.c_fc.bias, ids[post], ids[reads]),
            proj=self._matrix((post, written), mlp.c_proj.weight, mlp.c_proj.bias, ids[written], ids[post]),
            site=self._slots(post, mlp.post_act.k),
            activation=mlp.activation,
        )


def _padded(channels: Tensor, heads: Tensor, d_head: int) -> Tensor:
    """The channels of each of these heads, padded with -1 to the same number of slots for every head; flat."""
    rows = [channels[channels // d_head == head] for head in heads.tolist()]
    if not rows:
        return channels.new_empty(0)
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1).flatten()
