"""The same GPT-2 in other coordinates: none of this changes what it computes.

without_norms       the residual centred, so that LayerNorm is RMSNorm; gains and biases of norms moved into the matrices that read
turned              the residual rotated: RMSNorm does not mind, matrices that read and write turn along
with_sparse_heads   queries and keys of a head rotated alike, its values and what reads them likewise

A transformer's residual has no axes of its own, and magnitude pruning keeps what lies along axes. So the rotation is chosen that makes
weights, residuals and values sparsest: the one with the largest sum of fourth powers, found by matching, stretching and projection (Zhai et
al. 2020, arXiv 1906.02435). Ours; the paper trains from scratch. D width, C channels of a head, N vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from extractor.models.dense.base import BlockWeights, GPTWeights, Norm

ITERATIONS = 100
MOST_VECTORS = 1 << 15  # of large models some stand for all


def fold_norms(weights: GPTWeights) -> GPTWeights:
    """The same model with norms that only divide; the final norm's bias, which would be one of the logits, is left out."""
    plain = Norm(torch.ones_like(weights.final_norm.gain), torch.zeros_like(weights.final_norm.bias))
    return replace(
        weights,
        embedding=centred(weights.embedding, 1),
        positions=centred(weights.positions, 1),
        unembedding=weights.unembedding * weights.final_norm.gain,
        final_norm=plain,
        blocks=tuple(_block_without_norms(block, plain) for block in weights.blocks),
    )


def _block_without_norms(block: BlockWeights, plain: Norm) -> BlockWeights:
    return replace(
        block,
        attn_norm=plain,
        mlp_norm=plain,
        qkv=block.qkv * block.attn_norm.gain,
        qkv_bias=block.qkv_bias + block.qkv @ block.attn_norm.bias,
        attn_out=centred(block.attn_out, 0),
        attn_out_bias=centred(block.attn_out_bias, 0),
        fc=block.fc * block.mlp_norm.gain,
        fc_bias=block.fc_bias + block.fc @ block.mlp_norm.bias,
        proj=centred(block.proj, 0),
        proj_bias=centred(block.proj_bias, 0),
    )


def rotated(weights: GPTWeights, turn: Tensor) -> GPTWeights:
    """The model of `fold_norms` with the residual h become turn @ h, for an orthogonal `turn` (D, D)."""

    def block(b: BlockWeights) -> BlockWeights:
        read = replace(b, qkv=b.qkv @ turn.T, fc=b.fc @ turn.T)
        return replace(
            read, attn_out=turn @ b.attn_out, attn_out_bias=turn @ b.attn_out_bias, proj=turn @ b.proj, proj_bias=turn @ b.proj_bias
        )

    outside = {name: getattr(weights, name) @ turn.T for name in ("embedding", "positions", "unembedding")}
    return replace(weights, blocks=tuple(map(block, weights.blocks)), **outside)


def with_sparse_heads(weights: GPTWeights, residuals: Sequence[Tensor]) -> GPTWeights:
    """The model with every head's queries and keys, and its values, in their sparsest bases; residuals (N, D): some before each block."""
    blocks = zip(weights.blocks, residuals, strict=True)
    return replace(weights, blocks=tuple(_sparse_heads(block, weights.d_head, h) for block, h in blocks))


def _sparse_heads(block: BlockWeights, d_head: int, h: Tensor) -> BlockWeights:
    read = h / h.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)
    qkv, bias, out = block.qkv.clone(), block.qkv_bias.clone(), block.attn_out.clone()
    queries, keys, values = qkv.chunk(3)
    of_queries, of_keys, of_values = bias.chunk(3)
    for start in range(0, len(values), d_head):
        head = slice(start, start + d_head)
        turn = sparsest_basis(torch.cat([_unit(queries[head].T), _unit(keys[head].T)]))
        for rows, offset in ((queries, of_queries), (keys, of_keys)):
            rows[head], offset[head] = turn @ rows[head], turn @ offset[head]
        turn = sparsest_basis(torch.cat([_unit(values[head].T), _unit(out[:, head]), _moving(read @ values[head].T)]))
        values[head], of_values[head], out[:, head] = turn @ values[head], turn @ of_values[head], out[:, head] @ turn.T
    return replace(block, qkv=qkv, qkv_bias=bias, attn_out=out)


def residual_vectors(weights: GPTWeights, residuals: Sequence[Tensor]) -> Tensor:
    """What a model of `fold_norms` reads and writes, rows and columns of its matrices, and its residuals: unit vectors (N, D)."""
    found = [weights.embedding, weights.positions, weights.unembedding]
    for block in weights.blocks:
        found += [block.qkv, block.attn_out.T, block.fc, block.proj.T]
    states = torch.cat([centred(h, 1) for h in residuals])
    found.append(states - states.mean(0))
    every = -(-sum(map(len, found)) // MOST_VECTORS)
    return torch.cat([_unit(vectors[::every]) for vectors in found])


def sparsest_basis(vectors: Tensor) -> Tensor:
    """The rotation (D, D) after which vectors (N, D) are sparsest; a function of them alone."""
    turn = torch.eye(vectors.shape[1], device=vectors.device)
    for _ in range(ITERATIONS):
        left, _, right = torch.linalg.svd((vectors @ turn.T).pow(3).T @ vectors, full_matrices=False)
        turn = left @ right
    return turn


def _moving(values: Tensor) -> Tensor:
    """What of values (N, C) is not their mean, with a mean square length of 1: tokens that say much count for more."""
    moved = values - values.mean(0)
    return moved / moved.norm(dim=1).square().mean().sqrt().clamp_min(1e-12)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)


def centred(x: Tensor, dim: int) -> Tensor:
    """x less its mean along an axis."""
    return x - x.mean(dim, keepdim=True)
