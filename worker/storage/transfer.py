"""Uploads and downloads of many files, checked by size and sha256. A download writes NAME.part and resumes from it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extractor import files as extractor_files
from extractor.errors import BrokenArtifact, DiskFull, ExtractorError, OutputError
from worker.storage.store import PART, Entry, Store

AT_ONCE = 4  # files in transfer
CHUNK = 8 << 20  # bytes per read request
_SHA = re.compile(r"[0-9a-f]{64}")
_PIECE = re.compile(r"[^/\\\x00-\x1f]{1,255}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OnBytes = Callable[[int], None]  # is called with the number of new bytes


@dataclass(frozen=True)
class Wanted:
    """A file to download: its key, and its expected sha256 and size in bytes."""

    key: str
    sha256: str
    size: int


def parse_listing(data: bytes, source: str) -> dict[str, dict[str, Any]]:
    """The files in a manifest or a checkpoint index: name -> sha256, bytes and further keys.

    Raises BrokenArtifact unless every name is a plain relative path. source: its name for messages.
    """
    try:
        files = json.loads(data)["files"]
        listed = {str(name): dict(facts) for name, facts in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BrokenArtifact(f"{source} is not a list of files; run the job again") from None
    for name, facts in listed.items():
        if not is_plain(name):
            raise BrokenArtifact(f"{source} names {name[:80]!r}, which is not a plain file inside the folder")
        size = facts.get("bytes")
        if not _SHA.fullmatch(str(facts.get("sha256"))) or type(size) is not int or size < 0:
            raise BrokenArtifact(f"{source} gives no sha256 and size for {name}; run the job again")
    folders = {str(parent) for name in listed for parent in Path(name).parents}
    if both := folders & listed.keys():
        raise BrokenArtifact(f"{source} names {min(both)!r} as a file and as a folder")
    return listed


def is_plain(name: str) -> bool:
    """Whether a name is a portable relative path inside its folder."""
    pieces = name.split("/")
    return len(name) <= 1000 and not name.endswith(PART) and all(_PIECE.fullmatch(piece) and piece not in (".", "..") for piece in pieces)


def fetch_all(
    store: Store, wanted: Mapping[str, Wanted], stored: Mapping[str, Entry], folder: Path, on_bytes: OnBytes = lambda _: None
) -> None:
    """Download files into a folder, a few at once; skip files that are already there and correct.

    stored: listing of the storage, by key. Raises BrokenArtifact for a file that is missing or altered in storage, ExtractorError when the
    disk is full, OutputError for a folder with links, StorageUnavailable.
    """
    for name, want in wanted.items():
        found = stored.get(want.key)
        if found is None:
            raise BrokenArtifact(f"{name} is missing in storage {store.url} ({want.key}); run the job again")
        if found.size != want.size:
            message = f"{name} has {found.size:,} bytes in storage {store.url}, not {want.size:,}: it was cut short or altered"
            raise BrokenArtifact(f"{message}; run the job again")
        _check_inside(folder, name)
    _in_parallel(lambda item: _fetch(store, item[1], folder / item[0], item[0], on_bytes), wanted.items())


def put_all(store: Store, files: Mapping[str, tuple[Path, int]]) -> None:
    """Write local files, (path, bytes) by key, a few at once. Raises StorageUnavailable, or OSError of the disk."""
    _in_parallel(lambda item: store.put_file(item[0], *item[1]), files.items())


def put_folder(store: Store, prefix: str, folder: Path) -> None:
    """Write a finished folder below a prefix, its manifest last. Raises BrokenArtifact, StorageUnavailable, or OSError of the disk."""
    manifest = (folder / extractor_files.MANIFEST).read_bytes()
    sizes = {name: facts["bytes"] for name, facts in parse_listing(manifest, str(folder / extractor_files.MANIFEST)).items()}
    put_all(store, {f"{prefix}/{name}": (folder / name, size) for name, size in sizes.items()})
    store.put(f"{prefix}/{extractor_files.MANIFEST}", manifest)


def sum_of(path: Path, size: int) -> str:
    """Hex digest of a file's first `size` bytes. Raises BrokenArtifact if it has become shorter."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while size > 0 and (block := file.read(min(1 << 20, size))):
            digest.update(block)
            size -= len(block)
    if size:
        raise BrokenArtifact(f"{path} became shorter while it was read")
    return digest.hexdigest()


def _fetch(store: Store, want: Wanted, path: Path, name: str, on_bytes: OnBytes) -> None:
    if path.is_file() and path.stat().st_size == want.size and extractor_files.sha256(path) == want.sha256:
        on_bytes(want.size)
        return
    part = path.with_name(path.name + PART)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _fill(store, want, part, on_bytes):
            on_bytes(-want.size)
            part.unlink()  # the start of the file, from an earlier download, may have been wrong
            if not _fill(store, want, part, on_bytes):
                part.unlink()
                message = f"{name} was altered in storage {store.url}: its sha256 differs from the manifest"
                raise BrokenArtifact(f"{message}; run the job again")
        os.replace(part, path)
    except OSError as error:
        raise _local(error, path) from None


def _fill(store: Store, want: Wanted, part: Path, on_bytes: OnBytes) -> bool:
    """Download the rest of a partial file. Returns whether size and sha256 are then correct."""
    digest = hashlib.sha256()
    with open(part, "a+b") as file:
        file.seek(0)
        done = 0
        while block := file.read(1 << 20):
            digest.update(block)
            done += len(block)
        if done > want.size:
            file.truncate(0)
            done, digest = 0, hashlib.sha256()
        on_bytes(done)
        while done < want.size:
            block = store.read(want.key, done, min(done + CHUNK, want.size))
            if not block:
                break
            file.write(block)
            digest.update(block)
            done += len(block)
            on_bytes(len(block))
        on_bytes(want.size - done)
        file.flush()
        os.fsync(file.fileno())
    return done == want.size and digest.hexdigest() == want.sha256


def _check_inside(folder: Path, name: str) -> None:
    """Refuse a path with a symbolic link in it."""
    place = folder / name
    for path in (place, place.with_name(place.name + PART), *place.parents[: name.count("/")]):
        if path.is_symlink():
            raise OutputError(f"output {path} is a link; name a new folder")


def _local(error: OSError, path: Path) -> ExtractorError:
    if error.errno in _FULL:
        return DiskFull(f"disk full while writing {path}: free some space and run the same command again, it resumes")
    return OutputError(f"{path} cannot be written ({error.strerror}); name another folder")


def _in_parallel(do: Callable[[Any], None], items: Iterable[Any]) -> None:
    """Call `do` for each item, a few at once; start no more after the first error."""
    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="transfer")
    try:
        for future in [pool.submit(do, item) for item in items]:
            future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
