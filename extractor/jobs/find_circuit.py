"""From a loaded model and a task to a validated circuit: prune -> validate -> report. It writes circuits/TASK/ of the job's result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from extractor.circuits.reference import masked_logit_diff
from extractor.data import prompts
from extractor.data.prompts import TaskBatch, TokenizedTask
from extractor.data.task_choice import check_expressible
from extractor.errors import TaskNotExpressible
from extractor.jobs.circuit_files import write_files
from extractor.jobs.context import CircuitRun, LoadedModel, TaskSplits
from extractor.models.reference import inspect_folder
from extractor.models.sparse_folder import DENSE_JSON
from extractor.progress import Stopped
from extractor.pruning.problem import PruningProblem
from extractor.pruning.standards import find_by_standards
from extractor.training.compute import pick_device
from extractor.validation.validate import validate

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from extractor.jobs.job import Job
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM
    from tasks import Task

SHIFTED_PAIRS = 256
TRAIN_POOL = 4096  # pairs of the train split, from which batches are drawn
SHIFTED_TRAIN_POOL = 1024  # the same of shifted pairs
FEWEST_SHIFTED = {"train": 128, "select": 32}  # with fewer pairs the search sees none of them
MIN_ANSWER_SHARE = 0.1  # least share of prompts on which the model must give each of the two answers, with labels="model"


def circuit_run(job: Job, loaded: LoadedModel, task: Task, label: str = "") -> CircuitRun:
    """The run for a task's circuit: its splits, and whose behaviour the task is. Raises TaskNotExpressible."""
    from extractor.bridges.behaviour import behaviour

    splits, pair = make_splits(job, loaded, task), loaded.pair
    if pair is None:
        return CircuitRun(job, loaded, splits, label)
    found = behaviour(pair, splits.held_out, splits.select, job.spec.seed)
    found["shifted"] = None if splits.shifted is None else behaviour(pair, splits.shifted, splits.select, job.spec.seed)
    return CircuitRun(job, loaded, splits, label, found)


def find_circuit(run: CircuitRun) -> None:
    """Prune, validate, report: write circuits/TASK/. Raises ExtractorError, or Stopped when a stop was requested."""
    with run.stage("prune"):
        problem = pruning_problem(run)
        found = find_by_standards(problem, asks_for_robust(run.job))
    with run.stage("validate"):
        report = validate(found.shown.best, problem, run.splits.held_out, run.loaded.corpus, run.splits.shifted)
    with run.stage("report"):
        write_files(run, problem, found, report)


def asks_for_robust(job: Job) -> bool:
    """Whether the job asks for circuits of the robust standard beside the paper's."""
    return job.spec.prune is not None and job.spec.prune.standard == "robust"


def load_sparse(job: Job) -> SparseGPTForCausalLM:
    """The sparse model in model/ of this job, frozen, on the device."""
    from extractor.models.load import load_model

    model: Any = load_model(inspect_folder(job.out / "model"))
    return model.to(pick_device()).eval().requires_grad_(False)


def make_splits(job: Job, loaded: LoadedModel, task: Task) -> TaskSplits:
    """The splits of a task, with the labels that the job asks for. Raises TaskNotExpressible."""
    longest = loaded.model.config.n_ctx
    tokenized = check_expressible(task, loaded.tokenizer, longest, loaded.model.config.vocab_size)
    splits = draw_splits(job, tokenized, loaded.tokenizer, longest)
    if job.spec.labels != "model":
        return splits
    if loaded.pair is None and (loaded.folder / DENSE_JSON).is_file():
        job.progress.note(f"warning: the right answers are those of the sparse model, not of the dense one: {loaded.why_no_pair}")
    return with_model_labels(splits, loaded)


def draw_splits(job: Job, tokenized: TokenizedTask, tokenizer: Tokenizer, longest: int) -> TaskSplits:
    """The three splits on the device; of a task with fewer pairs than requested, all its pairs. Raises TaskNotExpressible."""
    prune, device = job.spec.prune, pick_device()
    assert prune is not None

    def batch(split: str, pairs: int) -> TaskBatch:
        available = tokenized.task.available(split)
        count = min(pairs, available or pairs)
        return prompts.task_batch(tokenized, tokenizer, split, count, job.spec.seed, longest, job.progress.note).to(device)

    splits = batch("train", TRAIN_POOL), batch("select", prune.select_pairs), batch("held_out", prune.held_out_pairs)
    shifted = shifted_prompts(job, tokenized, tokenizer, longest)
    search = shifted_for_search(job, tokenized, tokenizer, longest) if shifted is not None and asks_for_robust(job) else None
    return TaskSplits(tokenized, *splits, shifted, search)


def shifted_prompts(job: Job, tokenized: TokenizedTask, tokenizer: Tokenizer, longest: int) -> TaskBatch | None:
    """Shifted held-out prompts on the device; None, with a note, where the task has none of at most `longest` tokens."""
    if not tokenized.task.shifted:
        return None
    assert job.spec.prune is not None
    pairs = min(SHIFTED_PAIRS, job.spec.prune.held_out_pairs)
    try:
        return prompts.task_batch(tokenized, tokenizer, "held_out", pairs, job.spec.seed, longest, shifted=True).to(pick_device())
    except TaskNotExpressible as error:
        job.progress.note(f"nothing is measured on shifted prompts: {error}")
        return None


def shifted_for_search(job: Job, tokenized: TokenizedTask, tokenizer: Tokenizer, longest: int) -> tuple[TaskBatch, TaskBatch] | None:
    """Shifted pairs of the train and the select split on the device; None where one of them has none of at most `longest` tokens."""
    assert job.spec.prune is not None
    counts = {"train": SHIFTED_TRAIN_POOL, "select": max(1, job.spec.prune.select_pairs // 2)}
    try:
        train, select = (
            prompts.task_batch(tokenized, tokenizer, split, pairs, job.spec.seed, longest, shifted=True, fewer=True).to(pick_device())
            for split, pairs in counts.items()
        )
    except TaskNotExpressible:
        return None
    if train.pairs < FEWEST_SHIFTED["train"] or select.pairs < FEWEST_SHIFTED["select"]:
        job.progress.note(f"{tokenized.task.name}: the search sees plain prompts only, since few shifted ones fit the model")
        return None
    return train, select


def with_model_labels(splits: TaskSplits, loaded: LoadedModel) -> TaskSplits:
    """The splits with the model's own answers as the right ones: those of the dense model where the loaded one is bridged to one.

    Raises TaskNotExpressible where the model gives the same answer on nearly all prompts.
    """
    from extractor.bridges.behaviour import dense_logit_diffs

    def relabelled(batch: TaskBatch) -> TaskBatch:
        pair = loaded.pair
        return batch.as_answered(masked_logit_diff(loaded.model, batch, {}, {}) if pair is None else dense_logit_diffs(pair, batch))

    def with_labels(batch: TaskBatch) -> TaskBatch:
        labelled = relabelled(batch)
        share = (labelled.sign > 0).double().mean().item()
        if not MIN_ANSWER_SHARE <= share <= 1 - MIN_ANSWER_SHARE:
            answers = splits.tokenized.answers or ("the first answer", "the second answer")
            usual = answers[0 if share > 0.5 else 1]
            raise TaskNotExpressible(
                f"{loaded.name} answers {usual!r} on {max(share, 1 - share):.0%} of the prompts of {splits.tokenized.task.name!r}: "
                "there is no choice between answers to explain; leave out --labels model, or choose another task"
            )
        return labelled

    return TaskSplits(
        splits.tokenized,
        with_labels(splits.train),
        with_labels(splits.select),
        with_labels(splits.held_out),
        None if splits.shifted is None else relabelled(splits.shifted),
        None if splits.shifted_search is None else (relabelled(splits.shifted_search[0]), relabelled(splits.shifted_search[1])),
    )


def pruning_problem(run: CircuitRun) -> PruningProblem:
    """The pruning problem of a circuit run, by the paper's standard."""
    job, loaded, splits = run.job, run.loaded, run.splits
    spec = job.spec
    assert spec.prune is not None

    def on_progress(done: int, of: int) -> None:
        if job.progress.should_stop():
            raise Stopped
        job.progress.step(done, of)

    return PruningProblem(
        loaded.model,
        loaded.means,
        splits.train,
        splits.select,
        spec.prune.model_copy(update={"standard": "paper"}),
        spec.target_loss,
        spec.seed,
        lambda stage: job.loop(f"prune-{stage}{run.suffix}"),
        on_progress,
        job.work / f"prune{run.suffix}",
        shifted_that_model_does(run),
        phase=job.progress.phase,
    )


def shifted_that_model_does(run: CircuitRun) -> tuple[TaskBatch, TaskBatch] | None:
    """The shifted pairs of the search; None, with a note, where the full model itself misses the target on them."""
    found = run.splits.shifted_search
    if found is None:
        return None
    select = found[1]
    loss = prompts.task_loss(masked_logit_diff(run.loaded.model, select, {}, {}), select.sign).item()
    if loss <= run.job.spec.target_loss:
        return found
    run.job.progress.note(f"{run.task}: the search sees plain prompts only, since the full model has {loss:.3f} nats on shifted ones")
    return None
