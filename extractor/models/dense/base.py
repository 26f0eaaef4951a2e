"""The interface of dense models: a list of sublayers that can be run from and to any residual.

Sublayer 2l is the attention of block l, 2l + 1 its MLP. Residual i is the stream before sublayer i, residual 2L the one before the final
norm. One file per architecture, named after Hugging Face's model_type, defines `DENSE`. Shapes: B sequences, T tokens, D dense width,
M neurons, V vocabulary, L layers.
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

# Architectures whose attention and MLP read the same residual: always (""), or unless this field of their config is false.
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
    """The part of a dense or sparse model that `tail` uses."""

    @property
    def n_sublayers(self) -> int:
        """Number of sublayers, 2L."""

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
    """Positions (1, T) of a pass, the causal mask for the model's attention, and rotary angles (cos, sin) where it has them."""

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


def causal_context(config: PreTrainedConfig, embedding: nn.Embedding, ids: Tensor, attention_mask: Tensor | None) -> DenseContext:
    """Positions and mask as Hugging Face's decoders compute them; `embedding` gives dtype and device."""
    import torch
    from transformers.masking_utils import create_causal_mask

    if attention_mask is not None and bool(attention_mask.all()):
        attention_mask = None
    rows, tokens = (1 if attention_mask is None else len(ids)), ids.shape[1]
    positions = torch.arange(tokens, device=ids.device).unsqueeze(0)
    # It reads only shape, dtype and device of the embeddings. GPT-2's eager attention is not causal without a mask; this returns None
    # only where the kernel is causal by itself.
    mask: Any = create_causal_mask(
        config=config,
        inputs_embeds=embedding.weight.new_empty((rows, tokens, 0), device=ids.device),
        attention_mask=attention_mask,
        past_key_values=None,
        position_ids=positions,
    )
    return DenseContext(positions, mask)


def residuals(dense: DenseSublayers, ids: Tensor, attention_mask: Tensor | None = None) -> list[Tensor]:
    """All 2L + 1 residuals (B, T, D) of a pass over ids (B, T)."""
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
    """A model as sublayers, by its model_type. Raises UnsupportedModel for architectures without a file here."""
    name = model.config.model_type
    if name not in dense_types():
        raise unsupported(name, model.config.to_dict())
    return importlib.import_module(f"extractor.models.dense.{name}").DENSE(model)


def norms_of(model_type: str) -> tuple[str, ...]:
    """The `norms` of a model_type that has a file here."""
    return importlib.import_module(f"extractor.models.dense.{model_type}").DENSE.norms


def dense_types() -> tuple[str, ...]:
    """The model_types with a file here. It reads the files as text, so torch is not imported."""
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
