"""The part of a large circuit that a picture shows: its largest weights, and the nodes that they join."""

from __future__ import annotations

import math
from dataclasses import replace

from extractor.circuits.circuit import Circuit, Edge

MAX_EDGES, MAX_NODES = 4000, 1500  # more take minutes to arrange and draw, and are unreadable


def shown_part(circuit: Circuit) -> Circuit:
    """The circuit itself where it is small enough, else its edges of largest weight with their nodes, in the circuit's own order."""
    if len(circuit.edges) <= MAX_EDGES and len(circuit.nodes) <= MAX_NODES:
        return circuit
    known, chosen = {node.id for node in circuit.nodes}, set[str]()
    edges: list[Edge] = []
    strongest = sorted(circuit.edges, key=lambda e: (-abs(e.weight) if math.isfinite(e.weight) else 0.0, e.source, e.target))
    for edge in strongest:
        ends = {edge.source, edge.target}
        if ends <= known and len(edges) < MAX_EDGES and len(chosen | ends) <= MAX_NODES:
            chosen |= ends
            edges.append(edge)
    rest = (node.id for node in circuit.nodes if node.id not in chosen)
    chosen |= {name for name, _ in zip(rest, range(MAX_NODES - len(chosen)), strict=False)}
    kept = set(edges)
    return replace(
        circuit,
        nodes=tuple(node for node in circuit.nodes if node.id in chosen),
        edges=tuple(edge for edge in circuit.edges if edge in kept),
    )


def part_note(circuit: Circuit, shown: Circuit) -> str:
    """'shown: 4,000 edges of largest weight, 1,500 nodes'; '' where all is shown."""
    if shown is circuit:
        return ""
    edges = f"the {len(shown.edges):,} edges of largest weight" if len(shown.edges) < len(circuit.edges) else "all edges"
    nodes = f"{len(shown.nodes):,} nodes" if len(shown.nodes) < len(circuit.nodes) else "all nodes"
    return f"shown: {edges}, {nodes}"
