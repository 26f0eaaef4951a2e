"""A circuit as a value: nodes, exact edges, calibration. Once built it needs no model.

An edge is a nonzero weight between two kept nodes: act_in -> q, k, v; v -> attn.resid_delta (through the output projection);
mlp.act_in -> post_act; post_act -> mlp.resid_delta. A write and a later read of one residual channel meet without a weight, q and k meet
inside a head: neither is an edge. The smallest MLP circuit is 3 nodes and 2 edges. Position channels are nodes of the reads that nothing
in the residual stream writes. Paper: Sec. 2.2.
"""

from __future__ import annotations

import difflib
import html
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from extractor.circuits.guesses import no_attribute
from extractor.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

_INSTEAD = {  # what users guess of a circuit: what does it
    **dict.fromkeys(("draw", "plot", "show", "svg", "open"), "result.picture, which a notebook shows, or result.open()"),
    **dict.fromkeys(("run", "forward", "predict"), "result.run(prompt)"),
    **dict.fromkeys(("loss", "accuracy", "effects"), "result.loss, result.accuracy, result.effects()"),
    **dict.fromkeys(("ids", "names", "node_ids", "keys"), "[node.id for node in circuit]"),
    **dict.fromkeys(("graph", "to_graph", "adjacency"), "circuit.to_networkx()"),
    **dict.fromkeys(("to_pandas", "df", "dataframe"), "circuit.to_frame() or circuit.to_frame('nodes')"),
    **dict.fromkeys(("predecessors", "parents", "inputs"), "circuit.into(node)"),
    **dict.fromkeys(("successors", "children", "outputs"), "circuit.out_of(node)"),
}


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
    parallel: bool = False  # attention and MLP of a block read the same residual

    def __repr__(self) -> str:
        return f"Circuit({self.task} in {self.model}: {len(self.nodes)} nodes, {len(self.edges)} edges)"

    if not TYPE_CHECKING:  # for which every name would exist

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name, _INSTEAD)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        """The number of nodes."""
        return len(self.nodes)

    def __bool__(self) -> bool:
        """True: a circuit without nodes is one, too."""
        return True

    def __contains__(self, node: str | Node) -> bool:
        return node_id_of(node) in {one.id for one in self.nodes}

    def __getitem__(self, node: str | Node) -> Node:
        """The node with this id. Raises UsageError, with similar ids."""
        by_id, wanted = {one.id: one for one in self.nodes}, node_id_of(node)
        if wanted not in by_id:
            raise UsageError(
                f"node {wanted!r} is not in the circuit of {self.task!r} ({len(by_id)} nodes); close: {similar(wanted, by_id)}"
            )
        return by_id[wanted]

    def into(self, node: str | Node) -> tuple[Edge, ...]:
        """The edges that end at a node, the largest weight first."""
        target = self[node].id
        return self._sorted(edge for edge in self.edges if edge.target == target)

    def out_of(self, node: str | Node) -> tuple[Edge, ...]:
        """The edges that begin at a node, the largest weight first."""
        source = self[node].id
        return self._sorted(edge for edge in self.edges if edge.source == source)

    @staticmethod
    def _sorted(edges: Iterable[Edge]) -> tuple[Edge, ...]:
        return tuple(sorted(edges, key=lambda edge: -abs(edge.weight)))

    def to_frame(self, of: str = "edges") -> Any:
        """A pandas DataFrame with a row for each edge (source, target, weight), or with of='nodes' for each node (its fields).

        Raises ModuleNotFoundError where pandas is not installed, UsageError for another `of`.
        """
        if of not in ("edges", "nodes"):
            raise UsageError(f"a circuit is a table of 'edges' or of 'nodes', not of {of!r}")
        import pandas

        kind, rows = (Edge, self.edges) if of == "edges" else (Node, self.nodes)
        return pandas.DataFrame([asdict(row) for row in rows], columns=[field.name for field in fields(kind)])

    def to_networkx(self) -> Any:
        """A networkx DiGraph: nodes with site, channel, mean, reads, writes; edges with weight."""
        import networkx

        graph = networkx.DiGraph(model=self.model, task=self.task)
        for node in self.nodes:
            texts = {"reads": " ".join(node.reads), "writes": " ".join(node.writes)}  # formats of files have no lists
            graph.add_node(node.id, site=node.site, channel=node.channel, mean=node.mean, position=node.position, **texts)
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
        """The content of circuit.json; `parallel` is there only where it is true."""
        found = asdict(self)
        return found if self.parallel else {name: part for name, part in found.items() if name != "parallel"}

    @classmethod
    def from_json(cls, data: dict) -> Circuit:
        nodes = tuple(Node(**{**n, "reads": tuple(n["reads"]), "writes": tuple(n["writes"])}) for n in data["nodes"])
        edges = tuple(Edge(**e) for e in data["edges"])
        answers, answer_ids = tuple(data["answers"]), tuple(data["answer_ids"])
        calibration = Calibration(**data["calibration"])
        return cls(data["model"], data["task"], answers, answer_ids, nodes, edges, calibration, bool(data.get("parallel")))


def similar(wanted: str, ids: Iterable[str]) -> str:
    """The ids that are most like `wanted`, at most three; the first three where none is."""
    known = list(ids)
    return ", ".join(difflib.get_close_matches(wanted, known, 3, 0.4) or known[:3])


def node_id_of(node: object) -> str:
    """The id of a node that is given by its id or as a Node. Raises UsageError for anything else."""
    found = node.id if isinstance(node, Node) else node
    if not isinstance(found, str):
        raise UsageError(f"a node is an id such as '0.mlp.post_act.12' or a Node, not {type(node).__name__}")
    return found


def node_ids_of(nodes: str | Node | Iterable[str | Node]) -> list[str]:
    """The ids of one node or of several. Raises UsageError for what is none."""
    if isinstance(nodes, str | Node):
        return [node_id_of(nodes)]
    if not isinstance(nodes, Iterable):
        raise UsageError(f"nodes are given as ids or Nodes, not as {type(nodes).__name__}")
    return [node_id_of(node) for node in nodes]


def sites_of(nodes: Iterable[Node]) -> dict[str, list[Node]]:
    """Nodes grouped by site, in the order given."""
    found: dict[str, list[Node]] = {}
    for node in nodes:
        found.setdefault(node.site, []).append(node)
    return found
