"""Two circuits side by side: sizes and losses, the nodes and edges that both have, and the nodes with similar values in both.

Names of nodes mean the same only in one and the same sparse model. Values are compared across models and tasks: each in its own circuit, on
the same prompts. Similar values are no proof of one function: what two nodes do to the answer is not compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from extractor import files
from extractor.circuits.observed import observe
from extractor.data.prompts import TaskBatch
from extractor.errors import BrokenArtifact, first_line

if TYPE_CHECKING:
    from extractor.results.result import Result

PAIRS = 128  # of the first result's held-out pairs, over which values are compared
SIMILAR = 0.9  # least size of the correlation of two nodes with similar values
SIZES = ("nodes", "edges")
NETWORKS = ("full", "circuit", "without_circuit", "random")


def compare(first: Result, second: Result) -> dict[str, Any]:
    """What two circuits share.

    circuits   of both: {folder, task, model, seed, standard, target_loss, meets_target, nodes, edges, loss, accuracy, curve}
    same_model whether both are circuits of one sparse model, weight for weight
    by_name    {nodes, edges}, each {shared: ids, only: [ids of the first, ids of the second], overlap: Jaccard}; an edge is
               'source target'. None for circuits of different models
    by_values  {matched: [[node, node, correlation, correlation at the last tokens], ...], only: [ids, ids], overlap, pairs, least}:
               nodes of one kind of site that are each other's best partner, with a correlation over all tokens of the first result's
               held-out pairs of at least `least` in size; None where why_no_values says why

    Raises BrokenArtifact where the files of a result do not fit together.
    """
    same = _digest(first) == _digest(second)
    with _complete(first, second):
        circuits = [_facts(one) for one in (first, second)]
        found, why = _by_values(first, second)
    by_name = None
    if same:
        nodes, edges = ([_names(one, kind) for one in (first, second)] for kind in SIZES)
        by_name = {"nodes": _shared(*nodes), "edges": _shared(*edges)}
    return {"circuits": circuits, "same_model": same, "by_name": by_name, "by_values": found, "why_no_values": why}


@contextmanager
def _complete(*results: Result) -> Iterator[None]:
    """Whatever is missing or misshapen in the files shows as an error of Python or torch."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        places = " or ".join(dict.fromkeys(str(one.place) for one in results))
        what = f"{type(error).__name__}: {first_line(error)}"
        raise BrokenArtifact(f"the files in {places} do not fit together ({what}); copy the result again") from None


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


def _by_values(first: Result, second: Result) -> tuple[dict[str, Any] | None, str | None]:
    if first.tokenizer.to_str() != second.tokenizer.to_str():
        return None, "the models read different tokens"
    prompts = _prompts(first, min(one.model.config.n_ctx for one in (first, second)))
    if prompts is None:
        return None, "a model has no positions for the prompts of the first"
    real = torch.arange(prompts.ids.shape[1]) <= prompts.last[:, None]
    end = torch.arange(prompts.ids.shape[1]) == prompts.last[:, None]
    runs = [observe(one.graph, one.means, prompts).values for one in (first, second)]
    seen = [_observed(one, run, real) for one, run in zip((first, second), runs, strict=True)]
    pairs = [row for kind in seen[0].names if kind in seen[1].names for row in _matched(kind, *seen)]
    matched = [[a, b, correlation, _correlation(runs[0][a][end], runs[1][b][end])] for a, b, correlation in pairs]
    here, there = ({row[place] for row in matched} for place in (0, 1))
    only = [[node.id for node in one.circuit.nodes if node.id not in found] for one, found in ((first, here), (second, there))]
    union = len(matched) + sum(map(len, only))
    return {
        "matched": matched,
        "only": only,
        "overlap": len(matched) / union if union else 1.0,
        "pairs": prompts.pairs,
        "least": SIMILAR,
    }, None


def _matched(kind: str, first: _Observed, second: _Observed) -> list[list[Any]]:
    correlation = first.values[kind] @ second.values[kind].T
    sizes = correlation.abs()
    best_there, best_here = sizes.argmax(1).tolist(), sizes.argmax(0).tolist()
    return [
        [first.names[kind][i], second.names[kind][j], round(correlation[i, j].item(), 4)]
        for i, j in enumerate(best_there)
        if best_here[j] == i and sizes[i, j] >= SIMILAR
    ]


def _prompts(result: Result, longest: int) -> TaskBatch | None:
    """Held-out pairs of at most `longest` tokens."""
    kept = files.read_tensors(result.place / "held_out.safetensors")
    batch = TaskBatch(*(kept[name] for name in ("ids", "last", "correct", "wrong", "sign")))
    if not batch.pairs:
        raise ValueError("held_out.safetensors has no prompt")
    short = (batch.last.view(-1, 2).amax(1) < longest).nonzero().flatten()[:PAIRS]
    if not len(short):
        return None
    picked = batch.pick(short)
    return replace(picked, ids=picked.ids[:, :longest])


def _observed(result: Result, run: Mapping[str, Tensor], real: Tensor) -> _Observed:
    """A kind of site is its place in a block, whatever the layer. run: values (2P, T) of the nodes; real (2P, T): no padding."""
    names: dict[str, list[str]] = {}
    for node in result.circuit.nodes:
        names.setdefault(node.site.partition(".")[2], []).append(node.id)
    values = {kind: torch.stack([_standardised(run[name][real]) for name in found]) for kind, found in names.items()}
    return _Observed(names, values)


def _correlation(first: Tensor, second: Tensor) -> float:
    return round(float(_standardised(first) @ _standardised(second)), 4)


def _standardised(values: Tensor) -> Tensor:
    """With mean 0 and length 1, so that products are correlations; zero where the values do not vary."""
    centred = values.double() - values.double().mean()
    return centred / centred.norm().clamp_min(1e-12) if centred.abs().max() > 1e-6 else torch.zeros_like(centred)
