"""The smallest circuits of one task: rank, cut, eliminate, choose.

1. Rank the nodes (`algorithms`). By the robust standard first by attribution, and by learned masks where that leaves many edges.
2. Cut: keep a prefix of the ranking that is sufficient and necessary, with loss to spare for step 3; drop dead nodes (`_start`).
3. Eliminate nodes one by one; with granularity 'edge' then edges, both from the result and from the prefix (`eliminate`). Every circuit on
   the way is a candidate. With `edge_k_coefs` elimination also starts from edges that learned masks keep.
4. Choose, for every target, the candidate with fewest edges that meets it on the select split, also at the upper end of its interval
   (`confident`; else by a margin), and is necessary (`_chosen`). The loss to report is measured on a third split.
5. From the circuit for the problem's own target, remove every edge whose removal costs nothing on fresh pairs (`_minimal`).

Sufficient: the circuit alone has a task loss of at most the target, by the problem's standard (`circuits.standard`). Necessary: the model
with the circuit's nodes ablated, calibrated, has a loss of at least `least_loss_without`. The paper asks only for the first (Sec. 2.2); but
models are redundant, and the smallest sufficient circuit is often one of several ways to do the task (ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from extractor.circuits.circuit import Calibration
from extractor.circuits.graph import CircuitMask
from extractor.circuits.scorer import CIRCUITS_AT_ONCE, CircuitScorer
from extractor.circuits.standard import Measured, Name
from extractor.data.prompts import TaskBatch
from extractor.pruning import algorithms
from extractor.pruning.bisection import smallest, smallest_count
from extractor.pruning.elements import Edges, Nodes
from extractor.pruning.eliminate import EliminationPath, eliminate
from extractor.pruning.mask_sets import MaskTrial, learn_scores
from extractor.pruning.problem import PruningProblem
from extractor.spec.thresholds import FULL_MODEL_FAILS, MOST_DEMANDED_LOSS

START_SHARE = 0.5  # of a target: the loss that elimination should start from
MAX_NODE_FACTOR = 3  # the prefix that elimination starts from has at most this many times the nodes of the shortest one
NECESSITY_PAIRS = 128  # pairs for the necessity check of each elimination step
NECESSITY_DOUBT = 0.05  # nats; closer than this to the demanded loss, all pairs are used
FULL_MODEL_MARGIN = 1e-3  # nats above the full model's loss: the fallback where no prefix reaches the target
FEW_EDGES = 500  # a start with at most so many needs no other ranking
FRESH_PAIRS = 256  # train pairs on which single edges are removed at the end
MOST_ROUNDS = 4  # of that, each on other pairs
MOST_SINGLE_EDGES = 1000  # a larger circuit's edges are not removed one by one at the end
_LAST_DRAW = 1 << 24  # draws of train pairs at the end are numbered from here; elimination uses smaller numbers


@dataclass(frozen=True)
class PrunedCircuit:
    """A circuit. loss: select split, nats; target: the loss it was chosen for, nats; met: sufficient and necessary by its standard."""

    graph: CircuitMask
    edges: int
    loss: float
    calibration: Calibration
    target: float
    met: bool
    standard: Name = "paper"


@dataclass(frozen=True)
class PruneResult:
    """best: the circuit for the problem's target; curve: one circuit per target, smallest target first; path: all candidates."""

    best: PrunedCircuit
    curve: tuple[PrunedCircuit, ...]
    path: EliminationPath


class CircuitCriteria:
    """When a circuit counts: the loss that it may have alone, and the loss that the model without it must have.

    full_loss            loss of the full model, select split, nats
    least_loss_without   calibrated loss that the model without the circuit must reach, nats; 0 where necessity is not asked for
    """

    def __init__(self, problem: PruningProblem):
        def few(pairs: int) -> TaskBatch:
            return problem.select.pick(torch.arange(min(pairs, problem.select.pairs)))

        self.scorer = problem.scorer(problem.select)
        self.is_confident = problem.spec.confident
        copies = problem.standard.copies
        self.prefixes = self.scorer if copies == 1 else problem.scorer(few(max(1, problem.select.pairs // copies)))
        self.without, self.without_few = (CircuitScorer(problem.paper, some) for some in (problem.select, few(NECESSITY_PAIRS)))
        self.full_loss = self.scorer.loss(problem.full_mask())
        necessity = problem.spec.necessity
        full = self.full_loss if problem.standard is problem.paper else self.without.loss(problem.full_mask())
        self.least_loss_without = 0.0 if necessity == 0 else min(full + necessity, MOST_DEMANDED_LOSS)

    def measured(self, mask: CircuitMask) -> tuple[Measured, Calibration]:
        """The circuit on all select pairs, and its calibration."""
        standard, sign = self.scorer.standard, self.scorer.batch.sign
        diff = self.scorer.logit_diffs([mask])[0]
        calibration = standard.calibration(diff, sign)
        return standard.measured(diff, sign, calibration), calibration

    def holds(self, mask: CircuitMask, target: float) -> bool:
        """Whether it meets the target at the upper end of its interval (unless the spec is not confident), and is necessary."""
        return (not self.is_confident or self.measured(mask)[0].upper <= target) and self.is_necessary(mask)

    def is_sufficient(self, mask: CircuitMask, loss: float) -> bool:
        return self.prefixes.loss(mask) <= loss

    def is_necessary(self, mask: CircuitMask, extra: float = 0.0) -> bool:
        """extra: fraction of the way from the demanded loss to that of a model that fails, demanded in addition."""
        demanded = self.least_loss_without + extra * max(0.0, FULL_MODEL_FAILS - self.least_loss_without)
        return self.least_loss_without == 0 or self.without.loss(mask.complement()) >= demanded

    def is_roughly_necessary(self, mask: CircuitMask) -> bool:
        """`is_necessary` on few pairs; on all pairs where these are within `NECESSITY_DOUBT` of the demanded loss."""
        if self.least_loss_without == 0:
            return True
        loss = self.without_few.loss(mask.complement())
        return self.is_necessary(mask) if abs(loss - self.least_loss_without) < NECESSITY_DOUBT else loss > self.least_loss_without


def find_circuits(problem: PruningProblem) -> PruneResult:
    """The circuits of a problem, one per target; not `met` where no candidate is sufficient and necessary. Raises Stopped."""
    targets = sorted({problem.target, *problem.spec.targets})
    criteria = CircuitCriteria(problem)
    start = _smallest_start(problem, criteria, targets)
    path = _path(problem, start, criteria, targets[-1])
    losses = (criteria.prefixes if problem.spec.confident else criteria.scorer).losses(path).tolist()
    chosen = {target: _chosen(problem, path, losses, criteria, target) for target in targets}
    if problem.spec.confident:
        chosen[problem.target] = _minimal(problem, chosen[problem.target], criteria)
    return PruneResult(chosen[problem.target], tuple(chosen.values()), path)


def _smallest_start(problem: PruningProblem, criteria: CircuitCriteria, targets: Sequence[float]) -> CircuitMask:
    """Steps 1 and 2: the start of the first ranking that leaves few edges, else the smallest of all."""
    first = problem.standard.first_rankings if problem.spec.algorithm == "masks" else ()
    rankings = dict.fromkeys([*first, problem.spec.algorithm])
    starts: list[CircuitMask] = []
    for name in rankings:
        starts.append(_start(problem, algorithms.rank(problem, name), criteria, targets))
        if starts[-1].edge_count() <= FEW_EDGES:
            break
    return min(starts, key=lambda start: start.edge_count())


class _Prefixes:
    """The circuits of a ranking's first k nodes, without dead nodes: these take part in AbsTopK."""

    def __init__(self, problem: PruningProblem, scores: Tensor, criteria: CircuitCriteria):
        self.model, self.criteria = problem.model, criteria
        self.place = scores.argsort(descending=True, stable=True).argsort()

    def mask(self, k: int) -> CircuitMask:
        return CircuitMask(self.model, self.place < k).without_dead()

    def sufficient(self, loss: float, most: int) -> int:
        """The fewest nodes, at most `most`, whose circuit has this loss alone; 0 where there is none."""
        return smallest_count(lambda k: self.criteria.is_sufficient(self.mask(k), loss), most)

    def necessary(self, extra: float, most: int) -> int:
        """The fewest nodes, at most `most`, without which the model fails; 0 where there is none."""
        return smallest_count(lambda k: self.criteria.is_necessary(self.mask(k), extra), most)


def _start(problem: PruningProblem, scores: Tensor, criteria: CircuitCriteria, targets: Sequence[float]) -> CircuitMask:
    """The circuit from which elimination starts; the full model where no prefix of the ranking is both sufficient and necessary."""
    prefixes = _Prefixes(problem, scores, criteria)
    shortest = _shortest(problem, prefixes, criteria)
    if not shortest:
        return problem.full_mask()
    longer = prefixes.mask(_with_loss_to_spend(problem, prefixes, criteria, shortest, targets[0]))
    return longer if longer.edge_count() <= problem.standard.most_edges else prefixes.mask(shortest)


def _shortest(problem: PruningProblem, prefixes: _Prefixes, criteria: CircuitCriteria) -> int:
    """Nodes of the shortest prefix that is sufficient and necessary. Where none reaches the target, the full model's loss is enough."""
    count = len(problem.index)
    for loss in (problem.select_target(problem.target), criteria.full_loss + FULL_MODEL_MARGIN):
        k = prefixes.sufficient(loss, count) if loss < FULL_MODEL_FAILS else 0
        if k and not criteria.is_necessary(prefixes.mask(k)):
            k = max(k, prefixes.necessary(0.0, count))
        if k:
            return k
    return 0


def _with_loss_to_spend(problem: PruningProblem, prefixes: _Prefixes, criteria: CircuitCriteria, shortest: int, least_target: float) -> int:
    """Nodes of a longer prefix, with half the loss of the targets: elimination spends the rest.

    At most `MAX_NODE_FACTOR` times `shortest`.
    """
    most = min(MAX_NODE_FACTOR * shortest, len(problem.index))
    counts = [prefixes.sufficient(START_SHARE * target, most) for target in (problem.target, least_target)]
    if criteria.least_loss_without:
        counts.append(prefixes.necessary(START_SHARE, most))
    return max(shortest, *counts)


def _path(problem: PruningProblem, start: CircuitMask, criteria: CircuitCriteria, largest: float) -> EliminationPath:
    """All circuits on the way while nodes are eliminated and, with granularity 'edge', then edges from several starts."""

    def eliminated(kind: str, mask: CircuitMask, target: float) -> EliminationPath:
        most = max(problem.select_target(target), criteria.scorer.loss(mask)) + problem.spec.margin
        return eliminate(problem, kind, mask, most, criteria.is_roughly_necessary)

    is_hopeless = criteria.full_loss >= FULL_MODEL_FAILS and (problem.guarded or start.node_count() == len(problem.index))
    if is_hopeless or start.edge_count() > problem.standard.most_edges:
        path = EliminationPath()
        path.append(Nodes(start), start, start.edge_count())
        return path
    if problem.spec.granularity == "node":
        return eliminated("node", start, largest)
    least = START_SHARE * problem.target
    fewer_nodes = _last_below(criteria, eliminated("node", start, least), least)
    starts = [*_edge_starts(problem, start, criteria), fewer_nodes]
    return EliminationPath.joined([eliminated("edge", mask.with_edges(), largest) for mask in starts])


def _last_below(criteria: CircuitCriteria, path: EliminationPath, loss: float) -> CircuitMask:
    """The smallest circuit of a path with at most this loss; the first circuit where there is none."""
    losses = criteria.scorer.losses(path).tolist()
    return path[max((place for place, found in enumerate(losses) if found <= loss), default=0)]


def _edge_starts(problem: PruningProblem, mask: CircuitMask, criteria: CircuitCriteria) -> list[CircuitMask]:
    """Where the elimination of edges starts: from all edges of a circuit, and (`edge_k_coefs`) from those that learned masks keep."""
    spec, elements, all_edges = problem.spec, Edges(mask), mask.with_edges()
    if not spec.edge_k_coefs or not len(elements):
        return [all_edges]
    centre = MaskTrial(0.0, spec.lr, spec.weight_decay, spec.beta2, spec.warmup, spec.temperature, problem.seed)
    trials = [replace(centre, k_coef=k) for k in spec.edge_k_coefs]
    scores, _ = learn_scores(problem, elements, trials, spec.edge_steps, problem.env("edges"))
    place = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)

    def prefixes(k: Tensor) -> list[CircuitMask]:
        return [elements.graph(row < most) for row, most in zip(place, k, strict=True)]

    loss = max(START_SHARE * problem.target, criteria.scorer.loss(all_edges))
    k = smallest(lambda k: criteria.scorer.losses(prefixes(k)) <= loss, torch.full((len(trials),), len(elements)))
    slim = [one.without_dead() for one, reached in zip(prefixes(k), (k > 0).tolist(), strict=True) if reached]
    slim = [one for one in slim if criteria.is_necessary(one)]
    return [all_edges, *sorted(slim, key=lambda one: one.edge_count())[:1]]


def _chosen(
    problem: PruningProblem, path: EliminationPath, losses: Sequence[float], criteria: CircuitCriteria, target: float
) -> PrunedCircuit:
    """The smallest candidate that holds; `path` has the largest first. Else the one with the lowest loss.

    losses   of the candidates, on all select pairs, or on a part of them where `holds` measures all; only low ones are tried
    """
    limit = target if problem.spec.confident else problem.select_target(target)
    tried = (i for i in reversed(range(len(path))) if losses[i] <= limit)
    which = next((i for i in tried if criteria.holds(path[i], target)), None)
    mask = path[which] if which is not None else path[min(range(len(path)), key=losses.__getitem__)]
    return _measured(problem, mask, criteria, target, met=which is not None)


def _measured(problem: PruningProblem, mask: CircuitMask, criteria: CircuitCriteria, target: float, met: bool) -> PrunedCircuit:
    found, calibration = criteria.measured(mask)
    return PrunedCircuit(mask, mask.edge_count(), found.loss, calibration, target, met, problem.standard.name)


def without_each(scorer: CircuitScorer, elements: Edges) -> Tensor:
    """Losses (E,) of the circuit without each of its edges, few circuits in memory at once."""
    places = torch.arange(len(elements), device=elements.circuit.nodes.device)
    parts = [[elements.graph(places != one) for one in some] for some in places.split(CIRCUITS_AT_ONCE)]
    return torch.cat([scorer.losses(part) for part in parts])


def _minimal(problem: PruningProblem, found: PrunedCircuit, criteria: CircuitCriteria) -> PrunedCircuit:
    """A circuit that holds, without the edges whose removal alone does not raise the loss on fresh pairs, while it holds."""
    mask, standard = found.graph, problem.standard
    for number in range(MOST_ROUNDS):
        if not found.met or mask.edges is None or not 1 < mask.edge_count() <= MOST_SINGLE_EDGES:
            break
        elements, fresh = Edges(mask), problem.draw(_LAST_DRAW + number, max(1, FRESH_PAIRS // standard.copies))
        scorer, on = CircuitScorer(standard, fresh), torch.ones(len(elements), dtype=torch.bool, device=mask.nodes.device)
        now, losses = scorer.loss(mask), without_each(scorer, elements)
        for edge in losses.argsort(stable=True).tolist():
            if losses[edge] > now:
                break
            on[edge] = False
            on[edge] = not criteria.holds(elements.graph(on).without_dead(), found.target)
        if bool(on.all()):
            break
        mask = elements.graph(on).without_dead()
    return found if mask is found.graph else _measured(problem, mask, criteria, found.target, met=True)
