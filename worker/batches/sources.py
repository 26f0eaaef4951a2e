"""The sources of a batch's models: a search on the hub, a file of references, a folder of models.

hub:QUERY   the models that the hub lists for a query, see `hub_search.parse_query`
FILE        one reference per line, as for `extract submit --model`; skips empty lines and lines that start with #
DIR         every model folder below it; does not descend into model folders, nor through links, but takes a link to a model folder
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from extractor.errors import UsageError
from extractor.models.checks import ADAPTER_CONFIG, CONFIG, FOREIGN, PICKLED
from worker.batches.hub_search import Listed, Query, parse_query, search

HUB = "hub:"
MAX_BYTES = 16_000_000  # of a file of references
_MARKS = (".safetensors", *PICKLED, *FOREIGN)


@dataclass(frozen=True)
class ModelCandidate:
    """A model. asked: its reference in the source; listed: its entry in the hub's listing, if a search found it."""

    asked: str
    listed: Listed | None = None


@dataclass(frozen=True)
class ModelSource:
    """One value of --models. identity: equal for equal sources, part of the batch's id."""

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
    """The source that a value of --models names. Raises UsageError."""
    if text.startswith(HUB):
        query = parse_query(text.removeprefix(HUB))
        return ModelSource(f"{HUB}{query}", query=query)
    path = Path(os.path.abspath(os.path.expanduser(text)))
    if text and os.path.isdir(path):
        return ModelSource(f"folder:{path}", folder=path)
    if text and os.path.isfile(path):
        named = _references(path)
        return ModelSource("lines:" + hashlib.sha256("\n".join(named).encode()).hexdigest(), named=named)
    raise UsageError(f"--models {text!r} is not a file, folder or search; write hub:QUERY, a file with one reference per line, or a folder")


def _references(path: Path) -> tuple[str, ...]:
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"--models {path} has {path.stat().st_size:,} bytes, more than {MAX_BYTES:,}; give a list of references")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"--models {path} cannot be read ({why}); give a text file with one reference per line") from None
    named = tuple(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.strip().startswith("#")))
    if not named:
        raise UsageError(f"--models {path} names no model; write one reference per line")
    return named


def _folders(top: Path) -> Iterator[str]:
    """The folders with files of a model, complete or not, in alphabetical order."""
    for place, below, files in os.walk(top):
        below.sort()
        if _is_model(files):
            below.clear()
            yield place
        for path in (os.path.join(place, name) for name in below):
            if os.path.islink(path) and os.path.isdir(path) and _is_model(os.listdir(path)):
                yield path


def _is_model(files: Sequence[str]) -> bool:
    return bool({CONFIG, ADAPTER_CONFIG} & set(files)) or any(name.endswith(_MARKS) for name in files)
