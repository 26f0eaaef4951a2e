"""Token shards as seeded batches and bigram counts.

1. Documents come from the standard library of the running Python, the program generator, the user's files, or Hugging Face datasets.
2. build_corpus.py and shards.py tokenize them once, into memory-mapped shards in the cache.
3. A batch is a pure function of (seed, step): every row draws a source (all equally likely) and a window of it.

About one document in fifty, chosen by the hash of its text, is held out and never trained on. V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from extractor import files
from extractor.errors import BrokenArtifact, SpecError

if TYPE_CHECKING:
    from torch import Tensor

COUNTED_TOKENS = 1 << 22  # tokens whose bigrams are counted in one step


class Corpus:
    """Token shards of all sources, memory-mapped.

    folders    the folders of the shards
    sources    the name of each source
    train      for each source, a list of uint16 or uint32 arrays
    held_out   for each source, one such array
    tokens     number of training tokens

    Raises BrokenArtifact when files are damaged.
    """

    def __init__(self, *folders: Path):
        self.folders = folders
        self.sources: list[str] = []
        self.train: list[list[np.ndarray]] = []
        self.held_out: list[np.ndarray] = []
        for folder in folders:
            try:
                for source in files.read_json(folder / "corpus.json")["sources"]:
                    self.sources.append(str(source.get("source", "without a name")))  # always there in a corpus that the engine wrote
                    self.train.append([np.load(folder / name, mmap_mode="r") for name in source["train"]])
                    self.held_out.append(np.load(folder / source["held_out"], mmap_mode="r"))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise BrokenArtifact(f"tokenized text in {folder} is damaged ({error}); delete that folder and run again") from None
        self.tokens = sum(len(shard) for source in self.train for shard in source)
        self._train = _Windows(self.train, "the corpus")
        self._held_out = _Windows([[tokens] for tokens in self.held_out], "the held-out part of the corpus, about a fiftieth of it,")

    def check_context(self, training: int, held_out: int | None) -> list[str]:
        """A line for every source that is never drawn from, since it is shorter than the contexts of training and of held-out windows.

        held_out: None where no held-out text is needed. Raises SpecError where all sources are too short.
        """
        kinds = [("training", self._train, training), *([("held-out", self._held_out, held_out)] if held_out is not None else [])]
        return [
            f"{kind} text of {self.sources[index]} is not used: it has {tokens:,} tokens, a context {context}"
            for kind, windows, context in kinds
            for index, tokens in windows.unused(context)
        ]

    def batch(self, seed: int, step: int, rows: int, context: int) -> Tensor:
        """Training tokens (rows, context), int64: a pure function of the arguments."""
        return self.batch_rows(seed, step, rows, context, 0, rows)

    def batch_rows(self, seed: int, step: int, rows: int, context: int, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of `batch(seed, step, rows, context)`; only these are read."""
        return self._train.draw(np.random.Philox(key=[seed, step]), context, start, min(stop, rows))

    def held_out_batch(self, seed: int, rows: int, context: int) -> Tensor:
        """Held-out tokens (rows, context), int64."""
        return self._held_out.draw(np.random.Philox(key=[seed, 1 << 62]), context, 0, rows)

    def held_out_by_source(self, seed: int, rows: int, context: int) -> dict[str, Tensor]:
        """{source: held-out tokens (rows, context), int64} of every source whose held-out text is longer than a context.

        Raises SpecError where none is.
        """
        self._held_out.unused(context)
        found: dict[str, Tensor] = {}
        for index, (name, tokens) in enumerate(zip(self.sources, self.held_out, strict=True)):
            if len(tokens) > context:
                bits = np.random.Philox(key=[seed, (1 << 62) + 1 + index])
                found[name if name not in found else f"{name} {index}"] = _Windows([[tokens]], name).draw(bits, context, 0, rows)
        return found

    def bigram_counts(self, vocab_size: int) -> np.ndarray:
        """Counts (V, V), float64, of pairs (token, next token) in the training tokens; all sources have the same weight."""
        counts = np.zeros((vocab_size, vocab_size))
        for source in self.train:
            here = np.zeros(vocab_size * vocab_size)
            for shard in source:
                ids = shard.astype(np.int64)
                here += np.bincount(ids[:-1] * vocab_size + ids[1:], minlength=vocab_size * vocab_size)
            counts += here.reshape(vocab_size, vocab_size) * (self.tokens / len(self.train) / max(1.0, here.sum()))
        return counts

    def bigram_triples(self, vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The nonzero entries of `bigram_counts` as (rows, columns, counts), sorted by row and column, without a (V, V) array."""
        pairs, counts = np.empty(0, np.int64), np.empty(0)
        for source in self.train:
            here, seen = _count_pairs(source, vocab_size)
            weighted = seen * (self.tokens / len(self.train) / max(1.0, seen.sum()))
            pairs, counts = _merge([(pairs, counts), (here, weighted)])
        return pairs // vocab_size, pairs % vocab_size, counts


class _Windows:
    """Draws windows: sources are equally likely, and so are all windows of a source."""

    def __init__(self, sources: list[list[np.ndarray]], name: str):
        self._sources, self._name = sources, name
        self._known: dict[int, list[tuple[list[np.ndarray], np.ndarray]]] = {}

    def draw(self, bits: np.random.BitGenerator, context: int, first: int, stop: int) -> Tensor:
        """Rows [first, stop) of those that `bits` draws: (stop - first, context) int64."""
        import torch

        rng = np.random.Generator(bits)
        usable = self._usable(context)
        out = np.empty((max(0, stop - first), context), dtype=np.int64)
        for row in range(stop):
            shards, ends = usable[rng.integers(len(usable))]
            start = int(rng.integers(ends[-1]))
            if row >= first:
                which = int(np.searchsorted(ends, start, side="right"))
                start -= int(ends[which - 1]) if which else 0
                out[row - first] = shards[which][start : start + context]
        return torch.from_numpy(out)

    def unused(self, context: int) -> list[tuple[int, int]]:
        """(index, longest shard in tokens) of every source in which no window fits. Raises SpecError where that holds for all."""
        self._usable(context)
        lengths = [max(map(len, source), default=0) for source in self._sources]
        return [(index, tokens) for index, tokens in enumerate(lengths) if tokens <= context]

    def _usable(self, context: int) -> list[tuple[list[np.ndarray], np.ndarray]]:
        """For each source, the shards longer than `context` and the cumulative numbers of their windows."""
        if context not in self._known:
            long = [[shard for shard in source if len(shard) > context] for source in self._sources]
            self._known[context] = [(source, np.cumsum([len(shard) - context for shard in source])) for source in long if source]
        if not self._known[context]:
            raise SpecError(f"{self._name} is shorter than one context of {context} tokens; give more text with --corpus")
        return self._known[context]


def _count_pairs(shards: list[np.ndarray], vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs (first token * V + second) that occur within the shards, sorted, and their counts."""
    parts: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for shard in shards:
        for start in range(0, max(0, len(shard) - 1), COUNTED_TOKENS):
            ids = shard[start : start + COUNTED_TOKENS + 1].astype(np.int64)
            parts.append(np.unique(ids[:-1] * vocab_size + ids[1:], return_counts=True))
            if sum(len(keys) for keys, _ in parts[1:]) > max(
                COUNTED_TOKENS, len(parts[0][0])
            ):  # merging less often would need more memory, more often more time
                parts = [_merge(parts)]
    return _merge(parts)


def _merge(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Sum the values of equal keys; the keys of every part are sorted."""
    keys, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(keys, kind="stable")  # linear in sorted runs
    keys, values = keys[order], values[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[first], np.add.reduceat(values, first) if len(first) else values
