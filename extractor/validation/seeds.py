"""Do other seeds find the same circuit (App. C)? The search runs again from each seed; the overlap of their circuits is measured.

A seed decides the initial masks, the pairs drawn for learning and elimination, and the proposals of the search; model, splits and means are
the same. Each seed's circuit is stored in the problem's work folder as soon as it is found: an interrupted comparison resumes with the next
seed, or from the checkpoints of the current one.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from torch import Tensor

from extractor import files
from extractor.circuits.circuit import Calibration
from extractor.circuits.graph import CircuitMask
from extractor.data.prompts import TaskBatch
from extractor.pruning.criteria import PrunedCircuit
from extractor.pruning.problem import PruningProblem, unreported
from extractor.pruning.prune import find_circuits
from extractor.validation.ablations import standard_logit_diffs

_FACTS, _MASKS, _NODES = "circuit.json", "circuit.safetensors", "nodes"


def compare_seeds(pruned: PrunedCircuit, problem: PruningProblem, held_out: TaskBatch) -> dict[str, Any]:
    """The problem's own circuit and those of the following seeds; `spec.seeds` circuits together.

    circuits      [{seed, nodes, edges, loss (held-out, nats), met}, ...], the problem's own first
    node_overlap  mean Jaccard overlap of two circuits' nodes, over all pairs of circuits
    edge_overlap  the same of their edges
    shared        ids of the nodes that are in all of them, in forward order
    Raises Stopped.
    """
    problem = problem.under(pruned.standard)
    seeds = [problem.seed + number for number in range(problem.spec.seeds)]
    found = [pruned, *(circuit_of_seed(problem, seed) for seed in seeds[1:])]
    nodes, edges = [dict.fromkeys(one.graph.node_ids()) for one in found], [_edges(one.graph) for one in found]
    rows = []
    for seed, one in zip(seeds, found, strict=True):
        loss = problem.standard.measured(standard_logit_diffs(problem, one.graph, held_out), held_out.sign, one.calibration).loss
        rows.append({"seed": seed, "nodes": one.graph.node_count(), "edges": one.edges, "loss": loss, "met": one.met})
    return {
        "circuits": rows,
        "node_overlap": overlap(nodes),
        "edge_overlap": overlap(edges),
        "shared": [name for name in nodes[0] if all(name in other for other in nodes[1:])],
    }


def overlap(sets: list[dict]) -> float:
    """Mean Jaccard overlap of all pairs of sets (the keys); two that are empty agree."""
    shares = [len(a.keys() & b.keys()) / len(a.keys() | b.keys()) if a or b else 1.0 for a, b in combinations(sets, 2)]
    return sum(shares) / len(shares)


def circuit_of_seed(problem: PruningProblem, seed: int) -> PrunedCircuit:
    """The circuit that the search finds from another seed, read from the work folder where it is stored. Raises Stopped."""
    name = f"seed{seed}"
    folder = None if problem.work is None else problem.work / name
    if folder is not None and (folder / _FACTS).is_file():
        return _read(folder, problem)
    # The seed in the name keeps the checkpoints of different seeds apart.
    other = replace(problem, seed=seed, work=folder, env=lambda stage: problem.env(f"{name}-{stage}"), phase=unreported)
    found = find_circuits(other).best
    if folder is not None:
        _write(folder, found)
    return found


def _write(folder: Path, found: PrunedCircuit) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    edges = {} if found.graph.edges is None else {" ".join(link): mask for link, mask in found.graph.edges.items()}
    files.write_tensors(folder / _MASKS, {_NODES: found.graph.nodes, **edges})
    facts = {"edges": found.edges, "loss": found.loss, "calibration": asdict(found.calibration), "target": found.target, "met": found.met}
    files.write_json(folder / _FACTS, facts)


def _read(folder: Path, problem: PruningProblem) -> PrunedCircuit:
    facts, masks = files.read_json(folder / _FACTS), files.read_tensors(folder / _MASKS)
    nodes = masks.pop(_NODES).to(problem.model.device)
    edges: dict[tuple[str, str], Tensor] = {}
    for name, mask in masks.items():
        source, target = name.split()
        edges[source, target] = mask.to(problem.model.device)
    found, calibration = CircuitMask(problem.model, nodes, edges or None), Calibration(**facts["calibration"])
    return PrunedCircuit(found, facts["edges"], facts["loss"], calibration, facts["target"], facts["met"], problem.standard.name)


def _edges(mask: CircuitMask) -> dict[tuple[str, str], None]:
    return {(edge.source, edge.target): None for edge in mask.named_edges()}
