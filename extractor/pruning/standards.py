"""One task's circuits by each standard that is asked for: the paper's always, beside it the robust one's."""

from __future__ import annotations

from dataclasses import dataclass

from extractor.circuits.standard import Name
from extractor.pruning.problem import POLICY, PruningProblem
from extractor.pruning.prune import PruneResult, find_circuits


@dataclass(frozen=True)
class FoundCircuits:
    """What the searches found, by standard."""

    by_standard: dict[Name, PruneResult]

    @property
    def shown(self) -> PruneResult:
        """The robust circuit where a small one holds, else the paper's."""
        robust = self.by_standard.get("robust")
        is_small = robust is not None and robust.best.met and robust.best.edges <= POLICY["robust"].most_edges
        return robust if robust is not None and is_small else self.by_standard["paper"]


def find_by_standards(problem: PruningProblem, robust: bool) -> FoundCircuits:
    """The circuits of a problem of the paper's standard; with `robust` also by the robust one. Raises Stopped."""
    found: dict[Name, PruneResult] = {"paper": find_circuits(problem)}
    if robust:
        found["robust"] = find_circuits(problem.under("robust"))
    return FoundCircuits(found)
