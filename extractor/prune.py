"""From a ranking of nodes to the smallest circuit that meets the target (Sec. 2.2, App. A.5).

1. A set of nodes will do when it is sufficient (alone, calibrated, it meets the target loss) and necessary (the model without it loses
   a given number of nats). The paper asks only for the first; but models are redundant, and the smallest sufficient set is often one of
   several ways to do the task, which the model does not miss (ours).
2. Bisect on k, the number of top-ranked nodes kept, on one fixed batch of the select split: for the smallest k that reaches half the target
   loss, so that the next step has something to spend; for the target itself where half of it is out of reach.
3. Drop nodes without a live path from input to logits, if the rest will do.
4. Try each node once, last-ranked first: it goes if removing it costs at most a share of the loss that is left to spend, and the rest is
   still necessary. The cost is a difference on pairs of the train split drawn for this trial alone: fifty choices on one fixed batch
   over-fitted it by 0.03 nats (ours).
5. Take the last nodes that went back in until the circuit will do on the select batch; fit scale and shift there.

The figure to report is measured on a third split. The same code prunes every sparse model, bridged or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from extractor.ablation import measured_margin
from extractor.circuit import Calibration, count_edges, live_nodes
from extractor.masks import NodeIndex
from extractor.objective import TaskBatch, task_loss
from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM

CHANCE = math.log(2)
SLACK = 0.5  # of the target loss, at which elimination starts
SPENT_AT_ONCE = 0.15  # of the loss left to spend, at most, for one node


@dataclass(frozen=True)
class PruneResult:
    """nodes: flat indices kept, best-ranked first. loss: calibrated, select split, nats. edges: exact count. met: the demand is met."""

    nodes: Tensor
    edges: int
    loss: float
    calibration: Calibration
    met: bool


@dataclass(frozen=True)
class Demand:
    """What a circuit must do, nats: alone a loss of at most `target`; taken away, a loss of at least `without` (calibrated too)."""

    target: float
    without: float = 0.0

    @classmethod
    def of(cls, probe: Probe, target: float, margin: float, necessity: float) -> Demand:
        """Aim `margin` below the target and above the necessity. Calibrated, no network is much worse than chance: that caps it."""
        if necessity == 0:
            return cls(target - margin)
        full, _ = probe.measure(torch.arange(len(probe.index)))
        return cls(target - margin, min(full + necessity + margin, 0.97 * CHANCE))

    def is_met(self, nodes: Tensor, probe: Probe) -> bool:
        return len(nodes) > 0 and probe.measure(nodes)[0] <= self.target and self.is_necessary(nodes, probe)

    def is_necessary(self, nodes: Tensor, probe: Probe) -> bool:
        return self.without == 0 or probe.measure(probe.others(nodes))[0] >= self.without


class Probe:
    """Loss of any set of nodes on one fixed batch, with its own best calibration."""

    def __init__(self, model: SparseGPTForCausalLM, means: dict[str, Tensor], batch: TaskBatch):
        self.model, self.means, self.batch = model, means, batch
        self.index = NodeIndex.of(model)

    def kept(self, nodes: Tensor) -> dict[str, Tensor]:
        """{site: sorted channels} of flat node indices."""
        flat = torch.zeros(len(self.index), dtype=torch.bool)
        flat[nodes.cpu()] = True
        return {site: part.nonzero().flatten() for site, part in self.index.split(flat).items()}

    def flat(self, kept: dict[str, set[int]]) -> set[int]:
        """Flat indices of {site: channels}."""
        offsets, start = {}, 0
        for site, width in self.index.widths.items():
            offsets[site] = start
            start += width
        return {offsets[site] + channel for site, channels in kept.items() for channel in channels}

    @torch.no_grad()
    def measure(self, nodes: Tensor) -> tuple[float, Calibration]:
        """(calibrated loss in nats, its calibration) of the circuit of these nodes."""
        masks = self.index.masks(nodes.to(self.model.device))
        margin = measured_margin(self.model, self.batch, masks, self.means)
        calibration = calibrate(margin, self.batch.sign)
        return calibrated_loss(margin, self.batch.sign, calibration), calibration

    def others(self, nodes: Tensor) -> Tensor:
        """All nodes but these."""
        rest = torch.ones(len(self.index), dtype=torch.bool, device=nodes.device)
        rest[nodes] = False
        return rest.nonzero().flatten()

    def edges(self, nodes: Tensor) -> int:
        return count_edges(self.model, self.kept(nodes))


def calibrate(margin: Tensor, sign: Tensor) -> Calibration:
    """Scale and shift of the margin that minimise the task loss: 16 L-BFGS steps in fp64, scale kept positive."""
    margin, sign = margin.detach().double().cpu(), sign.double().cpu()
    spread = margin.std().clamp_min(1e-6)
    standard = (margin - margin.mean()) / spread
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # log scale, shift, in units of the spread
    lbfgs = torch.optim.LBFGS([parameters], max_iter=16, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        lbfgs.zero_grad()
        # A trace of regularisation: perfectly separated margins have no finite optimum.
        loss = task_loss(parameters[0].exp() * standard + parameters[1], sign) + 1e-4 * parameters.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        lbfgs.step(closure)
    scale = parameters[0].exp().item() / spread.item()
    return Calibration(scale=scale, shift=parameters[1].item() - scale * margin.mean().item())


def calibrated_loss(margin: Tensor, sign: Tensor, calibration: Calibration) -> float:
    """Task loss in nats of calibrated margins."""
    return task_loss(calibration.scale * margin + calibration.shift, sign).item()


def smallest_circuit(
    ranking: Tensor,
    probe: Probe,
    demand: Demand,
    fresh: Callable[[int], TaskBatch],
    tick: Callable[[int, int], None] = lambda done, of: None,
) -> PruneResult:
    """The circuit found from one ranking (N,).

    probe carries the fixed select batch; fresh(i) gives the train pairs of the i-th trial; tick(done, of) is called as nodes are tried.
    When no number of top-ranked nodes will do, all are kept and `met` is False.
    """
    slack = replace(demand, target=SLACK * demand.target)
    k = _bisect(lambda k: slack.is_met(ranking[:k], probe), len(ranking)) or _bisect(
        lambda k: demand.is_met(ranking[:k], probe), len(ranking)
    )
    if k is None:
        loss, calibration = probe.measure(ranking)
        return PruneResult(ranking, probe.edges(ranking), loss, calibration, False)
    nodes = _without_dead(ranking[:k], probe, demand)
    nodes = _eliminate(nodes, probe, demand, fresh, tick)
    nodes = _without_dead(nodes, probe, demand)
    loss, calibration = probe.measure(nodes)
    return PruneResult(nodes, probe.edges(nodes), loss, calibration, True)


def _bisect(meets: Callable[[int], bool], most: int) -> int | None:
    """The smallest k in [1, most] that meets, if meeting is monotone in k; None when `most` does not."""
    low, high = 0, 1
    while high < most and not meets(high):
        low, high = high, 2 * high
    if high >= most:
        high = most
        if not meets(most):
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def _without_dead(nodes: Tensor, probe: Probe, demand: Demand) -> Tensor:
    """The nodes on live paths, unless dropping the others breaks the demand."""
    live = probe.flat(live_nodes(probe.model, probe.kept(nodes)))
    slim = torch.tensor([n for n in nodes.tolist() if n in live], dtype=nodes.dtype, device=nodes.device)
    return slim if demand.is_met(slim, probe) else nodes


def _eliminate(nodes: Tensor, probe: Probe, demand: Demand, fresh: Callable[[int], TaskBatch], tick: Callable[[int, int], None]) -> Tensor:
    gone: list[int] = []
    left = demand.target - probe.measure(nodes)[0]
    for trial, node in enumerate(reversed(nodes.tolist())):
        tick(trial + 1, len(nodes))
        here = Probe(probe.model, probe.means, fresh(trial))
        fewer = _less(nodes, [*gone, node])
        if not len(fewer):
            break
        cost = here.measure(fewer)[0] - here.measure(_less(nodes, gone))[0]
        if cost <= max(0.0, SPENT_AT_ONCE * left) and demand.is_necessary(fewer, here):
            gone.append(node)
            left -= cost
    while gone and not demand.is_met(_less(nodes, gone), probe):
        gone.pop()
    return _less(nodes, gone)


def _less(nodes: Tensor, gone: list[int]) -> Tensor:
    return nodes[~torch.isin(nodes, torch.tensor(gone, dtype=nodes.dtype, device=nodes.device))]
