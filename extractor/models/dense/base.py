"""What a dense model offers to the bridges: the list of its sublayers, entered and left at any residual.

Sublayer 2i is block i's attention, 2i + 1 its MLP. Residual i is the stream before sublayer i, residual 2L the one before the final norm.
One file per architecture, named after Hugging Face's model_type, defines `DENSE`. B rows, T tokens, D width, M neurons, V vocabulary.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from extractor.errors import UnsupportedModel

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

# Families that feed attention and MLP the same residual: always (""), or unless this field of their config is false.
PARALLEL = {
    "codegen": "",
    "cohere": "",
    "cohere2": "",
    "falcon": "parallel_attn",
    "gpt_neox": "use_parallel_residual",
    "gptj": "",
    "phi": "",
}


class Sublayers(Protocol):
    """What `tail` needs of a model, dense or sparse."""

    @property
    def n_sublayers(self) -> int:
        """How many there are."""

    def sublayer(self, index: int, h: Tensor, context: Any) -> Tensor:
        """Residual index + 1 from residual index, both (B, T, width)."""


class DenseSublayers(Protocol):
    """A frozen Hugging Face causal LM as sublayers, by direct calls to its own modules: bit-equal to model(ids, attention_mask=...)."""

    n_sublayers: int
    width: int
    norms: tuple[str, ...]  # names of the modules that read the residual: those of a block in order, then the final one
    has_positions: bool  # whether absolute positions are added to the embedding

    def context(self, ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        """What sublayers need besides the residual, once per pass of ids (B, T). attention_mask (B, T) is 0 at padding.

        Without padding it serves any number of rows of T tokens, with padding exactly these. Raises ValueError for more tokens than the
        model has positions.
        """

    def embed(self, ids: Tensor, context: Any) -> Tensor:
        """Residual 0, (B, T, D), from token ids (B, T)."""

    def sublayer(self, index: int, h: Tensor, context: Any) -> Tensor:
        """Residual index + 1 from residual index, both (B, T, D)."""

    def unembed(self, h: Tensor) -> Tensor:
        """Logits (..., V) from final residuals (..., D)."""

    def weights(self) -> GPTWeights | None:
        """The weights in a neutral layout, for starting a sparse model from them; None where the blocks are not those of `GPTWeights`."""


@dataclass(frozen=True)
class Context:
    """A pass's positions (1, T), its causal mask as the model's attention takes it, and rotary angles (cos, sin) where it has them."""

    positions: Tensor
    mask: Tensor | None
    rotary: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Norm:
    """A LayerNorm's gain and bias, (D,) each."""

    gain: Tensor
    bias: Tensor


@dataclass(frozen=True)
class BlockWeights:
    """One block. Matrices are (out, in): qkv (3D, D) with rows q, k, v, attn_out (D, D), fc (M, D), proj (D, M)."""

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


@dataclass(frozen=True)
class GPTWeights:
    """A GPT-2: LayerNorms before attention and a GELU MLP, scores q.k / sqrt(d_head), positions (n_ctx, D) added to the embedding.

    All fp32 and detached. They may share the model's memory: copy them, never write to them. embedding and unembedding are (V, D).
    """

    embedding: Tensor
    positions: Tensor
    unembedding: Tensor
    d_head: int
    final_norm: Norm
    blocks: tuple[BlockWeights, ...]


def causal_context(config: PreTrainedConfig, embedding: nn.Embedding, ids: Tensor, attention_mask: Tensor | None) -> Context:
    """Positions and mask as Hugging Face's decoders make them; `embedding` tells the dtype of residual 0."""
    import torch
    from transformers.masking_utils import create_causal_mask

    if attention_mask is not None and bool(attention_mask.all()):
        attention_mask = None
    rows, tokens = (1 if attention_mask is None else len(ids)), ids.shape[1]
    positions = torch.arange(tokens, device=ids.device).unsqueeze(0)
    # Of the embeddings only rows, tokens, dtype and device are read. GPT-2's eager attention is not causal without a mask; this returns
    # None only where the kernel is causal by itself.
    mask: Any = create_causal_mask(
        config=config,
        inputs_embeds=embedding.weight.new_empty((rows, tokens, 0), device=ids.device),
        attention_mask=attention_mask,
        past_key_values=None,
        position_ids=positions,
    )
    return Context(positions, mask)


def residuals(dense: DenseSublayers, ids: Tensor, attention_mask: Tensor | None = None) -> list[Tensor]:
    """All 2L + 1 residuals (B, T, D) of one pass."""
    context = dense.context(ids, attention_mask)
    found = [dense.embed(ids, context)]
    for index in range(dense.n_sublayers):
        found.append(dense.sublayer(index, found[-1], context))
    return found


def tail(model: Sublayers, start: int, h: Tensor, context: Any, stop: int | None = None) -> Tensor:
    """Residual `stop` (the final one if None) from h, taken as residual `start`."""
    for index in range(start, model.n_sublayers if stop is None else stop):
        h = model.sublayer(index, h, context)
    return h


def wrap_dense(model: PreTrainedModel) -> DenseSublayers:
    """The sublayer view of a model, by its model_type. Raises UnsupportedModel for families without a file here."""
    name = model.config.model_type
    if name not in dense_types():
        raise unsupported(name, model.config.to_dict())
    return importlib.import_module(f"extractor.models.dense.{name}").DENSE(model)


def norms_of(model_type: str) -> tuple[str, ...]:
    """The `norms` of a model_type that has a file here."""
    return importlib.import_module(f"extractor.models.dense.{model_type}").DENSE.norms


def dense_types() -> tuple[str, ...]:
    """The model_types with a file here. Reads the files' text, so that no torch is imported."""
    return tuple(sorted(file.stem for file in Path(__file__).parent.glob("*.py") if "\nDENSE = " in file.read_text(encoding="utf-8")))


def unsupported(model_type: str, config: Mapping[str, Any]) -> UnsupportedModel:
    """The error for a model_type without a file here; config as in config.json."""
    supported = ", ".join(dense_types())
    if model_type in PARALLEL and config.get(PARALLEL[model_type], True):
        return UnsupportedModel(
            f"models of type {model_type!r} compute attention and MLP from the same residual (parallel residual): there is no residual "
            f"between them for a bridge; choose a sequential model (supported: {supported})"
        )
    return UnsupportedModel(f"models of type {model_type!r} cannot be bridged: not supported yet; choose one of type {supported}")
