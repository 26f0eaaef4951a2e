"""Small circuits with random and planted edges, and result folders that hold them: for tests of motifs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from extractor import files
from extractor.circuits.circuit import Calibration, Circuit, Edge, Node

WIDTH = 4  # channels per head
WEIGHTS = [("attn.act_in", f"attn.{name}") for name in "qkv"] + [
    ("attn.v", "attn.resid_delta"),
    ("mlp.act_in", "mlp.post_act"),
    ("mlp.post_act", "mlp.resid_delta"),
]
Ends = Sequence[tuple[str, str, float]]
SMALL = [
    ("0.attn.act_in.9", "0.attn.q.1", 0.5),
    ("0.attn.act_in.9", "0.attn.k.1", -0.5),
    ("0.attn.act_in.9", "0.attn.v.2", 0.5),
    ("0.attn.v.2", "0.attn.resid_delta.3", 0.5),
    ("0.attn.v.6", "0.attn.resid_delta.3", -0.5),
    ("0.mlp.act_in.3", "0.mlp.post_act.0", -0.5),
]


def circuit_of(edges: Ends, alone: Sequence[str] = (), positions: Sequence[str] = ()) -> Circuit:
    """The circuit with these edges, and nodes without one."""
    ids = dict.fromkeys([*(end for edge in edges for end in edge[:2]), *alone])
    nodes = tuple(Node(one, one.rpartition(".")[0], int(one.rpartition(".")[2]), 0.0, position=one in positions) for one in ids)
    return Circuit("m", "t", (" a", " b"), (1, 2), nodes, tuple(Edge(*edge) for edge in edges), Calibration(1.0, 0.0))


def random_edges(seed: int, size: int, layers: int = 2, channels: int = 6) -> list[tuple[str, str, float]]:
    draw = random.Random(seed)
    found: dict[tuple[str, str], float] = {}
    while len(found) < size:
        layer, (source, target) = draw.randrange(layers), draw.choice(WEIGHTS)
        ends = (f"{layer}.{source}.{draw.randrange(channels)}", f"{layer}.{target}.{draw.randrange(channels)}")
        found[ends] = draw.choice([-1, 1]) * draw.uniform(0.1, 1)
    return [(*ends, weight) for ends, weight in found.items()]


def folder_of(place: Path, circuits: dict[str, Circuit], model: str = "0", config: object = None) -> Path:
    """A result folder with what motifs are made from."""
    for task, circuit in circuits.items():
        (place / "circuits" / task).mkdir(parents=True)
        files.write_json(place / "circuits" / task / "circuit.json", circuit.to_json())
    (place / "model").mkdir(parents=True)
    files.write_json(place / "model" / "config.json", {"d_head": WIDTH} if config is None else config)
    files.write_json(place / "manifest.json", {"version": 1, "files": {"model/model.safetensors": {"sha256": model, "bytes": 1}}})
    return place


def planted() -> list[tuple[str, str, float]]:
    """Twelve triangles, each of its own read, among random edges to values and neurons."""
    edges = [(f"0.attn.act_in.{i}", f"0.attn.{name}.{i}", 0.5) for i in range(12) for name in "qk"]
    return edges + [edge for edge in random_edges(2, 90, channels=10) if not edge[1].rpartition(".")[0].endswith(("q", "k"))]
