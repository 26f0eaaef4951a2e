"""`extract gc`: find files that no job uses, then delete those that are still unused. Kinds of items:

    job            folder or storage prefix of a job that failed, was cancelled or has no record, unchanged for long enough
    result         the same of a finished job without a record; only on request
    checkpoints    of finished jobs, and files of attempts that lost their job
    scratch        folders on this machine of ended jobs whose results are in storage
    fetched        results downloaded to this machine's cache
    twin           bridged models that no job has used for long; a job that needs one trains it again
    partial        incomplete files

Never deleted: open jobs, everything their specs name, the jobs of batches, the jobs of sweeps of this machine, files whose names do not
have the form that this service writes, and jobs that neither a record nor a marker (`worker.storage.layout`) names as this server's.
"""

from __future__ import annotations

import re
import secrets
import shutil
import stat
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from extractor.files import MANIFEST, WORK
from extractor.models.reference import fetched_result
from worker.batches.batch import newest
from worker.client.service import Service
from worker.records.records import TERMINAL
from worker.storage.layout import MARKER, is_log, is_marker, parse_marker, read_marker
from worker.storage.results import TOKEN
from worker.storage.store import PART, Entry, Store
from worker.supervision import engine, shared_bridging
from worker.sweeps.jobs import open_plan

SETTLED = 3600.0  # seconds without a change after which no process still writes an unreferenced file
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_JOB_KEY = re.compile(rf"({_ID.pattern})/({TOKEN.pattern})/.+")
_BRIDGED_KEY = re.compile(rf"{re.escape(shared_bridging.FOLDER)}/[0-9a-f]{{24}}/{TOKEN.pattern}/.+")
_TRASH = ".gc-"
Files = dict[str, Entry]


@dataclass(frozen=True)
class Item:
    """Something to delete: a path on this machine, or keys in storage. modified: time of the latest change in it."""

    kind: str
    job: str
    why: str
    place: str
    size: int
    modified: float
    path: Path | None = None
    keys: tuple[str, ...] = ()


class References:
    """What open jobs, batches and sweeps refer to, at the time of construction."""

    def __init__(self, service: Service) -> None:
        self._records = service.records
        self.server = service.records.server_id()
        open_ids = service.records.open_ids()
        self._specs = [record.get("spec", "") for job in open_ids if (record := service.records.get(job))]
        plans = (service.settings.state_dir / "sweeps").glob("*/plan.json")
        self._jobs = {point.job for plan in plans for point in open_plan(service.settings, plan.parent.name).points}
        self._jobs |= {child.job for batch in newest(service, 0) for child in batch.children}
        self._jobs |= set(open_ids)

    def is_ours(self, job: str, marked: str | None) -> bool:
        """Whether a job is one of this server: its marker names it, or without a marker (earlier versions) it has a record."""
        return marked == self.server if marked is not None else self._records.get(job) is not None

    def is_needed(self, job: str) -> bool:
        """Whether the job is open, belongs to a batch or sweep, or is named by an open job's spec."""
        named = any(f"/{job}/" in spec or f"job:{job}/" in spec for spec in self._specs)
        return named or job in self._jobs or self.is_open(job)

    def is_open(self, job: str) -> bool:
        record = self._records.get(job)
        return record is not None and record["state"] not in TERMINAL

    def ending(self, job: str) -> tuple[str, str]:
        """The state of a job, or 'no record', and the place of its result according to the record."""
        record = self._records.get(job)
        return ("no record", "") if record is None else (record["state"], record.get("artifact", ""))


def find(service: Service, older_than: float, with_results: bool) -> list[Item]:
    """The items to delete. older_than: seconds without a change; with_results: include finished results without a record.

    Raises StorageUnavailable, BrokenArtifact for a sweep or batch whose plan cannot be read.
    """
    refers, settings = References(service), service.settings
    found = [*_fetched(refers, older_than), *_bridged_models(settings.root / shared_bridging.FOLDER, older_than)]
    if settings.store is None:
        found += _folders(settings.root, refers, older_than, with_results)
    else:
        found += _scratch(settings.root, refers)
        found += _stored(Store(settings.store), refers, older_than, with_results)
    trash = [*settings.root.glob(f"{_TRASH}*"), *(settings.root / shared_bridging.FOLDER).glob(f"{_TRASH}*")]
    found += [_folder("partial", "", "partly deleted", path) for path in trash]
    return sorted(found, key=lambda item: (item.kind, item.modified))


def remove(service: Service, items: list[Item]) -> list[Item]:
    """Delete the items that are still unused. Returns them. Raises StorageUnavailable, OSError."""
    refers = References(service)
    gone = []
    for item in items:
        # Nothing uses the checkpoints of a finished job, even if something refers to its result.
        if item.job and (refers.is_open(item.job) if item.kind == "checkpoints" else refers.is_needed(item.job)):
            continue
        if item.kind == "twin" and item.path is not None and item.path.stat().st_mtime > item.modified:
            continue
        if item.path is not None:
            _remove_path(item.path)
        else:
            store = Store(service.settings.store or "")
            last = f"/{MANIFEST}"
            store.remove([key for key in item.keys if key.endswith(last)])  # first the manifest: without it there is no result
            store.remove([key for key in item.keys if not key.endswith(last)])
            store.prune_folders(item.job or shared_bridging.FOLDER)
        gone.append(item)
    return gone


def _folders(root: Path, refers: References, older_than: float, with_results: bool) -> Iterator[Item]:
    for folder in _job_folders(root, refers):
        job, (state, _) = folder.name, refers.ending(folder.name)
        if state not in (*TERMINAL, "no record"):
            continue
        finished = (folder / "result" / MANIFEST).is_file()
        kind = "result" if finished else "job"
        item = _folder(kind, job, state, folder)
        if state in ("failed", "cancelled", "no record") and (not finished or with_results):
            if item.modified < time.time() - older_than and not refers.is_needed(job) and engine.is_free(folder / "engine.log"):
                yield item
        elif finished and (folder / "result" / WORK).is_dir() and state in ("succeeded", "no record"):
            left = _folder("checkpoints", job, "finished", folder / "result" / WORK)
            if left.modified < time.time() - SETTLED and engine.is_free(folder / "engine.log"):
                yield left


def _bridged_models(folder: Path, older_than: float) -> Iterator[Item]:
    """Bridged models on this machine, complete and incomplete."""
    for path in sorted(folder.glob("*")):
        if not path.is_dir() or path.is_symlink() or path.name.startswith(_TRASH):
            continue
        is_complete = re.fullmatch(r"[0-9a-f]{24}", path.name) is not None
        item = _folder("twin" if is_complete else "partial", "", "not in use" if is_complete else "incomplete", path)
        if item.modified < time.time() - (older_than if is_complete else SETTLED):
            yield item


def _scratch(root: Path, refers: References) -> Iterator[Item]:
    for folder in _job_folders(root, refers):
        if refers.is_needed(folder.name):
            continue
        item = _folder("scratch", folder.name, refers.ending(folder.name)[0], folder)
        if item.modified < time.time() - SETTLED and engine.is_free(folder / "engine.log"):
            yield item


def _fetched(refers: References, older_than: float) -> Iterator[Item]:
    root = fetched_result("JOB", "ATTEMPT").parent.parent
    for folder in sorted(root.glob("*/*")):
        job = folder.parent.name
        if (
            folder.is_dir()
            and not folder.is_symlink()
            and _ID.fullmatch(job)
            and TOKEN.fullmatch(folder.name)
            and not refers.is_needed(job)
        ):
            item = _folder("fetched", job, "fetched", folder)
            if item.modified < time.time() - older_than:
                yield item


def _stored(store: Store, refers: References, older_than: float, with_results: bool) -> Iterator[Item]:
    """What can be deleted from storage. One listing, split by the kind of key; keys of any other form are not ours."""
    jobs: dict[str, Files] = defaultdict(dict)
    bridged: dict[str, Files] = defaultdict(dict)
    probes: Files = {}
    for key, entry in store.entries().items():
        if found := _JOB_KEY.fullmatch(key):
            jobs[found[1]][key] = entry
        elif _BRIDGED_KEY.fullmatch(key):
            bridged["/".join(key.split("/")[:3])][key] = entry
        elif key.startswith(".probe-"):
            probes[key] = entry
    yield from _stored_probes(store, probes)
    yield from _stored_bridgings(store, bridged, older_than)
    for job, files in jobs.items():
        if not refers.is_ours(job, _stored_marker(store, files)):
            continue
        state, artifact = refers.ending(job)
        result = _result_of(store, job, files, artifact)
        if state in ("failed", "cancelled", "no record") and (result is None or with_results):
            if _unchanged_for(files, older_than) and not refers.is_needed(job):
                yield _keys(store, "job" if result is None else "result", job, state, files)
        elif state in ("succeeded", "no record") and result is not None:
            yield from _stored_leftovers(store, job, result, files)


def _stored_marker(store: Store, files: Files) -> str | None:
    """The server that the newest marker of a job names; None without one."""
    markers = sorted((entry.modified, key) for key, entry in files.items() if is_marker(key))
    return parse_marker(store.get(markers[-1][1])) if markers else None


def _stored_probes(store: Store, probes: Files) -> Iterator[Item]:
    """Files of `Store.check` that were not deleted."""
    for key, entry in probes.items():
        if _unchanged_for({key: entry}, SETTLED):
            yield _keys(store, "partial", "", "partly deleted", {key: entry})


def _stored_bridgings(store: Store, bridged: Mapping[str, Files], older_than: float) -> Iterator[Item]:
    """Bridged models, complete and incomplete."""
    for folder, files in bridged.items():
        if _unchanged_for(files, older_than):
            is_complete = f"{folder}/{MANIFEST}" in files
            yield _keys(store, "twin" if is_complete else "partial", "", "made long ago" if is_complete else "incomplete", files)


def _stored_leftovers(store: Store, job: str, result: str, files: Files) -> Iterator[Item]:
    """What a finished job has beside its result and logs: checkpoints, and files of attempts that lost the job."""
    own = f"{result}/result/"
    left = {key: entry for key, entry in files.items() if key.endswith(PART) or not _stays(key, own)}
    settled = {key: entry for key, entry in left.items() if _unchanged_for({key: entry}, SETTLED)}
    if settled:
        yield _keys(store, "checkpoints", job, "finished", settled)


def _stays(key: str, own: str) -> bool:
    return key.startswith(own) or is_log(key) or is_marker(key)


def _unchanged_for(files: Files, seconds: float) -> bool:
    return max(entry.modified for entry in files.values()) < time.time() - seconds


def _result_of(store: Store, job: str, files: Files, artifact: str) -> str | None:
    """JOB/ATTEMPT of the valid result: the one that the record names, or without a record the first one found; None without any."""
    attempts = sorted(key.split("/")[1] for key in files if re.fullmatch(rf"{job}/{TOKEN.pattern}/result/{MANIFEST}", key))
    named = [attempt for attempt in attempts if artifact == f"{store.url}/{job}/{attempt}/result"]
    chosen = named if artifact else attempts
    return f"{job}/{chosen[0]}" if chosen else None


def _job_folders(root: Path, refers: References) -> list[Path]:
    """The folders of this server's jobs. Other servers and other programs may keep theirs beside them."""
    folders = (path for path in root.glob("*") if path.is_dir() and not path.is_symlink())
    named = (path for path in folders if _ID.fullmatch(path.name) and (path / "job.json").is_file())
    return sorted(path for path in named if refers.is_ours(path.name, read_marker(path / MARKER)))


def _folder(kind: str, job: str, why: str, path: Path) -> Item:
    size, modified = 0, path.lstat().st_mtime
    for file in path.rglob("*"):
        with suppress(FileNotFoundError):
            facts = file.lstat()
            size, modified = size + facts.st_size * stat.S_ISREG(facts.st_mode), max(modified, facts.st_mtime)
    return Item(kind, job, why, str(path), size, modified, path=path)


def _keys(store: Store, kind: str, job: str, why: str, files: Files) -> Item:
    size, modified = sum(entry.size for entry in files.values()), max(entry.modified for entry in files.values())
    place = f"{store.url}/{job or min(files)}"
    return Item(kind, job, why, place, size, modified, keys=tuple(sorted(files)))


def _remove_path(path: Path) -> None:
    trash = path if path.name.startswith(_TRASH) else path.with_name(f"{_TRASH}{secrets.token_hex(4)}")
    path.replace(trash)  # atomic: nobody sees a partly deleted folder
    shutil.rmtree(trash)
