"""Mean ablation: what a deleted node becomes, and the network that runs with only some nodes.

A node that is off takes its mean over the pretraining distribution, measured on the same network that runs, after its AbsTopK.
Paper: Sec. 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from extractor.objective import TaskBatch, answer_margin
from extractor.sites import gate, record

if TYPE_CHECKING:
    from extractor.data.corpus import Corpus
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM

Masks = Mapping[str, Tensor]  # site -> (width,), 1 where a node is on; a site that is absent is all on


@torch.no_grad()
def measure_means(model: SparseGPTForCausalLM, corpus: Corpus, tokens: int, seed: int) -> dict[str, Tensor]:
    """Mean value of every node, {site: (width,)}, over about `tokens` training tokens."""
    context = model.config.n_ctx
    rows = max(1, tokens // context)
    sums: dict[str, Tensor] = {}
    with record(model) as values:
        for ids in corpus.batch(seed, 1 << 40, rows, context).split(64):
            model(input_ids=ids.to(model.device), logits_to_keep=1)
            for site, x in values.items():
                total = x.double().sum((0, 1))
                sums[site] = sums[site] + total if site in sums else total
    return {site: (total / (rows * context)).to(model.dtype) for site, total in sums.items()}


LENGTH_GROUPS = 4


@torch.no_grad()
def measured_margin(model: SparseGPTForCausalLM, batch: TaskBatch, masks: Masks, means: Mapping[str, Tensor]) -> Tensor:
    """`masked_margin` without gradient, in groups of prompts of like length: half of a mixed batch is padding."""
    margin = torch.empty(len(batch.ids), device=batch.ids.device)
    for rows in batch.last.argsort(stable=True).chunk(LENGTH_GROUPS):
        margin[rows] = masked_margin(model, batch.rows(rows), masks, means)
    return margin


def masked_margin(model: SparseGPTForCausalLM, batch: TaskBatch, masks: Masks, means: Mapping[str, Tensor]) -> Tensor:
    """Answer margins (2P,) of the network in which nodes that are off in `masks` have their mean. Differentiable in the masks.

    Only the last position of each prompt is unembedded.
    """

    def keep(site: str):
        mask, mean = masks[site], means[site]
        return lambda x: torch.lerp(mean.expand_as(x), x, mask)

    with gate(model, {site: keep(site) for site in masks}):
        context = model.context(batch.ids.shape[1])
        h = model.embed(batch.ids, context)
        for index in range(model.n_sublayers):
            h = model.sublayer(index, h, context)
    rows = torch.arange(len(h), device=h.device)
    return answer_margin(model.unembed(h[rows, batch.last], batch.ids[rows, batch.last]), batch)
