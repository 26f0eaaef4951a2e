"""Tokenize a dataset's stream of documents into shards in the cache.

1. Read documents in blocks, shuffle each block by (seed, block number), tokenize it, and hold documents out by the hash of their text.
2. Write shards of SHARD_TOKENS tokens, and state.json with the position in the stream. An interrupted preparation continues from there and
   ends in the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from extractor.data.encoding import TextMarks, document_marks, encoded_batch, marks_of
from extractor.data.streams import DocumentStream, pin_dataset
from extractor.data.text_files import content_facts
from extractor.errors import BrokenArtifact, ExtractorError, SpecError
from extractor.files import explain_full_disk, read_json, write_json
from extractor.progress import Progress, Stopped
from extractor.spec.schema import DatasetSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SHARD_TOKENS = 1 << 24  # tokens in one file
WAIT_NOTE_SECONDS = 600.0  # between two notes that a job waits for another
HELD_OUT_ONE_IN = 50
BLOCK_DOCUMENTS = 1024  # shuffled together; enough, since training windows span few documents and are drawn from all shards
BLOCK_CHARACTERS = 1 << 22
_VERSION = 1  # of the order of the tokens, part of the cache key


def prepare_dataset(
    spec: DatasetSpec,
    tokenizer: Tokenizer,
    seed: int,
    cache: Path,
    progress: Progress | None = None,
    done: int = 0,
    of: int | None = None,
    marks: TextMarks | None = None,
) -> Path:
    """The folder of a dataset's shards: found in the cache, or written, or continued.

    done, of   tokens of the datasets before this one, and of all datasets, for the progress display
    marks      tokens around documents; None: those of `document_marks`

    Raises what DocumentStream raises, SpecError when there is no text, Stopped on request.
    """
    progress, marks = progress or Progress(), marks or document_marks(tokenizer)
    if spec.revision is None and not Path(spec.name).is_absolute():
        spec = pin_dataset(spec)  # a spec written by hand: the cache key needs a commit, since a branch moves
    folder = cache / "datasets" / _identity(spec, tokenizer, seed, marks)
    if not (folder / "corpus.json").is_file():
        with locked(folder.with_suffix(".lock"), progress):
            if not (folder / "corpus.json").is_file():
                _prepare(spec, tokenizer, seed, folder, progress, done, of or spec.tokens, marks)
    return folder


def _prepare(
    spec: DatasetSpec, tokenizer: Tokenizer, seed: int, folder: Path, progress: Progress, done: int, of: int, marks: TextMarks
) -> None:
    if (folder.with_suffix(".part") / "corpus.json").is_file():
        _publish(folder)
        return
    was_begun = (folder.with_suffix(".part") / "state.json").exists()
    shards = Shards.resume(folder.with_suffix(".part"), token_dtype(tokenizer))
    if was_begun and not shards.blocks:
        progress.note(f"dataset {spec.name}: what an earlier run prepared is damaged; starting again")
    if shards.blocks:
        progress.note(f"dataset {spec.name}: continuing after {shards.tokens:,} tokens")
    stream = DocumentStream(spec, shards.position, progress)
    progress.step(done + shards.tokens, of, tokens=1)
    try:
        while shards.tokens < spec.tokens:
            texts, blank = _read_block(stream, spec.tokens - shards.tokens, progress)
            shards.blank += blank
            if not texts:
                break
            order = np.random.Generator(np.random.Philox(key=[seed, shards.blocks])).permutation(len(texts))
            train, held_out = _tokenize([texts[i] for i in order], tokenizer, spec.tokens - shards.tokens, marks)
            shards.add(train, held_out, stream.position())
            if shards.full or progress.checkpoint_due():
                shards.save()
                progress.checkpointed(done + shards.tokens)
            progress.step(done + shards.tokens, of, tokens=1)
    except (Stopped, ExtractorError):
        if shards.blocks:
            shards.save()
        raise
    if not shards.tokens:
        shutil.rmtree(shards.folder, ignore_errors=True)
        raise SpecError(f"dataset {spec.name!r} holds no text in column {spec.text_column!r} of split {spec.split!r}")
    if _identity(spec, tokenizer, seed, marks) != folder.name:
        shutil.rmtree(shards.folder, ignore_errors=True)
        raise SpecError(f"files of dataset {spec.name!r} changed while they were read; run again when they are whole")
    shards.finish(spec, stream.remarks)
    _publish(folder)


def _publish(folder: Path) -> None:
    """Remove the files that only a continuation needs, and rename the finished .part folder to `folder`."""
    part = folder.with_suffix(".part")
    for path in (part / "state.json", *part.glob("pending-*.npy"), *part.glob("held-*.npy")):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def _read_block(stream: DocumentStream, tokens: int, progress: Progress) -> tuple[list[str], int]:
    """The next documents with text: BLOCK_DOCUMENTS, or fewer once they have 8 characters for each of `tokens` tokens; [] at the end.

    Also returns the number of rows without text between them. Raises Stopped when a stop was requested.
    """
    texts, characters, blank = [], 0, 0
    most = min(BLOCK_CHARACTERS, 8 * tokens)
    for text in stream:
        if progress.should_stop():
            raise Stopped
        if text.strip():
            texts.append(text)
            characters += len(text)
        else:
            blank += 1
        if len(texts) == BLOCK_DOCUMENTS or characters >= most:
            break
    return texts, blank


def _tokenize(texts: list[str], tokenizer: Tokenizer, most: int, marks: TextMarks) -> tuple[list[int], list[int]]:
    """Training tokens and held-out tokens of these documents, at most `most` in total."""
    train: list[int] = []
    held_out: list[int] = []
    for start in range(0, len(texts), 64):
        group = texts[start : start + 64]
        for text, encoding in zip(group, encoded_batch(tokenizer, group), strict=True):
            left = most - len(train) - len(held_out)
            (held_out if is_held_out(text) else train).extend([*marks.before, *encoding.ids, *marks.after][:left])
        if len(train) + len(held_out) >= most:
            break
    return train, held_out


def is_held_out(text: str) -> bool:
    """Whether a document is held out from training: one in HELD_OUT_ONE_IN, by the hash of its text."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4], "big") % HELD_OUT_ONE_IN == 0


class Shards:
    """The shards that are being written: full ones on disk, pending and held-out tokens in memory.

    folder     ends in .part; only the files that its state.json names are valid, others are overwritten or removed
    position   of the DocumentStream after the last block added
    blocks     number of blocks added
    blank      number of rows without text before the end of the last block
    written    number of full shards written
    """

    def __init__(self, folder: Path, dtype: np.dtype):
        self.folder, self.dtype = folder, dtype
        self.position: dict | None = None
        self.blocks = self.blank = self.written = 0
        self.pending, self.held_out = np.empty(0, dtype), np.empty(0, dtype)

    @classmethod
    def resume(cls, folder: Path, dtype: np.dtype) -> Shards:
        """The state that an earlier run saved in `folder`; an empty one where there is none or it is damaged."""
        shards = cls(folder, dtype)
        try:
            state = read_json(folder / "state.json")
            for index in range(state["whole"]):
                if len(np.load(folder / _shard(index), mmap_mode="r")) != SHARD_TOKENS:
                    raise ValueError("a shard of another length")
            pending, held_out = (np.load(folder / f"{name}-{state['blocks']}.npy") for name in ("pending", "held"))
        except (BrokenArtifact, OSError, ValueError, KeyError, TypeError):
            shutil.rmtree(folder, ignore_errors=True)
            return shards
        shards.position, shards.blocks, shards.written = state["position"], state["blocks"], state["whole"]
        shards.pending, shards.held_out, shards.blank = pending, held_out, state.get("blank", 0)  # absent before blank rows were counted
        return shards

    @property
    def tokens(self) -> int:
        """All tokens added, held-out ones included."""
        return self.written * SHARD_TOKENS + len(self.pending) + len(self.held_out)

    @property
    def full(self) -> bool:
        """Whether pending tokens fill a shard."""
        return len(self.pending) >= SHARD_TOKENS

    def add(self, train: list[int], held_out: list[int], position: dict) -> None:
        """Append a block."""
        parts = np.asarray(train, self.dtype), np.asarray(held_out, self.dtype)
        self.pending, self.held_out = np.concatenate([self.pending, parts[0]]), np.concatenate([self.held_out, parts[1]])
        self.position, self.blocks = position, self.blocks + 1

    def save(self) -> None:
        """Write full shards, then pending and held-out tokens, then the state that names these files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        while self.full:
            write_array(self.folder / _shard(self.written), self.pending[:SHARD_TOKENS])
            self.pending, self.written = self.pending[SHARD_TOKENS:], self.written + 1
        write_array(self.folder / f"pending-{self.blocks}.npy", self.pending)
        write_array(self.folder / f"held-{self.blocks}.npy", self.held_out)
        state = {"blocks": self.blocks, "whole": self.written, "position": self.position, "blank": self.blank}
        write_json(self.folder / "state.json", state)
        for path in (*self.folder.glob("pending-*.npy"), *self.folder.glob("held-*.npy")):
            if path.stem.partition("-")[2] != str(self.blocks):
                path.unlink()

    def _hold_out_the_end(self) -> None:
        """Hold out the last of HELD_OUT_ONE_IN parts of the tokens instead of documents: none was held out, or all were."""
        wanted = max(1, self.tokens // HELD_OUT_ONE_IN)
        tail = np.concatenate([self.pending, self.held_out])
        if self.written and len(tail) < wanted:
            self.written -= 1
            tail = np.concatenate([np.load(self.folder / _shard(self.written)), tail])
        cut = len(tail) - min(wanted, len(tail))
        self.pending, self.held_out = tail[:cut], tail[cut:]
        self.blocks += 1  # so that new files are written; the old ones stay valid until state.json names the new

    def finish(self, spec: DatasetSpec, remarks: list[str]) -> None:
        """Write the last shard and then corpus.json, which completes the folder."""
        if not (len(self.held_out) and self.written + len(self.pending)):
            self._hold_out_the_end()
        self.save()
        names = [_shard(index) for index in range(self.written)]
        if len(self.pending) or not names:
            names.append(_shard(self.written))
            write_array(self.folder / names[-1], self.pending)
        write_array(self.folder / "held_out.npy", self.held_out)
        facts = {
            "source": spec.name,
            "train": names,
            "held_out": "held_out.npy",
            "asked": spec.tokens,
            "found": self.tokens,
            "blank": self.blank,
            "remarks": remarks,
        }
        write_json(self.folder / "corpus.json", {"version": 1, "sources": [facts]})


def _shard(index: int) -> str:
    return f"train-{index:05d}.npy"


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an .npy file. Raises DiskFull."""
    with explain_full_disk(path), open(path, "wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())


def _identity(spec: DatasetSpec, tokenizer: Tokenizer, seed: int, marks: TextMarks) -> str:
    facts: list = [spec.model_dump(), seed, _VERSION, HELD_OUT_ONE_IN, SHARD_TOKENS, BLOCK_DOCUMENTS, BLOCK_CHARACTERS]
    digest = hashlib.sha256(json.dumps(facts + content_facts(Path(spec.name)) if Path(spec.name).is_absolute() else facts).encode())
    digest.update(tokenizer.to_str().encode())
    digest.update("".join(beside_the_file(tokenizer, marks)).encode())
    return digest.hexdigest()[:24]


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """The smaller of uint16 and uint32 that holds all ids of the tokenizer, which may have gaps."""
    return np.dtype(np.uint16 if max(tokenizer.get_vocab().values(), default=0) < 1 << 16 else np.uint32)


def beside_the_file(tokenizer: Tokenizer, marks: TextMarks) -> list[str]:
    """What ids depend on beside the tokenizer's own text: tokens around documents, and whether names of special tokens are split.

    Empty for most tokenizers. marks: around documents.
    """
    is_usual = not any(marks_of(tokenizer)) and marks == document_marks(tokenizer)
    around = [] if is_usual else [f"around documents: {marks}"]
    return [*around, "special tokens are split"] if tokenizer.encode_special_tokens else around


@contextmanager
def locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold an exclusive lock on a file, which ends with the process. Unlike `files.file_lock`, waiting can be stopped: raises Stopped."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        told = -math.inf
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - told > WAIT_NOTE_SECONDS:
                    progress.note("another job is preparing the same text; waiting for it")
                    told = time.monotonic()
                if progress.should_stop():
                    raise Stopped from None
                time.sleep(0.1)
        yield
