"""Checkpoints of a job in storage: snapshots of its folder, each a list of files with sha256, size and key.

    JOB/TOKEN/000003/snapshot.json     every file of the folder in that snapshot: sha256, bytes, key
    JOB/TOKEN/000003/files/NAME        the files that were new in that snapshot

TOKEN identifies an attempt, and a key is written once: an attempt that lost its job cannot overwrite files of another attempt's
checkpoint. A checkpoint is valid only if the job's record names it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from extractor.errors import BrokenArtifact
from worker.storage.store import PART, Store
from worker.storage.transfer import Wanted, fetch_all, parse_listing, put_all, sum_of

KEPT = 2  # checkpoints: the newest, and the one before in case the newest cannot be read
INDEX = "snapshot.json"
POINTER = re.compile(r"[0-9a-f]{16}/[0-9]{6}")
_TRIES = 5
Stamp = tuple[int, int, int]  # inode, time of change (ns), bytes


class Unstable(BrokenArtifact):
    """A folder that changed during every attempt to freeze it."""


@dataclass(frozen=True)
class PendingCheckpoint:
    """A complete checkpoint in storage, not valid until the job's record names it."""

    pointer: str
    parts: dict[str, Wanted]
    sent: int  # bytes of the new files

    def keys(self, job: str) -> set[str]:
        return {part.key for part in self.parts.values()} | {f"{job}/{self.pointer}/{INDEX}"}


class Snapshots:
    """Reads and writes a job's checkpoints during one attempt. folder: the job's files; staging: an unused path on the same disk."""

    def __init__(self, store: Store, job: str, token: str, folder: Path, staging: Path) -> None:
        self._store, self._job, self._token, self._folder, self._staging = store, job, token, folder, staging
        self._rounds = 0
        self._known: dict[str, tuple[Stamp | None, Wanted]] = {}  # name -> the version that is already in storage
        self._kept: deque[PendingCheckpoint] = deque(maxlen=KEPT)
        self._seen: set[str] = set()

    def restore(self, pointer: str, is_local: bool) -> None:
        """Restore the folder to a checkpoint. is_local: the folder already continues it, so download no files.

        Raises BrokenArtifact or NotFound for an incomplete checkpoint, StorageUnavailable, ExtractorError when the disk is full.
        """
        pending = self._open(pointer)
        if not is_local:
            stored = self._store.entries(self._job)
            for path in [path for path in self._folder.rglob("*") if path.is_symlink() or path.is_file()]:
                if path.relative_to(self._folder).as_posix().removesuffix(PART) not in pending.parts:
                    path.unlink()
            fetch_all(self._store, pending.parts, stored, self._folder)
        self._known = {name: (None, part) for name, part in pending.parts.items()}
        self.commit(pending)

    def save(self) -> PendingCheckpoint | None:
        """Upload the files that have changed since the last checkpoint; None if none has. The caller writes its name to the record.

        Raises Unstable, StorageUnavailable, OSError.
        """
        try:
            frozen = freeze(self._folder, self._staging)
            if not frozen:
                return None
            self._rounds += 1
            pointer = f"{self._token}/{self._rounds:06d}"
            parts, fresh = {}, {}
            for name, stamp in frozen.items():
                part = parts[name] = self._part(name, stamp, f"{self._job}/{pointer}/files/{name}")
                if part.key not in self._seen:
                    fresh[part.key] = (self._staging / name, part.size)
            if self._kept and self._kept[-1].parts == parts:
                return None
            self._seen |= fresh.keys()
            put_all(self._store, fresh)
            self._known = {name: (frozen[name], part) for name, part in parts.items()}
            pending = PendingCheckpoint(pointer, parts, sum(size for _, size in fresh.values()))
            self._seen |= pending.keys(self._job)
            index = {name: {"sha256": part.sha256, "bytes": part.size, "key": part.key} for name, part in parts.items()}
            self._store.put(f"{self._job}/{pointer}/{INDEX}", json.dumps({"version": 1, "files": index}).encode())
            return pending
        finally:
            shutil.rmtree(self._staging, ignore_errors=True)

    def commit(self, pending: PendingCheckpoint) -> None:
        """Note that the job's record names this checkpoint now."""
        self._kept.append(pending)
        self._seen |= pending.keys(self._job)

    def drop_old(self) -> None:
        """Delete stored files that neither the last checkpoints nor the next one need. Raises StorageUnavailable."""
        needed = {key for pending in self._kept for key in pending.keys(self._job)} | {part.key for _, part in self._known.values()}
        old = self._seen - needed
        self._store.remove(sorted(old))
        self._seen -= old

    def _open(self, pointer: str) -> PendingCheckpoint:
        if not POINTER.fullmatch(pointer):
            raise BrokenArtifact(f"{pointer[:40]!r} is not the name of a checkpoint")
        source = f"{self._job}/{pointer}/{INDEX}"
        listed = parse_listing(self._store.get(source), source)
        for name, facts in listed.items():
            if not re.fullmatch(rf"{self._job}/{POINTER.pattern}/files/{re.escape(name)}", str(facts.get("key"))):
                raise BrokenArtifact(f"{source}: the key of {name} does not belong to this job")
        return PendingCheckpoint(
            pointer, {name: Wanted(facts["key"], facts["sha256"], facts["bytes"]) for name, facts in listed.items()}, 0
        )

    def _part(self, name: str, stamp: Stamp, key: str) -> Wanted:
        """The stored version of an unchanged file, or a new key for a changed one."""
        known_stamp, known = self._known.get(name, (None, None))
        if known is not None and known_stamp == stamp:
            return known
        digest = sum_of(self._staging / name, stamp[2])
        if known is not None and (known.sha256, known.size) == (digest, stamp[2]):
            return known
        return Wanted(key, digest, stamp[2])


def pointers(field: str) -> list[str]:
    """The checkpoints that a record names, newest first."""
    return field.split()[:KEPT]


def freeze(folder: Path, into: Path) -> dict[str, Stamp]:
    """Hard-link every file of a changing folder into another: a consistent snapshot, without unfinished *.tmp files.

    Returns the stamps. A file that grows later counts up to the size in its stamp. Raises Unstable.
    A listing made while names come and go may miss one that was there all the time: a folder that changed meanwhile is listed again.
    """
    for _ in range(_TRIES):
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir(parents=True)
        seen, folders = _scan(folder)
        try:
            for name in seen:
                (into / name).parent.mkdir(parents=True, exist_ok=True)
                _link(folder / name, into / name)
        except FileNotFoundError:
            continue
        later, later_folders = _scan(folder)
        if later_folders == folders and _inodes(later) == _inodes(seen):  # nothing was replaced during the linking
            return seen
    raise Unstable(f"{folder} changed during each of {_TRIES} attempts to copy it")


def _scan(folder: Path) -> tuple[dict[str, Stamp], dict[str, int]]:
    """Stamps of the files by name, and of every folder the time of its last change before it was listed (ns)."""
    found, changed = {}, {str(folder): _change(folder)}
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.endswith(".tmp")]
        changed |= {below: _change(Path(below)) for below in (os.path.join(path, name) for name in folders)}
        for name in files:
            if not name.endswith((".tmp", PART)):
                place = Path(path, name)
                try:
                    facts = place.lstat()
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(facts.st_mode):
                    found[place.relative_to(folder).as_posix()] = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
    return dict(sorted(found.items())), changed


def _change(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _inodes(found: dict[str, Stamp]) -> dict[str, int]:
    return {name: stamp[0] for name, stamp in found.items()}


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a disk without hard links
        shutil.copyfile(source, target)
