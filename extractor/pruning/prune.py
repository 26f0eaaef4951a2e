"""The smallest circuits of one task: rank, cut, learn edges, eliminate, choose.

1. Rank the nodes (`algorithms`).
2. Keep the shortest prefix that does better than the smallest target, so that the next steps have something to spend, unless that takes
   many nodes more; drop dead nodes.
3. Eliminate nodes one by one; with granularity 'edge' then edges, from that and from the prefix: paths of nested circuits. On request
   (`edge_k_coefs`) also from the edges that learned masks keep.
4. For every target choose the circuit of the path with fewest edges that meets it on the select split, a margin below it. The figure to
   report is measured on a third split.

A circuit must be sufficient (alone, calibrated, it meets the target) and necessary (the model without its nodes loses a given number of
nats). The paper asks only for the first; but models are redundant, and the smallest sufficient circuit is often one of several ways to do
the task, which the model does not miss (ours).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from extractor.circuits.calibration import calibrate, calibrated_loss
from extractor.circuits.circuit import Calibration
from extractor.circuits.graph import CircuitMask, edge_count, with_edges, without_dead
from extractor.pruning import algorithms
from extractor.pruning.bisection import smallest
from extractor.pruning.elements import Edges, Nodes
from extractor.pruning.eliminate import EliminationPath, eliminate
from extractor.pruning.mask_sets import MaskTrial, learn_scores
from extractor.pruning.problem import PruningProblem
from extractor.spec.schema import CHANCE

HELPLESS = 0.95 * CHANCE  # calibrated loss from which a whole model does not do the task at all
SLACK = 0.5  # of the smallest target: what the circuit has at which elimination starts
LARGER = 3  # times as many nodes as would do, at most, for that
NECESSITY_PAIRS = 128  # on which it is checked, at each step, that the model still fails without the circuit
DOUBT = 0.05  # nats from what is demanded, within which all pairs are asked


@dataclass(frozen=True)
class PrunedCircuit:
    """A circuit. loss: calibrated, select split, nats; target: what it was chosen for; met: it does what was demanded."""

    graph: CircuitMask
    edges: int
    loss: float
    calibration: Calibration
    target: float
    met: bool


@dataclass(frozen=True)
class PruneResult:
    """best: the circuit for the problem's target; curve: one for every target, the smallest target first; path: all that were passed."""

    best: PrunedCircuit
    curve: tuple[PrunedCircuit, ...]
    path: EliminationPath


class CircuitCriteria:
    """What is asked of circuits: a loss alone, and a loss of the model without them."""

    def __init__(self, problem: PruningProblem):
        spec = problem.spec
        self.problem, self.judge = problem, problem.judge(problem.select)
        self.few = problem.judge(problem.select.pick(torch.arange(min(NECESSITY_PAIRS, problem.select.pairs))))
        everything = torch.ones(len(problem.index), dtype=torch.bool, device=problem.model.device)
        self.full = self.judge.loss(CircuitMask(everything))
        # Calibrated, no network is much worse than chance: that caps it.
        self.without = 0.0 if spec.necessity == 0 else min(self.full + spec.necessity, 0.97 * CHANCE)

    def aim(self, target: float) -> float:
        """What the select split must show for held-out pairs to meet the target."""
        return max(target - self.problem.spec.margin, target / 2)

    def is_necessary(self, graph: CircuitMask, slack: float = 0.0) -> bool:
        """slack: how much of what lies between the demand and chance is asked for beside it, fraction."""
        demanded = self.without + slack * max(0.0, HELPLESS - self.without)
        return self.without == 0 or self.judge.loss(graph.complement()) >= demanded

    def is_roughly_necessary(self, graph: CircuitMask) -> bool:
        """The same on few pairs, unless they leave it in doubt."""
        if self.without == 0:
            return True
        loss = self.few.loss(graph.complement())
        return self.is_necessary(graph) if abs(loss - self.without) < DOUBT else loss > self.without


def find_circuits(problem: PruningProblem) -> PruneResult:
    """The circuits of a problem. Where no circuit meets a target, the best one found stands for it, not `met`. Raises Stopped."""
    targets = sorted({problem.target, *problem.spec.targets})
    demand = CircuitCriteria(problem)
    graph = _start(problem, algorithms.rank(problem), demand, targets)
    path = _path(problem, graph, demand, targets[-1])
    losses = demand.judge.losses(path).tolist()
    curve = tuple(_chosen(problem, path, losses, demand, target) for target in targets)
    return PruneResult(next(one for one in curve if one.target == problem.target), curve, path)


def _start(problem: PruningProblem, scores: Tensor, demand: CircuitCriteria, targets: Sequence[float]) -> CircuitMask:
    """The shortest prefix that meets the target and that the model misses when it is gone; all nodes where none has both.

    Up to a limit it is longer, so that it does better than asked: elimination has that to spend.
    """
    place = scores.argsort(descending=True, stable=True).argsort()
    count = torch.tensor([len(place)])

    def live(k: Tensor) -> CircuitMask:  # the dead compete in AbsTopK, and without one dead node of a way that way would be gone
        return without_dead(problem.model, CircuitMask(place < k))

    def reaches(loss: float, k: Tensor) -> Tensor:
        return demand.judge.losses([live(k)]) <= loss

    def is_missed(slack: float, k: Tensor) -> Tensor:
        return torch.tensor([demand.is_necessary(live(k), slack)])

    def longer(k: Tensor, meets: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.maximum(k, smallest(meets, (LARGER * k).clamp_max(count)))

    for loss in (demand.aim(problem.target), demand.full + 1e-3):
        k = smallest(partial(reaches, loss), count) if loss < HELPLESS else torch.zeros_like(count)
        if k and not is_missed(0.0, k):
            k = torch.maximum(k, smallest(partial(is_missed, 0.0), count))
        if k:
            slack = [partial(reaches, SLACK * target) for target in (problem.target, targets[0])]
            slack += [partial(is_missed, SLACK)] if demand.without else []
            return live(torch.stack([longer(k, meets) for meets in slack]).amax(0))
    return CircuitMask(torch.ones_like(place, dtype=torch.bool))


def _path(problem: PruningProblem, graph: CircuitMask, demand: CircuitCriteria, largest: float) -> EliminationPath:
    """All circuits passed while nodes go one by one and, with granularity 'edge', edges from several starts on."""

    def passed(kind: str, start: CircuitMask, target: float) -> EliminationPath:
        most = max(demand.aim(target), demand.judge.loss(start)) + problem.spec.margin
        return eliminate(problem, kind, start, most, demand.is_roughly_necessary)

    if demand.full >= HELPLESS:  # nothing to explain: the whole model is left as it is
        path = EliminationPath()
        path.append(Nodes(problem.model, graph), graph, edge_count(problem.model, graph))
        return path
    if problem.spec.granularity == "node":
        return passed("node", graph, largest)
    fewer = _last_below(demand, passed("node", graph, SLACK * problem.target), SLACK * problem.target)
    starts = [*_edge_starts(problem, graph, demand), fewer]
    return EliminationPath.joined([passed("edge", with_edges(problem.model, start), largest) for start in starts])


def _last_below(demand: CircuitCriteria, path: EliminationPath, loss: float) -> CircuitMask:
    """The smallest circuit of a path that is at most so bad; the first where none is."""
    losses = demand.judge.losses(path).tolist()
    return path[max((place for place, found in enumerate(losses) if found <= loss), default=0)]


def _edge_starts(problem: PruningProblem, graph: CircuitMask, demand: CircuitCriteria) -> list[CircuitMask]:
    """Where the elimination of edges starts: with all edges of the graph, and with those that learned edge masks keep."""
    spec, elements = problem.spec, Edges(problem.model, graph)
    whole = with_edges(problem.model, graph)
    if not spec.edge_k_coefs or not len(elements):
        return [whole]
    centre = MaskTrial(0.0, spec.lr, spec.weight_decay, spec.beta2, spec.warmup, spec.temperature, problem.seed)
    trials = [replace(centre, k_coef=k) for k in spec.edge_k_coefs]
    scores, _ = learn_scores(problem, elements, trials, spec.edge_steps, problem.env("edges"))
    place = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)

    def graphs(k: Tensor) -> list[CircuitMask]:
        return [elements.graph(row < most) for row, most in zip(place, k, strict=True)]

    slack = max(SLACK * problem.target, demand.judge.loss(whole))
    k = smallest(lambda k: demand.judge.losses(graphs(k)) <= slack, torch.full((len(trials),), len(elements)))
    slim = [without_dead(problem.model, one) for one, reached in zip(graphs(k), (k > 0).tolist(), strict=True) if reached]
    slim = [one for one in slim if demand.is_necessary(one)]
    return [whole, *sorted(slim, key=lambda one: edge_count(problem.model, one))[:1]]


def _chosen(
    problem: PruningProblem, path: EliminationPath, losses: Sequence[float], demand: CircuitCriteria, target: float
) -> PrunedCircuit:
    good = [i for i, loss in enumerate(losses) if loss <= demand.aim(target)]
    # From the smallest circuit on, the first that the model misses when it is gone.
    which = next((i for i in reversed(good) if demand.is_necessary(path[i])), None)
    met = which is not None
    graph = path[which] if which is not None else path[min(range(len(path)), key=losses.__getitem__)]
    diff = demand.judge.logit_diffs([graph])[0]
    calibration = calibrate(diff, problem.select.sign)
    loss = calibrated_loss(diff, problem.select.sign, calibration)
    return PrunedCircuit(graph, edge_count(problem.model, graph), loss, calibration, target, met)
