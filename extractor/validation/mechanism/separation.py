"""Which nodes tell the two prompts of a pair apart, and where.

AUC: the probability that a node's value is higher in a prompt with the first answer than in one with the second, ties counted half; 0.5
says nothing, 1 and 0 separate the classes. A node's value at a place is its mean over the tokens of that place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from extractor.validation.mechanism.observe import PLACES, CircuitOnPairs

SAME = 1e-6  # values closer than this, of the node's largest, are the same


def separation(circuit: CircuitOnPairs) -> dict[str, dict[str, float | None]]:
    """{node: {place: AUC}}; None for a place that some prompts lack, and where there is one class only."""
    if not circuit.nodes:
        return {}
    values, first = torch.stack([circuit.values[node] for node in circuit.nodes]).double(), circuit.batch.sign > 0
    found: dict[str, list[float | None]] = {}
    for place in PLACES:
        there = circuit.places[place]
        usable = there.any(1)
        if not (usable & first).any() or not (usable & ~first).any():
            found[place] = [None] * len(circuit.nodes)
            continue
        means = (values * there).sum(-1) / there.sum(-1).clamp_min(1)
        found[place] = auc(means[:, usable & first], means[:, usable & ~first]).tolist()
    return {node: {place: found[place][i] for place in PLACES} for i, node in enumerate(circuit.nodes)}


def auc(first: Tensor, second: Tensor) -> Tensor:
    """The AUC (N,) of N nodes from their values in prompts of each class, (N, A) and (N, B)."""
    apart = first[:, :, None] - second[:, None, :]
    size = torch.cat([first, second], 1).abs().amax(1)[:, None, None] * SAME
    return ((apart > size).double() + 0.5 * (apart.abs() <= size)).mean((1, 2))
