"""`network.Network` by the plain definition: one mask set after the other, the whole model, every position.

The twin that the fast one is measured against, and the only way where nodes that are off have no constant value (resample ablation).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from extractor.objective import TaskBatch
from extractor.pruning.graph import Link, NodeIndex
from extractor.pruning.layers import Masks
from extractor.pruning.reference import Values, masked_margin
from extractor.sites import record

if TYPE_CHECKING:
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM


class PlainNetwork:
    """base   values of what is off; None: those of another prompt of the same length in the batch, position by position."""

    def __init__(self, model: SparseGPTForCausalLM, kept: Tensor, base: Values | None):
        self.model, self.kept, self.base = model, kept, base
        self.index = NodeIndex.of(model)
        self._channels = {site: part.nonzero().flatten() for site, part in self.index.split(kept).items()}

    def __len__(self) -> int:
        """Nodes computed."""
        return int(self.kept.sum())

    def prepare(self, batch: TaskBatch) -> tuple[TaskBatch, Values]:
        return batch, resampled(self.model, batch) if self.base is None else self.base

    def margins(self, prompts: tuple[TaskBatch, Values], masks: Masks = Masks()) -> Tensor:  # noqa: B008 - frozen
        """Answer margins (P, 2 x pairs) of every mask set."""
        batch, base = prompts
        given = [t for t in (masks.nodes, *(masks.edges or {}).values()) if t is not None]
        rows = []
        for number in range(len(given[0]) if given else 1):
            on = self.kept.float() if masks.nodes is None else masks.nodes[number] * self.kept
            edges = None if masks.edges is None else {link: self._full(link, mask[number]) for link, mask in masks.edges.items()}
            rows.append(masked_margin(self.model, batch, self.index.split(on), base, edges))
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
