"""The effect of each edge: by how much the loss rises when it alone is removed (Sec. 3.1: every edge should be needed).

Calibrating thousands of circuits on another split would double the cost. Here, and only here, both losses of a difference are calibrated on
the held-out pairs themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from extractor.circuits.graph import CircuitMask, links
from extractor.circuits.sites import node_id
from extractor.data.prompts import TaskBatch
from extractor.pruning.choose import without_each
from extractor.pruning.elements import Edges
from extractor.pruning.problem import PruningProblem

MOST_EDGES = 2000
MOST_VALUES = 1 << 32  # edges * prompts * tokens * nodes; beyond, fewer pairs are used
FEWEST_PAIRS = 64


def edge_effects(problem: PruningProblem, graph: CircuitMask, held_out: TaskBatch) -> dict[str, Any]:
    """The effects of the edges with the largest weights.

    edges     [[source, target, rise of the loss without it, nats], ...], the largest weights first
    of        number of edges of the circuit, measured or not
    raising   fraction of the measured edges whose removal raises the loss; None where none was measured
    pairs     held-out pairs used
    """
    elements = Edges(graph)
    names, weights = _listed(problem, elements)
    chosen = weights.abs().argsort(descending=True, stable=True)[:MOST_EDGES]
    batch = held_out.pick(torch.arange(_pairs(problem, graph, len(chosen), held_out)))
    scorer = problem.scorer(batch)
    rise = (without_each(scorer, elements, chosen, problem.tick) - scorer.loss(graph)).tolist() if len(chosen) else []
    return {
        "edges": [[*names[edge], value] for edge, value in zip(chosen.tolist(), rise, strict=True)],
        "of": len(elements),
        "raising": sum(value > 0 for value in rise) / len(rise) if rise else None,
        "pairs": batch.pairs,
    }


def _listed(problem: PruningProblem, elements: Edges) -> tuple[list[tuple[str, str]], Tensor]:
    """(source, target) and weight (E,) of every edge, in the order of the elements."""
    names: list[tuple[str, str]] = []
    found = [torch.zeros(0, device=problem.model.device)]
    for source, target, weight in links(problem.model):
        there = elements.present[source, target]
        names += [(node_id(source, column), node_id(target, row)) for row, column in there.nonzero().tolist()]
        found.append(weight[there])
    return names, torch.cat(found)


def _pairs(problem: PruningProblem, graph: CircuitMask, edges: int, held_out: TaskBatch) -> int:
    values = max(1, edges * _width(problem, graph) * 2 * held_out.ids.shape[1])
    return min(held_out.pairs, max(FEWEST_PAIRS, MOST_VALUES // values))


def _width(problem: PruningProblem, graph: CircuitMask) -> int:
    """Nodes that one pass computes."""
    return max(1, len(problem.index) if problem.spec.ablation == "resample" else graph.node_count())
