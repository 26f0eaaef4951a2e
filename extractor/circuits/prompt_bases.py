"""What `prompt_network` computes once for some prompts: values that follow from replacement values alone.

Shapes and symbols (r, base, h_r): `prompt_network`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from extractor.circuits.prompt_values import Values


@dataclass(frozen=True)
class AttentionBases:
    """Of one attention sublayer: r of the kept nodes, and what its links and heads give without any deviation.

    r            {place: (B, T, n)} of act_in, q, k, v, resid_delta
    q, k, v      (B, T, n) base of the links into kept nodes
    all_q, all_k (B, T, H * C) r of every channel of the H heads
    writes       (B, H * T, n writes): W r of each head's values, at the token that they stand at
    out          (B, T, n writes): bias, and what all other heads write: their pattern is that of r
    """

    r: Values
    q: Tensor
    k: Tensor
    v: Tensor
    all_q: Tensor
    all_k: Tensor
    writes: Tensor
    out: Tensor


@dataclass(frozen=True)
class MLPBases:
    """The same of an MLP.

    r           of act_in, post_act, resid_delta; with gates also of gate and up
    into        {place: (B, T, n)} base of the links from the read: into post_act, or into gate and up
    proj        base of the links into kept writes
    factors     with gates: {gate, up: (B, T, n)} r at the numbers of the kept neurons
    """

    r: Values
    into: Values
    proj: Tensor
    factors: Values


@dataclass(frozen=True)
class PromptGroup:
    """Some prompts of a batch.

    rows         (B,) their places in the batch
    last         (B,) the scored position
    residual     (2L + 1, B, T, R) h_r of the tracked channels before each norm
    rest         (2L + 1, B, T) the sum of squares of the other channels of h_r
    layers       the bases of each layer
    readout      (B, R) weights of the tracked channels, normed, in the logit difference
    rest_readout (B,) the other channels' part of it, before the norm's scale
    direct       (B,) the part that depends on no sublayer and no norm
    """

    rows: Tensor
    last: Tensor
    residual: Tensor
    rest: Tensor
    layers: list[tuple[AttentionBases, MLPBases]]
    readout: Tensor
    rest_readout: Tensor
    direct: Tensor
