"""The circuit job: a model and tasks in, a validated circuit for each task out. And the circuits of a train job.

    corpus -> bridge (dense models; a sparse one is copied) -> (prune -> validate -> report) for each task

What a circuit job leaves: model/ (the sparse model, with bridges/ when the given model was dense), circuits/TASK/, and tasks.json where
there are several tasks. With one task an error ends the job; with several, a task that cannot be asked of the model is told with its
reason, and the others go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from extractor import files
from extractor.data.corpus import Corpus
from extractor.data.task_choice import check_expressible, open_tasks, refuse_if_none
from extractor.errors import TaskNotExpressible
from extractor.jobs.bridge_stage import make_model
from extractor.jobs.circuit_files import circuit_folder
from extractor.jobs.context import CircuitRun, GivenModel, LoadedModel
from extractor.jobs.cost.bridging import longest_prompt
from extractor.jobs.find_circuit import find_circuit, load_sparse, make_splits
from extractor.models.checks import CONFIG
from extractor.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from extractor.jobs.job import Job
    from tasks import Task

TASKS_JSON = "tasks.json"
NUMBERS = ("nodes", "edges", "loss", "full_loss", "accuracy", "without", "random")


def run_circuit_job(job: Job) -> None:
    """All stages, in order; see the module's docstring. Raises ExtractorError, or Stopped."""
    spec = job.spec
    tasks = open_tasks(spec.tasks, spec.task_files)
    source = GivenModel(job)
    check_askable(job, source, tasks)
    with job.stage("corpus"):
        corpus = source.corpus(job)
    with job.stage("bridge"):
        make_model(job, source, corpus)
    name = source.dense.name if source.dense else str(spec.model)
    subject = LoadedModel(load_sparse(job), source.tokenizer, corpus, name, spec, job.out / "model", source.dense)
    if len(tasks) == 1:
        (task,) = tasks.values()
        find_circuit(CircuitRun(job, subject, make_splits(job, subject, task)))
    else:
        found = make_circuits(job, subject, tasks)
        files.write_json(job.out / TASKS_JSON, [{"task": task} | facts for task, facts in found.items()])


def check_askable(job: Job, source: GivenModel, tasks: Mapping[str, Task]) -> None:
    """Refuse, before any work, a single task that the tokenizer cannot ask, or several of which it can ask none.

    Raises TaskNotExpressible, SpecError.
    """
    assert job.spec.bridge is not None  # JobSpec's validator saw to it
    longest = longest_prompt(files.read_json(source.folder.path / CONFIG), job.spec.bridge)
    reasons = {}
    for name, task in tasks.items():
        try:
            check_expressible(task, source.tokenizer, longest)
        except TaskNotExpressible as error:
            if len(tasks) == 1:
                raise
            reasons[name] = str(error)
    refuse_if_none(reasons, len(tasks))


def circuits_of_trained(job: Job, corpus: Corpus) -> dict[str, dict]:
    """A circuit of model/ of a train job for each of its tasks, as `make_circuits` tells of them. Raises Stopped."""
    model = load_sparse(job)
    name = f"sparse GPT of width {model.config.d_model}"
    subject = LoadedModel(model, load_tokenizer(job.out / "model"), corpus, name, job.spec, job.out / "model")
    return make_circuits(job, subject, open_tasks(job.spec.tasks, job.spec.task_files))


def make_circuits(job: Job, subject: LoadedModel, tasks: Mapping[str, Task]) -> dict[str, dict]:
    """A circuit for each task: {task: {nodes, edges, loss, full_loss, accuracy, without, random, meets_target, why}}.

    loss, accuracy    of the circuit alone; full_loss of the full model, without of the model without it, random of random circuits
    A circuit of too many edges (`CircuitRun.is_drawn`), as where the target is out of reach, has neither picture nor report. Circuits
    that an earlier attempt wrote are not made again. A task that cannot be asked has None for its numbers and the reason under 'why'.
    Raises Stopped.
    """
    return {name: circuit_of(job, subject, name, task) for name, task in tasks.items()}


def circuit_of(job: Job, subject: LoadedModel, name: str, task: Task) -> dict[str, Any]:
    """One circuit of several, made or found made, as it is told; `name` is the spec's for the task."""
    place = circuit_folder(job, task.name) / "result.json"
    if not place.is_file():
        try:
            question = make_splits(job, subject, task)
        except TaskNotExpressible as error:
            return dict.fromkeys(NUMBERS) | {"meets_target": False, "why": str(error)}
        find_circuit(CircuitRun(job, subject, question, suffix=f" {name}"))
    numbers = files.read_json(place)
    loss, full = numbers["loss"]["circuit"], numbers["loss"]["full"]
    why = None if numbers["meets_target"] else numbers["why"]
    facts = {"loss": loss, "full_loss": full, "accuracy": numbers["accuracy"]["circuit"]}
    facts |= {"without": numbers["loss"]["without_circuit"], "random": numbers["loss"]["random"]}
    return numbers["circuit"] | facts | {"meets_target": numbers["meets_target"], "why": why}
