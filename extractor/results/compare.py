"""Two circuits side by side: sizes and losses, the nodes and edges that both have, and the nodes that play one role in both.

Names of nodes mean the same only in one and the same sparse model. Roles are compared across models and tasks: two nodes of one kind of
site play one role where their values, each in its own circuit, are correlated over the tokens of the same prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from extractor import files
from extractor.circuits.observed import observe
from extractor.data.prompts import TaskBatch

if TYPE_CHECKING:
    from extractor.results.result import Result

PAIRS = 128  # of the first result's held-out pairs, over which values are compared
SAME_ROLE = 0.9  # least size of the correlation of two nodes with one role
SIZES = ("nodes", "edges")
NETWORKS = ("full", "circuit", "without_circuit", "random")


def compare(first: Result, second: Result) -> dict[str, Any]:
    """What two circuits share.

    circuits   of both: {folder, task, model, seed, standard, target_loss, meets_target, nodes, edges, loss, accuracy, curve}
    same_model whether both are circuits of one sparse model, weight for weight
    by_name    {nodes, edges}, each {shared: ids, only: [ids of the first, ids of the second], overlap: Jaccard}; an edge is
               'source target'. None for circuits of different models
    by_role    {matched: [[node, node, correlation], ...], only: [ids, ids], overlap}: nodes that are each other's best partner of their
               kind of site with a correlation of at least SAME_ROLE in size; None where the models read different tokens, or no prompt
               of the first is short enough for both
    """
    same = _digest(first) == _digest(second)
    circuits = [_facts(one) for one in (first, second)]
    by_name = None
    if same:
        nodes, edges = ([_names(one, kind) for one in (first, second)] for kind in SIZES)
        by_name = {"nodes": _shared(*nodes), "edges": _shared(*edges)}
    return {"circuits": circuits, "same_model": same, "by_name": by_name, "by_role": _roles(first, second)}


def _facts(result: Result) -> dict[str, Any]:
    numbers, circuit = result.numbers, result.circuit
    kept = ("model", "seed", "standard", "target_loss", "meets_target", "curve")
    size = {"nodes": len(circuit.nodes), "edges": len(circuit.edges)}
    networks = {name: {kind: numbers[name].get(kind) for kind in NETWORKS} for name in ("loss", "accuracy")}
    return {"folder": str(result.folder), "task": result.task} | {name: numbers.get(name) for name in kept} | size | networks


def _digest(result: Result) -> str:
    """Of the sparse model's weights."""
    parts = sorted((result.folder / "model").glob("*.safetensors"))
    return " ".join(files.sha256(part) for part in parts)


def _names(result: Result, kind: str) -> list[str]:
    circuit = result.circuit
    return [node.id for node in circuit.nodes] if kind == "nodes" else [f"{edge.source} {edge.target}" for edge in circuit.edges]


def _shared(first: Sequence[str], second: Sequence[str]) -> dict[str, Any]:
    """Jaccard overlap of two lists of names; two empty ones agree."""
    there, here = set(second), set(first)
    shared = [name for name in first if name in there]
    union = len(here | there)
    only = [[name for name in first if name not in there], [name for name in second if name not in here]]
    return {"shared": shared, "only": only, "overlap": len(shared) / union if union else 1.0}


@dataclass(frozen=True)
class _Observed:
    """Values (tokens,) of each node of a circuit, by kind of site, standardised."""

    names: Mapping[str, Sequence[str]]
    values: Mapping[str, Tensor]


def _roles(first: Result, second: Result) -> dict[str, Any] | None:
    prompts = _prompts(first, min(one.model.config.n_ctx for one in (first, second)))
    if prompts is None or first.tokenizer.to_str() != second.tokenizer.to_str():
        return None
    seen = [_observed(one, prompts) for one in (first, second)]
    matched = [row for kind in seen[0].names if kind in seen[1].names for row in _matched(kind, *seen)]
    here, there = ({row[place] for row in matched} for place in (0, 1))
    only = [[node.id for node in one.circuit.nodes if node.id not in found] for one, found in ((first, here), (second, there))]
    union = len(matched) + sum(map(len, only))
    return {"matched": matched, "only": only, "overlap": len(matched) / union if union else 1.0}


def _matched(kind: str, first: _Observed, second: _Observed) -> list[list[Any]]:
    correlation = first.values[kind] @ second.values[kind].T
    sizes = correlation.abs()
    best_there, best_here = sizes.argmax(1).tolist(), sizes.argmax(0).tolist()
    return [
        [first.names[kind][i], second.names[kind][j], round(correlation[i, j].item(), 4)]
        for i, j in enumerate(best_there)
        if best_here[j] == i and sizes[i, j] >= SAME_ROLE
    ]


def _prompts(result: Result, longest: int) -> TaskBatch | None:
    """Held-out pairs of at most `longest` tokens."""
    kept = files.read_tensors(result.place / "held_out.safetensors")
    batch = TaskBatch(*(kept[name] for name in ("ids", "last", "correct", "wrong", "sign")))
    short = (batch.last.view(-1, 2).amax(1) < longest).nonzero().flatten()[:PAIRS]
    picked = batch.pick(short)
    return replace(picked, ids=picked.ids[:, :longest]) if len(short) else None


def _observed(result: Result, prompts: TaskBatch) -> _Observed:
    """A kind of site is its place in a block, whatever the layer."""
    run, places = observe(result.graph, result.means, prompts), torch.arange(prompts.ids.shape[1])
    real = places <= prompts.last[:, None]
    names: dict[str, list[str]] = {}
    for node in result.circuit.nodes:
        names.setdefault(node.site.partition(".")[2], []).append(node.id)
    values = {kind: torch.stack([_standardised(run.values[name][real]) for name in found]) for kind, found in names.items()}
    return _Observed(names, values)


def _standardised(values: Tensor) -> Tensor:
    """With mean 0 and length 1, so that products are correlations; zero where the values do not vary."""
    centred = values.double() - values.double().mean()
    return centred / centred.norm().clamp_min(1e-12) if centred.abs().max() > 1e-6 else torch.zeros_like(centred)
