"""A circuit as a value: nodes, exact edges, calibration. Once built it needs no model.

An edge is a nonzero weight between two kept nodes: act_in -> q, k, v; v -> attn.resid_delta (through the output projection);
mlp.act_in -> post_act; post_act -> mlp.resid_delta. A write and a later read of one residual channel meet without a weight, q and k meet
inside a head: neither is an edge. The smallest MLP circuit is 3 nodes and 2 edges. Position channels are nodes of the reads that nothing
in the residual stream writes. Paper: Sec. 2.2.
"""

from __future__ import annotations

import difflib
import html
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Node:
    """id '0.mlp.post_act.12'; `mean` is its value when ablated; `reads` and `writes` say in tokens what it responds to and promotes.

    position: a position channel of a read; it has no residual source, and `reads` gives positions in the prompt instead of tokens.
    """

    id: str
    site: str
    channel: int
    mean: float
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    position: bool = False


@dataclass(frozen=True)
class Edge:
    source: str
    target: str
    weight: float


@dataclass(frozen=True)
class Calibration:
    """Calibrated logit difference = scale * diff + shift, the logit difference being first answer's logit minus second answer's."""

    scale: float
    shift: float

    def apply(self, diff: Tensor) -> Tensor:
        """Calibrated logit differences, of any shape."""
        return self.scale * diff + self.shift


@dataclass(frozen=True)
class Circuit:
    """`answers` are the two answers, first and second; `answer_ids` their tokens. Both are () where every pair of prompts has its own."""

    model: str
    task: str
    answers: tuple[str, str] | tuple[()]
    answer_ids: tuple[int, int] | tuple[()]
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    calibration: Calibration

    def __repr__(self) -> str:
        return f"Circuit({self.task} in {self.model}: {len(self.nodes)} nodes, {len(self.edges)} edges)"

    def __getitem__(self, node: str) -> Node:
        """The node with this id. Raises KeyError, with similar ids."""
        by_id = {one.id: one for one in self.nodes}
        if node not in by_id:
            close = ", ".join(difflib.get_close_matches(node, [*by_id], 3, 0.4))
            raise KeyError(f"no node {node!r} in this circuit of {len(by_id)} nodes" + (f"; close: {close}" if close else ""))
        return by_id[node]

    def into(self, node: str) -> tuple[Edge, ...]:
        """The edges that end at a node, the largest weight first."""
        target = self[node].id
        return self._sorted(edge for edge in self.edges if edge.target == target)

    def out_of(self, node: str) -> tuple[Edge, ...]:
        """The edges that begin at a node, the largest weight first."""
        source = self[node].id
        return self._sorted(edge for edge in self.edges if edge.source == source)

    @staticmethod
    def _sorted(edges: Iterable[Edge]) -> tuple[Edge, ...]:
        return tuple(sorted(edges, key=lambda edge: -abs(edge.weight)))

    def to_frame(self) -> Any:
        """The edges as a pandas DataFrame: source, target, weight. Raises ModuleNotFoundError where pandas is not installed."""
        import pandas

        return pandas.DataFrame([asdict(edge) for edge in self.edges], columns=["source", "target", "weight"])

    def to_networkx(self) -> Any:
        """A networkx DiGraph: nodes with site, channel, mean, reads, writes; edges with weight."""
        import networkx

        graph = networkx.DiGraph(model=self.model, task=self.task)
        for node in self.nodes:
            graph.add_node(node.id, **{name: value for name, value in asdict(node).items() if name != "id"})
        graph.add_edges_from((edge.source, edge.target, {"weight": edge.weight}) for edge in self.edges)
        return graph

    def _repr_html_(self) -> str:
        """The nodes with what they read and write, in forward order."""
        cells = (
            (node.id, f"{node.mean:.3f}", " ".join(node.reads), " ".join(node.writes), len(self.into(node.id)), len(self.out_of(node.id)))
            for node in self.nodes
        )
        rows = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in cells)
        head = "".join(f"<th>{name}</th>" for name in ("node", "mean", "reads", "writes", "edges in", "edges out"))
        return f"<p>{html.escape(repr(self)[8:-1])}</p><table><tr>{head}</tr>{rows}</table>"

    def to_json(self) -> dict:
        """The content of circuit.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> Circuit:
        nodes = tuple(Node(**{**n, "reads": tuple(n["reads"]), "writes": tuple(n["writes"])}) for n in data["nodes"])
        edges = tuple(Edge(**e) for e in data["edges"])
        answers, answer_ids = tuple(data["answers"]), tuple(data["answer_ids"])
        return cls(data["model"], data["task"], answers, answer_ids, nodes, edges, Calibration(**data["calibration"]))


def sites_of(nodes: Iterable[Node]) -> dict[str, list[Node]]:
    """Nodes grouped by site, in the order given."""
    found: dict[str, list[Node]] = {}
    for node in nodes:
        found.setdefault(node.site, []).append(node)
    return found
