"""What the fast and the reference implementation of a masked model share: mask sets, the protocol, AbsTopK among kept nodes."""

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
    """P mask sets. nodes (P, N); edges per link (P, kept targets, kept sources), as `Network.cut` makes them. None: all on."""

    nodes: Tensor | None = None
    edges: Mapping[Link, Tensor] | None = None


class MaskedModel(Protocol):
    """What `network.FastMaskedModel` and `reference.ReferenceMaskedModel` offer. kept (N,) bool: the nodes that are computed."""

    kept: Tensor

    def __len__(self) -> int:
        """How many they are."""

    def prepare(self, batch: TaskBatch) -> Any:
        """What of a batch does not depend on masks."""

    def logit_diffs(self, prompts: Any, masks: Masks = Masks()) -> Tensor:
        """Logit differences (P, 2 x pairs), in the batch's order. Differentiable in the masks."""

    def cut(self, edges: Mapping[Link, Tensor]) -> dict[Link, Tensor]:
        """Edge masks (..., target width, source width) per link, cut to the kept nodes."""


def compete(x: Tensor, on: Tensor, k: int) -> Tensor:
    """x (..., n) after AbsTopK among the nodes that are on; a value whose node is off stays where it would, were the node on.

    on (..., n) bool, broadcastable to x. Gradients flow to the values that stay.
    """
    if int(on.sum(-1).max()) < k or x.shape[-1] <= k:
        return x
    return x * (x.detach().abs() >= kth_magnitude(x * on, k))
