"""Where elimination starts: a prefix of a ranking, with loss to spare, that is sufficient, and necessary where one is.

Nodes (`node_start`): by any algorithm; the circuit has all edges between the nodes of the prefix. Edges (`edge_start`): by attribution, in
two orders of which the one that leaves fewer edges counts: signed, and by size (an edge that cancels what another brings has a negative
score, and may be needed).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from extractor.circuits.graph import CircuitMask
from extractor.pruning.algorithms import attribution
from extractor.pruning.bisection import smallest_count
from extractor.pruning.criteria import CircuitCriteria
from extractor.pruning.elements import Edges
from extractor.pruning.problem import PruningProblem
from extractor.spec.thresholds import FULL_MODEL_FAILS

START_SHARE = 0.5  # of a target: the loss that elimination should start from
MOST_TIMES_SHORTEST = 3  # the prefix that elimination starts from has at most this many times the elements of the shortest one
SLACK = 0.05  # by which a prefix may be longer than the shortest: elimination removes the rest
MOST_RANKED_EDGES = 1 << 21  # of a model whose edges are ranked, and
MOST_ENTRIES = 1 << 26  # of its matrices: the masks of all edges take four bytes an entry, their gradients as many
FULL_MODEL_MARGIN = 1e-3  # nats above the full model's loss: the fallback where no prefix reaches the target


@dataclass(frozen=True)
class Prefixes:
    """The circuits of a ranking's first k of `count` elements; mask(k) is without dead nodes: these take part in AbsTopK."""

    mask: Callable[[int], CircuitMask]
    count: int
    criteria: CircuitCriteria

    def sufficient(self, loss: float, most: int | None = None, least: int = 1) -> int:
        """The fewest elements whose circuit has this loss alone, nearly; 0 where there is none."""
        if loss >= FULL_MODEL_FAILS:
            return 0
        return smallest_count(lambda k: self.criteria.is_sufficient(self.mask(k), loss), most or self.count, least, SLACK)

    def necessary(self, extra: float = 0.0, most: int | None = None, least: int = 1) -> int:
        """The fewest elements without whose circuit the model fails, nearly; 0 where there is none."""
        return smallest_count(lambda k: self.criteria.is_roughly_necessary(self.mask(k), extra), most or self.count, least, SLACK)

    def shortest(self, loss: float) -> int:
        """Elements of the shortest prefix with this loss, that is necessary too where one is; 0 where none has the loss."""
        k = self.sufficient(loss)
        return k and max(k, self.necessary(least=k))

    def with_loss_to_spend(self, shortest: int, target: float, least_target: float, is_capped: bool = True) -> int:
        """Elements of a longer prefix, with half the loss of these targets: elimination spends the rest.

        is_capped   whether at most `MOST_TIMES_SHORTEST` times the shortest, also for half of the target
        """
        most = min(MOST_TIMES_SHORTEST * shortest, self.count)
        k = max(shortest, self.sufficient(START_SHARE * target, most if is_capped else self.count, shortest))
        k = max(k, self.sufficient(START_SHARE * least_target, most, k)) if k < most else k
        return max(k, self.necessary(START_SHARE, most, k)) if k < most else k


def node_start(problem: PruningProblem, scores: Tensor, criteria: CircuitCriteria, targets: Sequence[float]) -> CircuitMask:
    """The start by a ranking of nodes (N,); the full model where no prefix is sufficient."""
    problem.phase("cut")
    place = scores.argsort(descending=True, stable=True).argsort()
    prefixes = Prefixes(lambda k: CircuitMask(problem.model, place < k).without_dead(), len(problem.index), criteria)
    losses = (problem.select_target(problem.target), criteria.full_loss + FULL_MODEL_MARGIN)
    shortest = next(filter(None, map(prefixes.shortest, losses)), 0)
    if not shortest:
        return problem.full_mask()
    longer = prefixes.mask(prefixes.with_loss_to_spend(shortest, problem.target, targets[0]))
    return longer if longer.edge_count() <= problem.policy.most_edges else prefixes.mask(shortest)


def edge_start(problem: PruningProblem, criteria: CircuitCriteria, targets: Sequence[float]) -> CircuitMask | None:
    """The start by a ranking of all edges of the model; None where there are none or too many, or no prefix is sufficient.

    The shortest sufficient prefix can have few edges, and then hold on no other pairs: half of the target's loss is sought in any length.
    """
    every, loss, found = problem.full_mask().without_dead(), problem.select_target(problem.target), []
    entries = sum(mask.numel() for mask in every.present_edges().values())
    if not 0 < every.edge_count() <= MOST_RANKED_EDGES or entries > MOST_ENTRIES:
        return None
    for prefixes in _edge_prefixes(problem.at("first edges"), every, criteria):
        if k := prefixes.sufficient(loss):
            found.append((prefixes.mask(k).edge_count(), k, prefixes))
    if not found:
        return None
    _, k, best = min(found, key=lambda one: one[0])
    shortest = max(k, best.necessary(least=k))
    longer = best.mask(best.with_loss_to_spend(shortest, problem.target, targets[0], is_capped=False))
    return longer if longer.edge_count() <= problem.policy.few else best.mask(shortest)


def first_edges(problem: PruningProblem, start: CircuitMask, criteria: CircuitCriteria) -> CircuitMask:
    """The fewest first edges of a start, by the size of their scores, that are sufficient and necessary; the start where there are none."""
    by_size = _edge_prefixes(problem.at("first edges"), start, criteria)[-1]
    k = by_size.sufficient(max(START_SHARE * problem.target, criteria.prefixes.loss(start)))
    if k and criteria.is_roughly_necessary(start):
        k = max(k, by_size.necessary(least=k))
    return by_size.mask(k) if k else start


def _edge_prefixes(problem: PruningProblem, graph: CircuitMask, criteria: CircuitCriteria) -> list[Prefixes]:
    """Prefixes of a circuit's edges in both orders, signed first."""
    elements = Edges(graph)
    scores = attribution.scores(problem, elements)

    def prefixes(scores: Tensor) -> Prefixes:
        place = scores.argsort(descending=True, stable=True).argsort()

        def mask(k: int) -> CircuitMask:
            problem.tick(0, 1)  # a request to stop is heard between two measurements
            return elements.graph(place < k).without_dead()

        return Prefixes(mask, len(elements), criteria)

    return [prefixes(scores), prefixes(scores.abs())]
