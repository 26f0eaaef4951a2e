"""Prompts on which edits of the dense model are tried: both members of pairs, each with the other as its counterfactual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from extractor.bridges.steering.edit import WAYS, CounterfactualRun, ResidualEdit, SteeredNode, Way

if TYPE_CHECKING:
    from extractor.bridges.pair import BridgedPair
    from extractor.data.prompts import TaskBatch


@dataclass(frozen=True)
class AnswerOdds:
    """Probabilities (B,) of the counterfactual answer after each prompt: against the correct answer, and among all tokens."""

    between: Tensor
    among_all: Tensor


@dataclass(frozen=True)
class SteeringTrial:
    """Nodes of one site, the way of their edit, and the mean probability of the counterfactual answer at strength 1."""

    nodes: tuple[SteeredNode, ...]
    way: Way
    probability: float


class SteeringPrompts:
    """The first `pairs` pairs, each member with the other as counterfactual. `counted` (B,): answered correctly without an edit."""

    def __init__(self, pair: BridgedPair, batch: TaskBatch, pairs: int):
        self.batch = batch.pick(torch.arange(min(pairs, batch.pairs)))
        self.rows = torch.arange(len(self.batch.ids), device=self.batch.ids.device)
        self.run = CounterfactualRun(pair, self.batch.ids, self.batch.ids[self.rows ^ 1], self.batch.last)
        self.plain = self._odds(self.run.plain_logits())
        self.counted = self.plain.between < 0.5

    def odds(self, edit: ResidualEdit | Sequence[ResidualEdit], strength: float) -> AnswerOdds:
        return self.plain if strength == 0 else self._odds(self.run.logits(edit, strength))

    def mean(self, values: Tensor) -> float:
        """The mean over the counted prompts."""
        return values[self.counted].double().mean().item()

    def trials(self, nodes: Sequence[SteeredNode]) -> list[SteeringTrial]:
        """The edit of the nodes in each way that they have, the paper's first."""
        ways = WAYS if nodes[0].reads else WAYS[1:]
        return [SteeringTrial(tuple(nodes), way, self.mean(self.odds(self.run.edit(nodes, way), 1.0).between)) for way in ways]

    def paper_trial(self, node: SteeredNode) -> SteeringTrial:
        """The edit of a node in the paper's way alone."""
        way = WAYS[0] if node.reads else WAYS[1]
        return SteeringTrial((node,), way, self.mean(self.odds(self.run.edit([node], way), 1.0).between))

    def _odds(self, logits: Tensor) -> AnswerOdds:
        right, other = logits[self.rows, self.batch.correct], logits[self.rows, self.batch.wrong]
        return AnswerOdds((other - right).double().sigmoid(), logits.softmax(-1)[self.rows, self.batch.wrong])
