"""From a sparse model and a task to a validated circuit.

    prune -> validate -> report

What it leaves: circuits/TASK/ of a job's result. Which models and tasks these are is the business of `extractor.jobs.circuit_job`.
"""

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
from extractor.progress import Stopped
from extractor.pruning.problem import PruningProblem
from extractor.pruning.prune import find_circuits
from extractor.training.compute import pick_device
from extractor.validation.validate import validate

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from extractor.jobs.job import Job
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM
    from tasks import Task

TRAIN_POOL = 4096  # pairs of the train split that batches are drawn from
MIN_ANSWER_SHARE = 0.1  # share of prompts that each answer needs, for a choice between them to be there


def find_circuit(inquiry: CircuitRun) -> None:
    """Prune, validate, report: leaves circuits/TASK/ of the job's result. Raises ExtractorError, or Stopped."""
    with inquiry.stage("prune"):
        problem = pruning_problem(inquiry)
        found = find_circuits(problem)
    with inquiry.stage("validate"):
        report = validate(found.best, problem, inquiry.question.held_out, inquiry.subject.corpus)
    with inquiry.stage("report"):
        write_files(inquiry, problem, found, report)


def load_sparse(job: Job) -> SparseGPTForCausalLM:
    """model/ of this job, frozen, on the device."""
    from extractor.models.load import load_model

    model: Any = load_model(inspect_folder(job.out / "model"))
    return model.to(pick_device()).eval().requires_grad_(False)


def make_splits(job: Job, subject: LoadedModel, task: Task) -> TaskSplits:
    """The question that a task puts to the job's model. Raises TaskNotExpressible."""
    longest = subject.model.config.n_ctx
    question = draw_splits(job, check_expressible(task, subject.tokenizer, longest), subject.tokenizer, longest)
    return with_model_labels(question, subject) if job.spec.labels == "model" else question


def draw_splits(job: Job, expression: TokenizedTask, tokenizer: Tokenizer, longest: int) -> TaskSplits:
    """The three splits as tensors on the device, of tasks that hold fewer pairs than asked for all they hold. Raises TaskNotExpressible."""
    prune, device = job.spec.prune, pick_device()
    assert prune is not None

    def batch(split: str, pairs: int) -> TaskBatch:
        held = expression.task.available(split)
        return prompts.task_batch(expression, tokenizer, split, min(pairs, held or pairs), job.spec.seed, longest).to(device)

    pool = TRAIN_POOL
    return TaskSplits(expression, batch("train", pool), batch("select", prune.select_pairs), batch("held_out", prune.held_out_pairs))


def with_model_labels(question: TaskSplits, subject: LoadedModel) -> TaskSplits:
    """The question with what the job's model answers, right or wrong, as its right answers: the dense model where there is one.

    Raises TaskNotExpressible where it gives one answer nearly always.
    """
    from extractor.bridges.faithfulness import dense_logit_diffs

    def answered(batch: TaskBatch) -> TaskBatch:
        pair = subject.pair
        diff = masked_logit_diff(subject.model, batch, {}, {}) if pair is None else dense_logit_diffs(pair, batch)
        found = batch.as_answered(diff)
        share = (found.sign > 0).double().mean().item()
        if not MIN_ANSWER_SHARE <= share <= 1 - MIN_ANSWER_SHARE:
            answers = question.expression.answers or ("the first answer", "the second answer")
            usual = answers[0 if share > 0.5 else 1]
            raise TaskNotExpressible(
                f"{subject.name} answers {usual!r} on {max(share, 1 - share):.0%} of the prompts of {question.expression.task.name!r}: "
                "there is no choice to explain; leave out --labels model, or choose another task"
            )
        return found

    return TaskSplits(question.expression, answered(question.train), answered(question.select), answered(question.held_out))


def pruning_problem(inquiry: CircuitRun) -> PruningProblem:
    """What the pruning engine is asked."""
    job, subject, question = inquiry.job, inquiry.subject, inquiry.question
    spec = job.spec
    assert spec.prune is not None

    def tick(done: int, of: int) -> None:
        if job.progress.should_stop():
            raise Stopped
        job.progress.step(done, of)

    return PruningProblem(
        subject.model,
        subject.means,
        question.train,
        question.select,
        spec.prune,
        spec.target_loss,
        spec.seed,
        lambda stage: job.loop(f"prune-{stage}{inquiry.suffix}"),
        tick,
        job.work / f"prune{inquiry.suffix}",
    )
