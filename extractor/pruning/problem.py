"""Everything that finding a circuit needs: one model, one task, one seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from extractor.circuits.graph import CircuitMask, NodeIndex
from extractor.circuits.masks import MaskedModel
from extractor.circuits.network import FastMaskedModel
from extractor.circuits.prompt_network import PromptMaskedModel
from extractor.circuits.prompt_values import PromptValues
from extractor.circuits.reference import resampled
from extractor.circuits.scorer import CircuitScorer
from extractor.data.prompts import TaskBatch
from extractor.training.loop import LoopEnvironment

if TYPE_CHECKING:
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM
    from extractor.spec.schema import PruneSpec


@dataclass(frozen=True)
class PruningProblem:
    """What is pruned, and how.

    means    {site: (width,)} mean of every node over the pretraining text
    train    pairs for learning masks and for trials of elimination
    select   pairs on which circuits are chosen; the loss to report is measured on a third split
    target   task loss to reach, nats
    env      a stage's name -> where its loop saves, logs and reports
    tick     called with (done, of) during elimination; raises Stopped when a stop was requested
    work     a folder for the state of the search, from which an interrupted one resumes; None: no state is kept
    """

    model: SparseGPTForCausalLM
    means: Mapping[str, Tensor]
    train: TaskBatch
    select: TaskBatch
    spec: PruneSpec
    target: float
    seed: int
    env: Callable[[str], LoopEnvironment]
    tick: Callable[[int, int], None] = lambda done, of: None
    work: Path | None = None

    @cached_property
    def index(self) -> NodeIndex:
        return NodeIndex.of(self.model)

    @cached_property
    def ablation_values(self) -> dict[str, Tensor]:
        """{site: (width,)} the replacement values of ablated nodes; not used with resample ablation."""
        return {site: torch.zeros_like(mean) if self.spec.ablation == "zero" else mean for site, mean in self.means.items()}

    def full_mask(self) -> CircuitMask:
        """All nodes and edges of the model."""
        return CircuitMask.full(self.model)

    def network(self, kept_nodes: Tensor) -> MaskedModel:
        """The masked model of the nodes in kept_nodes (N,) bool; all others are ablated."""
        if self.spec.ablation == "resample":
            return PromptMaskedModel(self.model, self._resample, kept_nodes)
        return FastMaskedModel(self.model, self.ablation_values, kept_nodes)

    def _resample(self, batch: TaskBatch) -> tuple[TaskBatch, PromptValues]:
        """A batch, and every node's values in another prompt of it; those of the select split, which is scored often, are kept."""
        if batch is not self.select:
            return batch, PromptValues(self.model, resampled(self.model, batch))
        return batch, self._select_values

    @cached_property
    def _select_values(self) -> PromptValues:
        return PromptValues(self.model, resampled(self.model, self.select))

    def select_target(self, target: float) -> float:
        """The loss on the select split, nats, at which held-out pairs are expected to meet the target; at least half of it."""
        return max(target - self.spec.margin, target / 2)

    def scorer(self, batch: TaskBatch) -> CircuitScorer:
        """Losses of circuits on this batch."""
        return CircuitScorer(self.network, batch)

    def draw(self, number: int, pairs: int) -> TaskBatch:
        """Train pairs, drawn anew for each number."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        return self.train.pick(torch.randperm(self.train.pairs, generator=generator)[:pairs])
