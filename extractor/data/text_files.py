"""The documents of a user's text files, with a count of everything that is left out.

A file is read as UTF-8, with or without a byte order mark. In a .jsonl or .ndjson file every line is a document, its 'text' field; any
other file is one document. Hidden files and folders, links to folders and files that are not text are left out of a folder; a file that
is named itself is refused instead. Nothing is opened but regular files: a pipe may block, and a device never ends.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

from extractor import files
from extractor.errors import SpecError, printable

FIELD = "text"
JSON_LINES = (".jsonl", ".ndjson")
MAX_DOCUMENT_BYTES = 1 << 28  # of one document; its tokens need about sixty times the memory
MAX_SOURCE_BYTES = 1 << 32  # of all files of a source, whose tokens are held in memory while they are prepared
_SHOWN_NAMES = 3
_STARTS = (  # first bytes -> what the file is, and what to do
    (b"\x1f\x8b", "it is compressed (gzip): unpack it, or give its folder with --dataset"),
    (b"PAR1", "it is a parquet file: give its folder with --dataset"),
    (b"PK\x03\x04", "it is a zip archive: unpack it"),
    (b"\xff\xfe", "it is UTF-16 text: save it as UTF-8"),
    (b"\xfe\xff", "it is UTF-16 text: save it as UTF-8"),
)


class LeftOut:
    """How much of a source is not read as it stands: {what: [count, first names]}."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, list[str]]] = {}

    def add(self, what: str, name: object) -> None:
        count, names = self._found.get(what, (0, []))
        self._found[what] = (count + 1, [*names, printable(str(name))][:_SHOWN_NAMES])

    def __str__(self) -> str:
        """'hidden, left out: 1 (.git); not UTF-8, left out: 4 (a.py, b.py, c.py, ...)'; '' where nothing is left out."""
        parts = (
            f"{what}: {count:,} ({', '.join(names)}{', ...' if count > len(names) else ''})" for what, (count, names) in self._found.items()
        )
        return "; ".join(parts)


class _NotText(Exception):
    """A file that is not read: `what` for the count, `why` and what to do for the message."""

    def __init__(self, what: str, why: str):
        super().__init__(why)
        self.what, self.why = what, why


def documents_of(path: Path, left_out: LeftOut) -> Iterator[str]:
    """The documents of a file or folder, files in the order of their paths.

    Raises SpecError for a file that cannot be read as text, a row that is no document, and a source that is too large.
    """
    if not path.is_dir():
        try:
            yield from _documents_of_file(path, path.name, left_out)
        except _NotText as error:
            raise SpecError(f"corpus {str(path)!r} holds no text: {error.why}") from None
        return
    for file in files_below(path, left_out):
        name = file.relative_to(path)
        try:
            yield from _documents_of_file(file, name, left_out)
        except _NotText as error:
            left_out.add(f"{error.what}, left out", name)


def files_below(folder: Path, left_out: LeftOut) -> list[Path]:
    """The files of a folder and the folders below it, sorted by path. Leaves out what is hidden and does not follow links to folders."""
    found = []

    def note_unreadable(error: OSError) -> None:
        left_out.add("cannot be opened, left out", Path(error.filename).relative_to(folder))

    for place, below, names in os.walk(folder, onerror=note_unreadable):
        entered = []
        for name in sorted(below):
            path = Path(place, name)
            if name.startswith("."):
                left_out.add("hidden, left out", path.relative_to(folder))
            elif path.is_symlink():
                left_out.add("links to folders, left out", path.relative_to(folder))
            else:
                entered.append(name)
        below[:] = entered
        for name in names:
            if name.startswith("."):
                left_out.add("hidden, left out", Path(place, name).relative_to(folder))
            else:
                found.append(Path(place, name))
    return sorted(found)


def check_size(path: Path) -> None:
    """Raise SpecError for a source of more than MAX_SOURCE_BYTES, before anything is read."""
    total = sum(size for file in _listed(path) if (size := _size_or_none(file)) is not None)
    if total > MAX_SOURCE_BYTES:
        raise SpecError(
            f"corpus {str(path)!r} has {total:,} bytes, more than the {MAX_SOURCE_BYTES:,} that are read with --corpus; "
            "give its folder with --dataset, which reads as many tokens as --dataset-tokens says"
        )


def content_facts(path: Path) -> list:
    """What the text of a file or folder depends on: the digest of every file; of very large ones its stamp instead of its digest.

    A stamp has size, time of modification and time of change, which no program can set back.
    """
    found = _listed(path)
    sizes = {file: size for file in found if (size := _size_or_none(file)) is not None}
    if sum(sizes.values()) > MAX_SOURCE_BYTES:
        return [[str(f), (now := f.stat()).st_size, now.st_mtime_ns, now.st_ctime_ns] for f in sizes]
    return [[str(file), _digest(file) if size else "empty"] for file, size in sizes.items()]


def _listed(path: Path) -> list[Path]:
    return files_below(path, LeftOut()) if path.is_dir() else [path]


def _size_or_none(path: Path) -> int | None:
    """Bytes of a regular file; None for others and for one that does not exist."""
    try:
        return files.regular_size(path)
    except OSError:
        return None


def _digest(path: Path) -> str:
    try:
        return files.sha256(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _documents_of_file(path: Path, name: object, left_out: LeftOut) -> Iterator[str]:
    try:
        if not files.regular_size(path):
            raise _NotText("empty", "the file is empty")
        if path.suffix.lower() in JSON_LINES:
            yield from _rows(path, name, left_out)
            return
        text = _decoded(files.read_regular(path, MAX_DOCUMENT_BYTES))
    except OSError as error:
        if error.errno == errno.EOVERFLOW:
            raise SpecError(f"corpus {path} is one document, but {error.strerror}; cut it into files of less, or write JSONL") from None
        raise _NotText("cannot be read", str(error.strerror)) from None
    if not text.strip():
        raise _NotText("empty", "the file has only white space")
    yield text


def _decoded(content: bytes) -> str:
    """The text of a file, with newlines as Python's text files have them."""
    for start, what in _STARTS:
        if content.startswith(start):
            raise _NotText("not UTF-8 text", what)
    if b"\0" in content:
        raise _NotText("not UTF-8 text", "it has null bytes: it is no text, or not UTF-8; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _NotText(
            "not UTF-8 text", f"byte {error.start + 1} is 0x{content[error.start]:02x}, which is not UTF-8; save it as UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _rows(path: Path, name: object, left_out: LeftOut) -> Iterator[str]:
    """The documents of a JSON-lines file, read line by line."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for number in itertools.count(1):
            place = f"corpus {path} line {number}"
            try:
                line = file.readline(MAX_DOCUMENT_BYTES)
            except OSError as error:
                raise SpecError(f"{place}: cannot be read ({error.strerror})") from None
            if not line:
                return
            if line.strip("\ufeff \t\r\n"):
                document = _row(line, place)
                if document is None or not document.strip():
                    left_out.add("rows without text, left out", f"{name} line {number}")
                    continue
                cleaned = document.encode("utf-8", "replace").decode("utf-8")  # JSON can hold half a surrogate pair, UTF-8 cannot
                if cleaned != document:
                    left_out.add("rows with half a surrogate pair, written as '?'", f"{name} line {number}")
                yield cleaned


def _row(line: str, place: str) -> str | None:
    """The text of a row; None for null. Raises SpecError for anything else than an object with a text."""
    if len(line) == MAX_DOCUMENT_BYTES:
        raise SpecError(f"{place}: the line has more than {MAX_DOCUMENT_BYTES:,} characters; cut its text into several rows")
    try:
        line.encode("utf-8")
    except UnicodeEncodeError as error:
        byte = ord(line[error.start]) - 0xDC00
        raise SpecError(f"{place}: not UTF-8 (column {error.start + 1} is byte 0x{byte:02x}); save the file as UTF-8") from None
    try:
        row = json.loads(line.lstrip("\ufeff"))
    except (ValueError, RecursionError):  # RecursionError: brackets nested too deeply
        row = None
    if not isinstance(row, dict) or not isinstance(row.get(FIELD, 0), str | None):
        named = ", ".join(map(printable, list(row)[:_SHOWN_NAMES])) if isinstance(row, dict) and FIELD not in row else ""
        found = f"; it has {named}" if named else ""
        raise SpecError(f"{place}: expected a JSON object with a '{FIELD}' field that is a string{found}")
    text: str | None = row[FIELD]
    return text
