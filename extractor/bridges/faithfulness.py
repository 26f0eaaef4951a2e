"""How much of the dense model its sparse partner carries: on text, on a task's prompts, and through the circuit alone.

A path starts in one model and crosses to the other once, at one of the 2L + 1 bridge sites (Sec. 2.3). Training samples the paths, here
every one is run whole. What is left on a path is told on a scale from a bigram model (0) to the dense model itself (1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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

DIRECTIONS = ("to_sparse", "to_dense")  # dense then sparse, sparse then dense
FLAT = 1e-12  # share of its mean square below which a channel's variance is rounding


@torch.no_grad()
def faithfulness(pair: BridgedPair, corpus: Corpus, context: int, seed: int, rows: int = 64) -> dict:
    """How interchangeable the two models are on `rows` held-out windows of `context` tokens.

    dense_loss, sparse_loss, bigram_loss, path_loss   nats per token; path_loss {to_sparse, to_dense}: a number a site
    kl_dense_to_sparse, path_kl                       nats per token, from the dense model's predictions; path_kl likewise
    agreement                                         share of positions where both models find the same next token likeliest
    nmse                                              {encoder, decoder, decoder_by_channel}: a number a site, see `_nmse`
    recovered                                         {sparse, to_sparse, to_dense, mean}: shares of the way from the bigram model's loss
                                                      to the dense model's; None where the dense model is no better than bigrams
    held_out_tokens                                   how many that was
    """
    size = pair.sparse.config.vocab_size
    held_out = corpus.held_out_batch(seed, rows, context)
    sums: list[Tensor] | None = None
    for ids in held_out.split(max(1, LOGITS_AT_ONCE // (context * size))):
        part = _chunk(pair, ids.to(pair.sparse.device))
        sums = part if sums is None else [a + b for a, b in zip(sums, part, strict=True)]
    assert sums is not None
    scores, agreeing, encoder, decoder = (total.cpu() for total in sums)
    loss, kl = (scores / torch.tensor([rows * (context - 1), rows * context])).T.tolist()
    bigram = bigram_loss(Counts(size, *corpus.bigram_triples(size)), held_out)
    found = {
        "dense_loss": loss[0],
        "sparse_loss": loss[1],
        "bigram_loss": bigram,
        "kl_dense_to_sparse": kl[1],
        "agreement": float(agreeing) / held_out.numel(),
        "nmse": {
            "encoder": _nmse(encoder, held_out.numel()),
            "decoder": _nmse(decoder, held_out.numel()),
            "decoder_by_channel": _nmse_by_channel(decoder, held_out.numel()),
        },
        "path_kl": dict(zip(DIRECTIONS, (kl[2::2], kl[3::2]), strict=True)),
        "path_loss": dict(zip(DIRECTIONS, (loss[2::2], loss[3::2]), strict=True)),
        "recovered": _recovered(loss, bigram),
        "held_out_tokens": held_out.numel(),
    }
    return rounded(found)


def _chunk(pair: BridgedPair, ids: Tensor) -> list[Tensor]:
    """Sums over ids (B, T), fp64.

    scores (2 + 2 sites, 2): loss and KL of the dense model, the sparse one, then both paths of every site in turn; positions where the two
    models agree (); `_moments` of what the encoders (sites, 3, S) and the decoders (sites, 3, D) make.
    """
    dense_h, sparse_h = residuals(pair.dense, ids), sparse_residuals(pair, ids)
    logits = pair.dense.unembed(dense_h[-1])
    target, likeliest = Target.of(logits), logits.argmax(-1)
    scores = [_scores(target, logits, ids)]
    logits = pair.sparse.unembed(sparse_h[-1], ids)
    agreeing = (logits.argmax(-1) == likeliest).sum().double()
    scores.append(_scores(target, logits, ids))
    del logits
    scores += [_scores(target, logits, ids) for logits in path_logits(pair, ids, dense_h, sparse_h)]
    at_sites = list(zip(pair.sites, dense_h, sparse_h, strict=True))
    encoder = torch.stack([_moments(site.encode(d), s) for site, d, s in at_sites])
    decoder = torch.stack([_moments(site.decode(s), d) for site, d, s in at_sites])
    return [torch.stack(scores), agreeing, encoder, decoder]


def path_logits(pair: BridgedPair, ids: Tensor, dense_h: list[Tensor], sparse_h: list[Tensor]) -> Iterator[Tensor]:
    """The exact logits (B, T, V) of both paths of every site in turn, dense then sparse first, never two at once.

    dense_h, sparse_h   both models' own residuals of ids (B, T)
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
    """Per site the squared error over the target's variance around its channels' means; 1 is what a constant would reach."""
    error, variance = _error_and_variance(moments, count)
    return (error.sum(-1) / variance.sum(-1).clamp_min(FLAT)).tolist()


def _nmse_by_channel(moments: Tensor, count: int) -> list[float]:
    """The mean over channels of each one's error over its own variance: in GPT-2 a few channels are most of the variance of all."""
    error, variance = _error_and_variance(moments, count)
    varies = variance > 0
    shares = torch.where(varies, error / variance, 0)
    return (shares.sum(-1) / varies.sum(-1).clamp_min(1)).tolist()


def _error_and_variance(moments: Tensor, count: int) -> tuple[Tensor, Tensor]:
    error, mean, square = (moments / count).unbind(1)
    variance = square - mean.square()
    return error, torch.where(variance > FLAT * square, variance, 0)


def bigram_loss(counts: Counts, ids: Tensor) -> float:
    """Nats per token that a bigram model of these counts loses on ids (B, T), smoothed as in `sparse.bigram`; no (V, V) table is made."""
    before, after = ids[:, :-1].flatten().numpy(), ids[:, 1:].flatten().numpy()
    known, wanted = counts.rows.astype(np.int64) * counts.size + counts.columns, before * counts.size + after
    where = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    seen = np.where(known[where] == wanted, counts.counts[where], 0.0)
    total = np.bincount(counts.rows, counts.counts, minlength=counts.size)
    return float(-np.log((seen + counts.prior()[after]) / (total[before] + PRIOR)).mean())


def _recovered(loss: list[float], bigram: float) -> dict | None:
    """Shares of the way from the bigram model's loss to the dense model's, loss[0]; loss[1:] as in `_chunk`."""
    gap = bigram - loss[0]
    if gap <= 0:
        return None
    shares = [(bigram - value) / gap for value in loss[1:]]
    return {"sparse": shares[0], "to_sparse": shares[1::2], "to_dense": shares[2::2], "mean": sum(shares) / len(shares)}


@torch.no_grad()
def prompt_agreement(pair: BridgedPair, batch: TaskBatch) -> dict:
    """How alike the two models do a task: {agreement, loss {dense, sparse}, accuracy {dense, sparse}}.

    agreement is the share of prompts where both prefer the same one of the two answers; losses in nats per prompt, not calibrated.
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
    """The dense model's own logit differences (2P,)."""
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
    """What the dense model makes of the circuit alone: at every site the circuit's residual is decoded and the dense tail finishes.

    base             values of what is off, as for `masked_logit_diff`
    calibrate_on     the select split; scale and shift of the logit difference are fitted there, for every site by itself

    Returns {loss, raw_loss, accuracy}, a number a site: nats per prompt, calibrated and not, and the share of prompts that the calibrated
    diff gets right. No node has acted yet at the first site: there the bridges alone are measured.
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
    """Logit differences (sites, 2P) of the paths that start in the circuit alone and end in the dense model."""
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
    """Rows in groups of like length. Prompts are padded on the right, where nothing that is read here looks."""
    return batch.last.argsort(stable=True).chunk(LENGTH_GROUPS)


def _dense_logit_diff(pair: BridgedPair, h: Tensor, batch: TaskBatch) -> Tensor:
    """Logit differences (2P,) from the dense model's final residuals (2P, T, D)."""
    return logit_diff(pair.dense.unembed(h[torch.arange(len(h), device=h.device), batch.last]), batch)
