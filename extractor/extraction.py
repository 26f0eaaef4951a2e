"""The circuit job: a model and a task in, a validated circuit out.

    corpus -> bridge (dense models; a sparse one is copied) -> prune -> validate -> report

What it leaves: model/ (the sparse model, with bridges/ when the given model was dense) and circuits/TASK/. The last three stages are
`make_circuit`, which a train job runs once for each of its tasks.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from extractor import artifacts, objective
from extractor.ablation import masked_margin, measure_means, measured_margin
from extractor.circuit import Circuit, Node, edges_between
from extractor.compute import pick_device
from extractor.data.corpus import Corpus
from extractor.data.tokenizer import load_tokenizer
from extractor.describe import describe_nodes
from extractor.errors import NotFound, TaskNotExpressible
from extractor.masks import learn_ranking
from extractor.models import inspect_folder
from extractor.objective import Expression, TaskBatch
from extractor.progress import Stopped
from extractor.prune import Calibration, Demand, Probe, PruneResult, smallest_circuit
from extractor.report import Example, write_report
from extractor.sites import node_id
from extractor.twin import FAITHFULNESS_JSON, Source, leave_twin, open_twin
from extractor.validation import ValidationReport, validate

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from extractor.bridges.coupled import Coupled
    from extractor.dense.load import DenseModel
    from extractor.pipeline import Job
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM
    from extractor.specs import JobSpec

TRAIN_POOL = 4096  # pairs of the train split that batches are drawn from
DESCRIBED_PAIRS = 512  # over which nodes' reads are measured
SHOWN_PAIRS = 4
RARER_ANSWER = 0.1  # share of prompts that each answer needs, for a choice between them to be there
MOST_DRAWN = 4000  # edges; a picture of more takes minutes and tens of megabytes, and shows nothing


@dataclass(frozen=True)
class Question:
    """The task under the model's tokenizer, cut into its three splits."""

    expression: Expression
    train: TaskBatch
    select: TaskBatch
    held_out: TaskBatch


@dataclass(frozen=True)
class Subject:
    """The sparse model of a job, on the device and frozen, with what it reads and the name that its circuits carry."""

    model: SparseGPTForCausalLM
    tokenizer: Tokenizer
    corpus: Corpus
    name: str
    spec: JobSpec
    folder: Path
    dense: DenseModel | None = None

    @cached_property
    def pair(self) -> Coupled | None:
        """The model with the dense one it was bridged to; None where there is none, or it is no longer to be had."""
        try:
            return open_twin(self.folder, self.dense, self.model)
        except NotFound:
            return None

    @cached_property
    def means(self) -> dict[str, torch.Tensor]:
        """The mean of every node over the corpus, by site: the same for all tasks."""
        assert self.spec.prune is not None
        return measure_means(self.model, self.corpus, self.spec.prune.mean_tokens, self.spec.seed)


@dataclass(frozen=True)
class Inquiry:
    """One circuit to be found. `suffix`, ' TASK', tells its stages from those of the job's other circuits; '' where there is one only."""

    job: Job
    subject: Subject
    question: Question
    suffix: str = ""

    @property
    def task(self) -> str:
        return self.question.expression.task.name

    def stage(self, name: str) -> AbstractContextManager[None]:
        return self.job.stage(name + self.suffix)

    def is_drawn(self, circuit: Circuit) -> bool:
        """Whether picture and report are worth making: among many circuits, one that is nearly the whole model is not."""
        return not self.suffix or len(circuit.edges) <= MOST_DRAWN

    def seconds(self) -> dict[str, float]:
        """How long the stages took that this circuit needed, by plain name."""
        mine = {name: took for name, took in self.job.seconds.items() if " " not in name or name.endswith(self.suffix or "\0")}
        return {name.removesuffix(self.suffix): took for name, took in mine.items()}


def run_circuit_job(job: Job) -> None:
    """All stages, in order; see the module's docstring. Raises ExtractorError, or Stopped."""
    spec = job.spec
    assert spec.task is not None  # JobSpec's validator saw to it
    source = Source(job)
    expression = objective.express(objective.get_task(spec.task), source.tokenizer)
    with job.stage("corpus"):
        corpus = source.corpus(job)
    with job.stage("bridge"):
        leave_twin(job, source, corpus)
    name = source.dense.name if source.dense else str(spec.model)
    subject = Subject(load_sparse(job), source.tokenizer, corpus, name, spec, job.out / "model", source.dense)
    question = ask(job, expression, source.tokenizer, subject.model.config.n_ctx)
    make_circuit(Inquiry(job, subject, as_answered(question, subject) if spec.labels == "model" else question))


def make_circuit(inquiry: Inquiry) -> None:
    """Prune, validate, report: leaves circuits/TASK/ of the job's result. Raises ExtractorError, or Stopped."""
    subject, question = inquiry.subject, inquiry.question
    with inquiry.stage("prune"):
        probe = Probe(subject.model, subject.means, question.select)
        result = find_circuit(inquiry, probe)
    with inquiry.stage("validate"):
        report = validate(result, probe, question.held_out, subject.spec.seed)
    with inquiry.stage("report"):
        leave_files(inquiry, name_circuit(inquiry, result, probe), result, report, probe)


def make_circuits(job: Job, corpus: Corpus) -> dict[str, dict]:
    """A circuit of model/ for each of the job's tasks: {task: {nodes, edges, loss, meets_target, why, ...}}.

    One with more than MOST_DRAWN edges, as where the target is out of reach, has neither picture nor report. Circuits that an earlier
    attempt left are not made again. A task that the tokenizer cannot express has None for its numbers and the reason under 'why'.
    Raises Stopped.
    """
    tokenizer = load_tokenizer(job.out / "model")
    model = load_sparse(job)
    subject = Subject(model, tokenizer, corpus, f"sparse GPT of width {model.config.d_model}", job.spec, job.out / "model")
    return {task: circuit_of(job, subject, task) for task in job.spec.tasks}


def circuit_of(job: Job, subject: Subject, task: str) -> dict:
    """One of a train job's circuits, made or found made, as its result.json tells of it."""
    known = objective.get_task(task)
    place = circuit_folder(job, known.name) / "result.json"
    if not place.is_file():
        try:
            expression = objective.express(known, subject.tokenizer)
            question = ask(job, expression, subject.tokenizer, subject.model.config.n_ctx)
        except TaskNotExpressible as error:
            return dict.fromkeys(("nodes", "edges", "loss", "full_loss", "accuracy")) | {"meets_target": False, "why": str(error)}
        make_circuit(Inquiry(job, subject, question, suffix=f" {task}"))
    numbers = artifacts.read_json(place)
    loss, full = numbers["loss"]["circuit"], numbers["loss"]["full"]
    why = None if numbers["meets_target"] else f"best loss {loss:.4f} nats, target {numbers['target_loss']}; the whole model has {full:.4f}"
    facts = {"loss": loss, "full_loss": full, "accuracy": numbers["accuracy"]["circuit"]}
    return numbers["circuit"] | facts | {"meets_target": numbers["meets_target"], "why": why}


def load_sparse(job: Job) -> SparseGPTForCausalLM:
    """model/ of this job, frozen, on the device."""
    from extractor.dense.load import load_model

    model: Any = load_model(inspect_folder(job.out / "model"))
    return model.to(pick_device()).eval().requires_grad_(False)


def ask(job: Job, expression: Expression, tokenizer: Tokenizer, longest: int) -> Question:
    """The three splits as tensors on the device. Raises TaskNotExpressible."""
    prune, device = job.spec.prune, pick_device()
    assert prune is not None

    def batch(split: str, pairs: int) -> TaskBatch:
        return objective.task_batch(expression, tokenizer, split, pairs, job.spec.seed, longest).to(device)

    pool = TRAIN_POOL
    return Question(expression, batch("train", pool), batch("select", prune.select_pairs), batch("held_out", prune.held_out_pairs))


def as_answered(question: Question, subject: Subject) -> Question:
    """The question with what the job's model answers, right or wrong, as its right answers: the dense model where there is one.

    Raises TaskNotExpressible where it gives one answer nearly always.
    """
    from extractor.bridges.faithfulness import dense_margins

    def answered(batch: TaskBatch) -> TaskBatch:
        pair = subject.pair
        margin = measured_margin(subject.model, batch, {}, {}) if pair is None else dense_margins(pair, batch)
        found = batch.as_answered(margin)
        share = (found.sign > 0).double().mean().item()
        if not RARER_ANSWER <= share <= 1 - RARER_ANSWER:
            usual = question.expression.answers[0 if share > 0.5 else 1]
            raise TaskNotExpressible(
                f"{subject.name} answers {usual!r} on {max(share, 1 - share):.0%} of the prompts of {question.expression.task.name!r}: "
                "there is no choice to explain; leave out --labels model, or choose another task"
            )
        return found

    return Question(question.expression, answered(question.train), answered(question.select), answered(question.held_out))


def find_circuit(inquiry: Inquiry, probe: Probe) -> PruneResult:
    """One ranking per k_coef, the smallest circuit of each; the one with fewest edges wins."""
    job, question = inquiry.job, inquiry.question
    spec, prune = job.spec, job.spec.prune
    assert prune is not None
    demand = Demand.of(probe, spec.target_loss, prune.margin, prune.necessity)

    def draw(number: int, pairs: int) -> TaskBatch:
        generator = torch.Generator().manual_seed(spec.seed * 1_000_003 + number)
        return question.train.pick(torch.randperm(question.train.pairs, generator=generator)[:pairs])

    def batch_of(step: int) -> TaskBatch:
        return draw(step, prune.pairs)

    def fresh(trial: int) -> TaskBatch:
        return draw(prune.steps + trial, prune.trial_pairs)

    def tick(done: int, of: int) -> None:
        if job.progress.should_stop():
            raise Stopped
        job.progress.step(done, of)

    found = []
    for number, k_coef in enumerate(prune.k_coefs):
        stage = f"prune{number}{inquiry.suffix}"
        ranking = learn_ranking(probe.model, probe.means, batch_of, prune, k_coef, spec.seed, job.loop(stage), stage)
        found.append(smallest_circuit(ranking, probe, demand, fresh, tick))
    return min(found, key=lambda r: (not r.met, r.edges, len(r.nodes)))


def name_circuit(inquiry: Inquiry, result: PruneResult, probe: Probe) -> Circuit:
    """The circuit as a value, nodes in forward order, edges by source and target."""
    question, tokenizer = inquiry.question, inquiry.subject.tokenizer
    expression = question.expression
    kept = probe.kept(result.nodes)
    nodes = [
        Node(node_id(site, channel), site, channel, probe.means[site][channel].item())
        for site, channels in kept.items()
        for channel in channels.tolist()
    ]
    return Circuit(
        model=inquiry.subject.name,
        task=inquiry.task,
        answers=expression.answers,
        answer_ids=expression.answer_ids,
        nodes=tuple(describe_nodes(nodes, probe.model, tokenizer, question.train.pick(torch.arange(DESCRIBED_PAIRS)))),
        edges=tuple(edges_between(probe.model, kept)),
        calibration=result.calibration,
    )


def leave_files(inquiry: Inquiry, circuit: Circuit, result: PruneResult, report: ValidationReport, probe: Probe) -> None:
    """circuits/TASK/: everything a reader, or another program, needs."""
    held_out = inquiry.question.held_out
    with artifacts.new_folder(circuit_folder(inquiry.job, circuit.task)) as folder:
        artifacts.write_json(folder / "circuit.json", circuit.to_json())
        artifacts.write_tensors(folder / "means.safetensors", probe.means)
        pairs = {"ids": held_out.ids, "last": held_out.last, "correct": held_out.correct, "wrong": held_out.wrong}
        artifacts.write_tensors(folder / "held_out.safetensors", pairs)
        numbers = result_json(inquiry, circuit, report, result, probe)
        artifacts.write_json(folder / "result.json", numbers)
        if inquiry.is_drawn(circuit):
            write_report(folder, circuit, numbers, examples(inquiry, circuit, result, probe))


def circuit_folder(job: Job, task: str) -> Path:
    """Where the circuit of a task lies in a job's result."""
    return job.out / "circuits" / task


def result_json(inquiry: Inquiry, circuit: Circuit, report: ValidationReport, result: PruneResult, probe: Probe) -> dict:
    """The content of result.json. Losses in nats per prompt on the held-out split, accuracies as fractions."""
    spec = inquiry.job.spec
    found = {
        "model": circuit.model,
        "task": circuit.task,
        "description": objective.get_task(circuit.task).description,
        "labels": spec.labels,
        "target_loss": spec.target_loss,
        "seed": spec.seed,
        "circuit": {"nodes": len(circuit.nodes), "edges": len(circuit.edges)},
        "loss": report.loss,
        "accuracy": report.accuracy,
        "meets_target": report.loss["circuit"] <= spec.target_loss,
        "held_out_pairs": report.held_out_pairs,
        "seconds": inquiry.seconds(),
    }
    return found | findings_in_dense(inquiry, circuit, probe, result)


def findings_in_dense(inquiry: Inquiry, circuit: Circuit, probe: Probe, result: PruneResult) -> dict:
    """What the circuit says about the dense model: 'bridge' and 'steering' of result.json, where the model is a dense one's twin."""
    faithful = inquiry.subject.folder / FAITHFULNESS_JSON
    found: dict = {"bridge": artifacts.read_json(faithful)} if faithful.is_file() else {}
    pair, question, seed = inquiry.subject.pair, inquiry.question, inquiry.job.spec.seed
    if pair is None:
        return found
    from extractor.bridges.faithfulness import circuit_through_bridges, prompt_agreement
    from extractor.bridges.steering import steering_report

    masks = probe.index.masks(result.nodes)
    through = circuit_through_bridges(pair, question.held_out, masks, probe.means, question.select)
    found.setdefault("bridge", {}).update(prompts=prompt_agreement(pair, question.held_out), circuit=through)
    nodes, decode = [node.id for node in circuit.nodes], inquiry.subject.tokenizer.decode
    steering = steering_report(pair, nodes, question.select, question.held_out, seed, decode)
    return found | ({"steering": steering} if steering else {})


@torch.no_grad()
def examples(inquiry: Inquiry, circuit: Circuit, result: PruneResult, probe: Probe) -> list[Example]:
    """A few held-out prompts with the right answer's probability under the full model, the circuit alone, the model without it."""
    question, tokenizer = inquiry.question, inquiry.subject.tokenizer
    batch = question.held_out.pick(torch.arange(min(SHOWN_PAIRS, question.held_out.pairs)))
    everything = torch.arange(len(probe.index), device=batch.ids.device)
    rest = probe.others(result.nodes)

    def right(nodes: torch.Tensor, calibration: Calibration) -> list[float]:
        margin = masked_margin(probe.model, batch, probe.index.masks(nodes), probe.means)
        return torch.sigmoid(batch.sign * (calibration.scale * margin + calibration.shift)).tolist()

    plain = Calibration(1.0, 0.0)
    columns = zip(right(everything, plain), right(result.nodes, result.calibration), right(rest, plain), strict=True)
    found = []
    for row, (full, alone, without) in enumerate(columns):
        prompt = tokenizer.decode(batch.ids[row, : int(batch.last[row]) + 1].tolist())
        answer, other = circuit.answers if batch.sign[row] > 0 else circuit.answers[::-1]
        found.append(Example(prompt, answer, other, full, alone, without))
    return found
