"""Circuit sizes and times: edges beside nodes, learned masks beside attribution, a sparse model beside a dense one of equal loss.

Two models are trained first with the tokenizer of python-tiny: preset tiny from scratch, and the smallest dense width that reaches its
held-out loss. Every task that both do is pruned in both (sufficiency only, as in the paper), and sizes are compared at equal held-out loss:
of all circuits a method passed, the one with fewest edges whose held-out loss is at most the target. A ranking alone, without elimination,
passes its prefixes. Ratios of sizes are geometric means over the tasks where neither is nothing at all.

About two hours on two cores. EXTRACT_BENCHMARK_FOLDER keeps models and finished tasks; an interrupted run goes on there.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from extractor import files
from extractor.circuits.compiled import compile_circuit
from extractor.circuits.graph import CircuitMask
from extractor.circuits.masks import MaskedModel, Masks
from extractor.circuits.mean_activations import measure_means
from extractor.circuits.network import FastMaskedModel
from extractor.circuits.reference import ReferenceMaskedModel
from extractor.data.build_corpus import build_corpus
from extractor.data.prompts import TaskBatch, get_task, task_batch, task_loss, tokenize_task
from extractor.jobs.request import train_job
from extractor.jobs.run import run_job
from extractor.models.load import load_model
from extractor.models.reference import inspect_folder
from extractor.models.tokenizer import load_tokenizer
from extractor.progress import Progress
from extractor.pruning import algorithms
from extractor.pruning.algorithms import masks
from extractor.pruning.bisection import smallest
from extractor.pruning.problem import PruningProblem
from extractor.pruning.prune import find_circuits
from extractor.spec.presets import prune_spec
from extractor.spec.schema import CorpusSpec
from extractor.training.checkpoints import Checkpoints, MetricsLog
from extractor.training.loop import LoopEnvironment
from tasks import task_names
from tests.benchmarks.measure import Row, in_fresh_process, times_faster

TARGETS = (0.05, 0.1, 0.15, 0.3)
ABLE = 0.1  # nats: tasks that a whole model does worse are left out
TIMED = "quote_close"
PAIRS = (4096, 512, 512)
METHODS: dict[str, dict[str, str]] = {
    "sparse edge": {"granularity": "edge"},
    "sparse node": {"granularity": "node"},
    "sparse attribution": {"granularity": "node", "algorithm": "attribution"},
    "sparse masks alone": {"algorithm": "masks"},
    "sparse attribution alone": {"algorithm": "attribution"},
    "dense edge": {"granularity": "edge"},
    "dense node": {"granularity": "node"},
}


def rows(threads: int) -> Iterator[Row]:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(os.environ.get("EXTRACT_BENCHMARK_FOLDER", temporary))
        sparse, dense = models(folder, threads)
        able = [task for task in task_names() if all(full_loss(model, task) <= ABLE for model in (sparse, dense))]
        found = {task: compared(folder, sparse, dense, task) for task in able}
        yield Row("tasks that both models do", len(able), ">= 10.0")
        yield from size_rows(found)
        yield from time_rows(folder, sparse)
        yield Row("memory of eight mask sets, over one", population_memory(sparse), "<= 8.0")


def models(folder: Path, threads: int) -> tuple[Path, Path]:
    """A sparse model from scratch and a dense one of equal held-out loss, trained where they are not in the folder yet."""
    sparse, dense = folder / "sparse", folder / "dense"
    run_job(train_job(tokenizer="python-tiny"), sparse, Progress(), threads)
    loss = files.read_json(sparse / "result.json")["held_out_loss"]
    run_job(train_job(tokenizer="python-tiny", dense=True, match_loss=round(loss, 3)), dense, Progress(), threads)
    return sparse / "model", dense / "model"


@cache
def opened(folder: Path) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """Model, tokenizer, means."""
    tokenizer = load_tokenizer(folder)
    model: Any = load_model(inspect_folder(folder))
    model = model.eval().requires_grad_(False)
    return model, tokenizer, measure_means(model, build_corpus(CorpusSpec(), tokenizer), 32_768, 0)


@cache
def batches(folder: Path, task: str, shifted: bool = False) -> tuple[TaskBatch, ...]:
    """One batch for each of train, select and held_out, of the task's plain pairs or of its shifted ones.

    A batch has the number of pairs in PAIRS; a split with fewer shifted pairs gives all that it has.
    """
    model, tokenizer, _ = opened(folder)
    expression = tokenize_task(get_task(task), tokenizer)
    splits, longest = zip(("train", "select", "held_out"), PAIRS, strict=True), model.config.n_ctx
    return tuple(task_batch(expression, tokenizer, split, pairs, 0, longest, shifted=shifted, fewer=shifted) for split, pairs in splits)


def full_loss(folder: Path, task: str) -> float:
    """Held-out task loss of the full model, nats, not calibrated."""
    problem = problem_of(folder, task, None)
    held_out = batches(folder, task)[2]
    diff = problem.scorer(held_out).logit_diffs([problem.full_mask()])[0]
    return task_loss(diff, held_out.sign).item()


def problem_of(folder: Path, task: str, work: Path | None, kind: type[PruningProblem] = PruningProblem, **changes: Any) -> PruningProblem:
    model, _, means = opened(folder)
    train, select, _ = batches(folder, task)
    spec = prune_spec("tiny").model_copy(update={"standard": "paper", "necessity": 0.0, "targets": TARGETS, **changes})
    place = Path(tempfile.mkdtemp())

    def env(stage: str) -> LoopEnvironment:
        return LoopEnvironment(Checkpoints(place, stage), MetricsLog(None), Progress())

    return kind(model, means, train, select, spec, 0.15, 0, env, work=work)


# sizes


def compared(folder: Path, sparse: Path, dense: Path, task: str) -> dict[str, dict[str, int | None]]:
    """{method: {target: edges}} of one task."""
    found = {}
    for method, changes in METHODS.items():
        model = sparse if method.startswith("sparse") else dense
        found[method] = measured(folder, model, task, method, **changes)
    return found


def measured(folder: Path, model: Path, task: str, method: str, **changes: Any) -> dict[str, int | None]:
    """{target: edges} of one task by one method, from the folder where it has been measured."""
    kept = folder / "sizes" / f"{task} {method}.json"
    if not kept.is_file():
        began = time.perf_counter()
        searched = folder / "searches" / f"{task} {model.parent.name}" if changes.get("algorithm", "masks") == "masks" else None
        problem = problem_of(model, task, searched, **changes)
        found = (prefixes if method.endswith("alone") else sizes)(problem, model, task)
        kept.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(kept, found)
        print(f"{task:28}{method:20}{found}  {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return files.read_json(kept)


def sizes(problem: PruningProblem, folder: Path, task: str) -> dict[str, int | None]:
    """Per target the edges of the smallest circuit passed whose held-out loss is at most the target."""
    path = find_circuits(problem).path
    scorer = problem.scorer(batches(folder, task)[2])
    losses = scorer.losses(path).tolist()
    reached = list(zip(path.edges, losses, strict=True))
    return {str(target): min((count for count, loss in reached if loss <= target), default=None) for target in TARGETS}


def prefixes(problem: PruningProblem, folder: Path, task: str) -> dict[str, int | None]:
    """Per target the edges of the shortest prefix of the ranking whose held-out loss is at most the target."""
    place = algorithms.rank(problem).argsort(descending=True, stable=True).argsort()
    scorer = problem.scorer(batches(folder, task)[2])
    found: dict[str, int | None] = {}

    def live(k: torch.Tensor) -> CircuitMask:
        return CircuitMask(problem.model, place < k).without_dead()

    for target in TARGETS:
        k = smallest(lambda k, target=target: scorer.losses([live(k)]) <= target, torch.tensor([len(place)]))
        found[str(target)] = live(k).edge_count() if k else None
    return found


def size_rows(found: dict[str, dict[str, Any]]) -> Iterator[Row]:
    for name, end in (("rankings alone", " alone"), ("after elimination", "")):
        for target in map(str, TARGETS):
            learned = "sparse masks alone" if end else "sparse node"
            yield Row(
                f"learned masks over attribution, {name}, edges at {target} nats",
                ratio(found, learned, f"sparse attribution{end}", target),
                "<= 0.5",
            )
    for model in ("sparse", "dense"):
        yield Row(f"granularity edge over node, {model}, at 0.15", ratio(found, f"{model} edge", f"{model} node", "0.15"), "<= 0.5")
    for kind in ("node", "edge"):
        yield Row(
            f"sparse over dense of equal loss, granularity {kind}, at 0.15",
            ratio(found, f"sparse {kind}", f"dense {kind}", "0.15"),
            "<= 0.0625",
        )


def ratio(found: dict[str, dict[str, Any]], one: str, other: str, target: str) -> float:
    """Geometric mean over tasks of edges of one method over the other's, where both reach the target."""
    pairs = [(task[one][target], task[other][target]) for task in found.values()]
    logs = [math.log(a / b) for a, b in pairs if a and b]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


# times


class PlainProblem(PruningProblem):
    """The problem as the plain loop sees it: the whole network, every position, one mask set at a time, nothing sliced away."""

    def network(self, kept: torch.Tensor) -> MaskedModel:
        return ReferenceMaskedModel(self.model, torch.ones_like(kept), self.ablation_values)


def time_rows(folder: Path, model: Path) -> Iterator[Row]:
    fast, fast_edges = searched(problem_of(model, TIMED, None))
    plain, plain_edges = searched(problem_of(model, TIMED, None, PlainProblem, population=1))
    yield Row("search of eight trials, plain loop over this one", plain / fast, ">= 10.0")
    yield Row("its circuit's edges at the target, this one over plain", fast_edges / plain_edges, "<= 1.1")
    problem = problem_of(model, TIMED, folder / "searches" / f"{TIMED} sparse")
    graph = find_circuits(problem).best.graph
    held_out = batches(model, TIMED)[2]
    circuit = compile_circuit(problem.model, problem.ablation_values, graph, torch.cat([held_out.first, held_out.second]).unique())
    alone = partial(circuit, held_out.ids, held_out.last, held_out.first, held_out.second)
    with torch.no_grad():
        faster = times_faster(alone, lambda: problem.model(input_ids=held_out.ids).logits)
    yield Row("compiled circuit, full model's time over it", faster, ">= 50.0")


def searched(problem: PruningProblem) -> tuple[float, float]:
    """(seconds of a search, edges of the smallest prefix of its best ranking at the target)."""
    began = time.perf_counter()
    search = masks.Search(problem)
    search.run()
    return time.perf_counter() - began, min(trial["edges"] for trial in search.trials)


def population_memory(model: Path) -> float:
    """Peak memory beyond the loaded model of a step with eight mask sets over a step with one."""
    eight, one = (in_fresh_process("tests.benchmarks.pruning", "step_peak", str(model), sets)["bytes"] for sets in (8, 1))
    return eight / one


def step_peak(model: str, sets: int) -> dict[str, float]:
    """Bytes that one step of mask learning at full size adds to what the process held before."""
    torch.set_num_threads(1)
    problem = problem_of(Path(model), TIMED, None)
    batch, everything = problem.draw(0, problem.spec.pairs), torch.ones(len(problem.index), dtype=torch.bool)
    network = FastMaskedModel(problem.model, problem.ablation_values, everything)
    prompts = network.prepare(batch)
    on = torch.ones(sets, len(problem.index), requires_grad=True)
    ctypes.CDLL(None).malloc_trim(0)  # what was freed so far would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before = _resident("VmRSS")
    network.logit_diffs(prompts, Masks(on)).sum().backward()
    return {"bytes": _resident("VmHWM") - before}


def _resident(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024.0 * int(line.split()[1])
