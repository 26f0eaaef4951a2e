"""The definition of what a circuit computes: the full model, every position, one mask set. The reference implementation of `network`.

An ablated node has its replacement value: its mean over the pretraining text, zero, or its value in another run. It does not compete in its
site's AbsTopK either (ours; in the paper it does): a circuit is a network of its own, in which an ablated node neither varies nor takes
another node's place. An ablated edge carries its source's replacement value. Paper: Sec. 2.2, App. A.5.

    R1  h       = embedding[ids] (+ position[t])
    R2  x       = norm(h), position channels appended
    R3  site    : r + m * (AbsTopK(x among nodes that are on) - r)          m mask, r replacement values
    R4  link    : W*M x + W*(1 - M) r + bias                                M edge mask
    R5  pattern = softmax([q.k / sqrt(d_head), sink])                       q and k normed and turned first where the model does that; the
                                                                            sink's share is dropped
    R6  mixed   = pattern @ v
    R7  h       = h + site(link(mixed))      and      h + site(link(site(activation(link(x)))))
                  with gates the inner site is  site(activation(site(link(x))) * site(link(x))); a parallel block's MLP reads h before both
    R8  logit difference = logits[first answer] - logits[second answer] at the scored position

The fast implementation names these lines where it replaces them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from extractor.circuits.graph import Link, NodeIndex
from extractor.circuits.masks import Masks, compete, cut_edges
from extractor.circuits.mean_activations import at_tokens
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
    ablation_values: Values,
    edges: Mapping[Link, Tensor] | None = None,
    rewrite: Callable[[str, Tensor], Tensor] | None = None,
) -> Tensor:
    """Logit differences (2P,) of the model whose ablated nodes have these values. Differentiable in masks and edges.

    masks             a site that is absent is all on
    ablation_values   replacement values r of the ablated nodes
    edges             per link (target width, source width): 1 on, 0 ablated, or between; None: all on
    rewrite           (site, its values (B, T, width)) -> the values that the model goes on with; None: unchanged
    """
    return read_out(model, batch, masked_residuals(model, batch.ids, masks, ablation_values, edges, rewrite)[-1])


def read_out(model: SparseGPTForCausalLM, batch: TaskBatch, residual: Tensor) -> Tensor:
    """Logit differences (2P,) of the last residual (2P, T, S), R8."""
    rows = torch.arange(len(residual), device=residual.device)
    return logit_diff(model.unembed(residual[rows, batch.last], batch.ids[rows, batch.last]), batch)


def masked_residuals(
    model: SparseGPTForCausalLM,
    ids: Tensor,
    masks: SiteMasks,
    ablation_values: Values,
    edges: Mapping[Link, Tensor] | None = None,
    rewrite: Callable[[str, Tensor], Tensor] | None = None,
    known: Sequence[Tensor] = (),
) -> list[Tensor]:
    """The residuals (B, T, S) before every sublayer and after the last, 2L + 1; see `masked_logit_diff`.

    known   the first of them, where these are known already; sublayers before them do not run
    """
    sublayers = _Sublayers(masks, at_tokens(ablation_values, ids.shape[1]), edges, rewrite)
    context = model.context(ids.shape[1])
    found = [*known] or [model.embed(ids, context)]  # R1
    for number in range(len(found) - 1, 2 * len(model.blocks)):
        layer, h = number // 2, found[-1]
        block = model.blocks[layer]
        if number % 2 == 0:
            x = position_read(block.ln_1(h), block.ln_p1, context)  # R2
            found.append(h + sublayers.attention(f"{layer}.attn.", block.attn, x, context))  # R7
        else:
            x = position_read(block.ln_2(found[-2] if model.config.parallel else h), block.ln_p2, context)  # R2
            found.append(h + sublayers.mlp(f"{layer}.mlp.", block.mlp, x))  # R7
    return found


class _Sublayers:
    """Attention and MLP under one mask set."""

    def __init__(
        self,
        masks: SiteMasks,
        ablation_values: Values,
        edges: Mapping[Link, Tensor] | None,
        rewrite: Callable[[str, Tensor], Tensor] | None,
    ):
        self.masks, self.ablation_values, self.edges, self.rewrite = masks, ablation_values, edges, rewrite

    def site(self, name: str, k: int, x: Tensor) -> Tensor:
        """The site's node values (R3)."""
        mask, replacement = self.masks.get(name), self.ablation_values.get(name)
        x = abs_topk(x, k) if mask is None or replacement is None else replacement + mask * (compete(x, mask > 0, k) - replacement)
        return x if self.rewrite is None else self.rewrite(name, x)

    def link(self, source: str, target: str, weight: Tensor, x: Tensor, replacement: Callable[[], Tensor]) -> Tensor:
        """The values x sent over a link, without the bias (R4).

        replacement()   what ablated edges carry instead of x; (width,) where that is the same at every token
        """
        if self.edges is None:
            return functional.linear(x, weight)
        mask = self.edges[source, target].to(weight.dtype)
        return functional.linear(x, weight * mask) + functional.linear(replacement(), weight * (1 - mask))

    def attention(self, prefix: str, attn: Attention, read: Tensor, context: Context) -> Tensor:
        batch, length, _ = read.shape
        x = self.site(prefix + "act_in", attn.act_in.k, read)
        replacement = lambda: self.ablation_values[prefix + "act_in"]  # noqa: E731
        parts = zip("qkv", attn.c_attn.weight.chunk(3), attn.c_attn.bias.chunk(3), (attn.q.k, attn.k.k, attn.v.k), strict=True)
        q, k, v = (
            self.site(prefix + name, most, self.link(prefix + "act_in", prefix + name, weight, x, replacement) + bias)
            for name, weight, bias, most in parts
        )
        heads = lambda t: t.view(batch, length, -1, attn.d_head).transpose(1, 2)  # noqa: E731
        mask = causal_mask(length, q.dtype, q.device) if context.mask is None else context.mask
        queries, keys = attn.turned(heads(q), attn.q_norm, context.angles), attn.turned(heads(k), attn.k_norm, context.angles)
        pattern = attention_pattern(queries, keys, mask, attn.sink_logit)  # R5

        def mixed(values: Tensor) -> Tensor:  # R6
            return (pattern @ heads(values)).transpose(1, 2).flatten(2)

        replaced = lambda: mixed(self.ablation_values[prefix + "v"].expand_as(v))  # noqa: E731
        out = self.link(prefix + "v", prefix + "resid_delta", attn.c_proj.weight, mixed(v), replaced) + attn.c_proj.bias
        return self.site(prefix + "resid_delta", attn.resid_delta.k, out)

    def mlp(self, prefix: str, mlp: MLP, read: Tensor) -> Tensor:
        x = self.site(prefix + "act_in", mlp.act_in.k, read)
        replacement = lambda: self.ablation_values[prefix + "act_in"]  # noqa: E731
        read_by = {
            name: self.link(prefix + "act_in", prefix + name, layer.weight, x, replacement) + layer.bias
            for name, layer in mlp.readers.items()
        }
        if mlp.c_gate is not None:
            read_by = {name: self.site(prefix + name, getattr(mlp, name).k, value) for name, value in read_by.items()}
        post = self.site(prefix + "post_act", mlp.post_act.k, mlp.activated(read_by))
        replaced = lambda: self.ablation_values[prefix + "post_act"]  # noqa: E731
        out = self.link(prefix + "post_act", prefix + "resid_delta", mlp.c_proj.weight, post, replaced) + mlp.c_proj.bias
        return self.site(prefix + "resid_delta", mlp.resid_delta.k, out)


class ReferenceMaskedModel:
    """A `MaskedModel` by the definition, one mask set after the other.

    ablation_values   of ablated nodes; None: resampled, from another prompt of the same length in the batch, position by position
    """

    def __init__(self, model: SparseGPTForCausalLM, kept_nodes: Tensor, ablation_values: Values | None):
        self.model, self.kept_nodes, self.ablation_values = model, kept_nodes, ablation_values
        self.index = NodeIndex.of(model)
        self._channels = {site: part.nonzero().flatten() for site, part in self.index.split(kept_nodes).items()}

    def __len__(self) -> int:
        return int(self.kept_nodes.sum())

    def prepare(self, batch: TaskBatch) -> tuple[TaskBatch, Values]:
        return batch, resampled(self.model, batch) if self.ablation_values is None else self.ablation_values

    def logit_diffs(self, prompts: tuple[TaskBatch, Values], masks: Masks = Masks()) -> Tensor:  # noqa: B008 - frozen
        """Logit differences (P, 2 x pairs) of every mask set."""
        batch, ablation_values = prompts
        given = [t for t in (masks.nodes, *(masks.edges or {}).values()) if t is not None]
        rows = []
        for number in range(len(given[0]) if given else 1):
            on = self.kept_nodes.float() if masks.nodes is None else masks.nodes[number] * self.kept_nodes
            edges = None if masks.edges is None else {link: self._full(link, mask[number]) for link, mask in masks.edges.items()}
            rows.append(masked_logit_diff(self.model, batch, self.index.split(on), ablation_values, edges))
        return torch.stack(rows)

    def cut(self, edges: Mapping[Link, Tensor]) -> dict[Link, Tensor]:
        return cut_edges(edges, self._channels)

    def _full(self, link: Link, cut: Tensor) -> Tensor:
        source, target = link
        full = cut.new_zeros(self.index.widths[target], self.index.widths[source])
        return full.index_put((self._channels[target][:, None], self._channels[source]), cut)


@torch.no_grad()
def resampled(model: SparseGPTForCausalLM, batch: TaskBatch) -> Values:
    """{site: (B, T, width)}: every node's value in another prompt of the batch with the same length. The draw is fixed.

    A prompt whose length no other has keeps its own values.
    """
    with model.record() as values:
        model(input_ids=batch.ids, logits_to_keep=1)
    partner = torch.arange(len(batch.ids), device=batch.ids.device)
    generator = torch.Generator().manual_seed(0)
    for length in batch.last.unique():
        alike = (batch.last == length).nonzero().flatten()
        shuffled = alike[torch.randperm(len(alike), generator=generator).to(alike.device)]
        partner[shuffled] = shuffled.roll(1)
    return {site: x[partner] for site, x in values.items()}
