"""Text -> token shards -> seeded batches.

1. Documents come from the running interpreter's standard library, from the program generator, or from the user's files.
2. Each source is tokenized once into memory-mapped shards below a cache folder whose name is the hash of everything that matters.
3. A batch is a pure function of (seed, step): every row draws a source (all equally likely) and a window of it.

About one document in fifty, chosen by the hash of its text, is held out and never trained on.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from extractor import artifacts
from extractor.errors import SpecError
from extractor.programs import GENERATOR_VERSION, programs
from extractor.specs import CorpusSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

SHARD_TOKENS = 1 << 24
HELD_OUT_ONE_IN = 50
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
        if source in ("stdlib", "generated"):
            continue
        path = Path(source)
        if not path.exists():
            raise SpecError(f"corpus {source!r} not found: name 'stdlib', 'generated', or a folder, .txt, .py or .jsonl file")
        if next(documents(spec.model_copy(update={"sources": (source,)}), source), None) is None:
            raise SpecError(f"corpus {source!r} holds no text: expected UTF-8 text, or JSONL lines with a 'text' field")


def documents(spec: CorpusSpec, source: str) -> Iterator[str]:
    """The documents of one source, in a fixed order."""
    if source == "stdlib":
        yield from _python_files(Path(sysconfig.get_paths()["stdlib"]))
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
            yield document


class Corpus:
    """Token shards of all sources, memory-mapped.

    train, held_out   per source, a list of uint16 or uint32 arrays
    """

    def __init__(self, folder: Path):
        facts = artifacts.read_json(folder / "corpus.json")
        self.train = [[np.load(folder / name, mmap_mode="r") for name in source["train"]] for source in facts["sources"]]
        self.held_out = [np.load(folder / source["held_out"], mmap_mode="r") for source in facts["sources"]]
        self.tokens = sum(len(shard) for source in self.train for shard in source)

    def batch(self, seed: int, step: int, rows: int, context: int) -> Tensor:
        """Training tokens (rows, context), int64: a pure function of the arguments."""
        rng = np.random.Generator(np.random.Philox(key=[seed, step]))
        return _windows(self.train, rng, rows, context)

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

    def held_out_batch(self, seed: int, rows: int, context: int) -> Tensor:
        """Held-out tokens (rows, context), int64."""
        rng = np.random.Generator(np.random.Philox(key=[seed, 1 << 62]))
        return _windows([[tokens] for tokens in self.held_out], rng, rows, context)


def _windows(sources: list[list[np.ndarray]], rng: np.random.Generator, rows: int, context: int) -> Tensor:
    import torch

    usable = [[shard for shard in source if len(shard) > context] for source in sources]
    usable = [source for source in usable if source]
    if not usable:
        raise SpecError(f"the corpus is shorter than one context of {context} tokens; give more text with --corpus")
    out = np.empty((rows, context), dtype=np.int64)
    for row in range(rows):
        source = usable[rng.integers(len(usable))]
        lengths = np.array([len(shard) - context for shard in source])
        start = int(rng.integers(lengths.sum()))
        which = int(np.searchsorted(np.cumsum(lengths), start, side="right"))
        start -= int(lengths[:which].sum())
        out[row] = source[which][start : start + context]
    return torch.from_numpy(out)


def build_corpus(spec: CorpusSpec, tokenizer: Tokenizer, cache: Path | None = None) -> Corpus:
    """Tokenize the sources of `spec`, or open the shards an earlier job left in the cache.

    Raises SpecError when a source is missing or empty.
    """
    check_sources(spec)
    folder = (cache or cache_root()) / "corpus" / _identity(spec, tokenizer)
    if not (folder / "corpus.json").is_file():
        # A name of our own for the half-written folder: two jobs may build the same corpus at once, the first to finish wins.
        mine = folder.with_name(f"{folder.name}-{os.getpid()}")
        with artifacts.new_folder(mine) as new:
            _write_shards(spec, tokenizer, new)
        try:
            os.rename(mine, folder)
        except OSError:
            import shutil

            shutil.rmtree(mine)
    return Corpus(folder)


def _identity(spec: CorpusSpec, tokenizer: Tokenizer) -> str:
    facts: list = [spec.model_dump(), sys.version, GENERATOR_VERSION, HELD_OUT_ONE_IN]
    for source in spec.sources:
        path = Path(source)
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        facts += [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files if f.is_file()]
    digest = hashlib.sha256(json.dumps(facts, default=str).encode())
    digest.update(tokenizer.to_str().encode())
    return digest.hexdigest()[:24]


def _write_shards(spec: CorpusSpec, tokenizer: Tokenizer, folder: Path) -> None:
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    end = tokenizer.token_to_id("<|endoftext|>")
    facts = []
    for index, source in enumerate(spec.sources):
        parts: dict[str, list[np.ndarray]] = {"train": [], "held_out": []}
        for texts in _groups(documents(spec, source), 512):
            for text, encoding in zip(texts, tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True):
                ids = encoding.ids + ([end] if end is not None else [])
                parts["held_out" if _is_held_out(text) else "train"].append(np.asarray(ids, dtype=dtype))
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


def _is_held_out(text: str) -> bool:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % HELD_OUT_ONE_IN == 0


def _groups(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    group: list[str] = []
    for text in texts:
        group.append(text)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
