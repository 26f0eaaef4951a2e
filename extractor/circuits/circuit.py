"""A circuit as a value: nodes, exact edges, calibration. Once built it needs no model.

An edge is a nonzero weight between two kept nodes: act_in -> q, k, v; v -> attn.resid_delta (through the output projection);
mlp.act_in -> post_act; post_act -> mlp.resid_delta. A write and a later read of one residual channel meet without a weight, q and k meet
inside a head: neither is an edge. The smallest MLP circuit is 3 nodes and 2 edges. Position channels are nodes of the reads that nothing
in the residual stream writes. Paper: Sec. 2.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

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
