"""Does the search find circuits where there is nothing to find? The same quick search on the task, and on what is none.

task             the task itself: what the others are compared with. It is also attribution with the same elimination
inverted         the right answers exchanged: the model answers all of these prompts wrongly
coin             the right answers of each pair exchanged by a coin: a rule that the model does not follow
random weights   the task in a model whose weights are permuted within each matrix, so that the places of its nonzeros stay

A quick search ranks by attribution, asks for sufficiency only, and starts elimination from no more edges than the robust standard: of a
task that needs most of the model, or where there is nothing to find, it would take hours.
Controls: LessWrong sHpZZnRDLg7ccX9aF; arXiv 2512.18792.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, TypeVar

import torch

from extractor.circuits.mean_activations import measure_means
from extractor.circuits.standard import Name
from extractor.data.corpus import Corpus
from extractor.data.prompts import TaskBatch
from extractor.pruning.problem import PruningProblem, unreported
from extractor.pruning.prune import find_circuits
from extractor.validation.ablations import standard_logit_diffs

Model = TypeVar("Model", bound=torch.nn.Module)
QUICK = {"algorithm": "attribution", "necessity": 0.0, "targets": (), "edge_k_coefs": (), "seeds": 1}
PAIRS = 64  # of the select split; elimination sees as many
COIN, INVERTED = "coin", "inverted"


def null_searches(
    problem: PruningProblem, standards: tuple[Name, ...], held_out: TaskBatch, corpus: Corpus | None
) -> dict[str, dict[str, dict[str, Any]]]:
    """{standard: {task, inverted, coin, random_weights: {nodes, edges, loss, met}}}; the task itself by the paper's standard only.

    met       whether a circuit was found that meets the target on held-out pairs, where its loss is measured; if the search found none,
              the numbers are those of the best circuit on the select split
    problem   by the paper's standard
    corpus    text for the means of the random weights; None: they are left out
    Raises Stopped.
    """
    spec = problem.spec.model_copy(update={**QUICK, "trial_pairs": PAIRS})
    select = problem.select.pick(torch.arange(min(PAIRS, problem.select.pairs)))
    quick = replace(problem, spec=spec, select=select, work=None, shifted=None, guarded=False, phase=unreported, quick=True)
    kinds = {"task": (quick, held_out)} | {name: _relabelled(quick, held_out, name) for name in (INVERTED, COIN)}
    if corpus is not None:
        model = with_random_weights(problem.model, problem.seed)
        means = measure_means(model, corpus, problem.spec.mean_tokens, problem.seed)
        kinds["random_weights"] = (replace(quick, model=model, means=means), held_out)
    return {
        name: {kind: _found(one.under(name), batch) for kind, (one, batch) in kinds.items() if kind != "task" or name == "paper"}
        for name in standards
    }


def _found(problem: PruningProblem, held_out: TaskBatch) -> dict[str, Any]:
    best = find_circuits(problem).best
    if not best.met:
        return {"nodes": best.graph.node_count(), "edges": best.edges, "loss": best.loss, "met": False}
    measured = problem.standard.measured(standard_logit_diffs(problem, best.graph, held_out), held_out.sign, best.calibration)
    return {"nodes": best.graph.node_count(), "edges": best.edges, "loss": measured.loss, "met": measured.loss <= problem.target}


def _relabelled(problem: PruningProblem, held_out: TaskBatch, kind: str) -> tuple[PruningProblem, TaskBatch]:
    batches = [exchanged(batch, kind, problem.seed + number) for number, batch in enumerate((problem.train, problem.select, held_out))]
    return replace(problem, train=batches[0], select=batches[1]), batches[2]


def exchanged(batch: TaskBatch, kind: str, seed: int) -> TaskBatch:
    """The prompts with the right answers of all pairs exchanged, or of those that a coin chooses."""
    coin = torch.rand(batch.pairs, generator=torch.Generator().manual_seed(seed)) < 0.5
    which = torch.ones_like(coin) if kind == INVERTED else coin
    flips = torch.where(which, -1.0, 1.0).repeat_interleave(2).to(batch.sign.device)
    return batch.as_answered(batch.sign * flips)


@torch.no_grad()
def with_random_weights(model: Model, seed: int) -> Model:
    """A copy whose nonzero weights are permuted within each matrix of two dimensions, those of the embeddings too."""
    changed, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for parameter in changed.parameters():
        if parameter.dim() == 2:
            places = parameter.flatten().nonzero().flatten()
            order = torch.randperm(len(places), generator=generator).to(places.device)
            parameter.view(-1)[places] = parameter.view(-1)[places[order]]
    return changed
