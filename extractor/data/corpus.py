"""Text -> token shards -> seeded batches.

1. Documents come from the running interpreter's standard library, from the program generator, from the user's files, or from Hugging
   Face datasets (streams.py, shards.py).
2. Each is tokenized once into memory-mapped shards below a cache folder whose name is the hash of everything that matters.
3. A batch is a pure function of (seed, step): every row draws a source (all equally likely) and a window of it.

About one document in fifty, chosen by the hash of its text, is held out and never trained on.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from extractor import artifacts
from extractor.data.nature import AUTO, prose
from extractor.data.programs import GENERATOR_VERSION, programs
from extractor.data.shards import HELD_OUT_ONE_IN, is_held_out, locked, prepare_dataset, stamps
from extractor.data.streams import first_documents, pin_dataset
from extractor.errors import BrokenArtifact, SpecError
from extractor.progress import Progress, Stopped
from extractor.specs import CorpusSpec, TrainSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

SHARD_TOKENS = 1 << 24
TOKENIZER_DOCUMENTS = 10_000  # of each dataset, from its beginning, that a tokenizer is trained on; other sources are read whole
TOKENIZER_CHARACTERS = 50_000_000  # of each dataset, at most
COUNTED_TOKENS = 1 << 22  # at once, when bigrams are counted into triples
NAMED_SOURCES = ("stdlib", "generated", "prose")
_SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "idle_test"}


def cache_root() -> Path:
    """Where corpora and downloads are kept between jobs: EXTRACT_CACHE_DIR, else the user's cache folder."""
    base = os.environ.get("EXTRACT_CACHE_DIR")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "extract"


def check_sources(spec: CorpusSpec) -> None:
    """Raise SpecError unless every source exists and holds text."""
    for source in spec.sources:
        if source in (*NAMED_SOURCES, *AUTO):
            continue
        if not os.path.exists(source):
            raise SpecError(
                f"corpus {source!r} not found: name {', '.join(map(repr, NAMED_SOURCES))}, or a folder, .txt, .py or .jsonl file"
            )
        if next(documents(spec.model_copy(update={"sources": (source,)}), source), None) is None:
            raise SpecError(f"corpus {source!r} holds no text: expected UTF-8 text, or JSONL lines with a 'text' field")


def documents(spec: CorpusSpec, source: str) -> Iterator[str]:
    """The documents of one source, in a fixed order."""
    if source == "stdlib":
        yield from _python_files(Path(sysconfig.get_paths()["stdlib"]))
    elif source == "prose":
        yield from prose()
    elif source == "generated":
        yield from programs(spec.generated_programs, spec.seed)
    elif Path(source).is_dir():
        for path in sorted(p for p in Path(source).rglob("*") if p.is_file()):
            yield from _file_documents(path)
    else:
        yield from _file_documents(Path(source))


def _python_files(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*.py")):
        if not _SKIPPED_FOLDERS.intersection(path.relative_to(root).parts):
            yield from _file_documents(path)


def _file_documents(path: Path) -> Iterator[str]:
    """A text file is one document; a .jsonl file is one per line, its 'text' field. Files that are not UTF-8 hold none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return
    if path.suffix != ".jsonl":
        if text.strip():
            yield text
        return
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also split at separators that JSON leaves bare
        if not line.strip():
            continue
        try:
            document = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError):
            document = None
        if not isinstance(document, str):
            raise SpecError(f"corpus {path} line {number}: expected a JSON object with a 'text' field that is a string")
        if document.strip():
            yield document.encode("utf-8", "replace").decode("utf-8")  # JSON can write halves of a surrogate pair, UTF-8 cannot


class Corpus:
    """Token shards of all sources, memory-mapped.

    folders           where they lie
    train, held_out   per source, a list of uint16 or uint32 arrays

    Raises BrokenArtifact when a folder's files are damaged.
    """

    def __init__(self, *folders: Path):
        self.folders = folders
        self.train: list[list[np.ndarray]] = []
        self.held_out: list[np.ndarray] = []
        for folder in folders:
            try:
                for source in artifacts.read_json(folder / "corpus.json")["sources"]:
                    self.train.append([np.load(folder / name, mmap_mode="r") for name in source["train"]])
                    self.held_out.append(np.load(folder / source["held_out"], mmap_mode="r"))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise BrokenArtifact(f"tokenized text in {folder} is damaged ({error}); delete that folder and run again") from None
        self.tokens = sum(len(shard) for source in self.train for shard in source)
        self._train, self._held_out = _Windows(self.train), _Windows([[tokens] for tokens in self.held_out])

    def batch(self, seed: int, step: int, rows: int, context: int) -> Tensor:
        """Training tokens (rows, context), int64: a pure function of the arguments."""
        return self.batch_rows(seed, step, rows, context, 0, rows)

    def batch_rows(self, seed: int, step: int, rows: int, context: int, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of `batch(seed, step, rows, context)`, reading only these."""
        return self._train.draw(np.random.Philox(key=[seed, step]), context, start, min(stop, rows))

    def held_out_batch(self, seed: int, rows: int, context: int) -> Tensor:
        """Held-out tokens (rows, context), int64."""
        return self._held_out.draw(np.random.Philox(key=[seed, 1 << 62]), context, 0, rows)

    def bigram_counts(self, vocab_size: int) -> np.ndarray:
        """How often each token follows each in the training tokens, (V, V) float64; every source weighs the same."""
        counts = np.zeros((vocab_size, vocab_size))
        for source in self.train:
            here = np.zeros(vocab_size * vocab_size)
            for shard in source:
                ids = shard.astype(np.int64)
                here += np.bincount(ids[:-1] * vocab_size + ids[1:], minlength=vocab_size * vocab_size)
            counts += here.reshape(vocab_size, vocab_size) * (self.tokens / len(self.train) / max(1.0, here.sum()))
        return counts

    def bigram_triples(self, vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The nonzero entries of `bigram_counts` as (rows, columns, counts), sorted by row and column, without its (V, V) memory."""
        pairs, counts = np.empty(0, np.int64), np.empty(0)
        for source in self.train:
            here, seen = _count_pairs(source, vocab_size)
            weighted = seen * (self.tokens / len(self.train) / max(1.0, seen.sum()))
            pairs, counts = _merge([(pairs, counts), (here, weighted)])
        return pairs // vocab_size, pairs % vocab_size, counts


class _Windows:
    """Draws windows from sources, all equally likely, and within one from all its windows."""

    def __init__(self, sources: list[list[np.ndarray]]):
        self._sources = sources
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

    def _usable(self, context: int) -> list[tuple[list[np.ndarray], np.ndarray]]:
        """Per source, the shards longer than `context` and the running sum of their windows."""
        if context not in self._known:
            long = [[shard for shard in source if len(shard) > context] for source in self._sources]
            self._known[context] = [(source, np.cumsum([len(shard) - context for shard in source])) for source in long if source]
        if not self._known[context]:
            raise SpecError(f"the corpus is shorter than one context of {context} tokens; give more text with --corpus")
        return self._known[context]


def _count_pairs(shards: list[np.ndarray], vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which pairs (first token * V + second) occur within the shards, sorted, and how often."""
    parts: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for shard in shards:
        for start in range(0, max(0, len(shard) - 1), COUNTED_TOKENS):
            ids = shard[start : start + COUNTED_TOKENS + 1].astype(np.int64)
            parts.append(np.unique(ids[:-1] * vocab_size + ids[1:], return_counts=True))
            if sum(len(keys) for keys, _ in parts[1:]) > max(COUNTED_TOKENS, len(parts[0][0])):  # else the merges cost more than the counts
                parts = [_merge(parts)]
    return _merge(parts)


def _merge(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Add up the values of equal keys; the keys of every part are sorted."""
    keys, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(keys, kind="stable")  # linear in sorted runs
    keys, values = keys[order], values[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[first], np.add.reduceat(values, first) if len(first) else values


def corpus_for(spec: CorpusSpec, train: TrainSpec, progress: Progress | None = None) -> tuple[Tokenizer, Corpus]:
    """The tokenizer that a training asks for, given or trained on the corpus, and the corpus in its tokens.

    Raises what `build_corpus` and `open_tokenizer` raise.
    """
    from extractor.data.tokenizer import open_tokenizer

    progress = progress or Progress()
    tokenizer = open_tokenizer(train.tokenizer) if train.tokenizer else _own_tokenizer(spec, train.vocab_size, progress)
    return tokenizer, build_corpus(spec, tokenizer, progress=progress, reads=train.optim.steps * train.optim.batch * train.optim.context)


def _own_tokenizer(spec: CorpusSpec, vocab_size: int, progress: Progress) -> Tokenizer:
    """A tokenizer trained on a corpus, kept in the cache: a job that goes on need not stream the text again."""
    import tokenizers

    from extractor.data.tokenizer import train_tokenizer

    datasets = [pin_dataset(d) if d.revision is None else d for d in spec.datasets]
    facts = [d.model_dump(exclude={"tokens"}) for d in datasets] + [TOKENIZER_DOCUMENTS, TOKENIZER_CHARACTERS]
    known = _digest([*text_facts(spec), facts, [stamps(Path(d.name)) for d in datasets], vocab_size, tokenizers.__version__])
    path = cache_root() / "tokenizers" / f"{known}.json"
    with locked(path.with_suffix(".lock"), progress):
        if not path.is_file():
            texts = [documents(spec, source) for source in spec.sources]
            texts += [first_documents(d, TOKENIZER_DOCUMENTS, TOKENIZER_CHARACTERS, progress) for d in datasets]
            if datasets:
                progress.note(f"training a tokenizer on the first {TOKENIZER_DOCUMENTS:,} documents of each dataset")
            tokenizer = train_tokenizer(itertools.chain.from_iterable(texts), vocab_size)
            artifacts.write_text(path, tokenizer.to_str())
    return tokenizers.Tokenizer.from_file(str(path))


def build_corpus(
    spec: CorpusSpec, tokenizer: Tokenizer, cache: Path | None = None, *, progress: Progress | None = None, reads: int | None = None
) -> Corpus:
    """Tokenize the sources and datasets of `spec`, or open the shards an earlier job left in the cache.

    reads   tokens that training will draw; with them, a dataset that ends early is said to be read so many times.
    Raises SpecError when a source or dataset is missing or empty, NotFound or ExtractorError when a dataset is not to be had, Stopped
    when `progress` asks for a stop: what is prepared of a dataset is kept.
    """
    root, progress = cache or cache_root(), progress or Progress()
    folders = [_text_folder(spec, tokenizer, root / "corpus", progress)] if spec.sources else []
    total, done = sum(dataset.tokens for dataset in spec.datasets), 0
    for dataset in spec.datasets:
        folders.append(prepare_dataset(dataset, tokenizer, spec.seed, root, progress, done, total))
        done += dataset.tokens
        found = artifacts.read_json(folders[-1] / "corpus.json")["sources"][0]["found"]
        if found < dataset.tokens:
            times = reads / (len(spec.sources) + len(spec.datasets)) / found if reads else 0
            often = f"; training will read them {times:.1f} times" if times >= 1 else ""
            progress.note(f"dataset {dataset.name} ends after {found:,} of the {dataset.tokens:,} tokens asked for{often}")
    return Corpus(*folders)


def _text_folder(spec: CorpusSpec, tokenizer: Tokenizer, root: Path, progress: Progress) -> Path:
    check_sources(spec)
    digest = [*text_facts(spec), HELD_OUT_ONE_IN, tokenizer.to_str()]
    folder = root / _digest(digest)
    if not (folder / "corpus.json").is_file():
        # A name of our own for the half-written folder: two jobs may build the same corpus at once, the first to finish wins.
        mine = folder.with_name(f"{folder.name}-{os.getpid()}")
        with artifacts.new_folder(mine) as new:
            _write_shards(spec, tokenizer, new, progress)
        try:
            os.rename(mine, folder)
        except OSError:
            shutil.rmtree(mine)
    return folder


def text_facts(spec: CorpusSpec) -> list:
    """What the text of `spec.sources` depends on."""
    text = spec.model_dump(exclude={"datasets"})
    return [text, sys.version, GENERATOR_VERSION, [stamps(Path(source)) for source in spec.sources]]


def _digest(facts: list) -> str:
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:24]


def _write_shards(spec: CorpusSpec, tokenizer: Tokenizer, folder: Path, progress: Progress) -> None:
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    end = tokenizer.token_to_id("<|endoftext|>")
    facts = []
    for index, source in enumerate(spec.sources):
        parts: dict[str, list[np.ndarray]] = {"train": [], "held_out": []}
        for texts in _groups(documents(spec, source), 512):
            if progress.should_stop():
                raise Stopped
            for text, encoding in zip(texts, tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True):
                ids = encoding.ids + ([end] if end is not None else [])
                parts["held_out" if is_held_out(text) else "train"].append(np.asarray(ids, dtype=dtype))
        train = np.concatenate(parts["train"] or parts["held_out"])
        # A source of very few documents may hold none out; its last fiftieth stands in.
        if not parts["held_out"] or not parts["train"]:
            cut = max(1, len(train) // HELD_OUT_ONE_IN)
            train, parts["held_out"] = train[:-cut], [train[-cut:]]
        names = []
        for start in range(0, max(1, len(train)), SHARD_TOKENS):
            names.append(f"{index}-train-{start // SHARD_TOKENS:04d}.npy")
            np.save(folder / names[-1], train[start : start + SHARD_TOKENS])
        np.save(folder / f"{index}-held_out.npy", np.concatenate(parts["held_out"]))
        facts.append({"source": source, "train": names, "held_out": f"{index}-held_out.npy"})
    artifacts.write_json(folder / "corpus.json", {"version": 1, "sources": facts})


def _groups(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    group: list[str] = []
    for text in texts:
        group.append(text)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
