"""A GPT-2 in other coordinates, in which its weights are sparser. None of these functions changes its logits.

fold_norms          centre the residual, so that LayerNorm becomes RMSNorm, and move gains and biases of norms into the matrices that read
rotated             rotate the residual: RMSNorm is invariant, and the matrices that read and write are rotated with it
with_sparse_heads   rotate the queries and keys of a head together, and its values together with the output matrix

A transformer's residual has no preferred axes, but magnitude pruning keeps what lies along axes. `sparsest_basis` finds the rotation with
the largest sum of fourth powers by matching, stretching and projection (Zhai et al. 2020, arXiv 1906.02435). Ours; the paper trains from
scratch. Shapes: `extractor.bridges`; C channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from extractor.models.dense.base import BlockWeights, GPTWeights, Norm

ITERATIONS = 100
MAX_VECTORS = 1 << 15  # a larger model is represented by every n-th vector


def fold_norms(weights: GPTWeights) -> GPTWeights:
    """The same model with norms that only divide. What the final norm's bias adds goes into the bias of the logits."""
    plain = Norm(torch.ones_like(weights.final_norm.gain), torch.zeros_like(weights.final_norm.bias))
    bias = weights.unembedding @ weights.final_norm.bias
    return replace(
        weights,
        embedding=_centred(weights, weights.embedding, 1),
        positions=None if weights.positions is None else _centred(weights, weights.positions, 1),
        unembedding=weights.unembedding * weights.final_norm.gain,
        final_norm=plain,
        blocks=tuple(_block_without_norms(weights, block, plain) for block in weights.blocks),
        logits_bias=bias if weights.logits_bias is None else bias + weights.logits_bias,
    )


def _centred(weights: GPTWeights, x: Tensor, dim: int) -> Tensor:
    """`centred` where the model's norms subtract the mean."""
    return centred(x, dim) if weights.centred else x


def _block_without_norms(weights: GPTWeights, block: BlockWeights, plain: Norm) -> BlockWeights:
    has_gate = block.gate is not None and block.gate_bias is not None
    return replace(
        block,
        attn_norm=plain,
        mlp_norm=plain,
        qkv=block.qkv * block.attn_norm.gain,
        qkv_bias=block.qkv_bias + block.qkv @ block.attn_norm.bias,
        attn_out=_centred(weights, block.attn_out, 0),
        attn_out_bias=_centred(weights, block.attn_out_bias, 0),
        fc=block.fc * block.mlp_norm.gain,
        fc_bias=block.fc_bias + block.fc @ block.mlp_norm.bias,
        proj=_centred(weights, block.proj, 0),
        proj_bias=_centred(weights, block.proj_bias, 0),
        gate=block.gate * block.mlp_norm.gain if has_gate else None,  # type: ignore[operator]
        gate_bias=block.gate_bias + block.gate @ block.mlp_norm.bias if has_gate else None,  # type: ignore[operator]
    )


def rotated(weights: GPTWeights, turn: Tensor) -> GPTWeights:
    """A model of `fold_norms` with the residual turn @ h in place of h, for an orthogonal `turn` (D, D)."""

    def block(b: BlockWeights) -> BlockWeights:
        read = replace(b, qkv=b.qkv @ turn.T, fc=b.fc @ turn.T, gate=None if b.gate is None else b.gate @ turn.T)
        return replace(
            read, attn_out=turn @ b.attn_out, attn_out_bias=turn @ b.attn_out_bias, proj=turn @ b.proj, proj_bias=turn @ b.proj_bias
        )

    names = ("embedding", "unembedding", *(() if weights.positions is None else ("positions",)))
    outside = {name: getattr(weights, name) @ turn.T for name in names}
    return replace(weights, blocks=tuple(map(block, weights.blocks)), **outside)


def with_sparse_heads(weights: GPTWeights, residuals: Sequence[Tensor]) -> GPTWeights:
    """The model with the queries, keys and values of every head in their sparsest bases; residuals: samples (N, D) before each block.

    Queries and keys that turn with the position keep their pairs of channels: each pair is rotated in itself, as its turns are. Where they
    are normed, they stay.
    """
    blocks = zip(weights.blocks, residuals, strict=True)
    return replace(weights, blocks=tuple(_sparse_heads(block, weights, h) for block, h in blocks))


def _sparse_heads(block: BlockWeights, weights: GPTWeights, h: Tensor) -> BlockWeights:
    d_head, pairs = weights.d_head, len(weights.rotary)
    read = h / h.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)
    qkv, bias, out = block.qkv.clone(), block.qkv_bias.clone(), block.attn_out.clone()
    queries, keys, values = qkv.chunk(3)
    of_queries, of_keys, of_values = bias.chunk(3)
    for start in range(0, len(values), d_head):
        head = slice(start, start + d_head)
        vectors = torch.cat([_unit(queries[head].T), _unit(keys[head].T)])
        turn = torch.eye(d_head, device=h.device) if block.query_norm is not None else sparsest_turns(vectors, pairs)
        for rows, offset in ((queries, of_queries), (keys, of_keys)):
            rows[head], offset[head] = turn @ rows[head], turn @ offset[head]
        turn = sparsest_basis(torch.cat([_unit(values[head].T), _unit(out[:, head]), _moving(read @ values[head].T)]))
        values[head], of_values[head], out[:, head] = turn @ values[head], turn @ of_values[head], out[:, head] @ turn.T
    return replace(block, qkv=qkv, qkv_bias=bias, attn_out=out)


def residual_vectors(weights: GPTWeights, residuals: Sequence[Tensor]) -> Tensor:
    """Unit vectors (N, D) for choosing a basis: what the matrices of a `fold_norms` model read and write, and samples of its residuals."""
    found = [weights.embedding, *(() if weights.positions is None else (weights.positions,)), weights.unembedding]
    for block in weights.blocks:
        found += [block.qkv, block.attn_out.T, block.fc, *(() if block.gate is None else (block.gate,)), block.proj.T]
    states = torch.cat([_centred(weights, h, 1) for h in residuals])
    found.append(states - states.mean(0))
    every = -(-sum(map(len, found)) // MAX_VECTORS)
    return torch.cat([_unit(vectors[::every]) for vectors in found])


def sparsest_basis(vectors: Tensor) -> Tensor:
    """The rotation (D, D) after which vectors (N, D) are sparsest. Deterministic."""
    turn = torch.eye(vectors.shape[1], device=vectors.device)
    for _ in range(ITERATIONS):
        left, _, right = torch.linalg.svd((vectors @ turn.T).pow(3).T @ vectors, full_matrices=False)
        turn = left @ right
    return turn


def sparsest_turns(vectors: Tensor, pairs: int) -> Tensor:
    """The rotation (C, C) after which vectors (N, C) are sparsest, of those that rotate each pair of channels, c and c + pairs, in itself.

    pairs   0: any rotation. Channels beyond twice the pairs, which do not turn with the position, rotate freely among themselves.
    """
    width = vectors.shape[1]
    if not pairs:
        return sparsest_basis(vectors)
    turn = torch.eye(width, device=vectors.device)
    plane = torch.complex(vectors[:, :pairs].double(), vectors[:, pairs : 2 * pairs].double())
    angle = -plane.pow(4).sum(0).angle() / 4  # x^4 + y^4 = |z|^4 (3 + cos 4 arg z) / 4: largest where z^4 points along the real axis
    first = torch.arange(pairs, device=vectors.device)
    cos, sin = angle.cos().to(turn), angle.sin().to(turn)
    turn[first, first], turn[first, first + pairs] = cos, -sin
    turn[first + pairs, first], turn[first + pairs, first + pairs] = sin, cos
    if width > 2 * pairs:
        turn[2 * pairs :, 2 * pairs :] = sparsest_basis(vectors[:, 2 * pairs :])
    return turn


def _moving(values: Tensor) -> Tensor:
    """Values (N, C) without their mean, at a mean square length of 1: tokens far from the mean weigh more."""
    moved = values - values.mean(0)
    return moved / moved.norm(dim=1).square().mean().sqrt().clamp_min(1e-12)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)


def centred(x: Tensor, dim: int) -> Tensor:
    """x minus its mean along an axis."""
    return x - x.mean(dim, keepdim=True)
