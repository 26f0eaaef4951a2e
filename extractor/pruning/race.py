"""Which starts are eliminated (ours): rankings in order of their cost, the first that leaves few edges; then whether another pays.

`RACERS` has the cheapest first. Measured in one model from scratch and one bridged to python-tiny (tests/benchmarks/RESULTS.md): where the
first start ends at few edges, the others end within a few edges of it and take several times as long; where it leaves or ends at many,
learned masks find a circuit of a half to a fifth of the edges.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from extractor.circuits.graph import CircuitMask
from extractor.pruning import algorithms
from extractor.pruning.criteria import PrunedCircuit
from extractor.pruning.eliminate import EliminationPath
from extractor.pruning.problem import PruningProblem

RACERS = ("edges", "attribution", "masks")
FALLBACK = "attribution"  # where the edges of the model are too many to be ranked, or no prefix of them is sufficient


class Race:
    """The starts of one search.

    sizes   {ranking: edges of the smallest candidate of its elimination that holds for the problem's target; None: none does}
    best    the smallest of these circuits
    """

    def __init__(self, problem: PruningProblem):
        self.problem, self.began = problem, time.monotonic()
        self.sizes: dict[str, int | None] = {}
        self.best: PrunedCircuit | None = None
        self._waiting, self._paths = _rankings(problem), list[tuple[EliminationPath, list[float]]]()

    def next_start(self, start: Callable[[str], CircuitMask | None]) -> tuple[str, CircuitMask] | None:
        """The start to eliminate next, and its ranking: the first with few edges, else the smallest of all; None: the race is over.

        start   makes the start of a ranking; None where it has none
        """
        found: dict[str, CircuitMask] = {}
        while self._waiting and self._pays() and not any(one.edge_count() <= self.problem.policy.few for one in found.values()):
            if found and self._is_late():
                break
            name = self._waiting.pop(0)
            if (one := start(name)) is not None:
                found[name] = one
        if not found and not self.sizes and (one := start(FALLBACK)) is not None:
            found[FALLBACK] = one
        return min(found.items(), key=lambda one: one[1].edge_count(), default=None)

    def ended(self, name: str, path: EliminationPath, losses: list[float], found: PrunedCircuit) -> None:
        """losses: of the candidates, nats, select split;  found: the one that is chosen for the problem's target."""
        self.sizes[name] = found.edges if found.met else None
        if found.met and (self.best is None or found.edges < self.best.edges):
            self.best = found
        self._paths.append((path, losses))

    def joined(self) -> tuple[EliminationPath, list[float]]:
        """The candidates of all starts, most edges first, and their losses."""
        paths = [path for path, _ in self._paths]
        return EliminationPath.joined(paths), EliminationPath.order(paths, [losses for _, losses in self._paths])

    def _pays(self) -> bool:
        """Whether another ranking is worth its time: nothing has been eliminated yet, or a race has found only a large circuit so far."""
        if not self.sizes:
            return True
        return (self.best is None or self.best.edges > self.problem.policy.large) and not self._is_late()

    def _is_late(self) -> bool:
        minutes = self.problem.spec.minutes
        return minutes is not None and time.monotonic() - self.began > 60 * minutes


def _rankings(problem: PruningProblem) -> list[str]:
    """The rankings that the spec asks for, in turn. Raises SpecError."""
    name = problem.spec.algorithm
    algorithms.check(name, problem.spec.granularity)
    if name == algorithms.RACE:
        return [one for one in RACERS if one != algorithms.EDGES or problem.spec.granularity == "edge"]
    return [*problem.policy.first_rankings, name] if name == "masks" else [name]
