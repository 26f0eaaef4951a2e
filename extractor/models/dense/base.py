"""The interface of dense models: a list of sublayers that can be run from and to any residual.

Sublayer 2l is the attention of block l, 2l + 1 its MLP. Residual i is the stream before sublayer i, residual 2L the one before the final
norm. Where attention and MLP of a block read the same residual (a parallel block), the block is one sublayer, and L takes the place of 2L.
One file per architecture, named after Hugging Face's model_type, defines `DENSE`. Shapes: B sequences, T tokens, D dense width, M neurons,
V vocabulary, L layers.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from extractor.errors import UnsupportedModel, first_line
from extractor.models.dense.start import refused

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

ARCHITECTURES = "extractor.architectures"  # group of entry points
MODEL_TYPE = re.compile(r"[a-z][a-z0-9_-]{0,63}")

# Architectures without a file here whose attention and MLP read the same residual: always (""), or unless this field of their config is
# false.
PARALLEL = {
    "codegen": "",
    "cohere": "",
    "cohere2": "",
    "falcon": "parallel_attn",
    "gptj": "",
}


class Sublayers(Protocol):
    """The part of a dense or sparse model that `tail` uses."""

    @property
    def n_sublayers(self) -> int:
        """Number of sublayers, 2L, or L of parallel blocks."""

    def sublayer(self, index: int, h: Tensor, context: Any) -> Tensor:
        """Residual index + 1 from residual index, both (B, T, width)."""


class DenseSublayers(Protocol):
    """A frozen Hugging Face causal LM as sublayers. It calls the model's own modules, so results are bit-equal to model(ids, ...)."""

    n_sublayers: int
    width: int
    norms: tuple[str, ...]  # names of the modules that read the residual: those of a block in order, then the final one
    has_positions: bool  # whether absolute positions are added to the embedding

    def context(self, ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        """What sublayers need besides the residual, for one pass over ids (B, T); attention_mask (B, T) is 0 at padding.

        Without padding it serves any number of sequences of T tokens, with padding only these. Raises ValueError for more tokens than the
        model has positions.
        """

    def embed(self, ids: Tensor, context: Any) -> Tensor:
        """Residual 0, (B, T, D), from token ids (B, T)."""

    def sublayer(self, index: int, h: Tensor, context: Any) -> Tensor:
        """Residual index + 1 from residual index, both (B, T, D)."""

    def unembed(self, h: Tensor) -> Tensor:
        """Logits (..., V) from final residuals (..., D)."""

    def weights(self, context: int | None = None) -> GPTWeights | None:
        """The weights, to initialise a sparse model from; None where `GPTWeights` does not describe the blocks (`dense.start.obstacle`).

        context: the most tokens that are read at once; None: all positions of the model
        """


@dataclass(frozen=True)
class DenseContext:
    """Positions (1, T) of a pass, the causal mask for the model's attention, and what only some models have.

    rotary     angles (cos, sin)
    windowed   the mask of the layers whose attention sees a window of the last tokens
    """

    positions: Tensor
    mask: Tensor | None
    rotary: tuple[Tensor, Tensor] | None = None
    windowed: Tensor | None = None


@dataclass(frozen=True)
class Norm:
    """A norm's gain and bias, (D,) each; the bias of an RMSNorm is zero."""

    gain: Tensor
    bias: Tensor


@dataclass(frozen=True)
class BlockWeights:
    """One block of H heads of C channels. Matrices are (out, in): qkv (3HC, D) with rows q, k, v, attn_out (D, HC), fc (M, D), proj (D, M).

    gate, gate_bias         (M, D) and (M,) of a gated MLP, whose up is fc; None: it has none
    query_norm, key_norm    (C,) gains of the RMSNorms of every head's queries and keys; None: there are none
    """

    attn_norm: Norm
    mlp_norm: Norm
    qkv: Tensor
    qkv_bias: Tensor
    attn_out: Tensor
    attn_out_bias: Tensor
    fc: Tensor
    fc_bias: Tensor
    proj: Tensor
    proj_bias: Tensor
    gate: Tensor | None = None
    gate_bias: Tensor | None = None
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None


@dataclass(frozen=True)
class GPTWeights:
    """A GPT: norms before attention and MLP, scores q.k / sqrt(d_head).

    All fp32 and detached. They may share the model's memory: copy them, never write to them. embedding and unembedding are (V, D).

    positions      (n_ctx, D) added to the embedding; None: there are none
    centred        whether the norms are LayerNorms, which subtract the mean; else they are RMSNorms
    eps            of the norms
    activation     of the MLP, as a sparse GPT names it
    rotary         the angle by which each pair of a head's channels, c and c + pairs, turns per token, radians; (): positions do not turn
    rotary_scale   factor of turned queries and keys
    logits_bias    (V,), None: there is none
    """

    embedding: Tensor
    positions: Tensor | None
    unembedding: Tensor
    d_head: int
    final_norm: Norm
    blocks: tuple[BlockWeights, ...]
    centred: bool = True
    eps: float = 1e-5
    activation: str = "gelu_tanh"
    rotary: tuple[float, ...] = ()
    rotary_scale: float = 1.0
    logits_bias: Tensor | None = None


def causal_context(
    config: PreTrainedConfig, embedding: nn.Embedding, ids: Tensor, attention_mask: Tensor | None, has_windows: bool = False
) -> DenseContext:
    """Positions and masks as Hugging Face's decoders compute them; `embedding` gives dtype and device.

    has_windows   whether some layers see a window of config.sliding_window tokens
    """
    import torch
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

    if attention_mask is not None and bool(attention_mask.all()):
        attention_mask = None
    rows, tokens = (1 if attention_mask is None else len(ids)), ids.shape[1]
    positions = torch.arange(tokens, device=ids.device).unsqueeze(0)
    # It reads only shape, dtype and device of the embeddings. GPT-2's eager attention is not causal without a mask; this returns None
    # only where the kernel is causal by itself.
    given: dict[str, Any] = {
        "config": config,
        "inputs_embeds": embedding.weight.new_empty((rows, tokens, 0), device=ids.device),
        "attention_mask": attention_mask,
        "past_key_values": None,
        "position_ids": positions,
    }
    mask: Any = create_causal_mask(**given)
    windowed: Any = create_sliding_window_causal_mask(**given) if has_windows else None
    return DenseContext(positions, mask, windowed=windowed)


def residuals(dense: DenseSublayers, ids: Tensor, attention_mask: Tensor | None = None) -> list[Tensor]:
    """All residuals (B, T, D) of a pass over ids (B, T), one more than there are sublayers."""
    context = dense.context(ids, attention_mask)
    found = [dense.embed(ids, context)]
    for index in range(dense.n_sublayers):
        found.append(dense.sublayer(index, found[-1], context))
    return found


def tail(model: Sublayers, start: int, h: Tensor, context: Any, stop: int | None = None) -> Tensor:
    """Run the sublayers from `start` on residual h (B, T, width); returns residual `stop` (None: the final one)."""
    for index in range(start, model.n_sublayers if stop is None else stop):
        h = model.sublayer(index, h, context)
    return h


def wrap_dense(model: PreTrainedModel) -> DenseSublayers:
    """A model as sublayers, by its model_type. Raises UnsupportedModel for architectures that are not supported."""
    name, config = model.config.model_type, model.config.to_dict()
    if name not in dense_types():
        raise unsupported(name, config)
    if why := refused(name, config):
        raise UnsupportedModel(f"this {name} cannot be bridged: {why}; choose another model of its family")
    return dense_class(name)(model)


def norms_of(model_type: str) -> tuple[str, ...]:
    """The `norms` of a supported model_type."""
    return dense_class(model_type).norms


def dense_types() -> tuple[str, ...]:
    """The supported model_types: those with a file here, and those of installed packages. Imports neither torch nor a package."""
    return tuple(sorted({*_own_types(), *installed_architectures()}))


@cache
def _own_types() -> tuple[str, ...]:
    """The model_types with a file here, read as text."""
    return tuple(sorted(file.stem for file in Path(__file__).parent.glob("*.py") if "\nDENSE = " in file.read_text(encoding="utf-8")))


def installed_architectures() -> dict[str, EntryPoint]:
    """{model_type: entry point} of installed packages; a model_type with a file here, or of two packages, is left out.

    An entry point of the group `extractor.architectures` is named after the model_type, and names a class like those here, or a module with
    such a class as its `DENSE`.
    """
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=ARCHITECTURES):
        if MODEL_TYPE.fullmatch(entry.name) and entry.name not in _own_types():
            found.setdefault(entry.name, []).append(entry)
    return {name: entries[0] for name, entries in found.items() if len(entries) == 1}


def dense_class(model_type: str) -> Any:
    """The class that makes sublayers of a supported model_type. Raises UnsupportedModel where an installed package has none."""
    if model_type in _own_types():
        return importlib.import_module(f"extractor.models.dense.{model_type}").DENSE
    entry = installed_architectures()[model_type]
    try:
        value = entry.load()
        found = value.DENSE if isinstance(value, ModuleType) else value
        if not isinstance(found.norms, tuple):
            raise TypeError(f"{entry.value} has no tuple `norms`")
    except Exception as error:  # code of a third party may raise anything
        package = entry.dist.name if entry.dist else "an installed package"
        raise UnsupportedModel(
            f"the architecture {model_type!r} of {package} cannot be used: {type(error).__name__}: {first_line(error)}"
        ) from None
    return found


def unsupported(model_type: str, config: Mapping[str, Any]) -> UnsupportedModel:
    """The error for a model_type without a file here; config as in config.json."""
    supported = ", ".join(dense_types())
    if model_type in PARALLEL and config.get(PARALLEL[model_type], True):
        return UnsupportedModel(
            f"models of type {model_type!r} compute attention and MLP from the same residual (parallel residual) and are not supported; "
            f"choose one of type {supported}"
        )
    return UnsupportedModel(f"models of type {model_type!r} cannot be bridged: not supported yet; choose one of type {supported}")
