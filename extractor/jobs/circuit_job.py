"""The circuit job: from a model and tasks to a validated circuit for each task. Also finds the circuits of a train job.

    corpus -> bridge (a dense model; a sparse one is copied) -> (prune -> validate -> report) for each task

The result has model/ (the sparse model, with bridges/ where the given model is dense), circuits/TASK/, and with several tasks tasks.json
and index.html.
With one task an error ends the job. With several, tasks.json gives the reason why a task cannot be expressed, and the others continue.
Before pruning, the dense model's answers are compared with the sparse model's. A strict job finds no circuit of a task that is not the
dense model's; tasks.json then says why, also with one task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from extractor import files
from extractor.data.corpus import Corpus
from extractor.data.task_choice import check_expressible, open_tasks, refuse_if_none
from extractor.errors import TaskNotExpressible
from extractor.jobs.bridge_stage import make_model
from extractor.jobs.circuit_files import circuit_folder
from extractor.jobs.context import CircuitRun, GivenModel, LoadedModel
from extractor.jobs.cost.bridging import longest_prompt
from extractor.jobs.find_circuit import circuit_run, find_circuit, load_sparse
from extractor.models.checks import CONFIG
from extractor.models.sparse_folder import DENSE_JSON, FAITHFULNESS_JSON, check_sparse_folder
from extractor.models.tokenizer import load_tokenizer
from extractor.report.index import write_index
from extractor.spec.claims import is_met, loss_shares, sizes_by_standard
from extractor.spec.unmeasured import is_constant, no_gain

if TYPE_CHECKING:
    from extractor.jobs.job import Job
    from tasks import Task

TASKS_JSON = "tasks.json"
NUMBERS = ("nodes", "edges", "loss", "full_loss", "accuracy", "without", "random")
OF_DENSE = ("dense_loss", "dense_accuracy", "agreement")


def run_circuit_job(job: Job) -> None:
    """Run all stages in order; see the module's docstring. Raises ExtractorError, or Stopped when a stop was requested."""
    spec = job.spec
    tasks = open_tasks(spec.tasks, spec.task_files)
    given = GivenModel(job)
    check_tasks_fit(job, given, tasks)
    job.expect(files.read_json(given.folder.path / CONFIG))
    with job.stage("corpus"):
        corpus = given.corpus(job)
        check_corpus_fits(job, given, corpus)
    with job.stage("bridge"):
        make_model(job, given, corpus)
        note_faithfulness(job)
    name = given.dense.name if given.dense else str(spec.model)
    loaded = LoadedModel(load_sparse(job), given.tokenizer, corpus, name, spec, job.out / "model", given.dense)
    if len(tasks) == 1:
        ((name, task),) = tasks.items()
        run = circuit_run(job, loaded, task)
        if (refused := strictly_refused(run)) is None:
            find_circuit(run)
            return
        found = {name: refused}
    else:
        found = make_circuits(job, loaded, tasks)
    rows = [{"task": task} | facts for task, facts in found.items()]
    files.write_json(job.out / TASKS_JSON, rows)
    if len(rows) > 1:
        write_task_index(job, rows, str(spec.model))


def check_tasks_fit(job: Job, given: GivenModel, tasks: Mapping[str, Task]) -> None:
    """Check, before any work, that the tokenizer can express the job's task, or at least one of several.

    Raises TaskNotExpressible; BrokenArtifact where a sparse model's bridges are damaged; SpecError or UnsupportedModel where the model
    cannot be bridged or pruned as the spec says.
    """
    assert job.spec.bridge is not None  # JobSpec's validator checks it
    if given.folder.is_sparse:
        check_sparse_folder(given.folder.path)
    longest = longest_prompt(files.read_json(given.folder.path / CONFIG), job.spec.bridge, job.spec.prunes_dense)
    reasons = {}
    for name, task in tasks.items():
        try:
            check_expressible(task, given.tokenizer, longest, given.vocab_size)
        except TaskNotExpressible as error:
            if len(tasks) == 1:
                raise
            reasons[name] = str(error)
    refuse_if_none(reasons, len(tasks))


def check_corpus_fits(job: Job, given: GivenModel, corpus: Corpus) -> None:
    """Note the sources that are shorter than a context. Raises SpecError where all are, before a long bridging."""
    assert job.spec.bridge is not None  # JobSpec's validator checks it
    if not job.spec.prunes_dense:
        longest = longest_prompt(files.read_json(given.folder.path / CONFIG), job.spec.bridge) or 0
        context = job.spec.bridge.optim.context if given.dense is not None else None
        for line in corpus.check_context(max(longest, context or 0), context):
            job.progress.note(line)


def note_faithfulness(job: Job) -> None:
    """Note where the numbers of a bridged model say nothing: the text is constant, or the dense model is no better than bigrams."""
    path = job.out / "model" / FAITHFULNESS_JSON
    if not path.is_file():
        return
    found = files.read_json(path)
    if is_constant(found):
        job.progress.note(
            f"warning: the held-out text is nearly the same everywhere: a bigram model has {found['bigram_loss']:.3f} nats per token on it"
        )
    if found.keys() & {"recovered", "loss_recovered"} and loss_shares(found) is None:
        job.progress.note(f"warning: the share of the dense model's gain over bigrams cannot be given: {no_gain(found)}")


def circuits_of_trained(job: Job, corpus: Corpus) -> dict[str, dict]:
    """Find a circuit for each task of a train job, in the model it trained; returns what `make_circuits` returns. Raises Stopped."""
    model = load_sparse(job)
    name = f"sparse GPT of width {model.config.d_model}"
    loaded = LoadedModel(model, load_tokenizer(job.out / "model"), corpus, name, job.spec, job.out / "model")
    return make_circuits(job, loaded, open_tasks(job.spec.tasks, job.spec.task_files))


def make_circuits(job: Job, loaded: LoadedModel, tasks: Mapping[str, Task]) -> dict[str, dict]:
    """Find a circuit for each task; returns {task: {nodes, edges, loss, full_loss, accuracy, without, random, meets_target, ...}}.

    loss, accuracy   of the circuit, in nats and as a fraction
    standard         which it meets;  paper_edges: of the circuit of the paper's standard
    full_loss        of the full model;  without: of the model without the circuit;  random: of random circuits of the same size
    dense_loss, dense_accuracy, agreement   of the dense model, and the fraction of prompts on which the sparse one answers as it does;
                     None without a dense model
    holds_for_dense  whether the task is the dense model's; None without one
    why              the reason for a missed target, why the task is not the dense model's, or why it cannot be expressed; without a circuit
                     the numbers are None

    Circuits that an earlier attempt wrote are kept.
    Raises Stopped.
    """
    return {name: circuit_of(job, loaded, name, task) for name, task in tasks.items()}


def write_task_index(job: Job, rows: Sequence[dict[str, Any]], model: str) -> None:
    """Write index.html, the page of all tasks. rows: those of `make_circuits`, each with its task. Raises DiskFull."""
    tasks = open_tasks(job.spec.tasks, job.spec.task_files)
    rows = [row | {"task": tasks[row["task"]].name} for row in rows]  # folders have the names of tasks, not their aliases
    bridge, places = job.out / "model" / FAITHFULNESS_JSON, {row["task"]: circuit_folder(job, row["task"]) / "result.json" for row in rows}
    results = {task: files.read_json(path) for task, path in places.items() if path.is_file()}
    about = {"model": model, "target_loss": job.spec.target_loss, "seed": job.spec.seed}
    write_index(job.out, rows, about | {"bridge": files.read_json(bridge) if bridge.is_file() else None}, results)


def circuit_of(job: Job, loaded: LoadedModel, name: str, task: Task) -> dict[str, Any]:
    """The facts of one circuit of several, which is found first if its files do not exist. `name`: the task's name in the spec."""
    path = circuit_folder(job, task.name) / "result.json"
    if not path.is_file():
        try:
            run = circuit_run(job, loaded, task, label=name)
        except TaskNotExpressible as error:
            return no_circuit(str(error), None)
        if (refused := strictly_refused(run)) is not None:
            return refused
        find_circuit(run)
    numbers = files.read_json(path)
    loss, full = numbers["loss"]["circuit"], numbers["loss"]["full"]
    why = None if is_met(numbers) else numbers["why"]
    facts = {"loss": loss, "full_loss": full, "accuracy": numbers["accuracy"]["circuit"]}
    facts |= {"without": numbers["loss"]["without_circuit"], "random": numbers["loss"]["random"]}
    verdict = {"meets_target": numbers["meets_target"], "holds_for_dense": numbers.get("holds_for_dense"), "why": why}
    of_pair = of_dense((numbers.get("bridge") or {}).get("prompts"))
    return numbers["circuit"] | facts | sizes_by_standard(numbers) | of_pair | verdict


def strictly_refused(run: CircuitRun) -> dict[str, Any] | None:
    """The facts of a task for which a strict job finds no circuit, as it is not the dense model's; else None. Notes why."""
    if not run.job.spec.strict:
        return None
    why, is_missing = run.why_not_dense, run.behaviour is None and (run.loaded.folder / DENSE_JSON).is_file()
    if is_missing:
        why = f"whether the dense model does this task cannot be checked: {run.loaded.why_no_pair}"
    if why is None:
        return None
    run.job.progress.note(f"{run.task}: no circuit is sought: {why}")
    return no_circuit(f"{why}; without --strict the sparse model's circuit is sought", run.behaviour)


def no_circuit(why: str, behaviour: Mapping[str, Any] | None) -> dict[str, Any]:
    """The facts of a task without a circuit."""
    holds = None if behaviour is None else False
    return (
        dict.fromkeys(NUMBERS) | sizes_by_standard({}) | of_dense(behaviour) | {"meets_target": False, "holds_for_dense": holds, "why": why}
    )


def of_dense(behaviour: Mapping[str, Any] | None) -> dict[str, Any]:
    """The dense model's loss and accuracy on the task, and how often the sparse model agrees with it, from `bridges.behaviour`."""
    if behaviour is None:
        return dict.fromkeys(OF_DENSE)
    values = (behaviour["loss"]["dense"], behaviour["accuracy"]["dense"], behaviour["agreement"])
    return dict(zip(OF_DENSE, values, strict=True))
