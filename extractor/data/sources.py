"""The documents of a corpus: the standard library, generated programs, prose, and the user's files, each in a fixed order.

Generated programs show the behaviours of tasks/, in simple code and in code as the shifted prompts have it. A sparse model that reads them
beside a dense model that does not know them may learn what its dense model does not do, so that 'auto' has them only for a model that our
train job made on them, which its spec.json says.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from extractor.data.programs import programs
from extractor.data.realistic import generated_programs
from extractor.data.text_files import LeftOut, check_size, documents_of
from extractor.errors import BrokenArtifact, NotFound, SpecError
from extractor.files import read_json
from extractor.spec.schema import CorpusSpec

TextKind = Literal["code", "text"]
AUTO = ("auto",)
SELF = "self"  # text that the dense model of a circuit job writes: extractor.data.self_text
NO_DENSE_TO_WRITE = "corpus 'self' is text that a dense model writes, but {} is none; name other text with --corpus"
NAMED_SOURCES = ("stdlib", "generated", "prose")
EARLIER_GENERATED = "generated-3"  # the generated programs of the last release, for the jobs that it began
_SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "idle_test"}


def check_sources(spec: CorpusSpec) -> None:
    """Raise SpecError unless every source exists, is not too large, and holds text."""
    for source in spec.sources:
        if source in (*NAMED_SOURCES, *AUTO, SELF, EARLIER_GENERATED):
            continue
        if not os.path.exists(source):
            raise SpecError(
                f"corpus {source!r} not found: name {', '.join(map(repr, (*NAMED_SOURCES, SELF)))}, or a folder, .txt, .py or .jsonl file"
            )
        check_size(Path(source))
        left_out = LeftOut()
        if next(documents_of(Path(source), left_out), None) is None:
            found = f"; {left_out}" if str(left_out) else ""
            raise SpecError(
                f"corpus {source!r} holds no text: expected UTF-8 text, or JSONL lines with a 'text' field (--dataset FOLDER reads parquet "
                f"and compressed files){found}"
            )


def documents(spec: CorpusSpec, source: str, left_out: LeftOut | None = None) -> Iterator[str]:
    """The documents of one source, in a fixed order. left_out: counts what a user's source has and is not read. Raises SpecError."""
    if source == "stdlib":
        yield from _standard_library(Path(sysconfig.get_paths()["stdlib"]))
    elif source == "prose":
        yield from prose()
    elif source == "generated":
        yield from generated_programs(spec.generated_programs, spec.seed)
    elif source == EARLIER_GENERATED:
        yield from programs(spec.generated_programs, spec.seed)
    else:
        yield from documents_of(Path(source), left_out or LeftOut())


def _standard_library(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*.py")):
        if not _SKIPPED_FOLDERS.intersection(path.relative_to(root).parts):
            with suppress(SpecError):  # an empty module
                yield from documents_of(path, LeftOut())


def default_sources(kind: TextKind, trained_on: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Corpus sources for a model that knows this kind of text better. Task prompts are code, so code is always included.

    trained_on   the sources of its own training, where that is known, see `sources_of_training`
    """
    known = ("stdlib",) if kind == "code" else ("prose", "stdlib")
    return (*known, "generated" if "generated" in trained_on else SELF)


def sources_of_training(folder: Path) -> tuple[str, ...]:
    """The corpus sources on which a train job of ours made the model in this folder, by its spec.json; () where that is not known."""
    for place in (folder / "spec.json", *([folder.parent / "spec.json"] if folder.name == "model" else [])):
        with suppress(NotFound, BrokenArtifact, KeyError, TypeError, AttributeError):
            spec = read_json(place)
            if spec["kind"] == "train":
                return tuple(str(source) for source in spec["corpus"]["sources"])
    return ()


def prose() -> Iterator[str]:
    """English documents: the topics of Python's own help, about 460,000 characters."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]
