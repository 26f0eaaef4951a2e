"""Bigram logits: what the current token alone says about the next one. Travels with saved models: torch, numpy and transformers only.

Four kinds with one interface. A kind holds nothing: its tensors are the model's own, so that a dense table is `bigram_table` in every
saved model. All start from one table (V, V): log of the smoothed frequencies of next tokens, where every row gets 8 counts more, shared
out by how common tokens are. V vocabulary, K entries a row, R rank. Paper: App. A.1 (dense); 'counts' and 'low_rank' are ours, for large V.

    none       nothing
    dense      the table, rows centred
    counts     the K most frequent next tokens of every row, on a support that stays; values relative to the rest of the row, which stays 0
    low_rank   (V, R) times (R, V), the best approximation of the dense one
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init

PRIOR = 8.0  # counts added to every row


@dataclass(frozen=True)
class Counts:
    """How often token `columns` followed token `rows`, each pair once, sorted: COO triples of a (V, V) matrix."""

    size: int
    rows: np.ndarray
    columns: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, counts, size: int) -> "Counts":
        """From a dense (V, V) array or a triple (rows, columns, counts), in which pairs may repeat. Raises ValueError for other shapes."""
        if isinstance(counts, tuple):
            rows, columns, values = (np.asarray(part) for part in counts)
            if not rows.shape == columns.shape == values.shape or rows.ndim != 1:
                raise ValueError(f"bigram counts: rows, columns and counts have shapes {rows.shape}, {columns.shape}, {values.shape}")
            if len(rows) and (min(rows.min(), columns.min()) < 0 or max(rows.max(), columns.max()) >= size):
                raise ValueError(f"bigram counts name tokens outside the vocabulary of {size}")
            flat, where = np.unique(rows.astype(np.int64) * size + columns, return_inverse=True)
            return cls(size, flat // size, flat % size, np.bincount(where, values.astype(np.float64), minlength=len(flat)))
        counts = np.asarray(counts)
        if counts.shape != (size, size):
            raise ValueError(f"bigram counts have shape {counts.shape}, the vocabulary asks for {(size, size)}")
        rows, columns = counts.nonzero()
        return cls(size, rows, columns, counts[rows, columns].astype(np.float64))

    def dense(self) -> np.ndarray:
        table = np.zeros((self.size, self.size))
        table[self.rows, self.columns] = self.counts
        return table

    def prior(self) -> np.ndarray:
        """Counts added to the entries of every row, (V,): 8 in all."""
        unigram = np.bincount(self.columns, self.counts, minlength=self.size) + 1
        return PRIOR * unigram / unigram.sum()

    def log_rows(self, tokens: np.ndarray) -> np.ndarray:
        """Log frequencies (n, V), nats, of the token after each of `tokens` (n,), smoothed; each row is a distribution."""
        table = np.tile(self.prior(), (len(tokens), 1))
        starts, stops = np.searchsorted(self.rows, tokens, "left"), np.searchsorted(self.rows, tokens, "right")
        for row, start, stop in zip(table, starts, stops, strict=True):
            row[self.columns[start:stop]] += self.counts[start:stop]
        return np.log(table / table.sum(1, keepdims=True))


class NoBigram:
    tensors: tuple[str, ...] = ()

    def install(self, model: nn.Module, config) -> None:
        """Give the model this kind's tensors, untrained."""
        model.bigram_table = None  # type: ignore[assignment]

    def initialise(self, model: nn.Module) -> None:
        """Their values in an untrained model."""

    def add(self, model: nn.Module, logits: Tensor, ids: Tensor) -> Tensor:
        """Logits (..., V) plus the rows of the current tokens (...)."""
        return logits

    def fill(self, model: nn.Module, counts: Counts) -> None:
        """Start from the smoothed log frequencies of `counts`."""


class DenseBigram(NoBigram):
    tensors = ("bigram_table",)

    def install(self, model, config):
        model.bigram_table = nn.Parameter(torch.zeros(config.vocab_size, config.vocab_size))

    def initialise(self, model):
        init.uniform_(model.bigram_table, 0.0, 0.02)

    def add(self, model, logits, ids):
        return logits + functional.embedding(ids, model.bigram_table)

    def fill(self, model, counts):
        found = torch.from_numpy(counts.dense()).to(model.bigram_table)
        unigram = found.sum(0, keepdim=True) + 1
        smoothed = found + PRIOR * unigram / unigram.sum()
        table = (smoothed / smoothed.sum(1, keepdim=True)).log()
        model.bigram_table.copy_(table - table.mean(1, keepdim=True))


class CountsBigram(NoBigram):
    tensors = ("bigram_values", "bigram_index")

    def install(self, model, config):
        model.bigram_table = None
        top = min(config.bigram_top, config.vocab_size)
        model.bigram_values = nn.Parameter(torch.zeros(config.vocab_size, top))
        model.register_buffer("bigram_index", torch.arange(top).repeat(config.vocab_size, 1))

    def initialise(self, model):
        init.zeros_(model.bigram_values)
        init.copy_(model.bigram_index, torch.arange(model.bigram_index.shape[1]).repeat(len(model.bigram_index), 1))

    def add(self, model, logits, ids):
        return logits.scatter_add(-1, model.bigram_index[ids], functional.embedding(ids, model.bigram_values).to(logits.dtype))

    def fill(self, model, counts):
        """The K likeliest next tokens; values such that the softmax of a row gives each its share and the rest theirs, evenly."""
        top = model.bigram_index.shape[1]
        prior = counts.prior()
        common = np.argsort(-prior, kind="stable")[:top]  # a row's K likeliest tokens are among those it has seen and these
        bounds = np.searchsorted(counts.rows, np.arange(counts.size + 1))
        index, values = np.empty((counts.size, top), np.int64), np.empty((counts.size, top))
        for row in range(counts.size):
            seen = slice(bounds[row], bounds[row + 1])
            unseen = common[~np.isin(common, counts.columns[seen])]
            tokens = np.concatenate([counts.columns[seen], unseen])
            mass = prior[tokens]
            mass[: len(tokens) - len(unseen)] += counts.counts[seen]
            best = np.argsort(-mass, kind="stable")[:top]
            rest = mass[: len(tokens) - len(unseen)].sum() + PRIOR - prior[counts.columns[seen]].sum() - mass[best].sum()
            even = max(rest, 1e-9) / max(1, counts.size - top)
            index[row], values[row] = tokens[best], np.log(mass[best] / even) if top < counts.size else np.log(mass[best])
        order = index.argsort(axis=1)
        model.bigram_index.copy_(torch.from_numpy(np.take_along_axis(index, order, 1)))
        model.bigram_values.copy_(torch.from_numpy(np.take_along_axis(values, order, 1)))


class LowRankBigram(NoBigram):
    tensors = ("bigram_left", "bigram_right")

    def install(self, model, config):
        model.bigram_table = None
        rank = min(config.bigram_rank, config.vocab_size)
        model.bigram_left = nn.Parameter(torch.zeros(config.vocab_size, rank))
        model.bigram_right = nn.Parameter(torch.zeros(rank, config.vocab_size))

    def initialise(self, model):
        # One side zero: no logits at first, and gradients that are not.
        init.normal_(model.bigram_left, std=model.bigram_left.shape[1] ** -0.5)
        init.zeros_(model.bigram_right)

    def add(self, model, logits, ids):
        return logits + functional.embedding(ids, model.bigram_left) @ model.bigram_right

    def fill(self, model, counts):
        """Truncated SVD of the dense kind's table, which is never made: it is a sparse matrix plus two of rank one."""
        left, scale, right = _truncated_svd(_CentredTable(counts), model.bigram_left.shape[1])
        model.bigram_left.copy_(left * scale.sqrt())
        model.bigram_right.copy_(scale.sqrt()[:, None] * right.T)


class _CentredTable:
    """The centred log table as an operator: S + 1 l' - m 1', where S is zero at pairs that were never seen. fp64."""

    def __init__(self, counts: Counts):
        self.size, prior = counts.size, counts.prior()
        gain = np.log1p(counts.counts / prior[counts.columns])
        where = torch.from_numpy(np.stack([counts.rows, counts.columns]))
        self.seen = torch.sparse_coo_tensor(
            where, torch.from_numpy(gain), (self.size, self.size), is_coalesced=True, check_invariants=False
        )
        self.log_prior = torch.from_numpy(np.log(prior))
        row_sums = torch.from_numpy(np.bincount(counts.rows, gain, minlength=self.size))
        self.row_means = row_sums / self.size + self.log_prior.mean()

    def times(self, x: Tensor) -> Tensor:
        return self.seen @ x + self.log_prior @ x - self.row_means[:, None] * x.sum(0)

    def transposed_times(self, x: Tensor) -> Tensor:
        return self.seen.T @ x + self.log_prior[:, None] * x.sum(0) - self.row_means @ x


def _truncated_svd(table: _CentredTable, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (V, R), S (R,), V (V, R) by subspace iteration from a fixed start: the same table gives the same factors."""
    width = min(table.size, rank + 16)
    basis = torch.randn(table.size, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(8):
        basis = torch.linalg.qr(table.times(basis)).Q
        basis = torch.linalg.qr(table.transposed_times(basis)).Q
    left, scale, right = torch.linalg.svd(table.times(basis), full_matrices=False)
    return left[:, :rank], scale[:rank], (basis @ right.T)[:, :rank]


BIGRAMS: dict[str, NoBigram] = {"none": NoBigram(), "dense": DenseBigram(), "counts": CountsBigram(), "low_rank": LowRankBigram()}
