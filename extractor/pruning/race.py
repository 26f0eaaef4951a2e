"""Which starts are eliminated (ours): rankings in order of their cost, the first that leaves few edges; then whether another pays.

`RACERS` has the cheapest first. Measured in one model from scratch and one bridged to python-tiny (tests/benchmarks/RESULTS.md): where the
first start ends at few edges, the others end within a few edges of it and take several times as long; where it leaves or ends at many,
learned masks find a circuit of a half to a fifth of the edges.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from extractor.circuits.graph import CircuitMask
from extractor.pruning import algorithms
from extractor.pruning.eliminate import EliminationPath
from extractor.pruning.problem import PruningProblem

RACERS = ("edges", "attribution", "masks")


class Race:
    """The starts of one search. sizes: {ranking: edges of its smallest candidate with the target loss, None: it has none}."""

    def __init__(self, problem: PruningProblem):
        self.problem, self.began = problem, time.monotonic()
        self.sizes: dict[str, int | None] = {}
        self._waiting, self._paths = _rankings(problem), list[tuple[EliminationPath, list[float]]]()

    def next_start(self, start: Callable[[str], CircuitMask | None]) -> tuple[str, CircuitMask] | None:
        """The start to eliminate next, and its ranking: the first with few edges, else the smallest of all; None: the race is over.

        start   makes the start of a ranking; None where it has none
        """
        found: dict[str, CircuitMask] = {}
        while self._waiting and self._pays() and not any(one.edge_count() <= self.problem.policy.few for one in found.values()):
            name = self._waiting.pop(0)
            if (one := start(name)) is not None:
                found[name] = one
        return min(found.items(), key=lambda one: one[1].edge_count(), default=None)

    def ended(self, name: str, path: EliminationPath, losses: list[float]) -> None:
        """losses: of the candidates, nats, select split."""
        limit = self.problem.select_target(self.problem.target)
        self.sizes[name] = min((edges for edges, loss in zip(path.edges, losses, strict=True) if loss <= limit), default=None)
        self._paths.append((path, losses))

    def joined(self) -> tuple[EliminationPath, list[float]]:
        """The candidates of all starts, most edges first, and their losses."""
        paths = [path for path, _ in self._paths]
        return EliminationPath.joined(paths), EliminationPath.order(paths, [losses for _, losses in self._paths])

    def _pays(self) -> bool:
        """Whether another ranking is worth its time: nothing has been eliminated yet, or a race has found only a large circuit so far."""
        if not self.sizes:
            return True
        minutes, best = self.problem.spec.minutes, min((size for size in self.sizes.values() if size is not None), default=math.inf)
        is_late = minutes is not None and time.monotonic() - self.began > 60 * minutes
        return best > self.problem.policy.large and not is_late


def _rankings(problem: PruningProblem) -> list[str]:
    name = problem.spec.algorithm
    algorithms.check(name)
    if name == algorithms.RACE:
        return [one for one in RACERS if one != algorithms.EDGES or problem.spec.granularity == "edge"]
    if name == algorithms.EDGES:
        return [name, "attribution"]  # the second where the edges of the model are too many to be ranked
    return [*problem.policy.first_rankings, name] if name == "masks" else [name]
