"""What nodes read and write, in tokens, as labels for people.

reads    current tokens at which the node is furthest from its mean, on average over prompts of the task; for position channels the
         positions in the prompt, counted from 0, instead
writes   tokens whose logits the node raises when it has its usual sign: through the unembedding for residual writes, through the output
         projection and the unembedding for v and neurons; empty for the others
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from extractor.circuits.circuit import Node, sites_of
from extractor.data.encoding import token_texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from extractor.data.prompts import TaskBatch
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM

SHOWN = 3
RARE = 4  # tokens and places seen fewer times in the prompts are not shown


@torch.no_grad()
def describe_nodes(nodes: list[Node], model: SparseGPTForCausalLM, tokenizer: Tokenizer, prompts: TaskBatch) -> list[Node]:
    """The nodes with `reads` and `writes` filled in, from prompts of the task."""
    ids = prompts.ids
    grouped = sites_of(nodes)
    with model.record(list(grouped)) as values:
        model(input_ids=ids, logits_to_keep=1)
    real = torch.arange(ids.shape[1], device=ids.device) <= prompts.last[:, None]  # not padding
    tokens = ids[real]
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)[real]
    described: dict[str, Node] = {}
    for site, members in grouped.items():
        channels = torch.tensor([node.channel for node in members], device=ids.device)
        mean = torch.tensor([node.mean for node in members], device=ids.device)
        x = values[site][..., channels][real]  # (tokens, nodes)
        by_token = _average_by(tokens, (x - mean).abs(), model.config.vocab_size)
        by_place = _average_by(places, (x - mean).abs(), ids.shape[1])
        usual_sign = torch.where((x - mean).sum(0) < 0, -1.0, 1.0)
        written = _written(model, site, channels)
        for i, node in enumerate(members):
            position = site.endswith("act_in") and node.channel >= model.config.d_model
            reads = tuple(f"place {p}" for p in _best(by_place[:, i])) if position else _tokens(by_token[:, i], tokenizer)
            writes = () if written is None else _tokens(written[:, i] * usual_sign[i], tokenizer)
            described[node.id] = replace(node, reads=reads, writes=writes, position=position)
    return [described[node.id] for node in nodes]


def _written(model: SparseGPTForCausalLM, site: str, channels: Tensor) -> Tensor | None:
    """Direct effect of a node's unit value on the logits, (V, nodes), norm aside."""
    layer, _, place = site.partition(".")
    block = model.blocks[int(layer)]
    if place.endswith("resid_delta"):
        return model.lm_head.weight[:, channels]
    if place == "attn.v":
        return model.lm_head.weight @ block.attn.c_proj.weight[:, channels]
    if place == "mlp.post_act":
        return model.lm_head.weight @ block.mlp.c_proj.weight[:, channels]
    return None


def _average_by(kinds: Tensor, amount: Tensor, number: int) -> Tensor:
    """Mean amount (rows, nodes) over the rows of each kind, (number, nodes); 0 for kinds that are rare."""
    counts = torch.bincount(kinds, minlength=number)
    totals = torch.zeros(number, amount.shape[1], device=amount.device).index_add_(0, kinds, amount)
    return torch.where(counts[:, None] >= RARE, totals / counts.clamp_min(1)[:, None], 0)


def _best(score: Tensor) -> list[int]:
    best = score.topk(min(SHOWN, len(score)))
    return [i for i, s in zip(best.indices.tolist(), best.values.tolist(), strict=True) if s > 0]


def _tokens(score: Tensor, tokenizer: Tokenizer) -> tuple[str, ...]:
    return tuple(token_texts(tokenizer, _best(score)))
