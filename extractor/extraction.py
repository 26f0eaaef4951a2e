"""The circuit job: a model and a task in, a validated circuit out.

    corpus -> bridge (dense models; a sparse one is copied) -> prune -> validate -> report

What it leaves: model/ (the sparse model, with bridges/ when the given model was dense) and circuits/TASK/. The last three stages are
`make_circuit`, which a train job runs once for each of its tasks.
"""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from extractor import artifacts, objective
from extractor.ablation import masked_margin, measure_means
from extractor.circuit import Circuit, Node, edges_between
from extractor.data.corpus import Corpus, build_corpus
from extractor.data.tokenizer import copy_tokenizer, load_tokenizer
from extractor.describe import describe_nodes
from extractor.errors import BrokenArtifact, TaskNotExpressible, UnsupportedModel
from extractor.masks import learn_ranking
from extractor.models import ModelFolder, open_model
from extractor.objective import Expression, TaskBatch
from extractor.progress import Stopped
from extractor.prune import Calibration, Demand, Probe, PruneResult, smallest_circuit
from extractor.report import Example, write_report
from extractor.sites import node_id
from extractor.training import pick_device, place
from extractor.validation import ValidationReport, validate

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from extractor.pipeline import Job
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM
    from extractor.specs import JobSpec

TRAIN_POOL = 4096  # pairs of the train split that batches are drawn from
DESCRIBED_PAIRS = 512  # over which nodes' reads are measured
FAITHFULNESS_ROWS = 64
SHOWN_PAIRS = 4
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
    assert spec.model is not None  # JobSpec's validator saw to it
    assert spec.task is not None
    source = open_model(spec.model)
    tokenizer = load_tokenizer(source.path)
    expression = objective.express(objective.get_task(spec.task), tokenizer)
    with job.stage("corpus"):
        corpus = build_corpus(spec.corpus, tokenizer, progress=job.progress)
    with job.stage("bridge"):
        sparse_model(job, source, corpus)
    subject = Subject(load_sparse(job), tokenizer, corpus, spec.model, spec)
    make_circuit(Inquiry(job, subject, ask(job, expression, tokenizer, subject.model.config.n_ctx)))


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
    subject = Subject(model, tokenizer, corpus, f"sparse GPT of width {model.config.d_model}", job.spec)
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


def sparse_model(job: Job, source: ModelFolder, corpus: Corpus) -> None:
    """Make model/: copy a sparse model, bridge a dense one."""
    target = job.out / "model"
    if target.is_dir():
        return
    if source.is_sparse:
        with artifacts.new_folder(target) as folder:
            shutil.copytree(source.path, folder, dirs_exist_ok=True)
        return
    from extractor.bridges.train import faithfulness, train_bridges

    spec = job.spec
    assert spec.bridge is not None
    dense = load_dense(source)
    bridged = train_bridges(dense, spec.bridge, corpus, spec.seed, spec.model or "", job.loop("bridge"))
    ids = corpus.held_out_batch(spec.seed, FAITHFULNESS_ROWS, spec.bridge.optim.context).to(pick_device())
    with artifacts.new_folder(target) as folder:
        bridged.save(folder)
        copy_tokenizer(source.path, folder)
        artifacts.write_json(folder / "faithfulness.json", faithfulness(bridged.pair, ids))


def load_dense(source: ModelFolder):
    """The dense model in fp32. Raises UnsupportedModel when weights are missing or do not fit its config."""
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.path, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # transformers raises many kinds; each means that these files are not a usable model
        raise BrokenArtifact(f"model in {source.path} cannot be loaded: {str(error).splitlines()[0][:200]}") from None
    model, info = loaded
    if info["missing_keys"] or info["mismatched_keys"]:
        absent = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise UnsupportedModel(f"model in {source.path} is not whole: {len(absent)} tensors missing or misshapen, first {absent[0]}")
    return model


def load_sparse(job: Job) -> SparseGPTForCausalLM:
    """model/ of this job, frozen, on the device."""
    import extractor.sparse  # noqa: F401 - registers the architecture

    model = load_dense(ModelFolder(job.out / "model", "sparse_gpt"))
    place(model)
    return model.eval().requires_grad_(False)


def ask(job: Job, expression: Expression, tokenizer: Tokenizer, longest: int) -> Question:
    """The three splits as tensors on the device. Raises TaskNotExpressible."""
    prune, device = job.spec.prune, pick_device()
    assert prune is not None

    def batch(split: str, pairs: int) -> TaskBatch:
        return objective.task_batch(expression, tokenizer, split, pairs, job.spec.seed, longest).to(device)

    pool = TRAIN_POOL
    return Question(expression, batch("train", pool), batch("select", prune.select_pairs), batch("held_out", prune.held_out_pairs))


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
        numbers = result_json(inquiry, circuit, report)
        artifacts.write_json(folder / "result.json", numbers)
        if inquiry.is_drawn(circuit):
            write_report(folder, circuit, numbers, examples(inquiry, circuit, result, probe))


def circuit_folder(job: Job, task: str) -> Path:
    """Where the circuit of a task lies in a job's result."""
    return job.out / "circuits" / task


def result_json(inquiry: Inquiry, circuit: Circuit, report: ValidationReport) -> dict:
    """The content of result.json. Losses in nats per prompt on the held-out split, accuracies as fractions."""
    job, spec = inquiry.job, inquiry.job.spec
    found = {
        "model": circuit.model,
        "task": circuit.task,
        "description": objective.get_task(circuit.task).description,
        "target_loss": spec.target_loss,
        "seed": spec.seed,
        "circuit": {"nodes": len(circuit.nodes), "edges": len(circuit.edges)},
        "loss": report.loss,
        "accuracy": report.accuracy,
        "meets_target": report.loss["circuit"] <= spec.target_loss,
        "held_out_pairs": report.held_out_pairs,
        "seconds": inquiry.seconds(),
    }
    faithfulness = job.out / "model" / "faithfulness.json"
    if faithfulness.is_file():
        found["bridge"] = artifacts.read_json(faithfulness)
    return found


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
        answer, other = circuit.answers if row % 2 == 0 else circuit.answers[::-1]
        found.append(Example(prompt, answer, other, full, alone, without))
    return found
