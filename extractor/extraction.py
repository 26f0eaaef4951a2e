"""The circuit job: a model and a task in, a validated circuit out.

    corpus -> bridge (dense models; a sparse one is copied) -> prune -> validate -> report

What it leaves: model/ (the sparse model, with bridges/ when the given model was dense) and circuits/TASK/.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from extractor import artifacts, objective
from extractor.ablation import masked_margin, measure_means
from extractor.circuit import Circuit, Node, edges_between
from extractor.corpus import Corpus, build_corpus
from extractor.describe import describe_nodes
from extractor.errors import BrokenArtifact, UnsupportedModel
from extractor.masks import learn_ranking
from extractor.models import ModelFolder, open_model
from extractor.objective import Expression, TaskBatch
from extractor.progress import Stopped
from extractor.prune import Calibration, Demand, Probe, PruneResult, smallest_circuit
from extractor.report import Example, write_report
from extractor.sites import node_id
from extractor.tokenizer import copy_tokenizer, load_tokenizer
from extractor.training import pick_device, place
from extractor.validation import ValidationReport, validate

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from extractor.pipeline import Job
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM

TRAIN_POOL = 4096  # pairs of the train split that batches are drawn from
DESCRIBED_PAIRS = 512  # over which nodes' reads are measured
FAITHFULNESS_ROWS = 64
SHOWN_PAIRS = 4


@dataclass(frozen=True)
class Question:
    """The task under the model's tokenizer, cut into its three splits."""

    expression: Expression
    train: TaskBatch
    select: TaskBatch
    held_out: TaskBatch


def run_circuit_job(job: Job) -> None:
    """All stages, in order; see the module's docstring. Raises ExtractorError, or Stopped."""
    spec = job.spec
    assert spec.model is not None  # JobSpec's validator saw to it
    assert spec.task is not None
    source = open_model(spec.model)
    tokenizer = load_tokenizer(source.path)
    expression = objective.express(objective.get_task(spec.task), tokenizer)
    with job.stage("corpus"):
        corpus = build_corpus(spec.corpus, tokenizer)
    with job.stage("bridge"):
        sparse_model(job, source, corpus)
    model = load_sparse(job)
    question = ask(job, expression, tokenizer, model.config.n_ctx)
    with job.stage("prune"):
        assert spec.prune is not None
        means = measure_means(model, corpus, spec.prune.mean_tokens, spec.seed)
        probe = Probe(model, means, question.select)
        result = find_circuit(job, probe, question)
    with job.stage("validate"):
        report = validate(result, probe, question.held_out, spec.seed)
    with job.stage("report"):
        circuit = name_circuit(job, result, probe, question, tokenizer)
        leave_files(job, circuit, result, report, probe, question, tokenizer)


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


def find_circuit(job: Job, probe: Probe, question: Question) -> PruneResult:
    """One ranking per k_coef, the smallest circuit of each; the one with fewest edges wins."""
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
        stage = f"prune{number}"
        ranking = learn_ranking(probe.model, probe.means, batch_of, prune, k_coef, spec.seed, job.loop(stage), stage)
        found.append(smallest_circuit(ranking, probe, demand, fresh, tick))
    return min(found, key=lambda r: (not r.met, r.edges, len(r.nodes)))


def name_circuit(job: Job, result: PruneResult, probe: Probe, question: Question, tokenizer: Tokenizer) -> Circuit:
    """The circuit as a value, nodes in forward order, edges by source and target."""
    spec, expression = job.spec, question.expression
    kept = probe.kept(result.nodes)
    nodes = [
        Node(node_id(site, channel), site, channel, probe.means[site][channel].item())
        for site, channels in kept.items()
        for channel in channels.tolist()
    ]
    return Circuit(
        model=spec.model or "",
        task=spec.task or "",
        answers=expression.answers,
        answer_ids=expression.answer_ids,
        nodes=tuple(describe_nodes(nodes, probe.model, tokenizer, question.train.pick(torch.arange(DESCRIBED_PAIRS)))),
        edges=tuple(edges_between(probe.model, kept)),
        calibration=result.calibration,
    )


def leave_files(
    job: Job,
    circuit: Circuit,
    result: PruneResult,
    report: ValidationReport,
    probe: Probe,
    question: Question,
    tokenizer: Tokenizer,
) -> None:
    """circuits/TASK/: everything a reader, or another program, needs."""
    held_out = question.held_out
    with artifacts.new_folder(job.out / "circuits" / circuit.task) as folder:
        artifacts.write_json(folder / "circuit.json", circuit.to_json())
        artifacts.write_tensors(folder / "means.safetensors", probe.means)
        pairs = {"ids": held_out.ids, "last": held_out.last, "correct": held_out.correct, "wrong": held_out.wrong}
        artifacts.write_tensors(folder / "held_out.safetensors", pairs)
        numbers = result_json(job, circuit, report)
        artifacts.write_json(folder / "result.json", numbers)
        write_report(folder, circuit, numbers, examples(circuit, result, probe, question, tokenizer))


def result_json(job: Job, circuit: Circuit, report: ValidationReport) -> dict:
    """The content of result.json. Losses in nats per prompt on the held-out split, accuracies as fractions."""
    spec = job.spec
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
        "seconds": job.seconds,
    }
    faithfulness = job.out / "model" / "faithfulness.json"
    if faithfulness.is_file():
        found["bridge"] = artifacts.read_json(faithfulness)
    return found


@torch.no_grad()
def examples(circuit: Circuit, result: PruneResult, probe: Probe, question: Question, tokenizer: Tokenizer) -> list[Example]:
    """A few held-out prompts with the right answer's probability under the full model, the circuit alone, the model without it."""
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
