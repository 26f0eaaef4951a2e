"""The documents of a corpus: the standard library, generated programs, prose, and the user's files, each in a fixed order."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from extractor.data.programs import programs
from extractor.data.text_files import LeftOut, check_size, documents_of
from extractor.errors import SpecError
from extractor.spec.schema import CorpusSpec

TextKind = Literal["code", "text"]
AUTO = ("auto",)
NAMED_SOURCES = ("stdlib", "generated", "prose")
_SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "idle_test"}


def check_sources(spec: CorpusSpec) -> None:
    """Raise SpecError unless every source exists, is not too large, and holds text."""
    for source in spec.sources:
        if source in (*NAMED_SOURCES, *AUTO):
            continue
        if not os.path.exists(source):
            raise SpecError(
                f"corpus {source!r} not found: name {', '.join(map(repr, NAMED_SOURCES))}, or a folder, .txt, .py or .jsonl file"
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
        yield from programs(spec.generated_programs, spec.seed)
    else:
        yield from documents_of(Path(source), left_out or LeftOut())


def _standard_library(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*.py")):
        if not _SKIPPED_FOLDERS.intersection(path.relative_to(root).parts):
            with suppress(SpecError):  # an empty module
                yield from documents_of(path, LeftOut())


def default_sources(kind: TextKind) -> tuple[str, ...]:
    """Corpus sources for a model that knows this kind of text better. Task prompts are code, so code is always included."""
    return ("stdlib", "generated") if kind == "code" else ("prose", "stdlib", "generated")


def prose() -> Iterator[str]:
    """English documents: the topics of Python's own help, about 460,000 characters."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]
