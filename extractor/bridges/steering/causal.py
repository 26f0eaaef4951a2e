"""Causal agreement: does an edit do in the dense model what it does in the sparse one?

Each prompt of held-out pairs is presented, with the other member of its pair as counterfactual. The effect of some nodes is the change of
the logit difference toward the counterfactual's answer:

    sparse   the nodes take their values of the counterfactual prompt; all else of the sparse model runs on
    dense    the same change is carried into the dense model through the bridge of its site (edit.py): after the norm for nodes that read,
             into the residual stream for nodes that write

A circuit that speaks of the dense model has equal effects in both. Random nodes of the same sites are the control: most of their effects
are near zero in both models, and their correlation says how far the models agree where the circuit is not. Shapes: `extractor.bridges`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from extractor.bridges.steering.edit import CounterfactualRun, SteeredNode, steerable
from extractor.bridges.steering.ranking import strongest_of_circuit
from extractor.circuits.reference import masked_logit_diff
from extractor.circuits.sites import node_id, widths
from extractor.data.prompts import TaskBatch, logit_diff
from extractor.files import rounded

if TYPE_CHECKING:
    from extractor.bridges.pair import BridgedPair

PAIRS = 48
MOST_NODES = 64  # measured by themselves: those with the largest effects in the sparse model
MATERIAL = 0.02  # of the mean distance between a pair's logit differences; signs of smaller effects are not compared


class CausalEffects:
    """The effects of sets of nodes, all of one site each, on the first `pairs` pairs. `distance`: between a pair's logit differences."""

    def __init__(self, pair: BridgedPair, batch: TaskBatch, pairs: int = PAIRS):
        self.pair, self.batch = pair, batch.pick(torch.arange(min(pairs, batch.pairs)))
        other = torch.arange(len(self.batch.ids), device=self.batch.ids.device) ^ 1
        self.run = CounterfactualRun(pair, self.batch.ids, self.batch.ids[other], self.batch.last)
        self.plain_sparse = masked_logit_diff(pair.sparse, self.batch, {}, {})
        self.plain_dense = logit_diff(self.run.plain_logits(), self.batch)
        self.distance = (self.plain_sparse - self.plain_sparse[other]).abs().mean().item()

    @torch.no_grad()
    def sparse(self, nodes: Sequence[SteeredNode]) -> Tensor:
        """Effects (2P,) in the sparse model, logits."""
        channels, source = [node.channel for node in nodes], nodes[0].source
        counterfactual = self.run.counterfactual_values[source][..., channels]

        def patched(site: str, values: Tensor) -> Tensor:
            if site != source:
                return values
            values = values.clone()
            values[..., channels] = counterfactual
            return values

        return self._toward_other(masked_logit_diff(self.pair.sparse, self.batch, {}, {}, rewrite=patched) - self.plain_sparse)

    @torch.no_grad()
    def dense(self, nodes: Sequence[SteeredNode]) -> Tensor:
        """Effects (2P,) in the dense model, logits."""
        return self._toward_other(logit_diff(self.run.logits(self.run.edit(nodes)), self.batch) - self.plain_dense)

    def _toward_other(self, change: Tensor) -> Tensor:
        return -self.batch.sign * change


def causal_report(
    pair: BridgedPair, circuit_nodes: Sequence[str], held_out: TaskBatch, seed: int, tick: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Effects of the circuit's nodes in the sparse model against those in the dense one; {} where no node can be edited.

    nodes, random   `agreement` of single nodes: the circuit's, and as many random other ones of the same sites
    sets            `agreement` of all circuit nodes of a site together; None where no site has two
    effects         [[node, mean effect in the sparse model, in the dense model], ...], logits, largest first
    distance        mean distance between the logit differences of a pair in the sparse model: the effect of exchanging everything
    pairs           number of held-out pairs

    Of a circuit of more than 256 nodes that can be edited, those with the largest first-order effects are measured alone.
    tick is called before every set; what it raises ends the measurement.
    """
    nodes = steerable(pair, circuit_nodes)
    if not nodes:
        return {}
    effects = CausalEffects(pair, held_out)

    def in_sparse(sets: Sequence[Sequence[SteeredNode]]) -> Tensor:
        return torch.stack([effects.sparse(some) for some in sets])

    def in_dense(sets: Sequence[Sequence[SteeredNode]]) -> Tensor:
        found = []
        for some in sets:
            tick()
            found.append(effects.dense(some))
        return torch.stack(found)

    def measured(sets: Sequence[Sequence[SteeredNode]]) -> dict[str, Any]:
        return agreement(in_sparse(sets), in_dense(sets), effects.distance)

    strongest = strongest_of_circuit(pair, nodes, effects.batch)
    of_all = in_sparse([[node] for node in strongest])
    order = of_all.abs().mean(1).argsort(descending=True, stable=True)[:MOST_NODES]
    alone, sparse = [strongest[i] for i in order.tolist()], of_all[order]
    dense = in_dense([[node] for node in alone])
    by_site = [list(some) for _, some in groupby(sorted(nodes, key=lambda node: node.source), key=lambda node: node.source)]
    sets = [some for some in by_site if len(some) > 1]
    random = random_nodes(pair, alone, {node.id for node in nodes}, seed)
    means = [[node.id, *both] for node, *both in zip(alone, sparse.mean(1).tolist(), dense.mean(1).tolist(), strict=True)]
    return rounded(
        {
            "nodes": agreement(sparse, dense, effects.distance),
            "sets": measured(sets) if sets else None,
            "random": measured([[node] for node in random]) if random else None,
            "effects": means,
            "distance": effects.distance,
            "pairs": effects.batch.pairs,
        }
    )


def random_nodes(pair: BridgedPair, like: Sequence[SteeredNode], without: set[str], seed: int) -> list[SteeredNode]:
    """For each node a random one of its site that is not in `without`, each once; fewer where a site has no more."""
    generator, found = torch.Generator().manual_seed(seed), []
    for source, some in groupby(sorted(like, key=lambda node: node.source), key=lambda node: node.source):
        order = torch.randperm(widths(pair.sparse)[source], generator=generator).tolist()
        others = [name for channel in order if (name := node_id(source, channel)) not in without]
        found += steerable(pair, others)[: len(list(some))]
    return found


def agreement(sparse: Tensor, dense: Tensor, distance: float) -> dict[str, Any]:
    """How alike effects (sets, 2P) are in both models, over all sets and prompts.

    count         number of sets
    correlation   Pearson's; None where the effects of a model do not vary
    slope         least-squares slope of the dense effects over the sparse ones, through zero; None as above
    same_sign     fraction with equal signs, of the effects of at least MATERIAL * distance in the sparse model; None where there are none
    sparse, dense   mean effects, logits
    """
    x, y = sparse.double().flatten(), dense.double().flatten()
    material = (x.abs() >= MATERIAL * distance) & (x != 0)
    varies = len(x) > 1 and x.std() > 0 and y.std() > 0
    return {
        "count": len(sparse),
        "correlation": torch.corrcoef(torch.stack([x, y]))[0, 1].item() if varies else None,
        "slope": ((x * y).sum() / x.square().sum()).item() if x.abs().sum() > 0 else None,
        "same_sign": ((x > 0) == (y > 0))[material].double().mean().item() if material.any() else None,
        "sparse": x.mean().item(),
        "dense": y.mean().item(),
    }
