"""A dense model as a sparse GPT of the same shape and the same logits, with all weights and activations kept.

Pruning, pictures and validation then treat a dense model like a sparse one: its neurons, attention channels, residual reads and writes are
the nodes. Norms are folded into the matrices that read, and the residual is centred (`basis.fold_norms`); its axes do not change.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from extractor.bridges.basis import fold_norms
from extractor.errors import UnsupportedModel
from extractor.models.dense.base import GPTWeights, wrap_dense
from extractor.models.dense.start import ROTARY_CONTEXT
from extractor.sparse import SparseGPTConfig, SparseGPTForCausalLM

if TYPE_CHECKING:
    from extractor.models.load import DenseModel


def dense_as_sparse(dense: DenseModel) -> SparseGPTForCausalLM:
    """The sparse GPT with the dense model's logits, to rounding. Raises UnsupportedModel where its blocks cannot be described as such."""
    config: Any = dense.model.config
    sublayers = wrap_dense(dense.model)
    weights = sublayers.weights(None if sublayers.has_positions else ROTARY_CONTEXT)
    if weights is None:
        raise UnsupportedModel(
            f"{dense.name} cannot be pruned as it is: a sparse GPT has no blocks like its own; bridge it instead (no --dense)"
        )
    model = SparseGPTForCausalLM(
        SparseGPTConfig(
            vocab_size=len(weights.embedding),
            n_layer=len(weights.blocks),
            d_model=weights.embedding.shape[1],
            d_mlp=len(weights.blocks[0].fc),
            n_ctx=ROTARY_CONTEXT if weights.positions is None else len(weights.positions),
            activation_frac=1.0,
            added_positions=weights.positions is not None,
            sinks=False,
            bigram="none",
            logits_bias=True,
            bos_token_id=first_token(config.bos_token_id),
            eos_token_id=first_token(config.eos_token_id),
            **(blocks_like(weights, weights.embedding.shape[1]) | {"activation": weights.activation}),
            heads=_heads(weights),
            d_head=weights.d_head,
            gated=weights.blocks[0].gate is not None,
            parallel=sublayers.n_sublayers == len(weights.blocks),
        )
    )
    copy_weights(model, fold_norms(weights))
    return model.eval().requires_grad_(False)


def first_token(token: int | list[int] | None) -> int | None:
    """A token of a config; some models name several end tokens."""
    return token[0] if isinstance(token, list) and token else token if isinstance(token, int) else None


def blocks_like(weights: GPTWeights, width: int) -> dict[str, Any]:
    """Fields of a SparseGPTConfig, beyond those of a SparseModelSpec, for blocks of this width that compute what these do.

    The tanh approximation of GELU stays the spec's GELU: the two hardly differ.
    """
    activation = {} if weights.activation == "gelu_tanh" else {"activation": weights.activation}
    return activation | {
        "rotary": list(weights.rotary) or None,
        "rotary_scale": weights.rotary_scale,
        "query_key_norm": weights.blocks[0].query_norm is not None,
        "rms_norm_eps": weights.eps * weights.embedding.shape[1] / width,
    }


def _heads(weights: GPTWeights) -> int | None:
    """The number of heads where it does not follow from the width."""
    width, mixed = weights.embedding.shape[1], weights.blocks[0].attn_out.shape[1]
    return None if mixed == width else mixed // weights.d_head


@torch.no_grad()
def copy_weights(model: SparseGPTForCausalLM, weights: GPTWeights) -> None:
    """Copy the weights of `fold_norms` into a sparse GPT that is at least as wide."""
    config = model.config
    ratio = math.sqrt(weights.embedding.shape[1] / config.d_model)  # zeros in the further channels make the RMS of the residual smaller
    _put(model.transformer.wte.weight, weights.embedding)
    if weights.positions is not None and model.transformer.wpe is not None:
        _put(model.transformer.wpe.weight, weights.positions[: config.n_ctx])
    for block, source in zip(model.blocks, weights.blocks, strict=True):
        for rows, part in zip(block.attn.c_attn.weight.chunk(3), source.qkv.chunk(3), strict=True):
            _put_rows(rows, part * ratio)
        for bias, part in zip(block.attn.c_attn.bias.chunk(3), source.qkv_bias.chunk(3), strict=True):
            bias[: len(part)] = part
        _put_rows(block.mlp.c_fc.weight, source.fc * ratio)
        block.mlp.c_fc.bias[: len(source.fc_bias)] = source.fc_bias
        if block.mlp.c_gate is not None and source.gate is not None and source.gate_bias is not None:
            _put_rows(block.mlp.c_gate.weight, source.gate * ratio)
            block.mlp.c_gate.bias[: len(source.gate_bias)] = source.gate_bias
        for norm, gain in ((block.attn.q_norm, source.query_norm), (block.attn.k_norm, source.key_norm)):
            if norm is not None and gain is not None:
                norm.weight.copy_(gain)
        for target, weight in (
            (block.attn.c_proj.weight, source.attn_out),
            (block.attn.c_proj.bias, source.attn_out_bias),
            (block.mlp.c_proj.weight, source.proj),
            (block.mlp.c_proj.bias, source.proj_bias),
        ):
            _put(target, weight)
    _put(model.lm_head.weight, weights.unembedding * ratio)
    for name in model.bigram.tensors:
        if name != "bigram_index":
            model.get_parameter(name).zero_()
    if model.logits_bias is not None and weights.logits_bias is not None:
        model.logits_bias.copy_(weights.logits_bias)


def _put(target: Tensor, source: Tensor) -> None:
    target.zero_()
    target[tuple(slice(size) for size in source.shape)] = source


def _put_rows(target: Tensor, source: Tensor) -> None:
    """The same, but rows beyond the source's keep their random values: they read, and nothing uses them yet."""
    _put(target[: len(source)], source)
