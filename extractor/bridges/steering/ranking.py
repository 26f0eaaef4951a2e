"""Which nodes of the sparse model are worth trying in the dense one: those with the largest first-order effects.

A node's first-order effect is its change to its counterfactual value, times the gradient of the sparse model's own logit difference toward
the counterfactual's answer: one backward pass for all nodes, in the time of a step. What their edits do in the dense model is measured
after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from extractor.bridges.steering.edit import CARRIED, CounterfactualRun, SteeredNode, steerable
from extractor.circuits.reference import masked_logit_diff
from extractor.circuits.sites import node_id

if TYPE_CHECKING:
    from extractor.bridges.pair import BridgedPair
    from extractor.bridges.steering.trials import SteeringPrompts
    from extractor.data.prompts import TaskBatch

TRIED = 64
MOST_OF_CIRCUIT = 256  # nodes of a circuit that are tried one by one
RANKED_PAIRS = 8  # by which the nodes of a larger one are chosen: the values of all nodes are held for them


def strongest_of_model(pair: BridgedPair, prompts: SteeringPrompts, most: int = TRIED) -> list[SteeredNode]:
    """The nodes of the sparse model whose first-order effects are largest, toward the counterfactual's answer."""
    effects = first_order_effects(pair, prompts.run, prompts.batch, prompts.counted)
    return steerable(pair, sorted(effects, key=lambda name: (-effects[name], name)))[:most]


def strongest_of_circuit(pair: BridgedPair, nodes: Sequence[SteeredNode], batch: TaskBatch) -> list[SteeredNode]:
    """At most MOST_OF_CIRCUIT of the nodes, in their order: of more, those whose first-order effects are largest in either direction."""
    if len(nodes) <= MOST_OF_CIRCUIT:
        return list(nodes)
    few = batch.pick(torch.arange(min(RANKED_PAIRS, batch.pairs)))
    other = torch.arange(len(few.ids), device=few.ids.device) ^ 1
    effects = first_order_effects(pair, CounterfactualRun(pair, few.ids, few.ids[other], few.last), few)
    kept = {node.id for node in sorted(nodes, key=lambda node: (-abs(effects[node.id]), node.id))[:MOST_OF_CIRCUIT]}
    return [node for node in nodes if node.id in kept]


def first_order_effects(pair: BridgedPair, run: CounterfactualRun, batch: TaskBatch, counted: Tensor | None = None) -> dict[str, float]:
    """{node: first-order effect}, logits, summed over the prompts of the batch; counted (2P,): over these alone."""
    changes: dict[str, Tensor] = {}

    def with_change(site: str, values: Tensor) -> Tensor:
        changes[site] = torch.zeros_like(values, requires_grad=True)
        return values + changes[site]

    with torch.enable_grad():
        diff = -batch.sign * masked_logit_diff(pair.sparse, batch, {}, {}, rewrite=with_change)
        toward = (diff if counted is None else diff[counted]).sum()
        gradients = dict(zip(changes, torch.autograd.grad(toward, list(changes.values())), strict=True))
    there, here, effects = run.counterfactual_values, run.presented_values, dict[str, float]()
    for site in (f"{layer}.{place}" for layer in range(pair.sparse.config.n_layer) for place in CARRIED):
        moved = ((there[site] - here[site]) * gradients[site]).sum((0, 1))
        effects |= {node_id(site, channel): value for channel, value in enumerate(moved.tolist())}
    return effects
