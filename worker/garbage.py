"""What nothing refers to any more: found first, removed only then, and looked at once more before it goes.

    job            a folder or prefix of a job that failed, was cancelled or has no record, and has been still for long enough
    result         the same of a job that finished and has no record any more; only if asked for
    checkpoints    of finished jobs, and what attempts left that lost their job
    scratch        folders on this machine of jobs that are kept in storage and have ended
    fetched        results that were fetched to this machine's cache
    twin           kept bridged models that no job has used for long; one that is needed again is made again
    partial        files that never became whole

Never an open job, what it names in its spec, the jobs of a batch, or the jobs of a sweep of this machine.
What is not laid out like ours is not ours.
"""

from __future__ import annotations

import re
import secrets
import shutil
import stat
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from extractor.files import MANIFEST, WORK
from extractor.models.reference import fetched_result
from worker.batches.batch import newest
from worker.client.service import Service
from worker.records.records import TERMINAL
from worker.storage.layout import is_log
from worker.storage.results import TOKEN
from worker.storage.store import PART, Entry, Store
from worker.supervision import engine, shared_bridging
from worker.sweeps.jobs import open_plan

SETTLED = 3600.0  # seconds without a change, after which nobody is still at work on what is not referred to
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OURS = re.compile(rf"({_ID.pattern})/({TOKEN.pattern})/.+")
_BRIDGED = re.compile(rf"{re.escape(shared_bridging.FOLDER)}/[0-9a-f]{{24}}/{TOKEN.pattern}/.+")
_TRASH = ".gc-"


@dataclass(frozen=True)
class Item:
    """Something to remove: a folder or file here, or keys in storage. `modified` is when anything of it last changed."""

    kind: str
    job: str
    why: str
    place: str
    size: int
    modified: float
    path: Path | None = None
    keys: tuple[str, ...] = ()


class References:
    """What open jobs, batches and sweeps refer to, as of now."""

    def __init__(self, service: Service) -> None:
        self._records = service.records
        open_ids = service.records.open_ids()
        self._specs = [record.get("spec", "") for job in open_ids if (record := service.records.get(job))]
        plans = (service.settings.state_dir / "sweeps").glob("*/plan.json")
        self._jobs = {point.job for plan in plans for point in open_plan(service.settings, plan.parent.name).points}
        self._jobs |= {child.job for batch in newest(service, 0) for child in batch.children}
        self._jobs |= set(open_ids)

    def hold(self, job: str) -> bool:
        """Whether a job may still be wanted."""
        named = any(f"/{job}/" in spec or f"job:{job}/" in spec for spec in self._specs)
        return named or job in self._jobs or self.is_open(job)

    def is_open(self, job: str) -> bool:
        record = self._records.get(job)
        return record is not None and record["state"] not in TERMINAL

    def ending(self, job: str) -> tuple[str, str]:
        """How a job ended, or 'no record', and where its result is said to lie."""
        record = self._records.get(job)
        return ("no record", "") if record is None else (record["state"], record.get("artifact", ""))


def find(service: Service, older_than: float, with_results: bool) -> list[Item]:
    """What can go. older_than: seconds without a change; with_results: finished results without a record, too.

    Raises StorageUnavailable, BrokenArtifact for a sweep or batch whose jobs cannot be told.
    """
    refers, settings = References(service), service.settings
    found = [*_fetched(refers, older_than), *_bridged_models(settings.root / shared_bridging.FOLDER, older_than)]
    if settings.store is None:
        found += _folders(settings.root, refers, older_than, with_results)
    else:
        found += _scratch(settings.root, refers)
        found += _stored(Store(settings.store), refers, older_than, with_results)
    half_removed = [*settings.root.glob(f"{_TRASH}*"), *(settings.root / shared_bridging.FOLDER).glob(f"{_TRASH}*")]
    found += [_folder("partial", "", "half removed", path) for path in half_removed]
    return sorted(found, key=lambda item: (item.kind, item.modified))


def remove(service: Service, items: list[Item]) -> list[Item]:
    """Remove what still nothing refers to: that. Raises StorageUnavailable, OSError."""
    refers = References(service)
    gone = []
    for item in items:
        # Checkpoints of a finished job help nobody, whoever refers to its result.
        if item.job and (refers.is_open(item.job) if item.kind == "checkpoints" else refers.hold(item.job)):
            continue
        if item.kind == "twin" and item.path is not None and item.path.stat().st_mtime > item.modified:
            continue
        if item.path is not None:
            _remove_path(item.path)
        else:
            store = Store(service.settings.store or "")
            last = f"/{MANIFEST}"
            store.remove([key for key in item.keys if key.endswith(last)])  # what has no manifest is no result
            store.remove([key for key in item.keys if not key.endswith(last)])
            store.prune_folders(item.job or shared_bridging.FOLDER)
        gone.append(item)
    return gone


def _folders(root: Path, refers: References, older_than: float, with_results: bool) -> Iterator[Item]:
    for folder in _job_folders(root):
        job, (state, _) = folder.name, refers.ending(folder.name)
        if state not in (*TERMINAL, "no record"):
            continue
        finished = (folder / "result" / MANIFEST).is_file()
        kind = "result" if finished else "job"
        whole = _folder(kind, job, state, folder)
        if state in ("failed", "cancelled", "no record") and (not finished or with_results):
            if whole.modified < time.time() - older_than and not refers.hold(job) and engine.is_free(folder / "engine.log"):
                yield whole
        elif finished and (folder / "result" / WORK).is_dir() and state in ("succeeded", "no record"):
            left = _folder("checkpoints", job, "finished", folder / "result" / WORK)
            if left.modified < time.time() - SETTLED and engine.is_free(folder / "engine.log"):
                yield left


def _bridged_models(folder: Path, older_than: float) -> Iterator[Item]:
    """Kept bridged models, and the rest of incomplete ones."""
    for path in sorted(folder.glob("*")):
        if not path.is_dir() or path.is_symlink() or path.name.startswith(_TRASH):
            continue
        is_whole = re.fullmatch(r"[0-9a-f]{24}", path.name) is not None
        item = _folder("twin" if is_whole else "partial", "", "not in use" if is_whole else "never whole", path)
        if item.modified < time.time() - (older_than if is_whole else SETTLED):
            yield item


def _scratch(root: Path, refers: References) -> Iterator[Item]:
    for folder in _job_folders(root):
        if refers.hold(folder.name):
            continue
        item = _folder("scratch", folder.name, refers.ending(folder.name)[0], folder)
        if item.modified < time.time() - SETTLED and engine.is_free(folder / "engine.log"):
            yield item


def _fetched(refers: References, older_than: float) -> Iterator[Item]:
    root = fetched_result("JOB", "ATTEMPT").parent.parent
    for folder in sorted(root.glob("*/*")):
        job = folder.parent.name
        if folder.is_dir() and not folder.is_symlink() and _ID.fullmatch(job) and TOKEN.fullmatch(folder.name) and not refers.hold(job):
            item = _folder("fetched", job, "fetched", folder)
            if item.modified < time.time() - older_than:
                yield item


def _stored(store: Store, refers: References, older_than: float, with_results: bool) -> Iterator[Item]:
    jobs: dict[str, dict[str, Entry]] = defaultdict(dict)
    kept: dict[str, dict[str, Entry]] = defaultdict(dict)
    for key, entry in store.entries().items():
        if ours := _OURS.fullmatch(key):
            jobs[ours[1]][key] = entry
        elif _BRIDGED.fullmatch(key):
            kept["/".join(key.split("/")[:3])][key] = entry
        elif key.startswith(".probe-") and entry.modified < time.time() - SETTLED:
            yield _keys(store, "partial", "", "half removed", {key: entry})
    for folder, files in kept.items():
        if max(entry.modified for entry in files.values()) < time.time() - older_than:
            is_whole = f"{folder}/{MANIFEST}" in files
            yield _keys(store, "twin" if is_whole else "partial", "", "made long ago" if is_whole else "never whole", files)
    for job, files in jobs.items():
        state, artifact = refers.ending(job)
        result = _result_of(store, job, files, artifact)
        still = max(entry.modified for entry in files.values()) < time.time() - older_than
        if state in ("failed", "cancelled", "no record") and (result is None or with_results):
            if still and not refers.hold(job):
                yield _keys(store, "job" if result is None else "result", job, state, files)
        elif state in ("succeeded", "no record") and result is not None:
            own = f"{result}/result/"
            left = {key: entry for key, entry in files.items() if key.endswith(PART) or not (key.startswith(own) or is_log(key))}
            left = {key: entry for key, entry in left.items() if entry.modified < time.time() - SETTLED}
            if left:
                yield _keys(store, "checkpoints", job, "finished", left)


def _result_of(store: Store, job: str, files: dict[str, Entry], artifact: str) -> str | None:
    """JOB/ATTEMPT of the result that counts: the one the record names, else the one that is found without a record."""
    attempts = sorted(key.split("/")[1] for key in files if re.fullmatch(rf"{job}/{TOKEN.pattern}/result/{MANIFEST}", key))
    named = [attempt for attempt in attempts if artifact == f"{store.url}/{job}/{attempt}/result"]
    chosen = named if artifact else attempts
    return f"{job}/{chosen[0]}" if chosen else None


def _job_folders(root: Path) -> list[Path]:
    folders = (path for path in root.glob("*") if path.is_dir() and not path.is_symlink())
    return sorted(path for path in folders if _ID.fullmatch(path.name) and (path / "job.json").is_file())


def _folder(kind: str, job: str, why: str, path: Path) -> Item:
    size, modified = 0, path.lstat().st_mtime
    for file in path.rglob("*"):
        with suppress(FileNotFoundError):
            facts = file.lstat()
            size, modified = size + facts.st_size * stat.S_ISREG(facts.st_mode), max(modified, facts.st_mtime)
    return Item(kind, job, why, str(path), size, modified, path=path)


def _keys(store: Store, kind: str, job: str, why: str, files: dict[str, Entry]) -> Item:
    size, modified = sum(entry.size for entry in files.values()), max(entry.modified for entry in files.values())
    place = f"{store.url}/{job or min(files)}"
    return Item(kind, job, why, place, size, modified, keys=tuple(sorted(files)))


def _remove_path(path: Path) -> None:
    trash = path if path.name.startswith(_TRASH) else path.with_name(f"{_TRASH}{secrets.token_hex(4)}")
    path.replace(trash)  # at once, so that nobody meets half of it
    shutil.rmtree(trash)
