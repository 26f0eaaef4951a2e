"""Can each node be a switch (Sec. 3.1)? Its values are replaced by two: one below a threshold, one above it.

Threshold and values are the optimal two means of the node's values in the circuit's own run, at the tokens of train prompts: the split of
the sorted values that leaves the least variance. The binarised circuit is calibrated again on the select split, as every control is.

`stepped_network` computes only the circuit, for many choices of binarised nodes at once; `Steps.rewriter` is its reference implementation.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from extractor.circuits.calibration import calibrate_all
from extractor.circuits.graph import CircuitMask, NodeIndex
from extractor.circuits.layers import Read, Slots, Write
from extractor.circuits.masks import Masks
from extractor.circuits.network import FastMaskedModel
from extractor.circuits.scorer import VALUES_AT_ONCE
from extractor.data.prompts import TaskBatch
from extractor.pruning.elements import Edges
from extractor.pruning.problem import PruningProblem
from extractor.validation.ablations import MANY_NODES, Rewrite, reference_logit_diffs

FITTED_PAIRS = 128  # train pairs whose tokens give the steps
FEW_PAIRS = 32  # the same of models with `MANY_NODES`
MOST_NODES = 200  # of circuits whose nodes are also binarised one by one


@dataclass(frozen=True)
class Steps:
    """threshold, low, high (N,): a node that is above its threshold becomes high, else low. on (N,) bool: the nodes that have a step."""

    threshold: Tensor
    low: Tensor
    high: Tensor
    on: Tensor

    def apply(self, values: Tensor) -> Tensor:
        """Values (..., N), those of nodes without a step as they are."""
        return torch.where(self.on, torch.where(values > self.threshold, self.high, self.low), values)

    def rewriter(self, index: NodeIndex) -> Rewrite:
        """The steps of all nodes, site by site."""
        fields = (index.split(t) for t in (self.threshold, self.low, self.high, self.on))
        by_site = {site: Steps(*parts) for site, *parts in zip(index.widths, *(f.values() for f in fields), strict=True)}
        return lambda site, values: by_site[site].apply(values)


def fit_steps(problem: PruningProblem, graph: CircuitMask) -> Steps:
    """The steps of a circuit's nodes. Tokens beyond a prompt's end do not count."""
    kept: dict[str, Tensor] = graph.channels()
    seen: dict[str, list[Tensor]] = {site: [] for site in kept}

    def watch(part: TaskBatch) -> Rewrite:
        real = torch.arange(part.ids.shape[1], device=part.ids.device) <= part.last[:, None]

        def keep(site: str, values: Tensor) -> Tensor:
            seen[site].append(values[real][:, kept[site]].double())
            return values

        return keep

    pairs = FITTED_PAIRS if len(problem.index) <= MANY_NODES else FEW_PAIRS
    reference_logit_diffs(problem, graph, problem.draw(0, pairs), watch)
    values = torch.cat([torch.cat(found) for found in seen.values()], dim=1)  # (tokens, nodes on)
    flat = torch.zeros(3, len(problem.index), device=values.device)
    flat[:, graph.nodes] = torch.stack(two_means(values)).to(flat.dtype)
    threshold, low, high = flat
    return Steps(threshold, low, high, graph.nodes)


def two_means(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(threshold, low, high), (K,) each, that leave the least variance of values (n, K); the threshold is half-way between low and high."""
    ordered = values.double().sort(0).values
    count = torch.arange(1, len(ordered) + 1, device=values.device, dtype=torch.float64)[:, None]
    below = ordered.cumsum(0)
    total = below[-1:]
    above = len(ordered) - count
    # The fall of the variance when the first `count` values have their own mean; at the last place there is only one mean.
    gain = (below - total * count / len(ordered)).square() / (count * above).clamp_min(0.5)
    gain[-1] = -1.0
    at = gain.argmax(0)
    columns = torch.arange(ordered.shape[1], device=values.device)
    low = below[at, columns] / count[at, 0]
    high = torch.where(above[at, 0] > 0, (total[0] - below[at, columns]) / above[at, 0].clamp_min(1), low)
    return (low + high) / 2, low, high


@dataclass(frozen=True)
class SteppedMasks(Masks):
    """stepped (P, N): 1 where a set has its node binarised."""

    stepped: Tensor | None = None


@dataclass(frozen=True)
class SteppedSlots(Slots):
    """A site whose nodes have steps, (n,) each."""

    steps: Steps | None = None

    def apply(self, x: Tensor, masks: Masks) -> Tensor:
        values = super().apply(x, masks)
        if self.steps is None or not isinstance(masks, SteppedMasks) or masks.stepped is None:
            return values
        wanted = functional.pad(masks.stepped, (0, 1))[:, self.nodes][:, None, None] > 0  # (P, 1, 1, n)
        return torch.where(wanted, self.steps.apply(values), values)


def stepped_network(network: FastMaskedModel, steps: Steps) -> FastMaskedModel:
    """The network, binarising the nodes that `SteppedMasks` name."""
    flat = [functional.pad(t, (0, 1)) for t in (steps.threshold, steps.low, steps.high, steps.on)]  # a slot that is no node has place N

    def site(slots: Slots) -> SteppedSlots:
        return SteppedSlots(slots.channels, slots.nodes, slots.ablation_values, slots.k, Steps(*(t[slots.nodes] for t in flat)))

    def read(part: Read) -> Read:
        return replace(part, slots=site(part.slots))

    def write(part: Write) -> Write:
        return replace(part, slots=site(part.slots))

    found = copy.copy(network)
    found.layers = []
    for attention, neurons in network.layers:
        q, k, v = map(site, attention.sites)
        heads = replace(attention, read=read(attention.read), sites=(q, k, v), write=write(attention.write))
        found.layers.append((heads, replace(neurons, read=read(neurons.read), site=site(neurons.site), write=write(neurons.write))))
    return found


class Binarised:
    """A circuit whose nodes can be binarised, together or one by one. K nodes, in flat order."""

    def __init__(self, problem: PruningProblem, graph: CircuitMask):
        self.problem, self.graph, self.steps = problem, graph, fit_steps(problem, graph)
        self.nodes = graph.nodes.nonzero().flatten()
        self._is_fast = problem.spec.ablation != "resample" and len(self.nodes) > 0 and problem.model.config.is_plain
        if self._is_fast:
            self._elements = Edges(graph)
            self._network = stepped_network(FastMaskedModel(problem.model, problem.ablation_values, graph.nodes), self.steps)

    def logit_diffs(self, batch: TaskBatch) -> Tensor:
        """Logit differences (2P,) with every node binarised."""
        if self._is_fast:
            return self._fast(batch, self.graph.nodes.float()[None])[0]
        rewrite = self.steps.rewriter(self.problem.index)
        return reference_logit_diffs(self.problem, self.graph, batch, lambda part: rewrite)

    def alone(self, held_out: TaskBatch) -> dict[str, float] | None:
        """{node: loss with it alone binarised, nats}; None above `MOST_NODES` nodes, with resample ablation and for further blocks."""
        if len(self.nodes) > MOST_NODES or not self._is_fast:
            return None
        select, stepped = self.problem.select, functional.one_hot(self.nodes, len(self.problem.index)).float()
        _, scale, shift = calibrate_all(self._fast(select, stepped), select.sign)
        diffs = self._fast(held_out, stepped).double().cpu()
        losses = functional.softplus(-held_out.sign.double().cpu() * (scale[:, None] * diffs + shift[:, None])).mean(-1)
        return dict(zip(self.graph.node_ids(), losses.tolist(), strict=True))

    @torch.no_grad()
    def _fast(self, batch: TaskBatch, stepped: Tensor) -> Tensor:
        """Logit differences (R, 2P); row r has the nodes of stepped (R, N) binarised."""
        prompts, found = self._network.prepare(batch), []
        size = max(1, VALUES_AT_ONCE // (len(self._network) * batch.ids.numel()))
        for done, some in enumerate(stepped.split(size)):
            self.problem.tick(done * size, len(stepped))
            on = some.new_ones(len(some), len(self._elements))
            edges = None if self.graph.edges is None else self._elements.masks(on).edges
            found.append(self._network.logit_diffs(prompts, SteppedMasks(edges=edges, stepped=some)))
        return torch.cat(found)
