"""Where the sequences of a training step cross over between the two models.

split   (default) each chosen sequence crosses at one site, stratified over the sites, and joins the stream there: every sublayer runs once
        per direction, on a batch that grows. Weighted by site, the mean over its rows is unbiased for the mean over all rows.
exact   every sequence crosses at every site: the sums of the paper themselves, at their quadratic cost. The reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from extractor.spec.schema import BridgeSpec


@dataclass(frozen=True)
class Crossing:
    """The crossings of one pass, in order of their sites.

    rows       per site, the rows of the pass that cross there
    weights    (crossings,) such that the weighted sum of their mean KLs estimates the sum over sites of the batch's mean KL
    positions  at which their KL is scored, (P,)
    own        positions at which the sparse model's own predictions are scored, (Q,)
    """

    rows: list[Tensor]
    weights: Tensor
    positions: Tensor
    own: Tensor

    @classmethod
    def draw(cls, spec: BridgeSpec, sites: int, generator: torch.Generator) -> Crossing:
        """For a whole batch, on the CPU. `crossing_share` says how many rows cross; at least one a site, where there are that many."""
        batch, context = spec.optim.batch, spec.optim.context

        def some(share: float) -> Tensor:
            return torch.randperm(context, generator=generator)[: max(1, round(share * context))].sort().values

        if spec.estimator == "exact":
            rows, weights = [torch.arange(batch)] * sites, torch.full((sites * batch,), 1 / batch)
        else:
            crossing = max(min(sites, batch), round(spec.crossing_share * batch))
            chosen = torch.randperm(batch, generator=generator)[:crossing]
            # Fewer rows than sites: as many sites, drawn without replacement, stand for all.
            visited = torch.randperm(sites, generator=generator)[:crossing].sort().values
            rows = [chosen[:0]] * sites
            for site, part in zip(visited.tolist(), chosen.tensor_split(len(visited)), strict=True):
                rows[site] = part
            weights = torch.cat([torch.full((len(part),), sites / len(visited) / max(1, len(part))) for part in rows])
        return cls(rows, weights, some(spec.kl_share), some(spec.own_share))

    def part(self, start: int, stop: int, batch: int) -> Crossing:
        """For rows [start, stop) of the batch alone; means over such parts, weighted by their rows, are those of the whole."""
        kept = [(rows >= start) & (rows < stop) for rows in self.rows]
        rows = [rows[keep] - start for rows, keep in zip(self.rows, kept, strict=True)]
        return Crossing(rows, self.weights[torch.cat(kept)] * (batch / (stop - start)), self.positions, self.own)

    def to(self, device: torch.device) -> Crossing:
        rows = [rows.to(device) for rows in self.rows]
        return Crossing(rows, self.weights.to(device), self.positions.to(device), self.own.to(device))

    @property
    def order(self) -> Tensor:
        return torch.cat(self.rows)
