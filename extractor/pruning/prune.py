"""The smallest circuits of one task: starts race, each is cut and eliminated, the best candidate is chosen.

1. Start from a ranking (`starts`): of edges or of nodes, by attribution, learned masks or chance (`algorithms`). A prefix is kept that is
   sufficient and necessary, with loss to spare for step 2; dead nodes go.
2. Eliminate nodes one by one, and with granularity 'edge' then edges, both from the result and from the prefix (`eliminate`). Every circuit
   on the way is a candidate. With `edge_k_coefs` and a ranking of nodes, elimination also starts from edges that learned masks keep. Where
   so many edges are left that this takes long and removes little (`problem.SearchPolicy`), it starts from the first of these edges by
   attribution, and where these are too many as well, nothing is eliminated.
3. With algorithm 'race' the next start runs while `race.Race` expects that it pays. The candidates of all starts count.
4. Choose, for every target, the candidate with fewest edges that meets it on the select split, also at the upper end of its interval
   (`confident`; else by a margin), and is necessary (`choose.chosen`). The loss to report is measured on a third split.
5. From the circuit for the problem's own target, remove every edge whose removal costs nothing on fresh pairs (`choose.minimal`).

Sufficient: the circuit alone has a task loss of at most the target, by the problem's standard (`circuits.standard`). Necessary: the model
with the circuit's nodes ablated, calibrated, has a loss of at least `least_loss_without`. The paper asks only for the first (Sec. 2.2); but
models are redundant, and the smallest sufficient circuit is often one of several ways to do the task (ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from extractor.circuits.graph import CircuitMask
from extractor.pruning import algorithms
from extractor.pruning.bisection import smallest
from extractor.pruning.choose import chosen, minimal
from extractor.pruning.criteria import CircuitCriteria, PrunedCircuit
from extractor.pruning.elements import Edges
from extractor.pruning.eliminate import EliminationPath, eliminate
from extractor.pruning.mask_sets import MaskTrial, learn_scores
from extractor.pruning.problem import PruningProblem
from extractor.pruning.race import Race
from extractor.pruning.starts import START_SHARE, edge_start, first_edges, node_start
from extractor.spec.thresholds import FULL_MODEL_FAILS

MOST_NODE_EDGES = 5000  # between the nodes of a start by edges; with more, its nodes are not eliminated


@dataclass(frozen=True)
class PruneResult:
    """best: the circuit for the problem's target; curve: one circuit per target, smallest target first; path: all candidates.

    starts   {ranking: edges of the smallest candidate of its elimination that holds for the problem's target; None: none does}
    """

    best: PrunedCircuit
    curve: tuple[PrunedCircuit, ...]
    path: EliminationPath
    starts: dict[str, int | None] = field(default_factory=dict)


def find_circuits(problem: PruningProblem) -> PruneResult:
    """The circuits of a problem, one per target; not `met` where no candidate is sufficient and necessary. Raises Stopped."""
    targets = sorted({problem.target, *problem.spec.targets})
    criteria, race = CircuitCriteria(problem), Race(problem)
    if problem.guarded and criteria.full_loss >= FULL_MODEL_FAILS:
        return _nothing(problem, criteria, targets)
    while (named := race.next_start(lambda name: _start(problem, name, criteria, targets))) is not None:
        path = _path(problem, named[1], criteria, targets[-1])
        problem.phase("choose")
        losses = (criteria.prefixes if problem.spec.confident else criteria.scorer).losses(path).tolist()
        race.ended(named[0], path, losses, chosen(problem, path, losses, criteria, problem.target))
    path, losses = race.joined()
    known = {problem.target: race.best} if race.best else {}
    found = {target: known.get(target) or chosen(problem, path, losses, criteria, target) for target in targets}
    if problem.spec.confident:
        found[problem.target] = minimal(problem, found[problem.target], criteria)
    return PruneResult(found[problem.target], tuple(found.values()), path, race.sizes)


def _nothing(problem: PruningProblem, criteria: CircuitCriteria, targets: Sequence[float]) -> PruneResult:
    """What is found where the full model does not do the task: itself, which meets no target."""
    path = EliminationPath.of(problem.full_mask())
    found = {target: chosen(problem, path, [criteria.full_loss], criteria, target) for target in targets}
    return PruneResult(found[problem.target], tuple(found.values()), path)


def _start(problem: PruningProblem, name: str, criteria: CircuitCriteria, targets: Sequence[float]) -> CircuitMask | None:
    """Step 1."""
    if name == algorithms.EDGES:
        return edge_start(problem, criteria, targets)
    return node_start(problem, algorithms.rank(problem.at("rank"), name), criteria, targets)


def _path(problem: PruningProblem, start: CircuitMask, criteria: CircuitCriteria, largest: float) -> EliminationPath:
    """All circuits on the way while nodes are eliminated and, with granularity 'edge', then edges from several starts."""

    def eliminated(kind: str, mask: CircuitMask, target: float) -> EliminationPath:
        problem.phase(f"{kind}s")
        most = max(problem.select_target(target), criteria.scorer.loss(mask)) + problem.spec.margin
        return eliminate(problem, kind, mask, most, criteria.is_roughly_necessary)

    is_hopeless = criteria.full_loss >= FULL_MODEL_FAILS and start.node_count() == len(problem.index)
    by_edges = problem.spec.granularity == "edge"
    if start.edge_count() > min(problem.policy.most_start_edges, problem.policy.most_edges) and by_edges and not is_hopeless:
        start = first_edges(problem, start, criteria)
    if is_hopeless or start.edge_count() > problem.policy.most_edges:
        return EliminationPath.of(start)
    if not by_edges:
        return eliminated("node", start, largest)
    if start.edges is None:
        starts, nodes = _edge_starts(problem, start, criteria), start
    else:
        starts, nodes = [start], CircuitMask(problem.model, start.nodes).without_dead()
    least = START_SHARE * problem.target
    if start.edges is None or nodes.edge_count() <= min(MOST_NODE_EDGES, problem.policy.most_start_edges):
        fewer_nodes = _last_below(criteria, eliminated("node", nodes, least), least)
        if fewer_nodes is not None and (start.edges is not None or fewer_nodes.node_count() < start.node_count()):
            starts.append(fewer_nodes)
    return EliminationPath.joined([eliminated("edge", mask.with_edges(), largest) for mask in starts])


def _last_below(criteria: CircuitCriteria, path: EliminationPath, loss: float) -> CircuitMask | None:
    """The smallest circuit of a path with at most this loss; None where there is none."""
    place = max((place for place, found in enumerate(criteria.scorer.losses(path).tolist()) if found <= loss), default=None)
    return None if place is None else path[place]


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
