"""Statistics of a sparse model: nonzero weights, dead neurons, sparsity of activations, kurtosis of the residual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM
    from extractor.training.projection import Constraint


@torch.no_grad()
def weight_statistics(model: SparseGPTForCausalLM, constrained: Sequence[Constraint]) -> dict[str, float]:
    """Counts over the L0-constrained tensors:

    nonzeros       nonzero entries of all constrained tensors
    nonzero_share  the same as a fraction of their entries
    dead_neurons   fraction of MLP neurons and of value channels without an incoming or without an outgoing weight
    """
    kept = torch.stack([c.tensor.count_nonzero() for c in constrained]).sum().item()
    dead = [_dead(block.mlp.c_fc.weight, block.mlp.c_proj.weight) for block in model.blocks]
    dead += [_dead(block.attn.c_attn.weight.chunk(3)[2], block.attn.c_proj.weight) for block in model.blocks]
    return {
        "nonzeros": float(kept),
        "nonzero_share": kept / sum(c.tensor.numel() for c in constrained),
        "dead_neurons": torch.cat(dead).double().mean().item(),
    }


def _dead(reading: Tensor, writing: Tensor) -> Tensor:
    """Which channels have a zero row in `reading` (channels, in) or a zero column in `writing` (out, channels)."""
    return ~(reading.any(1) & writing.any(0))


@torch.no_grad()
def activation_statistics(model: SparseGPTForCausalLM, ids: Tensor) -> dict[str, float]:
    """Measured on ids (B, T) of held-out text:

    activation_sparsity  fraction of node values that are zero, mean over sites
    silent_neurons       fraction of MLP neurons that are zero at every token
    residual_kurtosis    E[x^4] / E[x^2]^2 over the channels of each token's final residual, mean over tokens; 3 for a Gaussian,
                         higher where few channels carry most of it (the paper: it rises with sparsity)
    """
    finals: list[Tensor] = []
    handle = model.transformer.ln_f.register_forward_pre_hook(lambda _m, inputs: finals.append(inputs[0]))
    try:
        with model.record() as values:
            model(input_ids=ids, logits_to_keep=1)
    finally:
        handle.remove()
    neurons = torch.cat([x.flatten(0, -2) for name, x in values.items() if name.endswith("post_act")], dim=-1)
    return {
        "activation_sparsity": torch.stack([(x == 0).double().mean() for x in values.values()]).mean().item(),
        "silent_neurons": (~neurons.any(0)).double().mean().item(),
        "residual_kurtosis": kurtosis(finals[-1]),
    }


def kurtosis(residual: Tensor) -> float:
    """E[x^4] / E[x^2]^2 over the last axis, mean over the others; tokens whose residual is zero are left out."""
    x = residual.flatten(0, -2).double()
    second = x.square().mean(-1)
    return (x.pow(4).mean(-1) / second.square())[second > 0].mean().item()
