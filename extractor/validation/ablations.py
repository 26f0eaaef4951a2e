"""A circuit under each ablation: ablated nodes have their mean, zero, or their value in another prompt (Sec. 3.1's robustness).

The reference implementation runs here in parts that fit in memory: only it can resample and rewrite values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from extractor.circuits.conditions import CONDITIONS, Conditions, ConditionValues
from extractor.circuits.graph import CircuitMask
from extractor.circuits.masks import Masks
from extractor.circuits.prompt_network import PromptMaskedModel
from extractor.circuits.reference import masked_logit_diff, resampled
from extractor.circuits.scorer import VALUES_AT_ONCE
from extractor.data.prompts import TaskBatch
from extractor.pruning.problem import PruningProblem

Kind = Literal["mean", "zero", "resample"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MANY_NODES = 1 << 16  # of models with more, parts are larger: every part multiplies all weights by their masks
LARGE_AT_ONCE = 1 << 28  # node values of such a part
Rewrite = Callable[[str, Tensor], Tensor]


def ablated_logit_diffs(problem: PruningProblem, graph: CircuitMask, kind: Kind, batch: TaskBatch) -> Tensor:
    """Logit differences (2P,) of the circuit under this kind of ablation."""
    other = replace(problem, spec=problem.spec.model_copy(update={"ablation": kind}))
    return reference_logit_diffs(other, graph, batch) if kind == "resample" else other.scorer(batch).logit_diffs([graph])[0]


def standard_logit_diffs(problem: PruningProblem, graph: CircuitMask, batch: TaskBatch) -> Tensor:
    """Logit differences (R,) of the circuit by the problem's standard, in parts that fit in memory."""
    if problem.standard.name == "robust":
        return condition_logit_diffs(problem, graph, batch).flatten()
    return problem.scorer(batch).logit_diffs([graph])[0]


@torch.no_grad()
def condition_logit_diffs(problem: PruningProblem, graph: CircuitMask, batch: TaskBatch) -> Tensor:
    """Logit differences (conditions, 2P) of the circuit under each of `CONDITIONS`, at the model's own scale."""
    conditions = Conditions(problem.model, problem.means, problem.seed)
    draws = conditions.draws(batch)
    found = torch.empty(len(CONDITIONS), len(batch.ids), device=batch.ids.device)
    for rows in parts(problem, batch):
        found[:, rows] = _of_rows(partial(conditions.of_rows, batch, rows, draws), graph, batch.rows(rows)).to(found.dtype)
    return found


def _of_rows(of_rows: Callable[[], tuple[TaskBatch, ConditionValues]], graph: CircuitMask, part: TaskBatch) -> Tensor:
    """Logit differences (conditions, rows) of a part of a batch, whose replacement values `of_rows` gives."""
    network = PromptMaskedModel(graph.model, lambda _: of_rows(), graph.nodes)
    edges = None if graph.edges is None else {link: mask[None].float() for link, mask in network.cut(graph.edges).items()}
    return network.logit_diffs(network.prepare(part, groups=1), Masks(edges=edges))[0].unflatten(0, (len(CONDITIONS), -1))


@torch.no_grad()
def reference_logit_diffs(
    problem: PruningProblem, graph: CircuitMask, batch: TaskBatch, rewrite: Callable[[TaskBatch], Rewrite] | None = None
) -> Tensor:
    """Logit differences (2P,) by the reference implementation.

    rewrite   the prompts of a part -> `rewrite` of `reference.masked_logit_diff`; None: values are unchanged
    """
    masks, rows = problem.index.split(graph.nodes.float()), parts(problem, batch)
    found = torch.empty(len(batch.ids), device=batch.ids.device)
    for some in rows:
        part = batch.rows(some)
        base = resampled(problem.model, part) if problem.spec.ablation == "resample" else problem.ablation_values
        found[some] = masked_logit_diff(problem.model, part, masks, base, graph.edges, None if rewrite is None else rewrite(part))
    return found


def parts(problem: PruningProblem, batch: TaskBatch) -> list[Tensor]:
    """Rows of a batch in parts that fit in memory, shortest prompts first; the members of a pair stay in one part.

    Within a part rows are shuffled: resampling takes values from the next row of equal length, and in the order of pairs that row always
    has the other answer.
    """
    generator = torch.Generator().manual_seed(problem.seed)
    pairs = batch.last[::2].argsort(stable=True)
    most = VALUES_AT_ONCE if len(problem.index) <= MANY_NODES else LARGE_AT_ONCE
    size = max(1, most // (2 * len(problem.index) * batch.ids.shape[1]))
    rows = [torch.stack([2 * some, 2 * some + 1], dim=1).flatten() for some in pairs.split(size)]
    return [some[torch.randperm(len(some), generator=generator).to(some.device)] for some in rows]
