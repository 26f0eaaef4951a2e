"""circuits/TASK/ of a result: everything a reader, or another program, needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from extractor import files
from extractor.bridges.pair import FAITHFULNESS_JSON
from extractor.circuits.calibration import calibrated_loss
from extractor.circuits.circuit import Calibration, Circuit, Node
from extractor.circuits.graph import CircuitMask
from extractor.circuits.node_labels import describe_nodes
from extractor.circuits.sites import node_id
from extractor.data.prompts import accuracy
from extractor.files import rounded
from extractor.pruning.problem import PruningProblem
from extractor.pruning.prune import PrunedCircuit, PruneResult
from extractor.report.page import Example, write_report
from extractor.validation.validate import ValidationReport

if TYPE_CHECKING:
    from extractor.jobs.context import CircuitRun
    from extractor.jobs.job import Job

DESCRIBED_PAIRS = 512  # over which nodes' reads are measured
SHOWN_PAIRS = 4


def circuit_folder(job: Job, task: str) -> Path:
    """Where the circuit of a task lies in a job's result."""
    return job.out / "circuits" / task


def write_files(inquiry: CircuitRun, problem: PruningProblem, found: PruneResult, report: ValidationReport) -> None:
    """circuits/TASK/, whole or absent."""
    question, circuit = inquiry.question, name_circuit(inquiry, problem, found.best)
    answers = torch.cat([question.held_out.correct, question.held_out.wrong]).unique()
    with files.new_folder(circuit_folder(inquiry.job, circuit.task)) as folder:
        files.write_json(folder / "circuit.json", circuit.to_json())
        files.write_tensors(folder / "means.safetensors", problem.ablation_values)
        pairs = {name: getattr(question.held_out, name) for name in ("ids", "last", "correct", "wrong", "sign")}
        files.write_tensors(folder / "held_out.safetensors", pairs)
        numbers = result_json(inquiry, problem, circuit, found, report)
        files.write_json(folder / "result.json", numbers)
        if problem.spec.ablation != "resample":  # what is off has no constant value there
            from extractor.circuits.compiled import compile_circuit

            compile_circuit(problem.model, problem.ablation_values, found.best.graph, answers).save(folder / "compiled.safetensors")
        if inquiry.is_drawn(circuit):
            write_report(folder, circuit, numbers, examples(inquiry, problem, circuit, found.best))


def name_circuit(inquiry: CircuitRun, problem: PruningProblem, pruned: PrunedCircuit) -> Circuit:
    """The circuit as a value, nodes in forward order, edges by source and target."""
    question, tokenizer = inquiry.question, inquiry.subject.tokenizer
    kept, described = pruned.graph.channels(), torch.arange(min(DESCRIBED_PAIRS, question.train.pairs))
    nodes = [
        Node(node_id(site, channel), site, channel, problem.ablation_values[site][channel].item())
        for site, channels in kept.items()
        for channel in channels.tolist()
    ]
    return Circuit(
        model=inquiry.subject.name,
        task=inquiry.task,
        answers=question.expression.answers,
        answer_ids=question.expression.answer_ids,
        nodes=tuple(describe_nodes(nodes, problem.model, tokenizer, question.train.pick(described))),
        edges=tuple(pruned.graph.named_edges()),
        calibration=pruned.calibration,
    )


def result_json(inquiry: CircuitRun, problem: PruningProblem, circuit: Circuit, found: PruneResult, report: ValidationReport) -> dict:
    """The content of result.json. Losses in nats per prompt on the held-out split, accuracies as fractions."""
    spec = inquiry.job.spec
    numbers = {
        "model": circuit.model,
        "task": circuit.task,
        "description": inquiry.question.expression.task.description,
        "labels": spec.labels,
        "target_loss": spec.target_loss,
        "seed": spec.seed,
        "algorithm": problem.spec.algorithm,
        "granularity": problem.spec.granularity,
        "ablation": problem.spec.ablation,
        "circuit": {"nodes": len(circuit.nodes), "edges": len(circuit.edges)},
        "loss": report.loss,
        "accuracy": report.accuracy,
        "meets_target": report.loss["circuit"] <= spec.target_loss,
        "why": report.why,
        "held_out_pairs": report.held_out_pairs,
        "curve": curve(problem, found.curve, inquiry),
        "validation": report.details(),
        "seconds": inquiry.seconds(),
    }
    return rounded(numbers) | findings_in_dense(inquiry, problem, circuit, found.best.graph)


def curve(problem: PruningProblem, circuits: Sequence[PrunedCircuit], inquiry: CircuitRun) -> list[dict]:
    """Size and held-out loss of the circuit for every target."""
    held_out = inquiry.question.held_out
    scorer, rows = problem.scorer(held_out), []
    for one in circuits:
        diff = scorer.logit_diffs([one.graph])[0]
        loss = calibrated_loss(diff, held_out.sign, one.calibration)
        right = accuracy(one.calibration.scale * diff + one.calibration.shift, held_out.sign)
        sizes = {"target": one.target, "nodes": int(one.graph.nodes.sum()), "edges": one.edges}
        rows.append(sizes | {"loss": loss, "accuracy": right, "met": loss <= one.target})
    return rows


def findings_in_dense(inquiry: CircuitRun, problem: PruningProblem, circuit: Circuit, graph: CircuitMask) -> dict:
    """What the circuit says about the dense model: 'bridge' and 'steering' of result.json, where the model is bridged to a dense one."""
    faithful = inquiry.subject.folder / FAITHFULNESS_JSON
    found: dict = {"bridge": files.read_json(faithful)} if faithful.is_file() else {}
    pair, question, seed = inquiry.subject.pair, inquiry.question, inquiry.job.spec.seed
    if pair is None:
        return found
    from extractor.bridges.faithfulness import circuit_through_bridges, prompt_agreement
    from extractor.bridges.steering.evaluate import steering_report

    through = circuit_through_bridges(pair, question.held_out, graph, problem.ablation_values, question.select)
    found.setdefault("bridge", {}).update(prompts=prompt_agreement(pair, question.held_out), circuit=through)
    nodes, decode = [node.id for node in circuit.nodes], inquiry.subject.tokenizer.decode
    steering = steering_report(pair, nodes, question.select, question.held_out, seed, decode)
    return found | ({"steering": steering} if steering else {})


@torch.no_grad()
def examples(inquiry: CircuitRun, problem: PruningProblem, circuit: Circuit, pruned: PrunedCircuit) -> list[Example]:
    """A few held-out prompts with the right answer's probability under the full model, the circuit alone, the model without it."""
    question, tokenizer = inquiry.question, inquiry.subject.tokenizer
    batch = question.held_out.pick(torch.arange(min(SHOWN_PAIRS, question.held_out.pairs)))
    scorer, plain = problem.scorer(batch), Calibration(1.0, 0.0)

    def right(graph: CircuitMask, calibration: Calibration) -> list[float]:
        diff: Tensor = scorer.logit_diffs([graph])[0]
        return torch.sigmoid(batch.sign * (calibration.scale * diff + calibration.shift)).tolist()

    everything = CircuitMask.full(problem.model)
    columns = zip(right(everything, plain), right(pruned.graph, pruned.calibration), right(pruned.graph.complement(), plain), strict=True)
    told = dict(zip(circuit.answer_ids, circuit.answers, strict=True))
    found = []
    for row, (full, alone, without) in enumerate(columns):
        prompt = tokenizer.decode(batch.ids[row, : int(batch.last[row]) + 1].tolist())
        answer, other = (told.get(token) or tokenizer.decode([token]) for token in (int(batch.correct[row]), int(batch.wrong[row])))
        found.append(Example(prompt, answer, other, full, alone, without))
    return found
