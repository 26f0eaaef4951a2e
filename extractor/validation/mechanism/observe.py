"""A circuit on pairs of prompts: where their members differ, and what becomes of the answers while nodes have other values.

Ours. Shapes: `extractor.validation.mechanism`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from extractor.circuits.circuit import Calibration
from extractor.circuits.graph import CircuitMask
from extractor.circuits.mean_activations import at_tokens
from extractor.circuits.observed import Head, observe, places_of
from extractor.data.prompts import TaskBatch
from extractor.pruning.problem import PruningProblem
from extractor.spec import story

PLACES = tuple(story.PLACES)


@dataclass(frozen=True)
class Swapped:
    """What becomes of the answers while some nodes have the values of the pair's other prompt.

    moved     how far the mean logit difference goes towards that of the other prompt: 0 not at all, 1 all the way
    flipped   fraction of the rightly answered prompts whose answer changes
    """

    moved: float
    flipped: float


class CircuitOnPairs:
    """A circuit on a batch.

    values     {node id: (2P, T)};  patterns: {head: (2P, T, T)}, see `circuits.observed`
    real       (2P, T) bool: not padding;  places: {place: (2P, T) bool}
    diff       (2P,) logit differences, calibrated
    pair       (2P,) row of the pair's other prompt
    """

    def __init__(self, problem: PruningProblem, graph: CircuitMask, calibration: Calibration, batch: TaskBatch):
        self.graph, self.calibration, self.batch = graph, calibration, batch
        self.means = at_tokens(problem.ablation_values, batch.ids.shape[1])
        self._site, self.pair = places_of(graph), torch.arange(len(batch.ids), device=batch.ids.device) ^ 1
        tokens = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        self.real, end = tokens <= batch.last[:, None], tokens == batch.last[:, None]
        differs = (batch.ids != batch.ids[self.pair]) & self.real
        begun = differs.cumsum(1) > 0
        self.places = {"difference": differs, "after": begun & ~differs & ~end & self.real, "end": end}
        self.run = observe(graph, self.means, batch)
        self.values, self.patterns, self.diff = self.run.values, self.run.patterns, calibration.apply(self.run.diff)

    @property
    def nodes(self) -> list[str]:
        """Ids in forward order."""
        return list(self._site)

    def at(self, place: str) -> list[str]:
        """The nodes of all layers at such a place, for example attn.v."""
        return [name for name, (site, _) in self._site.items() if site.partition(".")[2] == place]

    def head_of(self, node: str) -> Head:
        site, channel = self._site[node]
        return int(site.partition(".")[0]), channel // self.graph.model.config.d_head

    def swapped(self, nodes: Iterable[str]) -> Swapped:
        """While these nodes have their values of the pair's other prompt, at every token."""
        right, other = self.batch.sign * self.diff, self.batch.sign * self._with({node: self.values[node][self.pair] for node in nodes})
        counted = right > 0
        flipped = (other[counted] < 0).double().mean().item() if counted.any() else 0.0
        return Swapped(((right - other).double().mean() / (2 * right.double().mean()).clamp_min(1e-6)).item(), flipped)

    def without(self, nodes: Iterable[str]) -> float:
        """Loss, nats, while these nodes have their means; the circuit's own calibration."""
        off = {node: self.mean(node).expand_as(self.real) for node in nodes}
        return self.batch.losses(self._with(off)).double().mean().item()

    def mean(self, node: str) -> Tensor:
        """What the node is where it is ablated: (), or (T,) where the first token has a mean of its own."""
        site, channel = self._site[node]
        return self.means[site][..., channel]

    def _with(self, given: dict[str, Tensor]) -> Tensor:
        """Calibrated logit differences while nodes have these values (2P, T)."""
        changes = {node: partial(_instead, values) for node, values in given.items()}
        return self.calibration.apply(observe(self.graph, self.means, self.batch, changes, self.run).diff)

    @torch.no_grad()
    def written(self) -> dict[str, Tensor]:
        """{write: (2P,)} what each node's write at the last token adds to the logit difference, through the last norm's own scale."""
        model, final = self.graph.model, self.run.residuals[-1]
        rows, norm, head = torch.arange(len(final), device=final.device), model.transformer.ln_f, model.lm_head.weight
        scale = (final[rows, self.batch.last].square().mean(-1) + norm.eps).rsqrt()
        readout = (head[self.batch.first] - head[self.batch.second]) * norm.weight * scale[:, None]
        writes = [*self.at("attn.resid_delta"), *self.at("mlp.resid_delta")]
        return {node: self.values[node][rows, self.batch.last] * readout[:, self._site[node][1]] for node in writes}


def _instead(values: Tensor, own: Tensor) -> Tensor:
    return values
