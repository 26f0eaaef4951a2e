"""Build a `Corpus` from the sources of a spec, and train tokenizers on it.

Text is tokenized once, into shards in the cache under a hash of everything they depend on.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from extractor import files
from extractor.data.corpus import Corpus
from extractor.data.encoding import TextMarks, document_marks, encoded_batch, without_embedding
from extractor.data.programs import GENERATOR_VERSION
from extractor.data.shards import (
    HELD_OUT_ONE_IN,
    SHARD_TOKENS,
    beside_the_file,
    is_held_out,
    locked,
    prepare_dataset,
    token_dtype,
    write_array,
)
from extractor.data.sources import AUTO, EARLIER_GENERATED, NAMED_SOURCES, SELF, check_sources, documents
from extractor.data.streams import first_documents, pin_dataset
from extractor.data.text_files import LeftOut, content_facts
from extractor.errors import SpecError, UnsupportedModel
from extractor.files import cache_root
from extractor.progress import Progress, Stopped
from extractor.spec.schema import CorpusSpec, DatasetSpec, TrainSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_DOCUMENTS = 10_000  # the first documents of every dataset, on which a tokenizer is trained; other sources are read completely
TOKENIZER_CHARACTERS = 50_000_000  # limit for every dataset
CHANGED = "files of the corpus {} changed while they were read; run again"
GROUP_DOCUMENTS, GROUP_CHARACTERS = 512, 1 << 24  # tokenized at once


def corpus_for(spec: CorpusSpec, train: TrainSpec, progress: Progress | None = None) -> tuple[Tokenizer, Corpus]:
    """The tokenizer of a training, given by the spec or trained on the corpus, and the corpus in its tokens.

    Raises what `build_corpus` and `open_tokenizer` raise.
    """
    from extractor.models.tokenizer import open_tokenizer

    progress = progress or Progress()
    tokenizer = open_tokenizer(train.tokenizer) if train.tokenizer else _own_tokenizer(spec, train.vocab_size, progress)
    return tokenizer, build_corpus(spec, tokenizer, progress=progress, reads=train.optim.steps * train.optim.batch * train.optim.context)


def _own_tokenizer(spec: CorpusSpec, vocab_size: int, progress: Progress) -> Tokenizer:
    """A tokenizer trained on a corpus, or found in the cache: a resumed job need not stream the text again."""
    import tokenizers

    from extractor.models.tokenizer import train_tokenizer

    datasets = [pin_dataset(d) if d.revision is None else d for d in spec.datasets]
    known = _tokenizer_key(spec, datasets, vocab_size)
    path = cache_root() / "tokenizers" / f"{known}.json"
    with locked(path.with_suffix(".lock"), progress):
        if (found := _opened(path)) is None:
            if path.is_file():
                progress.note("the cached tokenizer of an earlier job is damaged; it is trained again")
            texts = [documents(spec, source) for source in spec.sources]
            texts += [first_documents(d, TOKENIZER_DOCUMENTS, TOKENIZER_CHARACTERS, progress) for d in datasets]
            if datasets:
                progress.note(f"training a tokenizer on the first {TOKENIZER_DOCUMENTS:,} documents of every dataset")
            tokenizer = train_tokenizer(itertools.chain.from_iterable(texts), vocab_size)
            if _tokenizer_key(spec, datasets, vocab_size) != known:
                raise SpecError(CHANGED.format(", ".join([*spec.sources, *(d.name for d in datasets)])))
            files.write_text(path, tokenizer.to_str())
            found = tokenizers.Tokenizer.from_file(str(path))
    return found


def _opened(path: Path) -> Tokenizer | None:
    """The tokenizer in a file of the cache; None where there is none, or a damaged one."""
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception:  # the library raises nothing more specific
        return None


def _tokenizer_key(spec: CorpusSpec, datasets: list[DatasetSpec], vocab_size: int) -> str:
    """The name in the cache of the tokenizer that is trained on this text."""
    import tokenizers

    facts = [d.model_dump(exclude={"tokens"}) for d in datasets] + [TOKENIZER_DOCUMENTS, TOKENIZER_CHARACTERS]
    return _digest([*text_facts(spec), facts, dataset_facts(datasets), vocab_size, tokenizers.__version__])


def build_corpus(
    spec: CorpusSpec,
    tokenizer: Tokenizer,
    cache: Path | None = None,
    *,
    progress: Progress | None = None,
    reads: int | None = None,
    vocab_size: int | None = None,
) -> Corpus:
    """Tokenize the sources and datasets of `spec`, or open their shards in the cache.

    reads        tokens that training will draw; if given, a note says how often a dataset that ends early is repeated
    vocab_size   tokens that the model has embeddings for; None: all of the tokenizer's

    Notes say what of the user's text is left out, also where the shards are those of an earlier job.
    Raises UnsupportedModel for a token without an embedding, SpecError when a source or dataset is missing, empty or changing, NotFound or
    ExtractorError when a dataset is not available, Stopped when `progress` requests a stop; the prepared part of a dataset stays in the
    cache.
    """
    root, progress = cache or cache_root(), progress or Progress()
    marks = document_marks(tokenizer, vocab_size)
    folders = [_text_folder(spec, tokenizer, root / "corpus", progress, marks)] if spec.sources else []
    for source in files.read_json(folders[0] / "corpus.json")["sources"] if folders else []:
        if source.get("left_out"):
            progress.note(f"corpus {source['source']}: {source['left_out']}")
    total, done = sum(dataset.tokens for dataset in spec.datasets), 0
    for dataset in spec.datasets:
        folders.append(prepare_dataset(dataset, tokenizer, spec.seed, root, progress, done, total, marks))
        done += dataset.tokens
        _note_dataset(folders[-1], dataset, reads / (len(spec.sources) + len(spec.datasets)) if reads else 0, progress)
    corpus = Corpus(*folders)
    _check_embeddings(corpus, spec, tokenizer, vocab_size)
    return corpus


def _check_embeddings(corpus: Corpus, spec: CorpusSpec, tokenizer: Tokenizer, vocab_size: int | None) -> None:
    """Raise UnsupportedModel where the text has tokens that the model has no embedding for. Reads it only if the tokenizer has such."""
    if vocab_size is None or max(tokenizer.get_vocab().values(), default=0) < vocab_size:
        return
    names = [*spec.sources, *(dataset.name for dataset in spec.datasets)]
    for name, train, held_out in zip(names, corpus.train, corpus.held_out, strict=True):
        largest = max(int(shard.max()) for shard in [*train, held_out] if len(shard))
        if missing := without_embedding(largest, tokenizer, vocab_size):
            count = sum(int((shard >= vocab_size).sum()) for shard in [*train, held_out])
            raise UnsupportedModel(f"corpus {name} has {count:,} tokens that the model cannot read: {missing}")


def _note_dataset(folder: Path, dataset: DatasetSpec, reads: float, progress: Progress) -> None:
    """Note how much of a dataset is missing: rows without text, tokens beyond its end. reads: tokens that training will draw from it."""
    facts = files.read_json(folder / "corpus.json")["sources"][0]
    found = facts["found"]
    for remark in facts.get("remarks", ()):
        progress.note(f"dataset {dataset.name}: {remark}")
    if facts.get("blank"):
        progress.note(f"dataset {dataset.name}: rows without text, left out: {facts['blank']:,}")
    if found < dataset.tokens:
        often = f"; training will read them {reads / found:.1f} times" if reads >= found else ""
        progress.note(f"dataset {dataset.name} ends after {found:,} of the {dataset.tokens:,} tokens requested{often}")


def _text_folder(spec: CorpusSpec, tokenizer: Tokenizer, root: Path, progress: Progress, marks: TextMarks) -> Path:
    check_sources(spec)
    facts = text_facts(spec)
    folder = root / _digest([*facts, HELD_OUT_ONE_IN, tokenizer.to_str(), *beside_the_file(tokenizer, marks)])
    if not (folder / "corpus.json").is_file():
        # Every process writes a folder of its own: two jobs may build the same corpus at once, and the first to finish wins.
        mine = folder.with_name(f"{folder.name}-{os.getpid()}")
        with files.new_folder(mine) as new:
            _write_shards(spec, tokenizer, new, progress, marks)
            if text_facts(spec) != facts:
                raise SpecError(CHANGED.format(", ".join(spec.sources)))
        try:
            os.rename(mine, folder)
        except OSError:
            shutil.rmtree(mine)
            if not folder.is_dir():
                raise
    return folder


def text_facts(spec: CorpusSpec) -> list:
    """Everything that the text of `spec.sources` depends on."""
    text = spec.model_dump(exclude={"datasets"})
    return [
        text,
        sys.version,
        GENERATOR_VERSION,
        [[] if s in (*NAMED_SOURCES, *AUTO, SELF, EARLIER_GENERATED) else content_facts(Path(s)) for s in spec.sources],
    ]


def dataset_facts(datasets: Iterable[DatasetSpec]) -> list:
    """Everything that the text of datasets depends on beside their specs: the content of those that are folders."""
    return [content_facts(Path(d.name)) if Path(d.name).is_absolute() else [] for d in datasets]


def _digest(facts: list) -> str:
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:24]


def _write_shards(spec: CorpusSpec, tokenizer: Tokenizer, folder: Path, progress: Progress, marks: TextMarks) -> None:
    dtype = token_dtype(tokenizer)
    facts = []
    for index, source in enumerate(spec.sources):
        parts: dict[str, list[np.ndarray]] = {"train": [], "held_out": []}
        left_out = LeftOut()
        for texts in _groups(documents(spec, source, left_out)):
            if progress.should_stop():
                raise Stopped
            for text, encoding in zip(texts, encoded_batch(tokenizer, texts), strict=True):
                ids = [*marks.before, *encoding.ids, *marks.after]
                parts["held_out" if is_held_out(text) else "train"].append(np.asarray(ids, dtype=dtype))
        if not (parts["train"] or parts["held_out"]):
            raise SpecError(f"corpus {source!r} holds no text on this machine; name other text with --corpus")
        train = np.concatenate(parts["train"] or parts["held_out"])
        # With very few documents none may be held out, or all: hold out the last fiftieth of the tokens instead.
        if not parts["held_out"] or not parts["train"]:
            cut = max(1, len(train) // HELD_OUT_ONE_IN)
            train, parts["held_out"] = train[:-cut], [train[-cut:]]
        names = []
        for start in range(0, max(1, len(train)), SHARD_TOKENS):
            names.append(f"{index}-train-{start // SHARD_TOKENS:04d}.npy")
            write_array(folder / names[-1], train[start : start + SHARD_TOKENS])
        write_array(folder / f"{index}-held_out.npy", np.concatenate(parts["held_out"]))
        facts.append({"source": source, "train": names, "held_out": f"{index}-held_out.npy", "left_out": str(left_out)})
    files.write_json(folder / "corpus.json", {"version": 1, "sources": facts})


def _groups(texts: Iterator[str]) -> Iterator[list[str]]:
    group: list[str] = []
    characters = 0
    for text in texts:
        group.append(text)
        characters += len(text)
        if len(group) == GROUP_DOCUMENTS or characters >= GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group
