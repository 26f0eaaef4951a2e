"""The shape of the sparse model beside a dense one. No torch, no model."""

from __future__ import annotations

from typing import Protocol

from extractor.spec.schema import BridgeSpec, SparseModelSpec


class DenseSizes(Protocol):
    """What a dense model and the sparse model beside it may share; implemented by `models.shape.DenseShape`.

    heads           of queries; where they are grouped, every head of the sparse model has keys and values of its own
    has_positions   whether absolute positions are added to the embedding
    """

    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def d_head(self) -> int: ...
    @property
    def neurons(self) -> int: ...
    @property
    def gated(self) -> bool: ...
    @property
    def has_positions(self) -> bool: ...


def shape_beside(spec: BridgeSpec, dense: DenseSizes) -> SparseModelSpec:
    """The shape of the sparse model beside a dense one of these sizes: that of the spec, with the values that both must share.

    The table of positions has as many rows as the training's context has tokens; further rows would never be trained.
    """
    shape, positions = spec.model, dense.has_positions and not spec.model.d_pos_emb
    shared: dict = {"added_positions": positions, "n_ctx": spec.optim.context if positions else shape.n_ctx}
    if spec.init == "dense":
        width = -(-max(shape.d_model, dense.width) // dense.d_head) * dense.d_head
        shared |= {"sinks": False, "d_head": dense.d_head, "d_model": width, "gated": dense.gated}
        if dense.heads * dense.d_head != dense.width:
            shared["heads"] = max(dense.heads, width // dense.d_head)
        if spec.layers is not None:  # nothing is learned beside these layers
            shared["bigram"] = "none"
        if dense.neurons != 4 * dense.width and shape.mlp_ratio == 4 and shape.neurons is None:  # of no GPT-2's MLP
            shared["neurons"] = max(1, round(dense.neurons * width / dense.width))
    return shape.model_copy(update=shared)
