"""The smallest circuits of one task: rank, cut, eliminate, choose.

1. Rank the nodes (`algorithms`). By the robust standard first by attribution, and by learned masks where that leaves many edges.
2. Cut: keep a prefix of the ranking that is sufficient and necessary, with loss to spare for step 3; drop dead nodes (`_start`).
3. Eliminate nodes one by one; with granularity 'edge' then edges, both from the result and from the prefix (`eliminate`). Every circuit on
   the way is a candidate. With `edge_k_coefs` elimination also starts from edges that learned masks keep. Where so many edges are left
   that this takes long and removes little (`problem.SearchPolicy`), it starts from the first of these edges by attribution
   (`_first_edges`), and where these are too many as well, nothing is eliminated.
4. Choose, for every target, the candidate with fewest edges that meets it on the select split, also at the upper end of its interval
   (`confident`; else by a margin), and is necessary (`choose.chosen`). The loss to report is measured on a third split.
5. From the circuit for the problem's own target, remove every edge whose removal costs nothing on fresh pairs (`choose.minimal`).

Sufficient: the circuit alone has a task loss of at most the target, by the problem's standard (`circuits.standard`). Necessary: the model
with the circuit's nodes ablated, calibrated, has a loss of at least `least_loss_without`. The paper asks only for the first (Sec. 2.2); but
models are redundant, and the smallest sufficient circuit is often one of several ways to do the task (ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from extractor.circuits.graph import CircuitMask
from extractor.pruning import algorithms
from extractor.pruning.algorithms import attribution
from extractor.pruning.bisection import smallest, smallest_count
from extractor.pruning.choose import chosen, minimal
from extractor.pruning.criteria import CircuitCriteria, PrunedCircuit
from extractor.pruning.elements import Edges
from extractor.pruning.eliminate import EliminationPath, eliminate
from extractor.pruning.mask_sets import MaskTrial, learn_scores
from extractor.pruning.problem import PruningProblem
from extractor.spec.thresholds import FULL_MODEL_FAILS

START_SHARE = 0.5  # of a target: the loss that elimination should start from
MAX_NODE_FACTOR = 3  # the prefix that elimination starts from has at most this many times the nodes of the shortest one
FULL_MODEL_MARGIN = 1e-3  # nats above the full model's loss: the fallback where no prefix reaches the target
FEW_EDGES = 500  # a start with at most so many needs no other ranking


@dataclass(frozen=True)
class PruneResult:
    """best: the circuit for the problem's target; curve: one circuit per target, smallest target first; path: all candidates."""

    best: PrunedCircuit
    curve: tuple[PrunedCircuit, ...]
    path: EliminationPath


def find_circuits(problem: PruningProblem) -> PruneResult:
    """The circuits of a problem, one per target; not `met` where no candidate is sufficient and necessary. Raises Stopped."""
    targets = sorted({problem.target, *problem.spec.targets})
    criteria = CircuitCriteria(problem)
    start = _smallest_start(problem, criteria, targets)
    path = _path(problem, start, criteria, targets[-1])
    problem.phase("choose")
    losses = (criteria.prefixes if problem.spec.confident else criteria.scorer).losses(path).tolist()
    found = {target: chosen(problem, path, losses, criteria, target) for target in targets}
    if problem.spec.confident:
        found[problem.target] = minimal(problem, found[problem.target], criteria)
    return PruneResult(found[problem.target], tuple(found.values()), path)


def _smallest_start(problem: PruningProblem, criteria: CircuitCriteria, targets: Sequence[float]) -> CircuitMask:
    """Steps 1 and 2: the start of the first ranking that leaves few edges, else the smallest of all."""
    first = problem.policy.first_rankings if problem.spec.algorithm == "masks" else ()
    rankings = dict.fromkeys([*first, problem.spec.algorithm])
    starts: list[CircuitMask] = []
    for name in rankings:
        starts.append(_start(problem, algorithms.rank(problem.at("rank"), name), criteria, targets))
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
    shortest = _shortest(problem.at("cut"), prefixes, criteria)
    if not shortest:
        return problem.full_mask()
    longer = prefixes.mask(_with_loss_to_spend(problem, prefixes, criteria, shortest, targets[0]))
    return longer if longer.edge_count() <= problem.policy.most_edges else prefixes.mask(shortest)


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
        problem.phase(f"{kind}s")
        most = max(problem.select_target(target), criteria.scorer.loss(mask)) + problem.spec.margin
        return eliminate(problem, kind, mask, most, criteria.is_roughly_necessary)

    is_hopeless = criteria.full_loss >= FULL_MODEL_FAILS and (problem.guarded or start.node_count() == len(problem.index))
    by_edges = problem.spec.granularity == "edge"
    if start.edge_count() > min(problem.policy.most_start_edges, problem.policy.most_edges) and by_edges and not is_hopeless:
        start = _first_edges(problem.at("first edges"), start, criteria)
    if is_hopeless or start.edge_count() > problem.policy.most_edges:
        return EliminationPath.of(start)
    if not by_edges:
        return eliminated("node", start, largest)
    if start.edges is not None:
        return eliminated("edge", start, largest)
    least = START_SHARE * problem.target
    fewer_nodes = _last_below(criteria, eliminated("node", start, least), least)
    starts = _edge_starts(problem, start, criteria)
    if fewer_nodes.node_count() < start.node_count():
        starts.append(fewer_nodes)
    return EliminationPath.joined([eliminated("edge", mask.with_edges(), largest) for mask in starts])


def _first_edges(problem: PruningProblem, start: CircuitMask, criteria: CircuitCriteria) -> CircuitMask:
    """The fewest first edges of a circuit, ranked by attribution, that are sufficient and necessary; the circuit where there are none.

    By the size of their scores: an edge that cancels what another brings has a negative one, and is needed.
    """
    elements = Edges(start)
    place = attribution.scores(problem, elements).abs().argsort(descending=True, stable=True).argsort()
    loss, count = max(START_SHARE * problem.target, criteria.prefixes.loss(start)), len(elements)

    def mask(k: int) -> CircuitMask:
        problem.tick(0, 1)  # a request to stop is heard between two measurements
        return elements.graph(place < k).without_dead()

    k = smallest_count(lambda k: criteria.is_sufficient(mask(k), loss), count)
    if k and not criteria.is_necessary(mask(k)):
        k = max(k, smallest_count(lambda k: criteria.is_necessary(mask(k)), count)) if criteria.is_necessary(start) else 0
    return mask(k) if k else start


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
    scores, _ = learn_scores(problem.at("rank edges"), elements, trials, spec.edge_steps, problem.env("edges"))
    place = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)

    def prefixes(k: Tensor) -> list[CircuitMask]:
        return [elements.graph(row < most) for row, most in zip(place, k, strict=True)]

    loss = max(START_SHARE * problem.target, criteria.scorer.loss(all_edges))
    k = smallest(lambda k: criteria.scorer.losses(prefixes(k)) <= loss, torch.full((len(trials),), len(elements)))
    slim = [one.without_dead() for one, reached in zip(prefixes(k), (k > 0).tolist(), strict=True) if reached]
    slim = [one for one in slim if criteria.is_necessary(one)]
    return [all_edges, *sorted(slim, key=lambda one: one.edge_count())[:1]]
