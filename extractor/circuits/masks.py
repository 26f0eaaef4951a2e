"""What the fast and the reference implementation of a masked model share: mask sets, the protocol, AbsTopK among the nodes that are on.

Shapes: P mask sets, N nodes, B prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from extractor.circuits.graph import Link
from extractor.data.prompts import TaskBatch
from extractor.sparse.abs_topk import kth_magnitude


@dataclass(frozen=True)
class Masks:
    """P mask sets: 1 on, 0 ablated, or between. None: all on.

    nodes   (P, N)
    edges   per link (P, kept target nodes, kept source nodes), as `MaskedModel.cut` makes them
    """

    nodes: Tensor | None = None
    edges: Mapping[Link, Tensor] | None = None


class MaskedModel(Protocol):
    """A model that computes the nodes in `kept_nodes` (N,) bool under mask sets, and ablates all other nodes.

    Implemented by `network.FastMaskedModel`, `prompt_network.PromptMaskedModel` and `reference.ReferenceMaskedModel`.
    """

    kept_nodes: Tensor

    def __len__(self) -> int:
        """Number of kept nodes."""

    def prepare(self, batch: TaskBatch) -> Any:
        """The part of a batch's computation that does not depend on masks."""

    def logit_diffs(self, prompts: Any, masks: Masks = Masks()) -> Tensor:
        """Logit differences (P, 2 x pairs), in the batch's order. Differentiable in the masks."""

    def cut(self, edges: Mapping[Link, Tensor]) -> dict[Link, Tensor]:
        """Edge masks (..., target width, source width) per link, cut to the kept nodes."""


def cut_edges(edges: Mapping[Link, Tensor], channels: Mapping[str, Tensor]) -> dict[Link, Tensor]:
    """Edge masks (..., target width, source width) per link, cut to these channels of each site."""
    return {(source, target): mask[..., channels[target][:, None], channels[source]] for (source, target), mask in edges.items()}


def compete(x: Tensor, on: Tensor, k: int) -> Tensor:
    """AbsTopK of x (..., n) among the nodes that are on; an ablated node's value stays if it would stay, were the node on.

    on (..., n) bool, broadcastable to x. Gradients flow to the values that stay.
    """
    if int(on.sum(-1).max()) < k or x.shape[-1] <= k:
        return x
    return x * (x.detach().abs() >= kth_magnitude(x * on, k))
