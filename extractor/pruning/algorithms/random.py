"""A random order: what any ranking must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from extractor.pruning.elements import Nodes
from extractor.pruning.problem import PruningProblem


def rank(problem: PruningProblem) -> Tensor:
    """Scores (N,), uniform in [0, 1), by the problem's seed."""
    drawn = torch.rand(len(problem.index), generator=torch.Generator().manual_seed(problem.seed))
    return drawn.to(problem.model.device)[Nodes(problem.full_mask()).ties]
