"""Storage at a URL: s3://bucket/prefix, file:///folder or any other fsspec URL. Keys are relative to that URL.

A key is written once and never changed. Every request is tried a few times; then it raises StorageUnavailable (no answer), StorageRefused
(no permission) or NotFound (no such key).
"""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from extractor.errors import NotFound, StorageRefused, StorageUnavailable, UsageError, install

log = logging.getLogger("extract")
PAUSES = (0.3, 1.5)  # seconds between the tries of one request
CONNECT_SECONDS, READ_SECONDS = 5, 20
IN_PARTS = 100 << 20  # bytes; a longer file is read from disk while it is sent
PART = ".part"  # suffix of an incomplete file
_FOLDERLESS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "memory"}  # object stores, where a write is atomic
_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "ProfileNotFound")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Entry:
    """A stored file: size in bytes and time of writing (seconds since 1970, 0 if unknown)."""

    size: int
    modified: float


class Store:
    """The storage at a URL. Connects with the first request. Thread-safe."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.scheme = url.partition("://")[0]

    def put(self, key: str, data: bytes) -> None:
        """Write a small file. Raises StorageUnavailable."""
        self._write(key, lambda place: self._fs.pipe_file(place, data), len(data))

    def put_file(self, key: str, path: Path, size: int) -> None:
        """Write the first `size` bytes of a local file, which may grow meanwhile. Raises StorageUnavailable, or OSError of the disk."""
        if size <= IN_PARTS:
            with open(path, "rb") as file:
                return self.put(key, file.read(size))
        return self._write(key, lambda place: self._fs.put_file(str(path), place), size)

    def get(self, key: str) -> bytes:
        """The content of a small file. Raises NotFound, StorageUnavailable."""
        return self._ask(f"read {key}", lambda: self._fs.cat_file(self._place(key)))

    def read(self, key: str, start: int, end: int) -> bytes:
        """The bytes [start, end), fewer at the end of the file. Raises NotFound, StorageUnavailable."""
        return self._ask(f"read {key}", lambda: self._fs.cat_file(self._place(key), start=start, end=end))

    def entries(self, prefix: str = "") -> dict[str, Entry]:
        """Key -> entry of every file below a prefix, '' for all. Raises StorageUnavailable."""
        place = self._place(prefix)
        try:
            found = self._ask(f"list {prefix or 'it'}", lambda: self._fs.find(place, detail=True))
        except NotFound:
            return {}
        start = len(self._place("").rstrip("/")) + 1
        return {name[start:]: _entry(info) for name, info in found.items() if info.get("type") == "file"}

    def remove(self, keys: Iterable[str]) -> None:
        """Delete files; missing ones are ignored. Raises StorageUnavailable."""
        for some in _batches(list(keys), 500):
            with suppress(NotFound):
                self._ask("remove files", lambda some=some: self._fs.rm([self._place(key) for key in some]))  # type: ignore[misc]

    def prune_folders(self, prefix: str) -> None:
        """Delete the empty folders below a prefix, if the storage has folders."""
        if self.scheme in _FOLDERLESS or not self._fs.isdir(self._place(prefix)):
            return
        for folder, _, _ in sorted(self._fs.walk(self._place(prefix)), reverse=True):
            with suppress(OSError):
                self._fs.rmdir(folder)

    def check(self) -> None:
        """Check that files can be written, read and deleted. Raises StorageUnavailable, StorageRefused, UsageError."""
        key = f".probe-{time.time_ns():x}"
        self.put(key, b"extract")
        if self.get(key) != b"extract":
            raise StorageRefused(f"storage {self.url} returns other data than was written")
        self.remove([key])

    @cached_property
    def _fs(self) -> Any:
        import fsspec

        try:
            found = fsspec.filesystem(self.scheme, use_listings_cache=False, skip_instance_cache=True, **_options(self.scheme))
        except ImportError as error:
            hint = f"; {install('s3')}" if self.scheme in ("s3", "s3a") else ""
            raise UsageError(f"EXTRACT_ROOT {self.url} needs a package that is not installed: {_line(error)}{hint}") from None
        except ValueError as error:
            raise UsageError(
                f"EXTRACT_ROOT {self.url} has an unknown scheme: {_line(error)}; write a folder, or s3://bucket/prefix"
            ) from None
        if hasattr(found, "retries"):
            found.retries = 1  # retries of s3fs would multiply with those of `_ask`
        return found

    def _place(self, key: str) -> str:
        root: str = self._fs._strip_protocol(self.url)
        return f"{root}/{key}".rstrip("/")

    def _write(self, key: str, send: Callable[[str], Any], size: int) -> None:
        place = self._place(key)
        in_folders = self.scheme not in _FOLDERLESS
        beside = place + PART if in_folders else place

        def write() -> None:
            if in_folders:
                self._fs.makedirs(beside.rpartition("/")[0], exist_ok=True)
            send(beside)
            found = self._fs.info(beside)["size"]
            if found != size:
                raise OSError(f"{found} bytes of {size} arrived")
            if in_folders:
                self._fs.mv(beside, place)

        try:
            self._ask(f"write {key}", write)
        except NotFound:  # for a write this means that the bucket is missing
            raise StorageRefused(f"storage {self.url} does not exist; create it, or correct EXTRACT_ROOT") from None

    def _ask(self, what: str, question: Callable[[], _T]) -> _T:
        for pause in (*PAUSES, None):
            try:
                return question()
            except FileNotFoundError:
                raise NotFound(f"{what.partition(' ')[2]} is not in storage {self.url}") from None
            except Exception as error:  # every fsspec backend has its own exceptions
                if isinstance(error, PermissionError) or type(error).__name__ in _CREDENTIALS:
                    raise StorageRefused(
                        f"storage {self.url} refuses to {what} ({_line(error)}); check its credentials and rights"
                    ) from None
                if isinstance(error, (UsageError, MemoryError)):
                    raise
                if pause is None:
                    raise StorageUnavailable(
                        f"storage {self.url} cannot {what} ({_line(error)}); check that it runs and EXTRACT_ROOT"
                    ) from None
                log.info("storage: %s: %s; retrying in %s s", what, _line(error), pause)
                time.sleep(pause)
        raise AssertionError


def _options(scheme: str) -> dict[str, Any]:
    """Short timeouts and no retries inside the client. fsspec's own configuration takes precedence."""
    if scheme not in ("s3", "s3a"):
        return {}
    from fsspec.config import conf

    ours = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS, "retries": {"max_attempts": 1}}
    return {"config_kwargs": ours | dict(conf.get(scheme, {}).get("config_kwargs", {}))}


def _entry(info: dict[str, Any]) -> Entry:
    when = next((info[name] for name in ("LastModified", "mtime", "modified", "created", "last_modified") if info.get(name)), 0.0)
    return Entry(int(info["size"]), when.timestamp() if isinstance(when, datetime.datetime) else float(when))


def _batches(keys: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
