"""The field's numbers: faithfulness by size, CPR and CMD (MIB, arXiv 2504.13151, Sec. 3).

faithfulness of a set of elements   (m(set) - m(nothing)) / (m(all) - m(nothing)), m the mean logit difference, signed, of held-out prompts,
                                    not calibrated; all other elements are ablated
CPR   area below the curve of faithfulness against size, as a share of the elements: higher is better
CMD   area between that curve and 1: lower is better
Sets are the first elements of a ranking by attribution, in MIB's ten sizes. `linear`: by the share; `log`: by its logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from extractor.circuits.conditions import CONDITIONS
from extractor.circuits.graph import CircuitMask
from extractor.data.prompts import TaskBatch
from extractor.pruning.algorithms import attribution
from extractor.pruning.elements import ELEMENTS
from extractor.pruning.problem import PruningProblem

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
PAIRS = 64


def faithfulness_curve(problem: PruningProblem, held_out: TaskBatch) -> dict[str, Any]:
    """{node, edge: {sizes, faithfulness, cpr: {linear, log}, cmd: {linear, log}}} by the problem's standard; None where all is as nothing.

    By the robust standard ablated nodes have the values of a prompt with the other answer. Raises Stopped.
    """
    return {kind: _of(problem, kind, held_out.pick(torch.arange(min(PAIRS, held_out.pairs)))) for kind in ELEMENTS}


def _of(problem: PruningProblem, kind: str, held_out: TaskBatch) -> dict[str, Any]:
    full = problem.full_mask()
    elements = ELEMENTS[kind](full if kind == "node" else full.with_edges())
    place = attribution.scores(problem, elements).argsort(descending=True, stable=True).argsort()
    sets = [elements.graph(place < max(1, round(size * len(elements)))) for size in SIZES]
    values = _metric(problem, sets, held_out)
    nothing, everything = _metric(problem, [elements.graph(place < 0), full if kind == "node" else full.with_edges()], held_out)
    if everything == nothing:
        return {"sizes": list(SIZES), "faithfulness": None, "cpr": None, "cmd": None}
    faithfulness = ((values - nothing) / (everything - nothing)).tolist()
    return {"sizes": list(SIZES), "faithfulness": faithfulness} | areas(SIZES, faithfulness)


def _metric(problem: PruningProblem, graphs: Sequence[CircuitMask], batch: TaskBatch) -> torch.Tensor:
    """(graphs,) mean signed logit difference."""
    diffs = problem.scorer(batch).logit_diffs(graphs).unflatten(-1, (problem.standard.copies, -1))
    which = CONDITIONS.index("other") if problem.standard.name == "robust" else 0
    return (diffs[:, which] * batch.sign).mean(-1).double()


def areas(sizes: Sequence[float], faithfulness: Sequence[float]) -> dict[str, dict[str, float]]:
    """CPR and CMD by the trapezoid rule, each divided by the range of sizes."""
    axes = {"linear": list(sizes), "log": [math.log10(size) for size in sizes]}
    away = [abs(1 - value) for value in faithfulness]
    curves = {"cpr": list(faithfulness), "cmd": away}
    return {name: {axis: _area(places, values) for axis, places in axes.items()} for name, values in curves.items()}


def _area(places: Sequence[float], values: Sequence[float]) -> float:
    pieces = zip(places, places[1:], values, values[1:], strict=False)
    return sum((after - before) * (one + other) / 2 for before, after, one, other in pieces) / (places[-1] - places[0])
