"""The bridge loss and its terms (App. A.3).

With hd_i, hs_i the dense and sparse residuals before sublayer i (i = 0..2L), f_i and g_i the encoder and decoder there:

1. ce              cross-entropy of the sparse model
2. nmse_encoder    sum over sites of NMSE(f_i(hd_i), hs_i);   nmse_decoder   of NMSE(g_i(hs_i), hd_i)
3. kl_to_sparse    sum over sites of KL(yd || sparse tail from site i fed f_i(hd_i))
4. kl_to_dense     sum over sites of KL(yd || dense tail from site i fed g_i(hs_i))
5. kl_plain        KL(yd || ys)

NMSE is the mean squared error over the target's variance. The dense side is measured in the site's normalised coordinates (see `start`),
where every channel's variance is 1; the sparse side over a running mean of its variance, so that a batch's loss is the mean of its rows'
however it is cut. Reported are means over sites; whether these or the paper's sums enter the loss, `over_sites` says.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from extractor.bridges.chunked_loss import LOGITS_AT_ONCE, Target, in_chunks
from extractor.bridges.crossing import Crossing
from extractor.bridges.pair import BridgedPair
from extractor.models.dense.base import residuals
from extractor.spec.schema import BridgeSpec

TERMS = ("ce", "nmse_encoder", "nmse_decoder", "kl_to_sparse", "kl_to_dense", "kl_plain")
VARIANCE_MEMORY = 0.9  # of the running variance, per step


def bridge_loss(pair: BridgedPair, ids: Tensor, crossing: Crossing, variance: Tensor, spec: BridgeSpec) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (scalar, with gradient) of ids (B, T), its TERMS (6,), and `moments` of the sparse residuals.

    variance   of the sparse residual per site, (2L + 1,), by which encoder errors are divided
    """
    sites = len(pair.sites)
    per_site = 1 / sites if spec.over_sites == "mean" else 1.0
    with torch.no_grad():
        dense_h = residuals(pair.dense, ids)
    own, to_sparse = _sparse_pass(pair, ids, dense_h, crossing)
    to_dense = _dense_pass(pair, ids, own, crossing)
    at_sites = list(zip(pair.sites, dense_h, own, strict=True))
    encoder = torch.stack([_error(site.encode(d), h.detach()) for site, d, h in at_sites]) / variance.clamp_min(1e-12)
    decoder = torch.stack([_error(site.decode_normalised(h), site.normalised(d)) for site, d, h in at_sites])
    heads, told = _own_head(pair, ids, own[-1], dense_h[-1], crossing, spec)
    paths, crossed = _crossing_head(pair, ids, to_sparse, to_dense, dense_h[-1], crossing, spec)
    loss = heads + per_site * (paths + spec.nmse_coef * (encoder.sum() + decoder.sum()))
    terms = torch.stack([told[0], encoder.mean(), decoder.mean(), crossed[0] / sites, crossed[1] / sites, told[1]])
    return loss, terms.detach(), moments(own)


@torch.no_grad()
def moments(sparse_h: list[Tensor]) -> Tensor:
    """Per site the mean of every channel and, last, the mean of all squares: (2L + 1, S + 1), a mean over rows and tokens."""
    return torch.stack([torch.cat([h.float().mean((0, 1)), h.float().square().mean().reshape(1)]) for h in sparse_h])


def variance_of(told: Tensor) -> Tensor:
    """The variance of every site's channels around their means, averaged, (2L + 1,), from `moments`."""
    return told[:, -1] - told[:, :-1].square().mean(1)


def _error(value: Tensor, target: Tensor) -> Tensor:
    return functional.mse_loss(value.float(), target.float())


def _sparse_pass(pair: BridgedPair, ids: Tensor, dense_h: list[Tensor], crossing: Crossing) -> tuple[list[Tensor], Tensor]:
    """The sparse model's own residuals, and the final ones of the rows that crossed over from the dense model."""
    batch = len(ids)
    context = pair.sparse.context(ids.shape[1])
    stream = pair.sparse.embed(ids, context)
    own = []
    for index, (site, rows) in enumerate(zip(pair.sites, crossing.rows, strict=True)):
        if index:
            stream = pair.sparse.sublayer(index - 1, stream, context)
        own.append(stream[:batch])
        if len(rows):
            stream = torch.cat([stream, site.encode(dense_h[index][rows]).to(stream.dtype)])
    return own, stream[batch:]


def _dense_pass(pair: BridgedPair, ids: Tensor, own: list[Tensor], crossing: Crossing) -> Tensor:
    """The dense model's final residuals of the rows that crossed over from the sparse model."""
    context = pair.dense.context(ids)
    stream: Tensor | None = None
    for index, (site, rows) in enumerate(zip(pair.sites, crossing.rows, strict=True)):
        if stream is not None:
            stream = pair.dense.sublayer(index - 1, stream, context)
        if len(rows):
            arriving = site.decode(own[index][rows])
            stream = arriving if stream is None else torch.cat([stream, arriving.to(stream.dtype)])
    return own[0].new_zeros((0, ids.shape[1], pair.dense.width)) if stream is None else stream


def _chunk(pair: BridgedPair) -> int:
    return max(1, LOGITS_AT_ONCE // pair.sparse.config.vocab_size)


def _head_parameters(pair: BridgedPair) -> list[Tensor]:
    """What the sparse model's unembedding is made of."""
    model = pair.sparse
    found = [model.lm_head.weight, model.transformer.ln_f.weight, *(getattr(model, name) for name in model.bigram.tensors)]
    return [p for p in found if p.requires_grad]


def _own_head(
    pair: BridgedPair, ids: Tensor, sparse_h: Tensor, dense_h: Tensor, crossing: Crossing, spec: BridgeSpec
) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy and KL of the sparse model's own predictions at `crossing.own`, and the two by themselves (2,)."""
    at, last = crossing.own, ids.shape[1] - 1
    has_next = (at < last).float()
    following = ids[:, (at + 1).clamp(max=last)]
    predicted = max(1.0, float(has_next.sum())) * len(ids)
    everywhere = len(at) * len(ids)

    def body(h: Tensor, d: Tensor, token: Tensor, after: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            target = Target.of(pair.dense.unembed(d))
        weight = spec.ce_coef * counts / predicted
        value, kl, ce = target.kl_and_loss(pair.sparse.unembed(h, token), after, spec.kl_plain_coef / everywhere, weight)
        return value.sum(), torch.stack([(ce * counts).sum() / predicted, kl.sum() / everywhere])

    streams = [t[:, at].flatten(0, 1) for t in (sparse_h, dense_h, ids)] + [following.flatten(), has_next.repeat(len(ids))]
    return in_chunks(body, streams, _head_parameters(pair), _chunk(pair))


def _crossing_head(
    pair: BridgedPair, ids: Tensor, to_sparse: Tensor, to_dense: Tensor, dense_h: Tensor, crossing: Crossing, spec: BridgeSpec
) -> tuple[Tensor, Tensor]:
    """Weighted KLs of the rows that crossed over, and the sums over sites in both directions by themselves (2,)."""
    order, at = crossing.order, crossing.positions
    if not len(order):
        return torch.zeros((), device=ids.device), torch.zeros(2, device=ids.device)
    weights = (crossing.weights / len(at)).repeat_interleave(len(at))

    def body(s: Tensor, d: Tensor, truth: Tensor, token: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            target = Target.of(pair.dense.unembed(truth))
        kl_sparse, kl_dense = target.kl(pair.sparse.unembed(s, token)), target.kl(pair.dense.unembed(d))
        sums = torch.stack([(kl_sparse * weight).sum(), (kl_dense * weight).sum()])
        return spec.kl_to_sparse_coef * sums[0] + spec.kl_to_dense_coef * sums[1], sums

    streams = [to_sparse[:, at], to_dense[:, at], dense_h[order][:, at], ids[order][:, at]]
    return in_chunks(body, [*(s.flatten(0, 1) for s in streams), weights], _head_parameters(pair), _chunk(pair))


def sparse_residuals(pair: BridgedPair, ids: Tensor) -> list[Tensor]:
    """All 2L + 1 residuals (B, T, S) of the sparse model's own pass."""
    context = pair.sparse.context(ids.shape[1])
    found = [pair.sparse.embed(ids, context)]
    for index in range(pair.sparse.n_sublayers):
        found.append(pair.sparse.sublayer(index, found[-1], context))
    return found
