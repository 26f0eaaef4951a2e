"""The content of others.json: circuits found beside the shown one: for other targets, by the other standard, from other seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from extractor.circuits.graph import CircuitMask
from extractor.circuits.sites import node_id
from extractor.files import rounded
from extractor.pruning.problem import PruningProblem
from extractor.pruning.standards import FoundCircuits
from extractor.validation.seeds import circuit_of_seed

MOST_EDGES = 2000  # of a circuit whose nodes and edges are listed


def other_circuits(problem: PruningProblem, found: FoundCircuits, numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The content of others.json: those of the shown standard first, each from the largest target to the smallest, then other seeds.

    standard, target (nats), seed   what it was searched by
    loss, met     on held-out pairs by its standard, nats; whether that meets its target
    size          [nodes, edges]
    nodes, edges  ids, and [source, target, weight]; None where it has more than `MOST_EDGES` edges
    positions     ids of the nodes that are position channels
    heads         {id: number in its layer} of the queries, keys and values
    means         of the listed nodes, in their order: the values that an ablated one has, of the model's text

    problem   by the paper's standard;  numbers   the content of result.json
    Raises Stopped.
    """
    shown, rows = found.shown.best, []
    for name in sorted(found.by_standard, key=lambda name: name != shown.standard):
        measured = {row["target"]: row for row in numbers["standards"][name]["curve"]}
        for one in reversed(found.by_standard[name].curve):
            if one is not shown:
                row = measured[one.target]
                rows.append(_row(problem, one.graph, standard=name, target=one.target, seed=problem.seed, loss=row["loss"], met=row["met"]))
    for row in _of_other_seeds(numbers):
        graph = circuit_of_seed(problem.under(shown.standard), row["seed"]).graph
        met = row["loss"] <= problem.target
        rows.append(_row(problem, graph, standard=shown.standard, target=problem.target, seed=row["seed"], loss=row["loss"], met=met))
    return rows


def _of_other_seeds(numbers: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return (numbers["validation"].get("seeds") or {"circuits": []})["circuits"][1:]


def _row(problem: PruningProblem, graph: CircuitMask, **facts: Any) -> dict[str, Any]:
    nodes, edges = graph.node_ids(), graph.edge_count()
    listed = [[edge.source, edge.target, edge.weight] for edge in graph.named_edges()] if edges <= MOST_EDGES else None
    if listed is None:
        return rounded(facts | {"size": [len(nodes), edges], "nodes": None, "edges": None, "positions": [], "means": [], "heads": {}})
    positions = [
        node_id(site, channel)
        for site, channels in graph.channels().items()
        for channel in channels.tolist()
        if site.endswith("act_in") and channel >= graph.model.config.d_model
    ]
    means = [problem.means[site][channel].item() for site, channels in graph.channels().items() for channel in channels.tolist()]
    width = graph.model.config.d_head
    heads = {
        node_id(site, channel): channel // width
        for site, channels in graph.channels().items()
        if site.endswith((".q", ".k", ".v"))
        for channel in channels.tolist()
    }
    found = {"size": [len(nodes), edges], "nodes": nodes, "edges": listed, "positions": positions, "means": means, "heads": heads}
    return rounded(facts | found)
