"""What a circuit computes, written plainly: the whole model, every position, one set of masks. The reference implementation of `network`.

A node that is off has its replacement value: the mean over the pretraining text, zero, or its value in another run. It does not compete in
its site's AbsTopK either (ours; the paper lets it): the circuit is a network of its own, in which what is off neither varies nor
takes another node's place. An edge that is off carries its source's replacement value. Paper: Sec. 2.2, App. A.5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from extractor.circuits.graph import Link, NodeIndex
from extractor.circuits.masks import Masks, compete
from extractor.circuits.sites import record
from extractor.data.prompts import TaskBatch, logit_diff
from extractor.sparse.abs_topk import abs_topk
from extractor.sparse.modeling_sparse_gpt import attention_pattern, position_read
from extractor.sparse.sink_attention import causal_mask

if TYPE_CHECKING:
    from extractor.sparse.modeling_sparse_gpt import MLP, Attention, Context, SparseGPTForCausalLM


SiteMasks = Mapping[str, Tensor]  # site -> (width,): 1 on, 0 off, or between
Values = Mapping[str, Tensor]  # site -> (width,), or (B, T, width) for values of another run


def masked_logit_diff(
    model: SparseGPTForCausalLM,
    batch: TaskBatch,
    masks: SiteMasks,
    base: Values,
    edges: Mapping[Link, Tensor] | None = None,
    rewrite: Callable[[str, Tensor], Tensor] | None = None,
) -> Tensor:
    """Logit differences (2P,) of the model in which what is off has its value in `base`. Differentiable in masks and edges.

    masks     a site that is absent is all on
    edges     per link (target width, source width): 1 on, 0 off, or between; None: all on
    rewrite   (site, its values (B, T, width)) -> the values that go on from there; None: as they are
    """
    h = masked_residuals(model, batch.ids, masks, base, edges, rewrite)[-1]
    rows = torch.arange(len(h), device=h.device)
    return logit_diff(model.unembed(h[rows, batch.last], batch.ids[rows, batch.last]), batch)


def masked_residuals(
    model: SparseGPTForCausalLM,
    ids: Tensor,
    masks: SiteMasks,
    base: Values,
    edges: Mapping[Link, Tensor] | None = None,
    rewrite: Callable[[str, Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """The residuals (B, T, S) before every sublayer and after the last, 2L + 1; see `masked_logit_diff`."""
    plain = _Plain(masks, base, edges, rewrite)
    context = model.context(ids.shape[1])
    found = [model.embed(ids, context)]
    for layer, block in enumerate(model.blocks):
        h = found[-1]
        h = h + plain.attention(f"{layer}.attn.", block.attn, position_read(block.ln_1(h), block.ln_p1, context), context)
        found.append(h)
        found.append(h + plain.neurons(f"{layer}.mlp.", block.mlp, position_read(block.ln_2(h), block.ln_p2, context)))
    return found


class _Plain:
    def __init__(
        self, masks: SiteMasks, base: Values, edges: Mapping[Link, Tensor] | None, rewrite: Callable[[str, Tensor], Tensor] | None
    ):
        self.masks, self.ablation_values, self.edges, self.rewrite = masks, base, edges, rewrite

    def site(self, name: str, k: int, x: Tensor) -> Tensor:
        mask, base = self.masks.get(name), self.ablation_values.get(name)
        x = abs_topk(x, k) if mask is None or base is None else base + mask * (compete(x, mask > 0, k) - base)
        return x if self.rewrite is None else self.rewrite(name, x)

    def through(self, source: str, target: str, weight: Tensor, x: Tensor, base: Callable[[], Tensor]) -> Tensor:
        """The values x sent over a link; what edges that are off carry is `base()`."""
        if self.edges is None:
            return functional.linear(x, weight)
        mask = self.edges[source, target].to(weight.dtype)
        return functional.linear(x, weight * mask) + functional.linear(base(), weight * (1 - mask))

    def attention(self, prefix: str, attn: Attention, read: Tensor, context: Context) -> Tensor:
        batch, length, _ = read.shape
        x = self.site(prefix + "act_in", attn.act_in.k, read)
        base = lambda: self.ablation_values[prefix + "act_in"].expand_as(x)  # noqa: E731
        parts = zip("qkv", attn.c_attn.weight.chunk(3), attn.c_attn.bias.chunk(3), (attn.q.k, attn.k.k, attn.v.k), strict=True)
        q, k, v = (
            self.site(prefix + name, most, self.through(prefix + "act_in", prefix + name, weight, x, base) + bias)
            for name, weight, bias, most in parts
        )
        heads = lambda t: t.view(batch, length, -1, attn.d_head).transpose(1, 2)  # noqa: E731
        mask = causal_mask(length, q.dtype, q.device) if context.mask is None else context.mask
        pattern = attention_pattern(heads(q), heads(k), mask, attn.sink_logit)

        def mixed(values: Tensor) -> Tensor:
            return (pattern @ heads(values)).transpose(1, 2).flatten(2)

        usual = lambda: mixed(self.ablation_values[prefix + "v"].expand_as(v))  # noqa: E731
        out = self.through(prefix + "v", prefix + "resid_delta", attn.c_proj.weight, mixed(v), usual) + attn.c_proj.bias
        return self.site(prefix + "resid_delta", attn.resid_delta.k, out)

    def neurons(self, prefix: str, mlp: MLP, read: Tensor) -> Tensor:
        x = self.site(prefix + "act_in", mlp.act_in.k, read)
        base = lambda: self.ablation_values[prefix + "act_in"].expand_as(x)  # noqa: E731
        before = self.through(prefix + "act_in", prefix + "post_act", mlp.c_fc.weight, x, base) + mlp.c_fc.bias
        post = self.site(prefix + "post_act", mlp.post_act.k, mlp.activation(before))
        usual = lambda: self.ablation_values[prefix + "post_act"].expand_as(post)  # noqa: E731
        out = self.through(prefix + "post_act", prefix + "resid_delta", mlp.c_proj.weight, post, usual) + mlp.c_proj.bias
        return self.site(prefix + "resid_delta", mlp.resid_delta.k, out)


class ReferenceMaskedModel:
    """base   values of what is off; None: those of another prompt of the same length in the batch, position by position."""

    def __init__(self, model: SparseGPTForCausalLM, kept: Tensor, base: Values | None):
        self.model, self.kept, self.ablation_values = model, kept, base
        self.index = NodeIndex.of(model)
        self._channels = {site: part.nonzero().flatten() for site, part in self.index.split(kept).items()}

    def __len__(self) -> int:
        """Nodes computed."""
        return int(self.kept.sum())

    def prepare(self, batch: TaskBatch) -> tuple[TaskBatch, Values]:
        return batch, resampled(self.model, batch) if self.ablation_values is None else self.ablation_values

    def logit_diffs(self, prompts: tuple[TaskBatch, Values], masks: Masks = Masks()) -> Tensor:  # noqa: B008 - frozen
        """Logit differences (P, 2 x pairs) of every mask set."""
        batch, base = prompts
        given = [t for t in (masks.nodes, *(masks.edges or {}).values()) if t is not None]
        rows = []
        for number in range(len(given[0]) if given else 1):
            on = self.kept.float() if masks.nodes is None else masks.nodes[number] * self.kept
            edges = None if masks.edges is None else {link: self._full(link, mask[number]) for link, mask in masks.edges.items()}
            rows.append(masked_logit_diff(self.model, batch, self.index.split(on), base, edges))
        return torch.stack(rows)

    def cut(self, edges: Mapping[Link, Tensor]) -> dict[Link, Tensor]:
        """See `Network.cut`."""
        ids = self._channels
        return {(source, target): mask[..., ids[target][:, None], ids[source]] for (source, target), mask in edges.items()}

    def _full(self, link: Link, cut: Tensor) -> Tensor:
        source, target = link
        full = cut.new_zeros(self.index.widths[target], self.index.widths[source])
        return full.index_put((self._channels[target][:, None], self._channels[source]), cut)


@torch.no_grad()
def resampled(model: SparseGPTForCausalLM, batch: TaskBatch) -> Values:
    """{site: (B, T, width)} every node's value in another prompt of the batch with as many tokens, drawn once and for all.

    A prompt that is alone with its length has the values of its own run.
    """
    with record(model) as values:
        model(input_ids=batch.ids, logits_to_keep=1)
    partner = torch.arange(len(batch.ids), device=batch.ids.device)
    generator = torch.Generator().manual_seed(0)
    for length in batch.last.unique():
        alike = (batch.last == length).nonzero().flatten()
        shuffled = alike[torch.randperm(len(alike), generator=generator).to(alike.device)]
        partner[shuffled] = shuffled.roll(1)
    return {site: x[partner] for site, x in values.items()}
