"""Rankings of nodes, one file each: `rank(problem)` returns scores (N,), higher is more needed; k of a channel has the score of its q.

Beside them a job can ask for 'edges', a ranking of all edges by attribution (`pruning.starts`), and 'race', several rankings in turn
(`pruning.race`). The steps after the ranking (see `pruning.prune`) are the same for all of them.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from extractor.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

    from extractor.pruning.problem import PruningProblem


EDGES, RACE = "edges", "race"


def node_rankings() -> list[str]:
    """The rankings of nodes: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def names() -> list[str]:
    """All that a job can ask for."""
    return sorted([EDGES, RACE, *node_rankings()])


def check(name: str, granularity: str) -> None:
    """Raise SpecError for an unknown algorithm, and for one that does not rank what the granularity keeps."""
    _known(name, names())
    if name == EDGES and granularity == "node":
        raise SpecError(f"algorithm {name!r} ranks edges and granularity 'node' keeps nodes; leave one of them out")


def _known(name: str, choices: list[str]) -> None:
    if name not in choices:
        raise SpecError(f"pruning algorithm {name[:80]!r} is unknown; choose {', '.join(choices)}")


def rank(problem: PruningProblem, name: str | None = None) -> Tensor:
    """Scores (N,) by a ranking of nodes, else by the one that the problem's spec names. Raises SpecError for an unknown one."""
    name = name or problem.spec.algorithm
    _known(name, node_rankings())
    return importlib.import_module(f"{__name__}.{name}").rank(problem)
