"""Rankings of nodes, one file each: `rank(problem)` returns scores (N,), higher is more needed; k of a channel has the score of its q.

The steps after the ranking (see `pruning.prune`) are the same for all of them.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from extractor.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

    from extractor.pruning.problem import PruningProblem


def names() -> list[str]:
    """The algorithms: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def check(name: str) -> None:
    """Raise SpecError for an unknown algorithm."""
    if name not in names():
        raise SpecError(f"pruning algorithm {name[:80]!r} is unknown; choose {', '.join(names())}")


def rank(problem: PruningProblem, name: str | None = None) -> Tensor:
    """Scores (N,) by an algorithm, else by the one that the problem's spec names. Raises SpecError for an unknown one."""
    name = name or problem.spec.algorithm
    check(name)
    return importlib.import_module(f"{__name__}.{name}").rank(problem)
