"""Reads a job's log while it is written: all parts in order, incrementally, across rotations, from a folder and from storage."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from worker.settings import Settings
from worker.storage.layout import is_log, parts
from worker.storage.store import Entry, Store

POLL_SECONDS = 0.5  # between two reads of a followed log

Line = dict[str, Any]


class Log(Protocol):
    """A log that may grow."""

    def exists(self) -> bool:
        """Whether the log exists."""

    def new_lines(self) -> Iterable[Line]:
        """The lines since the last call, without malformed ones, which a full disk may leave."""


def open_log(settings: Settings, job: str) -> Log:
    """The log of a job as far as it is visible from here: in its folder, and in storage if EXTRACT_ROOT is there."""
    here = Reader(settings.root / job)
    return StoredReader(Store(settings.store), job, here) if settings.store else here


def follow(reader: Log, has_ended: Callable[[], bool]) -> Iterator[Line]:
    """Every line of a log, as it appears, until the job has ended and all lines were read. has_ended: called about twice a second."""
    ended = False
    while True:
        yield from reader.new_lines()
        if ended:
            return
        ended = has_ended()
        time.sleep(POLL_SECONDS)  # also after the end of the job: its last line is written slightly later


class Reader:
    """Reads the log in a folder. Its position is an inode and an offset, since rotation renames files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._inode, self._offset = -1, 0

    def exists(self) -> bool:
        return any(path.is_file() for path in parts(self._folder))

    def new_lines(self) -> Iterator[Line]:
        with contextlib.ExitStack() as stack:
            files = self._open_parts(stack)
            inodes = [os.fstat(file.fileno()).st_ino for file in files]
            first = inodes.index(self._inode) if self._inode in inodes else 0
            for inode, file in zip(inodes[first:], files[first:], strict=True):
                if inode != self._inode:
                    self._inode, self._offset = inode, 0
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):  # still being written
                        break
                    self._offset += len(line)
                    if (found := _parse(line)) is not None:
                        yield found

    def _open_parts(self, stack: contextlib.ExitStack) -> list[IO[bytes]]:
        """Open all parts, oldest first; repeat if they were renamed meanwhile, so that none is missed or read twice."""
        while True:
            files: list[IO[bytes]] = []
            for path in parts(self._folder):
                with contextlib.suppress(FileNotFoundError):
                    files.append(stack.enter_context(path.open("rb")))
            if [os.fstat(file.fileno()).st_ino for file in files] == list(self._inodes()):
                return files

    def _inodes(self) -> Iterator[int]:
        for path in parts(self._folder):
            with contextlib.suppress(FileNotFoundError):
                yield path.stat().st_ino


class StoredReader:
    """Reads the log of all attempts from storage and from the local folder, each line once. Raises StorageUnavailable."""

    def __init__(self, store: Store, job: str, here: Reader) -> None:
        self._store, self._job, self._here = store, job, here
        self._seen: set[tuple[float, str]] = set()
        self._last: dict[str, Entry] = {}

    def exists(self) -> bool:
        return self._here.exists() or any(map(is_log, self._store.entries(self._job)))

    def new_lines(self) -> list[Line]:
        found = list(self._here.new_lines())
        entries = {key: entry for key, entry in self._store.entries(self._job).items() if is_log(key)}
        for key in sorted(entries, reverse=True):  # log.jsonl.3 is the oldest part
            if entries[key] != self._last.get(key):
                found += filter(None, map(_parse, self._store.get(key).splitlines()))
        self._last = entries
        fresh = {(line["time"], line["message"]): line for line in found}
        new = [line for key, line in fresh.items() if key not in self._seen]
        self._seen |= fresh.keys()
        return sorted(new, key=lambda line: line["time"])


def _parse(line: bytes) -> Line | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    complete = isinstance(found, dict) and isinstance(found.get("time"), (int, float)) and isinstance(found.get("message"), str)
    return found if complete else None
