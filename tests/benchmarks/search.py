"""The search of the presets, in which rankings race, beside learned masks and beside edge attribution alone: edges and CPU seconds.

A model from scratch (preset tiny, python-tiny's tokenizer) and the tasks that it does; sufficient and necessary circuits by the paper's
standard, 0.15 nats. Edges are those of the smallest circuit that a method passed whose loss on held-out pairs is at most the target. About
half an hour on two cores. EXTRACT_BENCHMARK_FOLDER keeps the model.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch

from extractor.jobs.request import train_job
from extractor.jobs.run import run_job
from extractor.progress import Progress
from extractor.pruning.algorithms import attribution
from extractor.pruning.bisection import smallest_count
from extractor.pruning.elements import Edges
from extractor.pruning.problem import PruningProblem
from extractor.pruning.prune import find_circuits
from extractor.spec.presets import prune_spec
from tasks import task_names
from tests.benchmarks.measure import Row
from tests.benchmarks.pruning import ABLE, batches, full_loss, problem_of

TARGET = 0.15


def rows(threads: int) -> Iterator[Row]:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(os.environ.get("EXTRACT_BENCHMARK_FOLDER", temporary)) / "sparse"
        run_job(train_job(tokenizer="python-tiny"), folder, Progress(), threads)
        found = [of_task(folder / "model", task) for task in task_names() if full_loss(folder / "model", task) <= ABLE]
    found = [one for one in found if all(edges for edges, _ in one.values())]
    yield Row("tasks that the model does and that need a circuit", len(found), ">= 5.0")
    ratios = {
        other: [geometric_mean([one["race"][i] / one[other][i] for one in found]) for i in (0, 1)] for other in ("masks", "edges alone")
    }
    yield Row("race over masks: edges", ratios["masks"][0], "<= 1.0")
    yield Row("race over masks: CPU seconds", ratios["masks"][1], "<= 0.2")
    yield Row("race over edge attribution alone: edges", ratios["edges alone"][0], "<= 0.8")


def of_task(model: Path, task: str) -> dict[str, tuple[float, float]]:
    """{method: (edges, CPU seconds)}."""
    spec, found = prune_spec("tiny"), {}
    kept: dict[str, Any] = {"necessity": spec.necessity, "targets": spec.targets, "confident": True}
    batches(model, task)
    for method in ("race", "masks", "edges alone"):
        problem = problem_of(model, task, None, **kept, **({"algorithm": method} if method != "edges alone" else {}))
        began = time.process_time()
        passed = alone(problem, model, task) if method == "edges alone" else searched(problem, model, task)
        found[method] = (float(passed), time.process_time() - began)
        print(f"{task:28}{method:14}{passed:5} edges {found[method][1]:7.1f} s", file=sys.stderr, flush=True)
    return found


def searched(problem: PruningProblem, model: Path, task: str) -> int:
    path = find_circuits(problem).path
    losses = problem.scorer(batches(model, task)[2]).losses(path).tolist()
    return min((edges for edges, loss in zip(path.edges, losses, strict=True) if loss <= TARGET), default=path.edges[0])


def alone(problem: PruningProblem, model: Path, task: str) -> int:
    """Edges of the shortest prefix of the ranking of edges, in the better of both orders."""
    elements, scorer = Edges(problem.full_mask().without_dead()), problem.scorer(batches(model, task)[2])
    scores = attribution.scores(problem, elements)

    def shortest(scores: torch.Tensor) -> int:
        place = scores.argsort(descending=True, stable=True).argsort()
        circuit = lambda k: elements.graph(place < k).without_dead()  # noqa: E731
        return circuit(smallest_count(lambda k: scorer.loss(circuit(k)) <= TARGET, len(elements))).edge_count()

    return min(shortest(scores), shortest(scores.abs()))
