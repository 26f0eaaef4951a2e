"""A dense GPT-2 as a sparse GPT of the same shape and the same logits, with all weights and activations kept.

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
from extractor.sparse import SparseGPTConfig, SparseGPTForCausalLM

if TYPE_CHECKING:
    from extractor.models.load import DenseModel

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}


def dense_as_sparse(dense: DenseModel) -> SparseGPTForCausalLM:
    """The sparse GPT with the dense model's logits, to rounding. Raises UnsupportedModel where the blocks are not those of a GPT-2."""
    config: Any = dense.model.config
    weights, activation = wrap_dense(dense.model).weights(), getattr(config, "activation_function", None)
    if weights is None or activation not in ACTIVATIONS:
        raise UnsupportedModel(
            f"{dense.name} cannot be pruned as it is: its blocks are not those of a GPT-2; bridge it instead (no --dense)"
        )
    width, neurons = weights.embedding.shape[1], len(weights.blocks[0].fc)
    model = SparseGPTForCausalLM(
        SparseGPTConfig(
            vocab_size=len(weights.embedding),
            n_layer=len(weights.blocks),
            d_model=width,
            d_head=weights.d_head,
            d_mlp=neurons,
            n_ctx=len(weights.positions),
            activation=ACTIVATIONS[activation],
            activation_frac=1.0,
            added_positions=True,
            sinks=False,
            bigram="none",
            logits_bias=True,
            rms_norm_eps=config.layer_norm_epsilon,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
        )
    )
    copy_weights(model, fold_norms(weights), weights.unembedding @ weights.final_norm.bias)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def copy_weights(model: SparseGPTForCausalLM, weights: GPTWeights, logits_bias: Tensor) -> None:
    """Copy the weights of `fold_norms` into a sparse GPT that is at least as wide; logits_bias (V,) only where it has one."""
    config = model.config
    ratio = math.sqrt(weights.embedding.shape[1] / config.d_model)  # zeros in the further channels make the RMS of the residual smaller
    _put(model.transformer.wte.weight, weights.embedding)
    assert model.transformer.wpe is not None
    _put(model.transformer.wpe.weight, weights.positions[: config.n_ctx])
    for block, source in zip(model.blocks, weights.blocks, strict=True):
        for rows, part in zip(block.attn.c_attn.weight.chunk(3), source.qkv.chunk(3), strict=True):
            _put_rows(rows, part * ratio)
        for bias, part in zip(block.attn.c_attn.bias.chunk(3), source.qkv_bias.chunk(3), strict=True):
            bias[: len(part)] = part
        _put_rows(block.mlp.c_fc.weight, source.fc * ratio)
        block.mlp.c_fc.bias[: len(source.fc_bias)] = source.fc_bias
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
    if model.logits_bias is not None:
        model.logits_bias.copy_(logits_bias)


def _put(target: Tensor, source: Tensor) -> None:
    target.zero_()
    target[tuple(slice(size) for size in source.shape)] = source


def _put_rows(target: Tensor, source: Tensor) -> None:
    """The same, but rows beyond the source's keep their random values: they read, and nothing uses them yet."""
    _put(target[: len(source)], source)
