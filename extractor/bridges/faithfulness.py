"""How much of the dense model's predictions on text the sparse model and the hybrid passes reproduce.

A hybrid pass starts in one model and crosses to the other once, at one of the 2L + 1 sites (Sec. 2.3). Training samples the crossings; here
every sequence crosses at every site, in both directions. `explained` is the share of KL that a pass explains,

    1 - KL(dense model || pass) / KL(dense model || bigram model),

for every source of text by itself: 1 for the dense model's own predictions, 0 for those of a bigram model, never above 1. `loss_recovered`
places the next-token loss of a pass on a scale from the bigram model (0) to the dense model (1); it may exceed 1, since a pass can predict
the text better than the dense model does. JSON keys and the names below say "path" for a hybrid pass. Shapes and symbols:
`extractor.bridges`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from extractor.bridges.chunked_loss import LOGITS_AT_ONCE, Target
from extractor.bridges.losses import sparse_residuals
from extractor.bridges.pair import BridgedPair
from extractor.data.corpus import Corpus
from extractor.files import rounded
from extractor.models.dense.base import residuals, tail
from extractor.sparse.bigram import PRIOR, Counts

FLAT = 1e-12  # share of its mean square below which a channel's variance is rounding


class SiteScores(NamedTuple):
    """Sums over tokens of [next-token loss, KL from the dense model's predictions], nats, fp64.

    dense, sparse, bigram   of each model's own predictions, (2,)
    to_sparse, to_dense     of the hybrid passes, (crossings, 2): dense then sparse, sparse then dense
    """

    dense: Tensor
    sparse: Tensor
    bigram: Tensor
    to_sparse: Tensor
    to_dense: Tensor

    def plus(self, other: SiteScores) -> SiteScores:
        """The sums over both sets of tokens."""
        return SiteScores(*(a + b for a, b in zip(self, other, strict=True)))

    def means(self, index: int, count: int) -> PassValues:
        """Means over `count` tokens of the losses (index 0) or the KLs (index 1)."""
        dense, sparse, bigram = (float(one[index] / count) for one in (self.dense, self.sparse, self.bigram))
        to_sparse, to_dense = ((paths[:, index] / count).tolist() for paths in (self.to_sparse, self.to_dense))
        return PassValues(dense, sparse, bigram, to_sparse, to_dense)


class PassValues(NamedTuple):
    """One number, nats per token, of each model's own predictions and of the hybrid passes of every site."""

    dense: float
    sparse: float
    bigram: float
    to_sparse: list[float]
    to_dense: list[float]

    def shares(self) -> dict | None:
        """{sparse, to_sparse, to_dense, mean, worst}: fractions of the way from the bigram model's number to the dense model's.

        mean    over the sparse model and the hybrid passes; worst: the least of all these
        None where the dense model's number is not below the bigram model's.
        """
        whole = self.bigram - self.dense
        if whole <= 0:
            return None

        def share(value: float) -> float:
            return (self.bigram - value) / whole

        of_sites = [share(value) for both in zip(self.to_sparse, self.to_dense, strict=True) for value in both]
        found = [share(self.sparse), *of_sites]
        paths = {"to_sparse": [*map(share, self.to_sparse)], "to_dense": [*map(share, self.to_dense)]}
        return {"sparse": found[0]} | paths | {"mean": sum(found) / len(found), "worst": min(found)}


class Sums(NamedTuple):
    """Sums over tokens, fp64.

    scores             losses and KLs
    agreeing           positions at which both models find the same next token likeliest, scalar
    encoder, decoder   `_moments` of f_i(hd_i) beside hs_i (crossings, 3, S), of g_i(hs_i) beside hd_i (crossings, 3, D)
    tokens, rows       numbers of tokens and of sequences
    """

    scores: SiteScores
    agreeing: Tensor
    encoder: Tensor
    decoder: Tensor
    tokens: int
    rows: int

    def plus(self, other: Sums) -> Sums:
        """The sums over both sets of tokens."""
        agreeing, encoder, decoder = self.agreeing + other.agreeing, self.encoder + other.encoder, self.decoder + other.decoder
        return Sums(self.scores.plus(other.scores), agreeing, encoder, decoder, self.tokens + other.tokens, self.rows + other.rows)

    @property
    def losses(self) -> PassValues:
        """Next-token losses; the last token of a sequence has none."""
        return self.scores.means(0, self.tokens - self.rows)

    @property
    def kls(self) -> PassValues:
        """KLs from the dense model's predictions."""
        return self.scores.means(1, self.tokens)

    @property
    def agreement(self) -> float:
        """Fraction of positions at which both models find the same next token likeliest."""
        return float(self.agreeing) / self.tokens


@torch.no_grad()
def faithfulness(pair: BridgedPair, corpus: Corpus, context: int, seed: int, rows: int = 64) -> dict:
    """How interchangeable the two models are on `rows` held-out windows of `context` tokens, equally many from every source of text.

    explained                                         {source, sparse, to_sparse, to_dense, mean, worst} of the source with the least mean:
                                                      shares of KL, one number or one for each site; None where the dense model predicts
                                                      every source as a bigram model does
    sources                                           {source: {tokens, agreement, dense_loss, sparse_loss, bigram_loss,
                                                      kl_dense_to_sparse, kl_dense_to_bigram, explained}}
    dense_loss, sparse_loss, bigram_loss, path_loss   nats per token; path_loss {to_sparse, to_dense}: one number for each site
    kl_dense_to_sparse, kl_dense_to_bigram, path_kl   nats per token, from the dense model's predictions; path_kl as path_loss
    agreement                                         fraction of positions at which both models find the same next token likeliest
    nmse                                              {encoder, decoder, decoder_by_channel}: one number for each site, see `_nmse`
    loss_recovered                                    {sparse, to_sparse, to_dense, mean, worst}: shares of the gain in loss; None where the
                                                      dense model is no better than bigrams
    held_out_tokens                                   number of tokens measured
    sparse_layers                                     [first, last] where the other layers stay dense, else absent; numbers of sites at
                                                      which no passes cross, before and behind these layers, are None
    sites_per_layer                                   1 where blocks are parallel, else absent: 2
    """
    size = pair.sparse.config.vocab_size
    bigrams = Counts(size, *corpus.bigram_triples(size))
    texts = corpus.held_out_by_source(seed, max(1, rows // len(corpus.sources)), context)
    by_source = {name: _sums_of(pair, ids, bigrams) for name, ids in texts.items()}
    sources = {name: _of_source(sums) for name, sums in by_source.items()}
    found = pair.by_site({"explained": _worst(sources), "sources": sources} | _of_all(_total([*by_source.values()])))
    found |= {"sparse_layers": pair.sparse.config.sparse_layers} if pair.sparse.config.sparse_layers else {}
    return rounded(found | ({"sites_per_layer": 1} if pair.sparse.config.parallel else {}))


def _sums_of(pair: BridgedPair, held_out: Tensor, bigrams: Counts) -> Sums:
    """The sums over held-out text (rows, T), in parts that fit into memory."""
    at_once = max(1, LOGITS_AT_ONCE // (held_out.shape[1] * bigrams.size))
    return _total([_sums(pair, ids.to(pair.sparse.device), bigrams) for ids in held_out.split(at_once)])


def _total(parts: list[Sums]) -> Sums:
    found = parts[0]
    for part in parts[1:]:
        found = found.plus(part)
    return found


def _of_source(sums: Sums) -> dict:
    """The numbers of one source, see `faithfulness`."""
    losses, kls = sums.losses, sums.kls
    facts = {"tokens": sums.tokens, "agreement": sums.agreement, "dense_loss": losses.dense, "sparse_loss": losses.sparse}
    facts |= {"bigram_loss": losses.bigram, "kl_dense_to_sparse": kls.sparse, "kl_dense_to_bigram": kls.bigram}
    return facts | {"explained": kls.shares()}


def _worst(sources: dict[str, dict]) -> dict | None:
    """The shares of KL of the source whose mean share is least, with its name."""
    known = {name: facts["explained"] for name, facts in sources.items() if facts["explained"]}
    if not known:
        return None
    name = min(known, key=lambda name: known[name]["mean"])
    return {"source": name} | known[name]


def _of_all(sums: Sums) -> dict:
    """The numbers over all sources, see `faithfulness`."""
    losses, kls = sums.losses, sums.kls
    encoder, decoder = sums.encoder.cpu(), sums.decoder.cpu()
    return {
        "dense_loss": losses.dense,
        "sparse_loss": losses.sparse,
        "bigram_loss": losses.bigram,
        "kl_dense_to_sparse": kls.sparse,
        "kl_dense_to_bigram": kls.bigram,
        "agreement": sums.agreement,
        "nmse": {
            "encoder": _nmse(encoder, sums.tokens),
            "decoder": _nmse(decoder, sums.tokens),
            "decoder_by_channel": _nmse_by_channel(decoder, sums.tokens),
        },
        "path_kl": {"to_sparse": kls.to_sparse, "to_dense": kls.to_dense},
        "path_loss": {"to_sparse": losses.to_sparse, "to_dense": losses.to_dense},
        "loss_recovered": losses.shares(),
        "held_out_tokens": sums.tokens,
    }


def _sums(pair: BridgedPair, ids: Tensor, bigrams: Counts) -> Sums:
    """All that `faithfulness` sums, over ids (B, T)."""
    dense_h, sparse_h = residuals(pair.dense, ids), sparse_residuals(pair, ids)
    logits = pair.dense.unembed(dense_h[-1])
    target, likeliest = Target.of(logits), logits.argmax(-1)
    dense = _scores(target, logits, ids)
    logits = pair.sparse.unembed(sparse_h[-1], ids)
    agreeing = (logits.argmax(-1) == likeliest).sum().double()
    sparse = _scores(target, logits, ids)
    bigram = _scores(target, bigram_logits(bigrams, ids), ids)
    del logits
    paths = torch.stack([_scores(target, logits, ids) for logits in path_logits(pair, ids, dense_h, sparse_h)])
    to_sparse, to_dense = paths.unflatten(0, (-1, 2)).unbind(1)
    at_sites = [(pair.sites[index], dense_h[index], sparse_h[index]) for index in pair.crossed]
    encoder = torch.stack([_moments(site.encode(d), s) for site, d, s in at_sites])
    decoder = torch.stack([_moments(site.decode(s), d) for site, d, s in at_sites])
    return Sums(SiteScores(dense, sparse, bigram, to_sparse, to_dense), agreeing, encoder, decoder, ids.numel(), len(ids))


def path_logits(
    pair: BridgedPair, ids: Tensor, dense_h: list[Tensor], sparse_h: list[Tensor], last: Tensor | None = None
) -> Iterator[Tensor]:
    """The logits (B, T, V) of both hybrid passes of each site of `pair.crossed` in turn, dense then sparse first, one tensor at a time.

    dense_h, sparse_h   hd_i and hs_i of ids (B, T)
    last                position (B,) at which alone the logits are wanted: then they are (B, V)
    """
    sparse_context, dense_context = pair.sparse.context(ids.shape[1]), pair.dense.context(ids)

    def at(values: Tensor) -> Tensor:
        return values if last is None else values[torch.arange(len(values), device=values.device), last]

    for start in pair.crossed:
        site = pair.sites[start]
        yield pair.sparse.unembed(at(tail(pair.sparse, start, site.encode(dense_h[start]), sparse_context)), at(ids))
        yield pair.dense.unembed(at(tail(pair.dense, start, site.decode(sparse_h[start]), dense_context)))


def _scores(target: Target, logits: Tensor, ids: Tensor) -> Tensor:
    """Sums of the next-token loss over T - 1 positions and of the KL from the target over T: (2,) fp64, nats."""
    log_q = logits.float().log_softmax(-1)
    kl = target.negative_entropy - torch.linalg.vecdot(target.p, log_q)
    return torch.stack([-log_q[:, :-1].gather(-1, ids[:, 1:, None]).double().sum(), kl.double().sum()])


def _moments(value: Tensor, target: Tensor) -> Tensor:
    """Sums per channel of the squared error, the target and its square: (3, width) fp64."""
    value, target = value.double(), target.double()
    return torch.stack([(value - target).square().sum((0, 1)), target.sum((0, 1)), target.square().sum((0, 1))])


def _nmse(moments: Tensor, count: int) -> list[float]:
    """For each site the squared error over the target's variance around its channel means; predicting these means gives 1."""
    error, variance = _error_and_variance(moments, count)
    return (error.sum(-1) / variance.sum(-1).clamp_min(FLAT)).tolist()


def _nmse_by_channel(moments: Tensor, count: int) -> list[float]:
    """For each site the mean over channels of a channel's error over its own variance. In GPT-2 few channels hold most of the variance."""
    error, variance = _error_and_variance(moments, count)
    varies = variance > 0
    shares = torch.where(varies, error / variance, 0)
    return (shares.sum(-1) / varies.sum(-1).clamp_min(1)).tolist()


def _error_and_variance(moments: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The mean squared error and the target's variance of every channel, (crossings, width) each, from sums over `count` tokens."""
    error, mean, square = (moments / count).unbind(1)
    variance = square - mean.square()
    return error, torch.where(variance > FLAT * square, variance, 0)


def bigram_logits(bigrams: Counts, ids: Tensor) -> Tensor:
    """Log frequencies (..., V) of the token after each of ids (...), nats."""
    tokens, where = ids.unique(return_inverse=True)
    return torch.from_numpy(bigrams.log_rows(tokens.cpu().numpy())).float().to(ids.device)[where]


def bigram_loss(counts: Counts, ids: Tensor) -> float:
    """The loss of a bigram model of these counts on ids (B, T), nats per token; smoothed as in `sparse.bigram`, without a (V, V) table."""
    before, after = ids[:, :-1].flatten().numpy(), ids[:, 1:].flatten().numpy()
    known, wanted = counts.rows.astype(np.int64) * counts.size + counts.columns, before * counts.size + after
    where = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    seen = np.where(known[where] == wanted, counts.counts[where], 0.0)
    total = np.bincount(counts.rows, counts.counts, minlength=counts.size)
    return float(-np.log((seen + counts.prior()[after]) / (total[before] + PRIOR)).mean())
