"""The pictures that the page offers beside its own: the core of a large circuit, and the circuits of others.json.

Circuits of others.json share one picture with the page's own circuit, so that every node keeps its place: the page fades what the chosen
circuit lacks and dashes what it adds.
"""

from __future__ import annotations

import base64
import gzip
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from extractor.circuits.circuit import Circuit, Edge, Node
from extractor.report import picture
from extractor.report.html import count, nats
from extractor.report.picture import visible
from extractor.spec.claims import why_no_circuit
from extractor.spec.story import best_place
from extractor.spec.thresholds import SEPARATES

LARGE = 150  # nodes; a larger circuit is shown by its core first
CORE = 60  # nodes of a core
PLAIN_BYTES = 200_000  # of an SVG that is not compressed
MOST_NODES, MOST_EDGES = 200, 800  # of the shared picture; circuits that do not fit in it are named and not drawn

_EDGE_TITLE = re.compile(r"<title>[^<]* to [^<]*: [^<]*</title>(?=</path>)")  # the page makes them again
_SEVERAL = "circuits of several searches"  # the script of the page writes the size and the name of the drawn one in its place
_WHERE = {"difference": "diff", "after": "after", "end": "last"}  # the token that differs, between it and the last, the last token

Others = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Drawings:
    """first: the SVG that the page opens with. data: {svgs, choices, more}; None where there is nothing to choose.

    svgs      further SVGs, large ones as {gzip: base64}

    choices   [{label, words, svg, nodes, edges, why it is not drawn}]. svg: index into svgs, null: the first, -1: it is not drawn; nodes:
              ids, edges: [source, target, weight], both null where it is the page's own circuit or not drawn
    more      [{id, site (in words), mean or null, head where it has one}] of the nodes that only the others have
    """

    first: str
    data: dict[str, Any] | None


def drawings(circuit: Circuit, result: Mapping[str, Any], scene: picture.Scene, others: Others) -> Drawings:
    """The pictures of a page.

    scene    of the circuit itself
    result   the content of result.json
    others   that of others.json, as `jobs.other_circuits` makes it; () in results of earlier versions
    """
    own: dict[str, Any] = {"label": _own_label(result), "words": "The circuit of this page.", "svg": None, "nodes": None, "edges": None}
    svgs, choices, first = list[str](), [own], picture.to_svg(scene)
    if len(circuit.nodes) > LARGE:
        svgs, first = [first], picture.to_svg(_core_scene(circuit, result))
        words = f"The {CORE} nodes of largest effect, {_RANKED[_is_measured(result)]}, and the edges between them."
        choices = [own | {"label": f"core: {CORE} nodes", "words": words}, own | {"label": f"all {len(circuit.nodes)} nodes", "svg": 0}]
    union, drawn = _union(circuit, others)
    if drawn:
        svgs.append(picture.to_svg(picture.layout(union, changed_of(result), class_labels(circuit, result), _SEVERAL)))
    for one in others:
        choices.append(_choice(circuit, one, result, len(svgs) - 1 if one in drawn else -1))
    if len(choices) == 1:
        return Drawings(first, None)
    heads = {name: head for one in others for name, head in one.get("heads", {}).items()}  # earlier versions stored none
    more = [_foreign(node, heads.get(node.id)) for node in union.nodes[len(circuit.nodes) :]]
    return Drawings(first, {"svgs": [_kept(_EDGE_TITLE.sub("", svg)) for svg in svgs], "choices": choices, "more": more})


def _kept(svg: str) -> str | dict[str, str]:
    """A picture as the page keeps it: a large one, of hundreds of nodes, is an eighth of its size when it is compressed."""
    if len(svg) < PLAIN_BYTES:
        return svg
    return {"gzip": base64.b64encode(gzip.compress(svg.encode(), mtime=0)).decode("ascii")}


def _foreign(node: Node, head: int | None) -> dict[str, Any]:
    mean, site = None if math.isnan(node.mean) else float(f"{node.mean:.4g}"), picture.site_words(node.site)
    found: dict[str, Any] = {"id": visible(node.id), "site": site, "mean": mean}
    return found if head is None else found | {"site": f"{site}, head {head}", "head": head}


_BY = {"paper": "the paper\u2019s standard", "robust": "the robust standard"}
_RANKED = {True: "by the rise of the loss without them", False: "by the sum of their absolute weights"}


def _own_label(result: Mapping[str, Any]) -> str:
    return f"{result.get('standard', 'paper')}, {result['target_loss']:g} nats"


def changed_of(result: Mapping[str, Any]) -> Sequence[str]:
    """The ids of the nodes that have another role in the circuit than in the full model."""
    return ((result.get("validation") or {}).get("roles") or {}).get("changed", ())


def class_labels(circuit: Circuit, result: Mapping[str, Any]) -> dict[str, str]:
    """{node: '")@last'} of the nodes that separate the two answers: the answer before which it is higher, and where it separates best."""
    nodes = ((result.get("validation") or {}).get("mechanism") or {}).get("nodes") or {}
    answers, found = circuit.answers or ("1st", "2nd"), {}
    for name, one in nodes.items():
        place, auc = best_place(one["auc"]) or ("end", 0.5)
        if max(auc, 1 - auc) >= SEPARATES:
            found[name] = f"{answers[0 if auc > 0.5 else 1]}@{_WHERE[place]}"
    return found


def _without(result: Mapping[str, Any]) -> dict[str, float]:
    """{node: loss without it, nats}; empty where that was not measured."""
    nodes = ((result.get("validation") or {}).get("mechanism") or {}).get("nodes") or {}
    return {name: one["without"] for name, one in nodes.items() if one.get("without") is not None}


def _is_measured(result: Mapping[str, Any]) -> bool:
    return bool(_without(result))


def _core_scene(circuit: Circuit, result: Mapping[str, Any]) -> picture.Scene:
    effect: dict[str, float] = _without(result)
    if not effect:
        for edge in circuit.edges:
            for end in (edge.source, edge.target):
                effect[end] = effect.get(end, 0.0) + abs(edge.weight)
    kept = set(sorted((node.id for node in circuit.nodes), key=lambda name: -effect.get(name, 0.0))[:CORE])
    core = replace(
        circuit,
        nodes=tuple(node for node in circuit.nodes if node.id in kept),
        edges=tuple(edge for edge in circuit.edges if {edge.source, edge.target} <= kept),
    )
    note = f"the core of {len(circuit.nodes):,} nodes, {len(circuit.edges):,} edges"
    return picture.layout(core, changed_of(result), class_labels(circuit, result), note)


def _union(circuit: Circuit, others: Others) -> tuple[Circuit, list[Mapping[str, Any]]]:
    """The circuit with all nodes and edges of those others that fit, and these."""
    nodes = {node.id: node for node in circuit.nodes}
    edges = {(edge.source, edge.target): edge for edge in circuit.edges}
    drawn = []
    for one in others:
        if one["nodes"] is None:
            continue
        means = dict(zip(one["nodes"], one.get("means", ()), strict=False))  # earlier versions stored none
        more_nodes = {name: _node(name, means.get(name, math.nan), name in one["positions"]) for name in one["nodes"] if name not in nodes}
        more_edges = {(a, b): Edge(a, b, weight) for a, b, weight in one["edges"] if (a, b) not in edges}
        if len(nodes) + len(more_nodes) <= MOST_NODES and len(edges) + len(more_edges) <= MOST_EDGES:
            nodes, edges = nodes | more_nodes, edges | more_edges
            drawn.append(one)
    return replace(circuit, nodes=tuple(nodes.values()), edges=tuple(edges.values())), drawn


def _node(name: str, mean: float, position: bool) -> Node:
    site, _, channel = name.rpartition(".")
    return Node(name, site, int(channel), mean, position=position)


def _choice(circuit: Circuit, one: Mapping[str, Any], result: Mapping[str, Any], svg: int) -> dict[str, Any]:
    is_seed = one["seed"] != result["seed"]
    label = f"seed {one['seed']}" if is_seed else f"{one['standard']}, {one['target']:g} nats"
    met = "meets" if one["met"] else "does not meet"
    by = _BY[one["standard"]]
    words = f"{_size(circuit, one)} {nats(one['loss'])} nats on held-out pairs by {by}, {met} {one['target']:g}."
    if svg < 0:
        why, standard = "Too large to be drawn here.", (result.get("standards") or {}).get(one["standard"])
        if not is_seed and standard is not None and not standard.get("found", True):
            why += f" The search ended with it, and it counts as none: {why_no_circuit(standard)}."
        return {"label": label, "words": words, "svg": -1, "nodes": None, "edges": None, "why": why}
    nodes, edges = [visible(name) for name in one["nodes"]], [[visible(a), visible(b), float(f"{w:.4g}")] for a, b, w in one["edges"]]
    return {"label": label, "words": words, "svg": svg, "nodes": nodes, "edges": edges}


def _size(circuit: Circuit, one: Mapping[str, Any]) -> str:
    """'43 nodes, 60 edges: 17 nodes and 20 edges more than this page's circuit, 5 nodes and 3 edges of it less.'"""
    size = f"{count(one['size'][0], 'node')}, {count(one['size'][1], 'edge')}"
    if one["nodes"] is None:
        return f"{size}."
    nodes, edges = {node.id for node in circuit.nodes}, {(edge.source, edge.target) for edge in circuit.edges}
    own_nodes, own_edges = set(one["nodes"]), {(a, b) for a, b, _ in one["edges"]}
    more = f"{count(len(own_nodes - nodes), 'node')} and {count(len(own_edges - edges), 'edge')}"
    less = f"{count(len(nodes - own_nodes), 'node')} and {count(len(edges - own_edges), 'edge')}"
    return f"{size}. Not in the circuit of this page: {more} (dashed). Only in the circuit of this page: {less} (faded)."
