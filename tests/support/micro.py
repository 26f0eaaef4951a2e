"""A sparse GPT that a person can compute on paper: one layer, width 4, AbsTopK off, no sinks.

Token A (1) embeds as channel 0, token B (2) as channel 1; one channel of four, so RMSNorm makes its 1 a 2.
Neuron 0 reads channel 0 with weight 1.5: on A it is gelu(3), on B gelu(0) = 0. It writes channel 3 with weight 1 over a bias of -1.5.
The unembedding reads channel 3: answer YES (3) with +1, NO (4) with -1. So A says YES and B says NO, through
0.mlp.act_in.0 -> 0.mlp.post_act.0 -> 0.mlp.resid_delta.3, and nothing else tells A from B:

    decoys       neuron 1 reads channel 1 and writes channel 2, which only token 5 is unembedded from
                 neuron 2 reads channel 0 and writes nothing; neuron 3 reads channel 3, which no embedding writes
                 attention: v.0 reads act_in.1 and writes channel 2
    bigram       YES gets 0.25 after every token
    redundant    neuron 1 (with B's channel) also tells the answer, through channel 2 and the unembedding: a second, disjoint circuit
"""

from __future__ import annotations

import math

import torch

from extractor.data.prompts import TaskBatch
from extractor.sparse import SparseGPTConfig, SparseGPTForCausalLM

A, B, YES, NO, OTHER, FIRST = 1, 2, 3, 4, 5, 6
BIGRAM = 0.25
CIRCUIT = ("0.mlp.act_in.0", "0.mlp.post_act.0", "0.mlp.resid_delta.3")
GELU_3 = 3 * 0.5 * (1 + math.erf(3 / math.sqrt(2)))  # 2.99595


@torch.no_grad()
def micro_model(redundant: bool = False, **changes) -> SparseGPTForCausalLM:
    """The model; changes: of its configuration."""
    shape = {"vocab_size": 7, "n_layer": 1, "d_model": 4, "d_head": 2, "d_mlp": 4, "n_ctx": 8, "activation_frac": 1.0, "sinks": False}
    model = SparseGPTForCausalLM(SparseGPTConfig(**(shape | {"rms_norm_eps": 1e-12} | changes)))
    for name, parameter in model.named_parameters():
        if "ln_" not in name:
            parameter.zero_()
    model.transformer.wte.weight[A, 0] = 1
    model.transformer.wte.weight[B, 1] = 1
    block = model.blocks[0]
    block.attn.c_attn.weight[8 + 0, 1] = 0.5  # rows q | k | v: v.0 reads act_in.1
    block.attn.c_proj.weight[2, 0] = 0.0 if redundant else 0.1
    block.mlp.c_fc.weight[0, 0] = 1.5
    block.mlp.c_proj.weight[3, 0] = 1
    block.mlp.c_proj.bias[3] = -1.5
    block.mlp.c_fc.weight[1, 1] = 1.5
    block.mlp.c_proj.weight[2, 1] = 1 if redundant else 0.1
    block.mlp.c_proj.bias[2] = -1.5 if redundant else 0
    block.mlp.c_fc.weight[2, 0] = 0.7
    block.mlp.c_fc.weight[3, 3] = 0.7
    model.lm_head.weight[YES, 3] = 1
    model.lm_head.weight[NO, 3] = -1
    if redundant:
        model.lm_head.weight[YES, 2] = -1
        model.lm_head.weight[NO, 2] = 1
    else:
        model.lm_head.weight[OTHER, 2] = 1
    model.bigram_table[:, YES] = BIGRAM
    return model.eval().requires_grad_(False)


def micro_batch() -> TaskBatch:
    """Two pairs: (0 A, 0 B) and (6 A, 6 B); the first token embeds as zero."""
    ids = torch.tensor([[0, A], [0, B], [FIRST, A], [FIRST, B]])
    correct = torch.tensor([YES, NO, YES, NO])
    wrong = torch.tensor([NO, YES, NO, YES])
    return TaskBatch(ids, torch.ones(4, dtype=torch.long), correct, wrong, torch.tensor([1.0, -1.0, 1.0, -1.0]))


def micro_means(model: SparseGPTForCausalLM, batch: TaskBatch | None = None) -> dict[str, torch.Tensor]:
    """Means over the last positions of the pairs: half A, half B."""

    with model.record() as values:
        model(input_ids=(batch or micro_batch()).ids)
    return {site: x[:, -1].mean(0) for site, x in values.items()}


def flat_index(model: SparseGPTForCausalLM, node: str) -> int:
    """The place of a node such as '0.mlp.post_act.0' among all nodes in forward order."""
    from extractor.circuits.sites import widths

    site, _, channel = node.rpartition(".")
    start = 0
    for name, width in widths(model).items():
        if name == site:
            return start + int(channel)
        start += width
    raise KeyError(node)


def flat_indices(model: SparseGPTForCausalLM, nodes: tuple[str, ...] = CIRCUIT) -> torch.Tensor:
    return torch.tensor([flat_index(model, node) for node in nodes])
