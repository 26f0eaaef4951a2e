"""How much of the dense model the sparse model reproduces: on text, on a task's prompts, and by the circuit alone.

A hybrid pass starts in one model and crosses to the other once, at one of the 2L + 1 sites (Sec. 2.3). Training samples the crossings; here
every sequence crosses at every site, in both directions. `recovered` places the loss of a pass on a scale from a bigram model (0) to the
dense model (1). JSON keys and the names below say "path" for a hybrid pass. Shapes and symbols: `extractor.bridges`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from extractor.bridges.chunked_loss import LOGITS_AT_ONCE, Target
from extractor.bridges.losses import sparse_residuals
from extractor.bridges.pair import BridgedPair
from extractor.circuits.calibration import calibrate, calibrated_loss
from extractor.circuits.graph import CircuitMask, NodeIndex
from extractor.circuits.network import LENGTH_GROUPS
from extractor.circuits.reference import masked_logit_diff, masked_residuals
from extractor.data.corpus import Corpus
from extractor.data.prompts import TaskBatch, accuracy, logit_diff, task_loss
from extractor.files import rounded
from extractor.models.dense.base import residuals, tail
from extractor.sparse.bigram import PRIOR, Counts

FLAT = 1e-12  # share of its mean square below which a channel's variance is rounding


class SiteScores(NamedTuple):
    """Sums over tokens of [next-token loss, KL from the dense model's predictions], nats, fp64.

    dense, sparse         of each model's own pass, (2,)
    to_sparse, to_dense   of the hybrid passes, (2L + 1, 2): dense then sparse, sparse then dense
    """

    dense: Tensor
    sparse: Tensor
    to_sparse: Tensor
    to_dense: Tensor

    def plus(self, other: SiteScores) -> SiteScores:
        """The sums over both sets of tokens."""
        return SiteScores(*(a + b for a, b in zip(self, other, strict=True)))

    def means(self, index: int, count: int) -> tuple[float, float, list[float], list[float]]:
        """Means over `count` tokens of the losses (index 0) or the KLs (index 1): dense, sparse, to_sparse, to_dense."""
        to_sparse, to_dense = (self.to_sparse[:, index] / count).tolist(), (self.to_dense[:, index] / count).tolist()
        return float(self.dense[index] / count), float(self.sparse[index] / count), to_sparse, to_dense


class Sums(NamedTuple):
    """Sums over tokens, fp64.

    scores             losses and KLs
    agreeing           positions at which both models find the same next token likeliest, scalar
    encoder, decoder   `_moments` of f_i(hd_i) beside hs_i (2L + 1, 3, S), of g_i(hs_i) beside hd_i (2L + 1, 3, D)
    """

    scores: SiteScores
    agreeing: Tensor
    encoder: Tensor
    decoder: Tensor

    def plus(self, other: Sums) -> Sums:
        """The sums over both sets of tokens."""
        scores = self.scores.plus(other.scores)
        return Sums(scores, self.agreeing + other.agreeing, self.encoder + other.encoder, self.decoder + other.decoder)


@torch.no_grad()
def faithfulness(pair: BridgedPair, corpus: Corpus, context: int, seed: int, rows: int = 64) -> dict:
    """How interchangeable the two models are on `rows` held-out windows of `context` tokens.

    dense_loss, sparse_loss, bigram_loss, path_loss   nats per token; path_loss {to_sparse, to_dense}: one number for each site
    kl_dense_to_sparse, path_kl                       nats per token, from the dense model's predictions; path_kl as path_loss
    agreement                                         fraction of positions at which both models find the same next token likeliest
    nmse                                              {encoder, decoder, decoder_by_channel}: one number for each site, see `_nmse`
    recovered                                         {sparse, to_sparse, to_dense, mean}: fractions of the way from the bigram model's loss
                                                      to the dense model's; None where the dense model is no better than bigrams
    held_out_tokens                                   number of tokens measured
    """
    size = pair.sparse.config.vocab_size
    held_out = corpus.held_out_batch(seed, rows, context)
    found: Sums | None = None
    for ids in held_out.split(max(1, LOGITS_AT_ONCE // (context * size))):
        part = _sums(pair, ids.to(pair.sparse.device))
        found = part if found is None else found.plus(part)
    assert found is not None
    encoder, decoder = found.encoder.cpu(), found.decoder.cpu()
    dense_loss, sparse_loss, *path_loss = found.scores.means(0, rows * (context - 1))
    _, sparse_kl, *path_kl = found.scores.means(1, rows * context)
    bigram = bigram_loss(Counts(size, *corpus.bigram_triples(size)), held_out)
    return rounded(
        {
            "dense_loss": dense_loss,
            "sparse_loss": sparse_loss,
            "bigram_loss": bigram,
            "kl_dense_to_sparse": sparse_kl,
            "agreement": float(found.agreeing) / held_out.numel(),
            "nmse": {
                "encoder": _nmse(encoder, held_out.numel()),
                "decoder": _nmse(decoder, held_out.numel()),
                "decoder_by_channel": _nmse_by_channel(decoder, held_out.numel()),
            },
            "path_kl": {"to_sparse": path_kl[0], "to_dense": path_kl[1]},
            "path_loss": {"to_sparse": path_loss[0], "to_dense": path_loss[1]},
            "recovered": _recovered(bigram, dense_loss, sparse_loss, *path_loss),
            "held_out_tokens": held_out.numel(),
        }
    )


def _sums(pair: BridgedPair, ids: Tensor) -> Sums:
    """All that `faithfulness` sums, over ids (B, T)."""
    dense_h, sparse_h = residuals(pair.dense, ids), sparse_residuals(pair, ids)
    logits = pair.dense.unembed(dense_h[-1])
    target, likeliest = Target.of(logits), logits.argmax(-1)
    dense = _scores(target, logits, ids)
    logits = pair.sparse.unembed(sparse_h[-1], ids)
    agreeing = (logits.argmax(-1) == likeliest).sum().double()
    sparse = _scores(target, logits, ids)
    del logits
    paths = torch.stack([_scores(target, logits, ids) for logits in path_logits(pair, ids, dense_h, sparse_h)])
    to_sparse, to_dense = paths.unflatten(0, (-1, 2)).unbind(1)
    at_sites = list(zip(pair.sites, dense_h, sparse_h, strict=True))
    encoder = torch.stack([_moments(site.encode(d), s) for site, d, s in at_sites])
    decoder = torch.stack([_moments(site.decode(s), d) for site, d, s in at_sites])
    return Sums(SiteScores(dense, sparse, to_sparse, to_dense), agreeing, encoder, decoder)


def path_logits(pair: BridgedPair, ids: Tensor, dense_h: list[Tensor], sparse_h: list[Tensor]) -> Iterator[Tensor]:
    """The logits (B, T, V) of both hybrid passes of each site in turn, dense then sparse first. One tensor of logits exists at a time.

    dense_h, sparse_h   hd_i and hs_i of ids (B, T)
    """
    sparse_context, dense_context = pair.sparse.context(ids.shape[1]), pair.dense.context(ids)
    for start, site in enumerate(pair.sites):
        yield pair.sparse.unembed(tail(pair.sparse, start, site.encode(dense_h[start]), sparse_context), ids)
        yield pair.dense.unembed(tail(pair.dense, start, site.decode(sparse_h[start]), dense_context))


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
    """The mean squared error and the target's variance of every channel, (2L + 1, width) each, from sums over `count` tokens."""
    error, mean, square = (moments / count).unbind(1)
    variance = square - mean.square()
    return error, torch.where(variance > FLAT * square, variance, 0)


def bigram_loss(counts: Counts, ids: Tensor) -> float:
    """The loss of a bigram model of these counts on ids (B, T), nats per token; smoothed as in `sparse.bigram`, without a (V, V) table."""
    before, after = ids[:, :-1].flatten().numpy(), ids[:, 1:].flatten().numpy()
    known, wanted = counts.rows.astype(np.int64) * counts.size + counts.columns, before * counts.size + after
    where = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    seen = np.where(known[where] == wanted, counts.counts[where], 0.0)
    total = np.bincount(counts.rows, counts.counts, minlength=counts.size)
    return float(-np.log((seen + counts.prior()[after]) / (total[before] + PRIOR)).mean())


def _recovered(bigram: float, dense: float, sparse: float, to_sparse: list[float], to_dense: list[float]) -> dict | None:
    """Losses as fractions of the way from the bigram model's loss to the dense model's; None where there is no such way."""
    gap = bigram - dense
    if gap <= 0:
        return None

    def share(loss: float) -> float:
        return (bigram - loss) / gap

    of_sites = [share(loss) for both in zip(to_sparse, to_dense, strict=True) for loss in both]
    mean = sum([share(sparse), *of_sites]) / (1 + len(of_sites))
    return {"sparse": share(sparse), "to_sparse": [*map(share, to_sparse)], "to_dense": [*map(share, to_dense)], "mean": mean}


@torch.no_grad()
def prompt_agreement(pair: BridgedPair, batch: TaskBatch) -> dict:
    """How similarly the two models solve a task: {agreement, loss {dense, sparse}, accuracy {dense, sparse}}.

    agreement is the fraction of prompts for which both prefer the same answer of the two; task losses in nats per prompt, not calibrated.
    """
    diffs = {"dense": dense_logit_diffs(pair, batch), "sparse": masked_logit_diff(pair.sparse, batch, {}, {})}
    return rounded(
        {
            "agreement": ((diffs["dense"] > 0) == (diffs["sparse"] > 0)).double().mean().item(),
            "loss": {name: task_loss(diff, batch.sign).item() for name, diff in diffs.items()},
            "accuracy": {name: accuracy(diff, batch.sign) for name, diff in diffs.items()},
        }
    )


@torch.no_grad()
def dense_logit_diffs(pair: BridgedPair, batch: TaskBatch) -> Tensor:
    """The dense model's own logit differences, one for each prompt of the batch, (B,)."""
    diffs = torch.empty(len(batch.ids), device=batch.ids.device)
    for rows in _by_length(batch):
        part = batch.rows(rows)
        context = pair.dense.context(part.ids)
        diffs[rows] = _dense_logit_diff(pair, tail(pair.dense, 0, pair.dense.embed(part.ids, context), context), part)
    return diffs


@torch.no_grad()
def circuit_through_bridges(
    pair: BridgedPair, batch: TaskBatch, graph: CircuitMask, base: Mapping[str, Tensor], calibrate_on: TaskBatch
) -> dict:
    """How the dense model continues from the circuit alone: at site i the circuit's residual is decoded, and the dense model runs on.

    base             ablation values of the nodes outside the circuit, as for `masked_logit_diff`
    calibrate_on     the select split; scale and shift of the logit difference are fitted there, separately for every site

    Returns {loss, raw_loss, accuracy}, one number for each site: task loss in nats per prompt, calibrated and not, and the fraction of
    prompts that the calibrated logit difference answers correctly. At site 0 no node has acted yet: there the bridge alone is measured.
    """
    found: dict[str, list[float]] = {"loss": [], "raw_loss": [], "accuracy": []}
    select = _logit_diffs_through_bridges(pair, calibrate_on, graph, base)
    for chosen, diff in zip(select, _logit_diffs_through_bridges(pair, batch, graph, base), strict=True):
        calibration = calibrate(chosen, calibrate_on.sign)
        found["loss"].append(calibrated_loss(diff, batch.sign, calibration))
        found["raw_loss"].append(task_loss(diff, batch.sign).item())
        found["accuracy"].append(accuracy(calibration.apply(diff), batch.sign))
    return rounded(found)


def _logit_diffs_through_bridges(pair: BridgedPair, batch: TaskBatch, graph: CircuitMask, base: Mapping[str, Tensor]) -> Tensor:
    """Logit differences (2L + 1, B) of the hybrid passes that start in the circuit alone and end in the dense model."""
    diffs = torch.empty(len(pair.sites), len(batch.ids), device=batch.ids.device)
    masks = NodeIndex.of(pair.sparse).split(graph.nodes.float())
    for rows in _by_length(batch):
        part = batch.rows(rows)
        context = pair.dense.context(part.ids)
        residuals = masked_residuals(pair.sparse, part.ids, masks, base, graph.edges)
        for index, (site, h) in enumerate(zip(pair.sites, residuals, strict=True)):
            diffs[index, rows] = _dense_logit_diff(pair, tail(pair.dense, index, site.decode(h), context), part)
    return diffs


def _by_length(batch: TaskBatch) -> tuple[Tensor, ...]:
    """Rows in groups of similar length. Prompts are padded on the right; with causal attention, padding does not affect the last token."""
    return batch.last.argsort(stable=True).chunk(LENGTH_GROUPS)


def _dense_logit_diff(pair: BridgedPair, h: Tensor, batch: TaskBatch) -> Tensor:
    """Logit differences (B,) from the dense model's final residuals (B, T, D)."""
    return logit_diff(pair.dense.unembed(h[torch.arange(len(h), device=h.device), batch.last]), batch)
