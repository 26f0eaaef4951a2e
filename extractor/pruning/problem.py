"""Everything that finding a circuit needs: one model, one task, one seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from extractor.circuits.graph import CircuitMask, NodeIndex
from extractor.circuits.masks import MaskedModel
from extractor.circuits.scorer import CircuitScorer
from extractor.circuits.standard import Name, PaperStandard, RobustStandard, Standard
from extractor.data.prompts import TaskBatch
from extractor.spec.thresholds import MOST_ROBUST_EDGES
from extractor.training.loop import LoopEnvironment

if TYPE_CHECKING:
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM
    from extractor.spec.schema import PruneSpec

ROBUST_SELECT_PAIRS = 256  # of the select split, at most, by which robust circuits are chosen
FEWEST_PAIRS = 16  # of a batch, where every pair counts several times
MOST_VALUES = 1 << 26  # of nodes at all tokens of a batch, where replacement values differ from prompt to prompt


def unreported(phase: str) -> None:
    """For searches inside a phase."""


@dataclass(frozen=True)
class SearchPolicy:
    """How a search differs from one standard to the other.

    first_rankings     quick rankings that are tried before learned masks
    few                edges of a start; one with at most so many is eliminated before another ranking is made
    large              edges of a circuit; one with more pays for another ranking, where several race
    most_start_edges   a start with more is cut to its first edges by attribution: the worst of several conditions varies from draw to draw,
                       and elimination ends before it has removed what such a cut removes at once
    most_edges         elimination starts from no larger circuit: several times as many prompts of a large network take hours
    averaged           batches over which a loss is averaged before elimination ends: the worst of several conditions varies more
    """

    first_rankings: tuple[str, ...] = ()
    few: float = 1e3
    large: float = 100.0
    most_start_edges: float = float("inf")
    most_edges: float = float("inf")
    averaged: int = 1


POLICY: Mapping[Name, SearchPolicy] = {
    "paper": SearchPolicy(),
    "robust": SearchPolicy(("attribution",), 500.0, float("inf"), 2e3, MOST_ROBUST_EDGES, 8),
}


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
    shifted  shifted pairs of the train and the select split, which a robust circuit must do too; None where there are none
    guarded  nothing is eliminated where the full model fails; else also there, but not from the full model
    phase    called with the name of every phase that begins
    quick    a control: elimination starts from no more edges than by the robust standard, also by the paper's
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
    shifted: tuple[TaskBatch, TaskBatch] | None = None
    guarded: bool = True
    phase: Callable[[str], None] = unreported
    quick: bool = False

    def at(self, phase: str) -> PruningProblem:
        """Report that a phase begins; returns this problem."""
        self.phase(phase)
        return self

    def under(self, standard: Name) -> PruningProblem:
        """The same problem under another standard, with a search state of its own.

        Under the robust standard half of the pairs are shifted ones; batches and populations of masks are smaller, since each pair runs in
        several conditions.
        """
        if standard == self.spec.standard:
            return self
        if standard == "paper":
            return replace(self, spec=self.spec.model_copy(update={"standard": standard}))
        train, select = self.train, self.select
        if self.shifted is not None:
            train, select = (_halves(*both) for both in zip((train, select), self.shifted, strict=True))
        most = max(FEWEST_PAIRS, MOST_VALUES // (2 * train.ids.shape[1] * len(self.index)))
        pairs = {name: getattr(self.spec, name) // RobustStandard.copies for name in ("pairs", "trial_pairs")}
        fewer = {name: min(most, max(FEWEST_PAIRS, count)) for name, count in pairs.items()}
        masks = {name: max(1, getattr(self.spec, name) // 2) for name in ("trials", "population", "steps")}
        spec = self.spec.model_copy(update={"standard": standard, **fewer, **masks})
        select = _spread(select, min(most, ROBUST_SELECT_PAIRS))
        work = None if self.work is None else self.work / standard
        env, phase = (lambda stage: self.env(f"{standard}-{stage}")), (lambda name: self.phase(f"{standard} {name}"))
        return replace(self, spec=spec, train=train, select=select, work=work, env=env, phase=phase)

    @cached_property
    def index(self) -> NodeIndex:
        return NodeIndex.of(self.model)

    @property
    def ablation_values(self) -> Mapping[str, Tensor]:
        """{site: (width,)} the paper's replacement values of ablated nodes; not used with resample ablation."""
        return self.paper.values

    @cached_property
    def paper(self) -> PaperStandard:
        """The paper's standard: by it, whatever the circuit must hold under, the model without it is judged."""
        return PaperStandard(self.model, self.means, self.spec.ablation)

    @cached_property
    def standard(self) -> Standard:
        """What a circuit must hold under."""
        return RobustStandard(self.model, self.means, self.seed) if self.spec.standard == "robust" else self.paper

    @property
    def policy(self) -> SearchPolicy:
        own, robust = POLICY[self.standard.name], POLICY["robust"]
        return replace(own, most_start_edges=robust.most_start_edges, most_edges=robust.most_edges) if self.quick else own

    def full_mask(self) -> CircuitMask:
        """All nodes and edges of the model."""
        return CircuitMask.full(self.model)

    def network(self, kept_nodes: Tensor) -> MaskedModel:
        """The masked model of the nodes in kept_nodes (N,) bool; all others are ablated."""
        return self.standard.network(kept_nodes)

    def select_target(self, target: float) -> float:
        """The loss on the select split, nats, at which held-out pairs are expected to meet the target; at least half of it."""
        return max(target - self.spec.margin, target / 2)

    def scorer(self, batch: TaskBatch) -> CircuitScorer:
        """Losses of circuits on this batch."""
        return CircuitScorer(self.standard, batch)

    def draw(self, number: int, pairs: int) -> TaskBatch:
        """Train pairs, drawn anew for each number."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        return self.train.pick(torch.randperm(self.train.pairs, generator=generator)[:pairs])


def _halves(one: TaskBatch, other: TaskBatch) -> TaskBatch:
    """Pairs of both in turn, so that every part has both: as many of each as `other` has, at most half of the number of `one`."""
    count = max(1, min(one.pairs // 2, other.pairs))
    both = one.pick(torch.arange(count)).joined(other.pick(torch.arange(count)))
    return both.pick(torch.arange(2 * count).view(2, count).T.flatten())


def _spread(batch: TaskBatch, most: int) -> TaskBatch:
    """At most `most` pairs, evenly from the whole batch."""
    return batch if batch.pairs <= most else batch.pick(torch.linspace(0, batch.pairs - 1, most).long())
