"""Which sequences of a training step switch models, and at which site.

exact   every sequence crosses at every site: the sums of App. A.3 themselves, 2 (2L + 1) tails of up to 2L sublayers a step. The reference.
split   (default) each chosen sequence crosses at one site. The sites are stratified: the numbers of sequences that cross at any two of
        them differ by one at most. A hybrid pass then is one pass over a batch that grows: at site i the sequences that cross there join,
        and every sublayer runs once in each direction. Weighted as below, the estimate of the sums is unbiased.

Shapes and symbols: `extractor.bridges`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from extractor.spec.schema import BridgeSpec


@dataclass(frozen=True)
class Crossing:
    """The crossings of one step, in the order of their sites.

    rows       for each site of `BridgedPair.crossed`, which sequences of the batch cross there, int64; C crossings in total
    weights    (C,): the sum over crossings of weight * mean KL estimates the sum over sites of the batch's mean KL
    positions  at which the KL of hybrid passes is scored, int64, at most T
    own        positions at which the sparse model's own predictions are scored, int64, at most T
    """

    rows: list[Tensor]
    weights: Tensor
    positions: Tensor
    own: Tensor

    @classmethod
    def draw(cls, spec: BridgeSpec, sites: int, generator: torch.Generator) -> Crossing:
        """Draw the crossings of a full batch, on the CPU.

        `crossing_share` of the sequences cross, but at least one at each site, or all sequences where there are fewer than sites.
        """
        batch, context = spec.optim.batch, spec.optim.context

        def some(share: float) -> Tensor:
            return torch.randperm(context, generator=generator)[: max(1, round(share * context))].sort().values

        rows, weights = _draw_rows(spec, batch, sites, generator)
        return cls(rows, weights, some(spec.kl_share), some(spec.own_share))

    @classmethod
    def of_prompts(cls, spec: BridgeSpec, prompts: int, sites: int, generator: torch.Generator) -> Crossing:
        """Draw the crossings of a step's prompts, which all cross and are scored at their last token only."""
        rows, weights = _draw_rows(spec.model_copy(update={"crossing_share": 1.0}), prompts, sites, generator)
        nowhere = torch.empty(0, dtype=torch.int64)
        return cls(rows, weights, nowhere, nowhere)

    def part(self, start: int, stop: int, batch: int) -> Crossing:
        """The crossings of sequences [start, stop) of a batch of `batch` sequences, numbered from `start`.

        Losses of such parts, averaged with their numbers of sequences as weights, give the loss of the batch.
        """
        inside = [(rows >= start) & (rows < stop) for rows in self.rows]
        rows = [rows[mask] - start for rows, mask in zip(self.rows, inside, strict=True)]
        return Crossing(rows, self.weights[torch.cat(inside)] * (batch / (stop - start)), self.positions, self.own)

    def to(self, device: torch.device) -> Crossing:
        """The same on a device."""
        rows = [rows.to(device) for rows in self.rows]
        return Crossing(rows, self.weights.to(device), self.positions.to(device), self.own.to(device))

    @property
    def order(self) -> Tensor:
        """(C,): the sequence of every crossing."""
        return torch.cat(self.rows)


def _draw_rows(spec: BridgeSpec, batch: int, sites: int, generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
    """Which of `batch` sequences cross at each site, and the weight of every crossing: the fields `rows` and `weights` of `Crossing`."""
    if spec.estimator == "exact":
        return [torch.arange(batch)] * sites, torch.full((sites * batch,), 1 / batch)
    crossing = max(min(sites, batch), round(spec.crossing_share * batch))
    chosen = torch.randperm(batch, generator=generator)[:crossing]
    # With fewer sequences than sites, a sample of the sites without replacement stands for all of them.
    visited = torch.randperm(sites, generator=generator)[:crossing].sort().values
    rows = [chosen[:0]] * sites
    for site, part in zip(visited.tolist(), chosen.tensor_split(len(visited)), strict=True):
        rows[site] = part
    return rows, torch.cat([torch.full((len(part),), sites / len(visited) / max(1, len(part))) for part in rows])
