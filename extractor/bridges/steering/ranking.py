"""Which nodes of the sparse model are worth trying in the dense one: those with the largest first-order effects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from extractor.bridges.steering.edit import CARRIED, SteeredNode, steerable
from extractor.circuits.reference import masked_logit_diff
from extractor.circuits.sites import node_id

if TYPE_CHECKING:
    from extractor.bridges.pair import BridgedPair
    from extractor.bridges.steering.trials import SteeringPrompts

TRIED = 64


def strongest_of_model(pair: BridgedPair, prompts: SteeringPrompts, most: int = TRIED) -> list[SteeredNode]:
    """The nodes of the sparse model with the largest first-order effects on its own logit difference, toward the counterfactual's answer.

    One backward pass for all nodes: the change of a node to its counterfactual value, times the gradient. That ranks the nodes of any model
    in the time of a step; what their edits do in the dense model is measured after it.
    """
    changes: dict[str, Tensor] = {}

    def with_change(site: str, values: Tensor) -> Tensor:
        changes[site] = torch.zeros_like(values, requires_grad=True)
        return values + changes[site]

    with torch.enable_grad():
        diff = masked_logit_diff(pair.sparse, prompts.batch, {}, {}, rewrite=with_change)
        toward = -(prompts.batch.sign * diff)[prompts.counted].sum()
        gradients = dict(zip(changes, torch.autograd.grad(toward, list(changes.values())), strict=True))
    there, here, effects = prompts.run.counterfactual_values, prompts.run.presented_values, dict[str, float]()
    for site in (f"{layer}.{place}" for layer in range(pair.sparse.config.n_layer) for place in CARRIED):
        moved = ((there[site] - here[site]) * gradients[site]).sum((0, 1))
        effects |= {node_id(site, channel): value for channel, value in enumerate(moved.tolist())}
    return steerable(pair, sorted(effects, key=lambda name: (-effects[name], name)))[:most]
