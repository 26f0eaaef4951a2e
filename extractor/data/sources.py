"""The documents of a corpus: the standard library, generated programs, prose, and the user's files, each in a fixed order."""

from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from extractor.data.programs import programs
from extractor.errors import SpecError
from extractor.spec.schema import CorpusSpec

TextKind = Literal["code", "text"]
AUTO = ("auto",)
NAMED_SOURCES = ("stdlib", "generated", "prose")
_SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "idle_test"}


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
    """A text file is one document; in a .jsonl file every line is one, its 'text' field. Files that are not UTF-8 are skipped."""
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return
    if path.suffix != ".jsonl":
        if text.strip():
            yield text
        return
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also split at separators that JSON does not escape
        if not line.strip():
            continue
        try:
            document = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError):
            document = None
        if not isinstance(document, str):
            raise SpecError(f"corpus {path} line {number}: expected a JSON object with a 'text' field that is a string")
        if document.strip():
            yield document.encode("utf-8", "replace").decode("utf-8")  # JSON can hold half a surrogate pair, UTF-8 cannot


def default_sources(kind: TextKind) -> tuple[str, ...]:
    """Corpus sources for a model that knows this kind of text better. Task prompts are code, so code is always included."""
    return ("stdlib", "generated") if kind == "code" else ("prose", "stdlib", "generated")


def prose() -> Iterator[str]:
    """English documents: the topics of Python's own help, about 460,000 characters."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]
