"""Is the circuit real? Networks on held-out pairs that pruning never saw (Sec. 3.1, App. C, E, F).

full              the full model
circuit           the circuit alone, all else ablated, with the circuit's own calibration: is it sufficient? Of a robust circuit: under its
                  worst condition, at the model's own scale
without_circuit   the full model with only the circuit's nodes ablated: is it necessary?
removed           the calibrated full model with nothing removed, without the circuit's edges alone (all nodes stay), and without as many
                  random nodes as the circuit has: what necessity is compared with
random            random nodes, the same number per site as the circuit has, mean of several draws: is it better than chance?
attribution       the nodes that integrated gradients rank first, the same number: is it better than a cheap guess?
uncalibrated      the circuit with scale 1 and shift 0
mean, zero, resample   the circuit under each ablation: ablated nodes have their mean, zero, or their value in another prompt
conditions        the circuit at the model's own scale, without calibration, under each of `circuits.conditions`
shifted           circuit and full model on shifted held-out prompts: longer code in other templates
binarised         the circuit, each node limited to two values

Every network without its own calibration gets the one that is best for it on the select split, so that it cannot fail by scale alone.
Losses are nats per prompt, intervals are bootstrapped over pairs. Further checks: each edge alone, each node on ordinary text, and circuits
from other seeds; see `extractor.validation`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from extractor.circuits.calibration import calibrate
from extractor.circuits.circuit import Calibration
from extractor.circuits.conditions import CONDITIONS
from extractor.circuits.graph import CircuitMask
from extractor.circuits.standard import Name
from extractor.data.bootstrap import intervals
from extractor.data.corpus import Corpus
from extractor.data.prompts import TaskBatch
from extractor.pruning.algorithms import attribution
from extractor.pruning.criteria import PrunedCircuit
from extractor.pruning.problem import PruningProblem
from extractor.spec.thresholds import FULL_MODEL_FAILS, FULL_MODEL_FAILS_RAW
from extractor.validation.ablations import KINDS, ablated_logit_diffs, condition_logit_diffs, reference_logit_diffs
from extractor.validation.activations import activations
from extractor.validation.adversarial import adversarial, interchange
from extractor.validation.binarise import Binarised
from extractor.validation.edge_effects import edge_effects
from extractor.validation.faithfulness_curve import faithfulness_curve
from extractor.validation.mechanism.claims import mechanism
from extractor.validation.null_search import null_searches
from extractor.validation.random_circuits import random_circuits
from extractor.validation.roles import roles
from extractor.validation.seeds import compare_seeds

RANDOM_DRAWS = 5
COMPARED_SHIFTED_PAIRS = 128
RANKED_PAIRS = 128  # train pairs for integrated gradients
NETWORKS = ("full", "circuit", "without_circuit", "random")
REMOVED = ("nothing", "edges", "random_nodes")


@dataclass(frozen=True)
class ValidationReport:
    """The measurements. Losses in nats per prompt, accuracies as fractions.

    loss, accuracy   of 'full', 'circuit', 'without_circuit', 'random'
    attribution      {loss, accuracy, nodes, edges} of the control
    uncalibrated     loss of the circuit
    ablation         {mean, zero, resample: loss of the circuit}
    conditions       {mean, zero, same, other, subset: {loss, accuracy, interval}} of the circuit, without calibration
    binarised        {loss, accuracy, nodes: {id: loss with it alone binarised}, or None where that was not measured}
    removed          {nothing, edges, random_nodes: loss of the full model without them}
    shifted          {prompts, loss, accuracy: {full, circuit}, same_answer, interval: its, conditions: as above}; None where the task
                     has no such prompts
    roles            see `validation.roles`
    interval         {network: [low, high]}, 95 %, of all of these
    calibrations     {network: [scale, shift]} of the model without circuit, nothing or edges, and of the circuit under each ablation
    edge_effects     see `validation.edge_effects`
    activations      see `validation.activations`; None without a corpus
    mechanism        how the circuit works, see `mechanism.claims.mechanism`
    seeds            see `seeds.compare_seeds`; None where the spec asks for one seed only
    null_searches    see `null_search.null_searches`
    random_circuits  see `random_circuits.random_circuits`; None for a circuit without edges
    adversarial, interchange   see `validation.adversarial`
    faithfulness     {standard: see `faithfulness_curve.faithfulness_curve`}. These five are None where the spec asks for no controls
    why              where the circuit misses the target or is empty, or the full model misses the target: a line that says so
    """

    loss: dict[str, float]
    accuracy: dict[str, float]
    held_out_pairs: int
    attribution: dict[str, Any]
    uncalibrated: float
    ablation: dict[str, float]
    conditions: dict[str, dict[str, Any]]
    binarised: dict[str, Any]
    removed: dict[str, float]
    shifted: dict[str, Any] | None
    roles: dict[str, Any]
    interval: dict[str, list[float]]
    calibrations: dict[str, list[float]]
    edge_effects: dict[str, Any]
    activations: dict[str, Any] | None
    mechanism: dict[str, Any] | None
    seeds: dict[str, Any] | None
    why: str | None
    null_searches: dict[str, Any] | None = None
    random_circuits: dict[str, Any] | None = None
    adversarial: dict[str, Any] | None = None
    interchange: list[list[float]] | None = None
    faithfulness: dict[str, Any] | None = None

    @property
    def necessity(self) -> float:
        """What removing the circuit costs the model, nats."""
        return self.loss["without_circuit"] - self.loss["full"]

    def details(self) -> dict[str, Any]:
        """'validation' of result.json: all measurements but loss, accuracy, and what stands beside them."""
        names = [field.name for field in fields(self) if field.name not in ("loss", "accuracy", "held_out_pairs", "why")]
        return {"necessity": self.necessity} | {name: getattr(self, name) for name in names}


def validate(
    pruned: PrunedCircuit, problem: PruningProblem, held_out: TaskBatch, corpus: Corpus | None = None, shifted: TaskBatch | None = None
) -> ValidationReport:
    """Measure everything on held-out pairs. Calibrations use the select split; steps and rankings are fitted on the train split.

    problem   by the paper's standard, whatever the circuit's own is
    corpus    ordinary text, for the nodes' activations; None: these are not measured
    shifted   shifted held-out prompts; None: nothing is measured on them
    Raises Stopped.
    """
    graph = pruned.graph
    problem.phase("losses")
    guess, binarised = _attributed(problem, graph), Binarised(problem, graph)
    diffs, fitted = _logit_diffs(pruned, problem, held_out, guess)
    diffs["binarised"] = _calibrated(problem, binarised.logit_diffs(problem.select), binarised.logit_diffs(held_out))
    right = {name: (held_out.sign * m > 0).double().mean().item() for name, m in diffs.items()}
    by_prompt = {name: held_out.losses(m).double().mean(0) for name, m in diffs.items()}
    loss = {name: one.mean().item() for name, one in by_prompt.items()}
    sizes = {"nodes": guess.node_count(), "edges": guess.edge_count()}
    known, conditions = intervals(by_prompt, problem.seed), under_conditions(problem.at("conditions"), graph, held_out)
    does_task = loss["without nothing"] < FULL_MODEL_FAILS  # as the search decides it
    problem.phase("binarised nodes")
    alone = binarised.alone(held_out)
    if pruned.standard == "robust":
        worst = max(conditions.values(), key=lambda one: one["loss"])
        loss["circuit"], right["circuit"], known["circuit"] = worst["loss"], worst["accuracy"], worst["interval"]
    return ValidationReport(
        loss={name: loss[name] for name in NETWORKS},
        accuracy={name: right[name] for name in NETWORKS},
        held_out_pairs=held_out.pairs,
        attribution={"loss": loss["attribution"], "accuracy": right["attribution"]} | sizes,
        uncalibrated=loss["uncalibrated"],
        ablation={kind: loss[kind] for kind in KINDS},
        conditions=conditions,
        binarised={"loss": loss["binarised"], "accuracy": right["binarised"], "nodes": alone},
        removed={name: loss[f"without {name}"] for name in REMOVED},
        shifted=None if shifted is None else shifted_numbers(pruned, problem.at("shifted prompts"), shifted),
        roles=roles(problem.at("roles"), graph, held_out),
        interval=known,
        calibrations={name: [one.scale, one.shift] for name, one in fitted.items()},
        edge_effects=edge_effects(problem.at("edge effects"), graph, held_out),
        activations=None if corpus is None else activations(problem.at("activations"), graph, corpus),
        mechanism=mechanism(problem.at("mechanism"), graph, pruned.calibration, held_out),
        seeds=compare_seeds(pruned, problem.at("other seeds"), held_out) if problem.spec.seeds > 1 and does_task else None,
        why=why_not(loss["circuit"], loss["full"], problem.target, graph.node_count()),
        **(_controls(pruned, problem, held_out, corpus) if problem.spec.controls and does_task else {}),
    )


def _controls(pruned: PrunedCircuit, problem: PruningProblem, held_out: TaskBatch, corpus: Corpus | None) -> dict[str, Any]:
    """The controls that search, draw or attack, by their names in the report; by both standards where the circuit is a robust one."""
    standards: tuple[Name, ...] = ("paper",) if pruned.standard == "paper" else ("paper", "robust")
    graph, calibration = pruned.graph, pruned.calibration
    return {
        "null_searches": null_searches(problem.at("null searches"), standards, held_out, corpus),
        "random_circuits": random_circuits(problem.at("random circuits"), graph, held_out, problem.spec.controls),
        "adversarial": adversarial(problem.at("adversary"), graph, calibration, held_out),
        "interchange": interchange(problem.at("interchange"), graph, calibration, held_out),
        "faithfulness": {name: faithfulness_curve(problem.at("faithfulness").under(name), held_out) for name in standards},
    }


def under_conditions(problem: PruningProblem, graph: CircuitMask, held_out: TaskBatch) -> dict[str, dict[str, Any]]:
    """Loss and accuracy of the circuit under each condition, at the model's own scale."""
    diffs = dict(zip(CONDITIONS, condition_logit_diffs(problem, graph, held_out), strict=True))
    by_prompt = {name: held_out.losses(one).double() for name, one in diffs.items()}
    known = intervals(by_prompt, problem.seed)
    right = {name: (held_out.sign * one > 0).double().mean().item() for name, one in diffs.items()}
    return {name: {"loss": by_prompt[name].mean().item(), "accuracy": right[name], "interval": known[name]} for name in diffs}


def shifted_numbers(pruned: PrunedCircuit, problem: PruningProblem, shifted: TaskBatch) -> dict[str, Any]:
    """What circuit (with its own calibration) and full model answer on shifted prompts, and how often both prefer the same answer."""
    batch = shifted.pick(torch.arange(min(COMPARED_SHIFTED_PAIRS, shifted.pairs)))
    full = reference_logit_diffs(problem, problem.full_mask(), batch)
    diffs = {"full": full, "circuit": pruned.calibration.apply(reference_logit_diffs(problem, pruned.graph, batch))}
    same = ((diffs["full"] > 0) == (diffs["circuit"] > 0)).double()
    return {
        "prompts": len(batch.ids),
        "loss": {name: batch.losses(one).double().mean().item() for name, one in diffs.items()},
        "accuracy": {name: (batch.sign * one > 0).double().mean().item() for name, one in diffs.items()},
        "same_answer": same.mean().item(),
        "interval": intervals({"same": same}, problem.seed)["same"],
        "conditions": under_conditions(problem, pruned.graph, batch),
    }


def why_not(circuit: float, full: float, target: float, nodes: int) -> str | None:
    """One line for a circuit that misses its target or has no nodes, or a full model above the target; else None. Losses in nats."""
    if full >= FULL_MODEL_FAILS_RAW:
        return f"best loss {circuit:.4g} nats, target {target:g}; the full model has {full:.4g}: it does not do this task"
    if circuit > target:
        return f"best loss {circuit:.4g} nats, target {target:g}; the full model has {full:.4g}"
    if full > target:
        return f"the full model, uncalibrated, has {full:.4g} nats, above the target of {target:g}; the circuit has {circuit:.4g}"
    if not nodes:
        return f"no node is needed: embeddings and bigrams alone have {circuit:.4g} nats"
    return None


def _logit_diffs(
    pruned: PrunedCircuit, problem: PruningProblem, held_out: TaskBatch, guess: CircuitMask
) -> tuple[dict[str, Tensor], dict[str, Calibration]]:
    """Calibrated logit differences (draws, 2P) of every network but the binarised one; and the calibrations fitted to networks by name."""
    chosen, scorer, graph, full = problem.scorer(problem.select), problem.scorer(held_out), pruned.graph, problem.full_mask()
    of_full, of_circuit = (scorer.logit_diffs([some]) for some in (full, graph))
    fitted: dict[str, Calibration] = {}

    def calibrated(name: str, on_select: Tensor, diffs: Tensor) -> Tensor:
        fitted[name] = calibrate(on_select, problem.select.sign)
        return fitted[name].apply(diffs)[None]

    def best(some: CircuitMask) -> Tensor:
        return _calibrated(problem, chosen.logit_diffs([some])[0], scorer.logit_diffs([some])[0])

    def stored(name: str, some: CircuitMask) -> Tensor:
        return calibrated(name, chosen.logit_diffs([some])[0], scorer.logit_diffs([some])[0])

    randoms = [_random_like(problem, graph, problem.seed + draw) for draw in range(RANDOM_DRAWS)]
    diffs = {
        "full": of_full,
        "circuit": pruned.calibration.apply(of_circuit),
        "without_circuit": stored("without_circuit", graph.complement()),
        "without nothing": calibrated("without nothing", chosen.logit_diffs([full])[0], of_full[0]),
        "without edges": stored("without edges", graph.without_edges()),
        "without random_nodes": torch.cat([best(some.complement()) for some in randoms]),
        "random": torch.cat([best(some) for some in randoms]),
        "attribution": best(guess),
        "uncalibrated": of_circuit,
    }
    for kind in KINDS:
        diffs[kind] = calibrated(kind, *(ablated_logit_diffs(problem, graph, kind, batch) for batch in (problem.select, held_out)))
    return diffs, fitted


def _calibrated(problem: PruningProblem, chosen: Tensor, diff: Tensor) -> Tensor:
    """Held-out logit differences (1, 2P) with the best calibration of the same network's `chosen` (2P,), on the select split."""
    return calibrate(chosen, problem.select.sign).apply(diff)[None]


def _attributed(problem: PruningProblem, graph: CircuitMask) -> CircuitMask:
    """The nodes that integrated gradients rank first, the same number as the circuit has, and all edges between them."""
    few = replace(problem, train=problem.draw(0, RANKED_PAIRS))
    order = attribution.rank(few).argsort(descending=True, stable=True)
    return CircuitMask(problem.model, problem.index.flags(order[: graph.node_count()]))


def _random_like(problem: PruningProblem, graph: CircuitMask, seed: int) -> CircuitMask:
    """Random nodes, the same number per site as the circuit has."""
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, Tensor] = {}
    for site, on in problem.index.split(graph.nodes).items():
        drawn[site] = torch.zeros_like(on)
        drawn[site][torch.randperm(len(on), generator=generator)[: int(on.sum())].to(on.device)] = True
    return CircuitMask(problem.model, problem.index.join(drawn))
