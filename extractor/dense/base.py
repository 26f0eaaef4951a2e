"""What a dense model offers to the bridges: the list of its sublayers, entered and left at any residual.

Sublayer 2i is block i's attention, 2i + 1 its MLP. Residual i is the stream before sublayer i, residual 2L the one before the final norm.
One file per architecture, named after Hugging Face's model_type, defines `DENSE`.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Protocol

from extractor.errors import UnsupportedModel

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class DenseSublayers(Protocol):
    """A frozen Hugging Face model as sublayers. D is its width."""

    n_sublayers: int
    width: int

    def embed(self, ids: Tensor) -> Tensor:
        """Residual 0, (B, T, D), from token ids (B, T)."""

    def mask(self, h: Tensor) -> Tensor | None:
        """The causal mask for residuals of this shape, in the form `sublayer` takes."""

    def sublayer(self, index: int, h: Tensor, mask: Tensor | None) -> Tensor:
        """Residual index + 1 from residual index."""

    def unembed(self, h: Tensor) -> Tensor:
        """Logits (..., V) from final residuals (..., D)."""


def residuals(dense: DenseSublayers, ids: Tensor) -> list[Tensor]:
    """All 2L + 1 residuals (B, T, D) of one pass."""
    h = dense.embed(ids)
    mask = dense.mask(h)
    found = [h]
    for index in range(dense.n_sublayers):
        found.append(dense.sublayer(index, found[-1], mask))
    return found


def wrap_dense(model: PreTrainedModel) -> DenseSublayers:
    """The sublayer view of a model, by its model_type. Raises UnsupportedModel for families without a file here."""
    name = model.config.model_type
    if not name.isidentifier() or importlib.util.find_spec(f"extractor.dense.{name}") is None:
        raise UnsupportedModel(f"models of type {name!r} cannot be bridged; supported: gpt2")
    return importlib.import_module(f"extractor.dense.{name}").DENSE(model)
