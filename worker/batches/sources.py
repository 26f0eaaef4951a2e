"""Where a batch's models come from: a search on the hub, a file of references, a folder of models.

hub:QUERY   what the hub lists for it, see `hub_search.parse_query`
FILE        one reference a line, as `extract submit --model` takes them; lines that are empty or begin with # are skipped
DIR         every model folder below it; links are not followed, and nothing inside a model is looked for
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from extractor.errors import UsageError
from extractor.models.checks import ADAPTER_CONFIG, CONFIG, FOREIGN, PICKLED
from worker.batches.hub_search import Listed, Query, parse_query, search

HUB = "hub:"
MOST_BYTES = 16_000_000  # of a file of references
_MARKS = (".safetensors", *PICKLED, *FOREIGN)


@dataclass(frozen=True)
class ModelCandidate:
    """A model by the reference it was named by, or found by; `listed` where a search found it."""

    asked: str
    listed: Listed | None = None


@dataclass(frozen=True)
class ModelSource:
    """One --models. identity: what it asks for, the same wherever the same is asked."""

    identity: str
    query: Query | None = None
    named: tuple[str, ...] = ()
    folder: Path | None = None

    def candidates(self) -> Iterable[ModelCandidate]:
        """The models, one by one. Raises ServiceUnavailable when the hub cannot be searched."""
        if self.query is not None:
            return (ModelCandidate(listed.name, listed) for listed in search(self.query))
        return map(ModelCandidate, self.named if self.folder is None else _folders(self.folder))


def open_source(text: str) -> ModelSource:
    """What a --models names. Raises UsageError."""
    if text.startswith(HUB):
        query = parse_query(text.removeprefix(HUB))
        return ModelSource(f"{HUB}{query}", query=query)
    path = Path(os.path.abspath(os.path.expanduser(text)))
    if text and os.path.isdir(path):
        return ModelSource(f"folder:{path}", folder=path)
    if text and os.path.isfile(path):
        named = _references(path)
        return ModelSource("lines:" + hashlib.sha256("\n".join(named).encode()).hexdigest(), named=named)
    raise UsageError(
        f"--models {text!r} is no file, no folder and no search; write hub:QUERY, a file with one reference a line, or a folder"
    )


def _references(path: Path) -> tuple[str, ...]:
    if path.stat().st_size > MOST_BYTES:
        raise UsageError(f"--models {path} has {path.stat().st_size:,} bytes, more than {MOST_BYTES:,}; that is no list of references")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"--models {path} cannot be read ({said}); give a text file with one reference a line") from None
    named = tuple(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.strip().startswith("#")))
    if not named:
        raise UsageError(f"--models {path} names no model; write one reference a line")
    return named


def _folders(top: Path) -> Iterator[str]:
    """Folders that hold a model, or what is left of one, in order."""
    for place, below, files in os.walk(top):
        below.sort()
        if {CONFIG, ADAPTER_CONFIG} & set(files) or any(name.endswith(_MARKS) for name in files):
            below.clear()
            yield place
