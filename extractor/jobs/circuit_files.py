"""Writes circuits/TASK/ of a result: circuit, means, held-out prompts, numbers, compiled circuit, report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from extractor import files
from extractor.circuits.circuit import Calibration, Circuit, Node
from extractor.circuits.conditions import SUBSET_PROMPTS, Conditions
from extractor.circuits.graph import CircuitMask
from extractor.circuits.mean_activations import stored_means
from extractor.circuits.node_labels import describe_nodes
from extractor.circuits.sites import node_id
from extractor.data.encoding import prompt_text, shown_text, token_text
from extractor.data.prompts import TaskBatch
from extractor.files import rounded
from extractor.jobs.live_data import live_data
from extractor.jobs.other_circuits import other_circuits
from extractor.jobs.page_data import page_data
from extractor.models.sparse_folder import DENSE_JSON, FAITHFULNESS_JSON
from extractor.progress import Progress, Stopped
from extractor.pruning.criteria import PrunedCircuit
from extractor.pruning.problem import PruningProblem
from extractor.pruning.prune import PruneResult
from extractor.pruning.standards import FoundCircuits
from extractor.report.page import Example, write_report
from extractor.validation.ablations import standard_logit_diffs
from extractor.validation.validate import ValidationReport, under_conditions

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from extractor.jobs.context import CircuitRun
    from extractor.jobs.job import Job

PAPER_CIRCUIT = "paper.json"  # beside a robust circuit.json: the circuit of the paper's standard
OTHER_CIRCUITS = "others.json"
DESCRIBED_PAIRS = 512  # pairs of the train split on which the tokens that nodes read are measured
SHOWN_PAIRS = 4  # held-out pairs in the report
PARTS = 4  # of the stage that writes the files: names of the nodes, numbers, compiled circuit, report


def circuit_folder(job: Job, task: str) -> Path:
    """The folder of a task's circuit in the job's result."""
    return job.out / "circuits" / task


def write_files(run: CircuitRun, problem: PruningProblem, found: FoundCircuits, report: ValidationReport) -> None:
    """Write circuits/TASK/ atomically. problem: by the paper's standard. Raises DiskFull, Stopped."""
    progress = _Parts(run.job.progress)
    progress.begin("labels")
    splits, shown = run.splits, found.shown.best
    circuit = name_circuit(run, problem, shown)
    answers = torch.stack([splits.held_out.first, splits.held_out.second], dim=1).flatten()  # in the circuit's order: first, second
    with files.new_folder(circuit_folder(run.job, circuit.task)) as folder:
        files.write_json(folder / "circuit.json", circuit.to_json())
        if shown.standard != "paper":
            files.write_json(folder / PAPER_CIRCUIT, name_circuit(run, problem, found.by_standard["paper"].best).to_json())
        files.write_tensors(folder / "means.safetensors", stored_means(problem.means))
        pairs = {name: getattr(splits.held_out, name) for name in ("ids", "last", "correct", "wrong", "sign")}
        files.write_tensors(folder / "held_out.safetensors", pairs)
        files.write_tensors(folder / "conditions.safetensors", drawn_conditions(problem, splits.held_out))
        progress.begin("numbers")
        numbers = result_json(run, problem, circuit, found, report, progress.check)
        files.write_json(folder / "result.json", numbers)
        others = other_circuits(problem, found, numbers)
        files.write_text(folder / OTHER_CIRCUITS, json.dumps(others, separators=(",", ":")) + "\n")
        tokens = page_data(run, problem, circuit, shown)
        if tokens is not None:
            files.write_text(folder / "tokens.json", json.dumps(tokens, separators=(",", ":")) + "\n")
        progress.begin("compiled")
        live = None
        # A resampled node has no constant replacement value, and further blocks (gates, rotary positions) are not compiled.
        if problem.spec.ablation != "resample" and problem.model.config.is_plain:
            from extractor.circuits.compiled import compile_circuit

            compiled = compile_circuit(problem.model, problem.ablation_values, shown.graph, answers)
            compiled.save(folder / "compiled.safetensors")
            live = None if tokens is None else live_data(compiled, run.loaded.tokenizer, tokens)
        progress.begin("page")
        write_report(folder, circuit, numbers, examples(run, problem, circuit, shown), progress.check, tokens, live, others)


def drawn_conditions(problem: PruningProblem, held_out: TaskBatch) -> dict[str, Tensor]:
    """What is random of validation.conditions: same, other (2P,); prompts of a subset, (); subset.SITE (subsets, width)."""
    draws = Conditions(problem.model, problem.means, problem.seed).draws(held_out)
    subsets = {f"subset.{site}": part.contiguous() for site, part in problem.index.split(draws.subset).items()}
    return {"same": draws.same, "other": draws.other, "prompts": torch.tensor(SUBSET_PROMPTS)} | subsets


class _Parts:
    """Progress over the parts of `write_files`."""

    def __init__(self, progress: Progress):
        self._progress, self._begun = progress, 0

    def begin(self, part: str) -> None:
        """Report that this part begins. Raises Stopped when a stop was requested."""
        self.check()
        self._begun += 1
        self._progress.phase(part)
        self._progress.step(self._begun, PARTS)

    def check(self) -> None:
        """Raise Stopped when a stop was requested."""
        if self._progress.should_stop():
            raise Stopped


def name_circuit(run: CircuitRun, problem: PruningProblem, pruned: PrunedCircuit) -> Circuit:
    """The circuit as a JSON value: nodes in forward order, edges sorted by source and target."""
    splits, tokenizer = run.splits, run.loaded.tokenizer
    kept, described = pruned.graph.channels(), torch.arange(min(DESCRIBED_PAIRS, splits.train.pairs))
    nodes = [
        Node(node_id(site, channel), site, channel, problem.ablation_values[site][channel].item())
        for site, channels in kept.items()
        for channel in channels.tolist()
    ]
    return Circuit(
        model=run.loaded.name,
        task=run.task,
        answers=splits.tokenized.answers,
        answer_ids=splits.tokenized.answer_ids,
        nodes=tuple(describe_nodes(nodes, problem.model, tokenizer, splits.train.pick(described))),
        edges=tuple(pruned.graph.named_edges()),
        calibration=pruned.calibration,
        parallel=problem.model.config.parallel,
    )


def result_json(
    run: CircuitRun, problem: PruningProblem, circuit: Circuit, found: FoundCircuits, report: ValidationReport, tick: Callable[[], None]
) -> dict:
    """The content of result.json. Losses in nats per prompt on the held-out split, accuracies as fractions.

    standard          by which the circuit was found: the robust one where a circuit holds under it, else the paper's
    standards         {standard: `by_standard`} of all searches
    holds_for_dense   whether the dense model does the task and the sparse one answers as it does; None without a dense model
    not_measured   {what: why} of the numbers that could not be had; absent where there are none
    tick           called between long computations
    """
    spec = run.job.spec
    known = {found.shown.best.standard: report.conditions}
    standards = {name: by_standard(problem.under(name), one, run, known.get(name)) for name, one in found.by_standard.items()}
    numbers = {
        "model": circuit.model,
        "task": circuit.task,
        "description": run.splits.tokenized.task.description,
        "labels": spec.labels,
        "target_loss": spec.target_loss,
        "seed": spec.seed,
        "algorithm": problem.spec.algorithm,
        "granularity": problem.spec.granularity,
        "ablation": problem.spec.ablation,
        "standard": found.shown.best.standard,
        "circuit": {"nodes": len(circuit.nodes), "edges": len(circuit.edges)},
        "loss": report.loss,
        "accuracy": report.accuracy,
        "meets_target": report.loss["circuit"] <= spec.target_loss,
        "holds_for_dense": None if run.behaviour is None else run.why_not_dense is None,
        "why": "; ".join(filter(None, (run.why_not_dense, report.why))) or None,
        "held_out_pairs": report.held_out_pairs,
        "curve": standards[found.shown.best.standard]["curve"],
        "standards": standards,
        "validation": report.details() | {"mechanism": with_texts(report.mechanism, run.loaded.tokenizer)},
        "seconds": run.seconds(),
    }
    of_dense, missing = dense_findings(run, problem, circuit, found.shown.best.graph, tick)
    return rounded(numbers) | of_dense | ({"not_measured": missing} if missing else {})


def with_texts(mechanism: dict | None, tokenizer: Tokenizer) -> dict | None:
    """The mechanism with texts in place of the ids of tokens."""
    if mechanism is None:
        return None
    claims = [
        claim
        | {"tokens": [[token_text(tokenizer, first), token_text(tokenizer, second), share] for first, second, share in claim["tokens"]]}
        if "tokens" in claim
        else claim
        for claim in mechanism["claims"]
    ]
    return mechanism | {"claims": claims}


def by_standard(problem: PruningProblem, result: PruneResult, run: CircuitRun, conditions: dict | None) -> dict:
    """What the search by one standard found, measured by that standard on held-out pairs.

    found        whether a circuit meets the target on the select split, with confidence, and is necessary; else the best one is given
    nodes, edges, loss, accuracy, met   of its circuit, met: on held-out pairs;  edges_of_model   of the full model without its dead nodes
    starts       {ranking: edges of the smallest circuit that elimination from it passed and that is found in the sense above, or None}
    conditions   {condition: {loss, accuracy, interval}} of its circuit, at the model's own scale; measured where they are not given
    curve        [{target, nodes, edges, loss, accuracy, met}, ...], a circuit for every target
    """
    best, rows = result.best, curve(problem, result.curve, run)
    own = next(row for row in rows if row["target"] == best.target)
    return {
        "found": best.met,
        **{name: own[name] for name in ("nodes", "edges", "loss", "accuracy", "met")},
        "edges_of_model": problem.full_mask().without_dead().edge_count(),
        "starts": result.starts,
        "conditions": conditions or under_conditions(problem, best.graph, run.splits.held_out),
        "curve": rows,
    }


def curve(problem: PruningProblem, circuits: Sequence[PrunedCircuit], run: CircuitRun) -> list[dict]:
    """Size and held-out loss, by the problem's standard, of the circuit for every target."""
    held_out, rows = run.splits.held_out, []
    for one in circuits:
        found = problem.standard.measured(standard_logit_diffs(problem, one.graph, held_out), held_out.sign, one.calibration)
        sizes = {"target": one.target, "nodes": one.graph.node_count(), "edges": one.edges}
        rows.append(sizes | {"loss": found.loss, "accuracy": found.accuracy, "met": found.loss <= one.target})
    return rows


def dense_findings(
    run: CircuitRun, problem: PruningProblem, circuit: Circuit, graph: CircuitMask, tick: Callable[[], None]
) -> tuple[dict, dict[str, str]]:
    """'bridge', 'causal' and 'steering' of result.json, of the dense model; and why one of them is missing."""
    faithful = run.loaded.folder / FAITHFULNESS_JSON
    found: dict = {"bridge": files.read_json(faithful)} if faithful.is_file() else {}
    pair, splits, seed = run.loaded.pair, run.splits, run.job.spec.seed
    if pair is None:
        is_lost = (run.loaded.folder / DENSE_JSON).is_file()  # else there never was a dense model, which needs no words
        return found, {"steering": f"the dense model cannot be opened: {run.loaded.why_no_pair}"} if is_lost else {}
    from extractor.bridges.behaviour import circuit_through_bridges
    from extractor.bridges.steering.causal import causal_report
    from extractor.bridges.steering.edit import steerable
    from extractor.bridges.steering.evaluate import steering_report

    through = circuit_through_bridges(pair, splits.held_out, graph, problem.ablation_values, splits.select)
    found.setdefault("bridge", {}).update(prompts=run.behaviour, circuit=through)
    run.job.progress.phase("steering")
    nodes, decode = [node.id for node in circuit.nodes], partial(shown_text, run.loaded.tokenizer)
    causal = causal_report(pair, nodes, splits.held_out, seed, tick)
    found |= {"causal": causal} if causal else {}
    steering = steering_report(pair, nodes, splits.select, splits.held_out, seed, decode, tick, splits.shifted)
    if steering:
        return found | {"steering": steering}, {}
    kinds = "queries, keys and position channels have no fixed direction in the dense model"
    answers = "without an edit the dense model answers none of the tried prompts correctly"
    return found, {"steering": answers if steerable(pair, nodes) else f"the circuit has no node that can be edited: {kinds}"}


@torch.no_grad()
def examples(run: CircuitRun, problem: PruningProblem, circuit: Circuit, pruned: PrunedCircuit) -> list[Example]:
    """A few held-out prompts with the right answer's probability in the full model, the circuit, and the model without the circuit."""
    splits, tokenizer = run.splits, run.loaded.tokenizer
    batch = splits.held_out.pick(torch.arange(min(SHOWN_PAIRS, splits.held_out.pairs)))
    scorer, uncalibrated = problem.scorer(batch), Calibration(1.0, 0.0)

    def right(graph: CircuitMask, calibration: Calibration) -> list[float]:
        diff: Tensor = scorer.logit_diffs([graph])[0]
        return torch.sigmoid(batch.sign * calibration.apply(diff)).tolist()

    full = right(CircuitMask.full(problem.model), uncalibrated)
    circuit_alone = right(pruned.graph, pruned.calibration)
    without = right(pruned.graph.complement(), uncalibrated)
    names = dict(zip(circuit.answer_ids, circuit.answers, strict=True))
    found = []
    for row, probabilities in enumerate(zip(full, circuit_alone, without, strict=True)):
        prompt = prompt_text(tokenizer, batch.ids[row, : int(batch.last[row]) + 1].tolist())
        answer, other = (names.get(token) or token_text(tokenizer, token) for token in (int(batch.correct[row]), int(batch.wrong[row])))
        found.append(Example(prompt, answer, other, *probabilities))
    return found
