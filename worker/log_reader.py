"""Reading a job's log while it is written: all parts in order, from where one left off, across rotations."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from worker.job_log import BACKUPS, NAME

LOOK_SECONDS = 0.5  # between two looks of those who follow

Line = dict[str, Any]


def exists(folder: Path) -> bool:
    """Whether there is a log in a job's folder."""
    return any(path.is_file() for path in _parts(folder))


def follow(folder: Path, has_ended: Callable[[], bool]) -> Iterator[Line]:
    """Every line of the log, as it comes, until the job has ended and all was read. has_ended: asked about twice a second."""
    reader = Reader(folder)
    ended = False
    while True:
        yield from reader.new_lines()
        if ended:
            return
        ended = has_ended()
        time.sleep(LOOK_SECONDS)  # after the end too: the last line is written when it is decided


class Reader:
    """Remembers how far it has read, as an inode and an offset in it: rotation renames files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._inode, self._offset = -1, 0

    def new_lines(self) -> Iterator[Line]:
        """The lines that have come since the last call. What is no line of a log (the work of a full disk) is left out."""
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
        """All parts, oldest first. Opened again if they were renamed meanwhile, as else one could be missed or come twice."""
        while True:
            files: list[IO[bytes]] = []
            for path in _parts(self._folder):
                with contextlib.suppress(FileNotFoundError):
                    files.append(stack.enter_context(path.open("rb")))
            if [os.fstat(file.fileno()).st_ino for file in files] == list(self._inodes()):
                return files

    def _inodes(self) -> Iterator[int]:
        for path in _parts(self._folder):
            with contextlib.suppress(FileNotFoundError):
                yield path.stat().st_ino


def _parts(folder: Path) -> list[Path]:
    return [folder / f"{NAME}.{number}" for number in range(BACKUPS, 0, -1)] + [folder / NAME]


def _parse(line: bytes) -> Line | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    complete = isinstance(found, dict) and isinstance(found.get("time"), (int, float)) and isinstance(found.get("message"), str)
    return found if complete else None
