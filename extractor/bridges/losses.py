"""The loss of bridge training on a batch x (B, T) (App. A.3). Shapes and symbols: `extractor.bridges`.

    loss = ce_coef * ce + kl_plain_coef * kl_plain
         + c * sum over sites i of [ nmse_coef * (nmse_encoder_i + nmse_decoder_i)
                                     + kl_to_sparse_coef * kl_to_sparse_i + kl_to_dense_coef * kl_to_dense_i ]

    ce               cross-entropy of ys and the next token
    kl_plain         KL(yd || ys); ours
    nmse_encoder_i   mean of (f_i(hd_i) - hs_i)^2 / v_i; hs_i is detached, v_i its running variance
    nmse_decoder_i   mean of (g_i(hs_i) - hd_i)^2 in the site's normalised coordinates (`BridgeSite.normalised`), where the variance of
                     every channel is 1
    kl_to_sparse_i   KL(yd || sparse model entered at site i with f_i(hd_i))
    kl_to_dense_i    KL(yd || dense model entered at site i with g_i(hs_i))
    c                1 / (2L + 1) for `over_sites='mean'`, 1 for 'sum' (the paper)

With prompts of tasks (`BridgeSpec.focus`) there is one more term:

         + focus_coef * (kl_plain_coef * kl_plain' + c * sum_i [kl_to_sparse_coef * kl_to_sparse_i' + kl_to_dense_coef * kl_to_dense_i'])

where ' marks the same KL at the last token of a prompt, plus its mean over the tokens after it where the prompts are given with the rest
of their programs (`BridgeSpec.focus_tokens`); a mean over prompts.

ce and KLs are means over tokens in nats. No denominator depends on the micro-batch, so the loss of a batch is the mean over its
sequences however it is cut. Logged terms are means over sites.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from extractor.bridges.chunked_loss import LOGITS_AT_ONCE, Target, in_chunks
from extractor.bridges.crossing import Crossing
from extractor.bridges.pair import BridgedPair
from extractor.data.focus import Prompts
from extractor.models.dense.base import residuals
from extractor.spec.schema import BridgeSpec

TERMS = ("ce", "nmse_encoder", "nmse_decoder", "kl_to_sparse", "kl_to_dense", "kl_plain")


class OwnTokens(NamedTuple):
    """What the sparse model's own predictions are scored from, token by token: N = B times the scored positions."""

    sparse: Tensor  # final residual of the sparse model, (N, S)
    dense: Tensor  # final residual of the dense model, (N, D)
    token: Tensor  # (N,)
    next_token: Tensor  # (N,)
    has_next: Tensor  # (N,): 0 at the last position of a sequence, else 1


class CrossedTokens(NamedTuple):
    """What hybrid passes are scored from, token by token: N = crossings times the scored positions."""

    to_sparse: Tensor  # final sparse residual of the pass that began in the dense model, (N, S)
    to_dense: Tensor  # final dense residual of the pass that began in the sparse model, (N, D)
    dense: Tensor  # final residual of the dense model's own pass, (N, D)
    token: Tensor  # (N,)
    weight: Tensor  # (N,): the sum over tokens of weight * KL estimates the sum over sites of the mean KL


class PlainTokens(NamedTuple):
    """What the sparse model's own predictions on prompts are scored from, token by token: N tokens of prompts and of what follows them."""

    sparse: Tensor  # final residual of the sparse model, (N, S)
    dense: Tensor  # final residual of the dense model, (N, D)
    token: Tensor  # (N,)
    weight: Tensor  # (N,): of the KL in the loss
    share: Tensor  # (N,): of the KL in the reported mean


def bridge_loss(pair: BridgedPair, ids: Tensor, crossing: Crossing, variance: Tensor, spec: BridgeSpec) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (scalar, with gradient) of ids (B, T), its TERMS (6,), and the `moments` of the sparse residuals at the sites of crossings.

    variance   v_i of the sparse residual at each of these sites
    """
    sites = len(pair.crossed)
    per_site = 1 / sites if spec.over_sites == "mean" else 1.0
    with torch.no_grad():
        dense_h = residuals(pair.dense, ids)
    own, to_sparse = _sparse_pass(pair, ids, dense_h, crossing)
    to_dense = _dense_pass(pair, ids, own, crossing)
    there, here = (pair.later_tokens([h[index] for index in pair.crossed]) for h in (dense_h, own))
    at_sites = list(zip([pair.sites[index] for index in pair.crossed], there, here, strict=True))
    encoder = torch.stack([_error(site.encode(d), h.detach()) for site, d, h in at_sites]) / variance.clamp_min(1e-12)
    decoder = torch.stack([_error(site.decode_normalised(h), site.normalised(d)) for site, d, h in at_sites])
    own_loss, (ce, kl_plain) = _own_loss(pair, ids, own[len(pair.sites) - 1], dense_h[-1], crossing, spec)
    crossed_loss, crossed_kl = _crossed_loss(pair, ids, to_sparse, to_dense, dense_h[-1], crossing, spec)
    loss = own_loss + per_site * (crossed_loss + spec.nmse_coef * (encoder.sum() + decoder.sum()))
    terms = torch.stack([ce, encoder.mean(), decoder.mean(), crossed_kl[0] / sites, crossed_kl[1] / sites, kl_plain])
    return loss, terms.detach(), moments(here)


def focus_loss(pair: BridgedPair, prompts: Prompts, crossing: Crossing, spec: BridgeSpec) -> tuple[Tensor, Tensor]:
    """The loss of prompts (scalar, with gradient), without focus_coef; and the KL of the sparse model at their last token (scalar).

    See the module.
    """
    per_site = 1 / len(pair.crossed) if spec.over_sites == "mean" else 1.0
    ids = prompts.ids
    with torch.no_grad():
        dense_h = residuals(pair.dense, ids)
    own, to_sparse = _sparse_pass(pair, ids, dense_h, crossing)
    to_dense = _dense_pass(pair, ids, own, crossing)
    weights, order = prompts.weights, crossing.order
    at, crossed_at = weights.nonzero(as_tuple=True), weights[order].nonzero(as_tuple=True)
    at_answer = (at[1] == prompts.last[at[0]]).float()
    final = own[len(pair.sites) - 1]
    plain, kl_answer = _plain_kl(pair, PlainTokens(final[at], dense_h[-1][at], ids[at], weights[at] / len(ids), at_answer / len(ids)))
    crossed_weights = (crossing.weights[:, None] * weights[order])[crossed_at]
    dense, token = dense_h[-1][order][crossed_at], ids[order][crossed_at]
    crossed, _ = _crossed_kl(pair, CrossedTokens(to_sparse[crossed_at], to_dense[crossed_at], dense, token, crossed_weights), spec)
    return spec.kl_plain_coef * plain + per_site * crossed, kl_answer[0]


@torch.no_grad()
def moments(sparse_h: list[Tensor]) -> Tensor:
    """For each of some sites the mean of every channel and, last, the mean of all squares: (sites, S + 1), over sequences and tokens."""
    return torch.stack([torch.cat([h.float().mean((0, 1)), h.float().square().mean().reshape(1)]) for h in sparse_h])


def variance_of(moments: Tensor) -> Tensor:
    """The variance of each site's channels around their means, averaged over channels, (2L + 1,), from `moments`."""
    return moments[:, -1] - moments[:, :-1].square().mean(1)


def _error(value: Tensor, target: Tensor) -> Tensor:
    return functional.mse_loss(value.float(), target.float())


def _sparse_pass(pair: BridgedPair, ids: Tensor, dense_h: list[Tensor], crossing: Crossing) -> tuple[dict[int, Tensor], Tensor]:
    """hs_i for the sites i from the first crossing on; and the final sparse residuals (C, T, S) of the C sequences that crossed over.

    The reference for the latter: for every site i, tail(pair.sparse, i, site.encode(dense_h[i][rows]), context).
    """
    batch = len(ids)
    context, first = pair.sparse.context(ids.shape[1]), pair.crossed.start
    if first:  # replaces the layers before the sparse ones, which are the dense model's, but for their last sublayer
        before = dense_h[first - 1]
        stream = pair.sites[first - 1].encode(before).to(before.dtype)
    else:
        stream = pair.sparse.embed(ids, context)
    own, crossing_at = {}, dict(zip(pair.crossed, crossing.rows, strict=True))
    for index in range(first, len(pair.sites)):
        if index:
            stream = pair.sparse.sublayer(index - 1, stream, context)  # replaces this sublayer of all tails that began before
        own[index] = stream[:batch]
        if len(rows := crossing_at.get(index, ())):
            arriving = pair.sites[index].encode(dense_h[index][rows])  # replaces the start of the tails of site i
            stream = torch.cat([stream, arriving.to(stream.dtype)])
    return own, stream[batch:]


def _dense_pass(pair: BridgedPair, ids: Tensor, own: dict[int, Tensor], crossing: Crossing) -> Tensor:
    """The final dense residuals (C, T, D) of the C sequences that crossed over from the sparse model; `own` are hs_i.

    The reference: for every site i, tail(pair.dense, i, site.decode(own[i][rows]), context).
    """
    context = pair.dense.context(ids)
    stream: Tensor | None = None
    crossing_at = dict(zip(pair.crossed, crossing.rows, strict=True))
    for index, site in enumerate(pair.sites):
        if stream is not None:
            stream = pair.dense.sublayer(index - 1, stream, context)  # replaces this sublayer of all tails that began before
        if len(rows := crossing_at.get(index, ())):
            arriving = site.decode(own[index][rows])  # replaces the start of the tails of site i
            stream = arriving if stream is None else torch.cat([stream, arriving.to(stream.dtype)])
    return own[len(pair.sites) - 1].new_zeros((0, ids.shape[1], pair.dense.width)) if stream is None else stream


def _tokens_per_chunk(pair: BridgedPair) -> int:
    return max(1, LOGITS_AT_ONCE // pair.sparse.config.vocab_size)


def _unembedding(pair: BridgedPair) -> list[Tensor]:
    """The trained tensors of the sparse model between its final residual and its logits."""
    model = pair.sparse
    found = [model.lm_head.weight, model.transformer.ln_f.weight, *(getattr(model, name) for name in model.bigram.tensors)]
    return [p for p in found if p.requires_grad]


def _own_loss(
    pair: BridgedPair, ids: Tensor, sparse_h: Tensor, dense_h: Tensor, crossing: Crossing, spec: BridgeSpec
) -> tuple[Tensor, Tensor]:
    """ce_coef * ce + kl_plain_coef * kl_plain at `crossing.own`, from final residuals; and (ce, kl_plain) themselves, (2,)."""
    at, last = crossing.own, ids.shape[1] - 1
    has_next = (at < last).float()
    next_token = ids[:, (at + 1).clamp(max=last)]
    predicted = max(1.0, float(has_next.sum())) * len(ids)
    everywhere = len(at) * len(ids)

    def body(tokens: OwnTokens) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            target = Target.of(pair.dense.unembed(tokens.dense))
        weight = spec.ce_coef * tokens.has_next / predicted
        logits = pair.sparse.unembed(tokens.sparse, tokens.token)
        value, kl, ce = target.kl_and_loss(logits, tokens.next_token, spec.kl_plain_coef / everywhere, weight)
        return value.sum(), torch.stack([(ce * tokens.has_next).sum() / predicted, kl.sum() / everywhere])

    sparse, dense, token = (t[:, at].flatten(0, 1) for t in (sparse_h, dense_h, ids))
    tokens = OwnTokens(sparse, dense, token, next_token.flatten(), has_next.repeat(len(ids)))
    return in_chunks(body, tokens, _unembedding(pair), _tokens_per_chunk(pair))


def _crossed_loss(
    pair: BridgedPair, ids: Tensor, to_sparse: Tensor, to_dense: Tensor, dense_h: Tensor, crossing: Crossing, spec: BridgeSpec
) -> tuple[Tensor, Tensor]:
    """The weighted KLs of hybrid passes, summed over sites, from final residuals; and the sums of both directions themselves, (2,)."""
    order, at = crossing.order, crossing.positions
    if not len(order):
        return torch.zeros((), device=ids.device), torch.zeros(2, device=ids.device)
    weights = (crossing.weights / len(at)).repeat_interleave(len(at))
    sparse, dense, target_h, token = (t[:, at].flatten(0, 1) for t in (to_sparse, to_dense, dense_h[order], ids[order]))
    return _crossed_kl(pair, CrossedTokens(sparse, dense, target_h, token, weights), spec)


def _crossed_kl(pair: BridgedPair, tokens: CrossedTokens, spec: BridgeSpec) -> tuple[Tensor, Tensor]:
    """kl_to_sparse_coef * s + kl_to_dense_coef * d, and (s, d), (2,): the sums over tokens of weight * KL in both directions."""

    def body(some: CrossedTokens) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            target = Target.of(pair.dense.unembed(some.dense))
        kl_sparse = target.kl(pair.sparse.unembed(some.to_sparse, some.token))
        kl_dense = target.kl(pair.dense.unembed(some.to_dense))
        sums = torch.stack([(kl_sparse * some.weight).sum(), (kl_dense * some.weight).sum()])
        return spec.kl_to_sparse_coef * sums[0] + spec.kl_to_dense_coef * sums[1], sums

    return in_chunks(body, tokens, _unembedding(pair), _tokens_per_chunk(pair))


def _plain_kl(pair: BridgedPair, tokens: PlainTokens) -> tuple[Tensor, Tensor]:
    """The sum over tokens of weight * KL(dense || sparse), and of share * KL without gradient, (1,)."""

    def body(some: PlainTokens) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            target = Target.of(pair.dense.unembed(some.dense))
        kl = target.kl(pair.sparse.unembed(some.sparse, some.token))
        return (some.weight * kl).sum(), (some.share * kl).sum()[None]

    return in_chunks(body, tokens, _unembedding(pair), _tokens_per_chunk(pair))


def sparse_residuals(pair: BridgedPair, ids: Tensor) -> list[Tensor]:
    """All 2L + 1 residuals hs_i (B, T, S) of the sparse model's own pass over ids (B, T)."""
    context = pair.sparse.context(ids.shape[1])
    found = [pair.sparse.embed(ids, context)]
    for index in range(pair.sparse.n_sublayers):
        found.append(pair.sparse.sublayer(index, found[-1], context))
    return found
