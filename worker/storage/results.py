"""Finished results: find, download from storage, copy, summarise.

A download can be resumed. Until it is complete its manifest.json is named manifest.json.part; that file also identifies the result.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extractor.errors import BrokenArtifact, DiskFull, NotFound, OutputError
from extractor.files import MANIFEST, explain_full_disk, file_lock, read_json, verify_manifest, write_text
from extractor.models.reference import JOB_MODEL, fetched_result
from worker.ids import check_id
from worker.storage.store import PART, Store
from worker.storage.transfer import Wanted, fetch_all, parse_listing

TOKEN = re.compile(r"[0-9a-f]{16}")
OnProgress = Callable[[int, int], None]  # is called with the number of new bytes and of all bytes


@dataclass(frozen=True)
class StoredResult:
    """The result of one attempt at a job, in storage."""

    store: Store
    job: str
    attempt: str

    @property
    def prefix(self) -> str:
        return f"{self.job}/{self.attempt}/result"

    @property
    def url(self) -> str:
        return f"{self.store.url}/{self.prefix}"

    @property
    def model(self) -> str:
        """The reference to its model in a JobSpec."""
        return f"job:{self.job}/{self.attempt}"


def find(url: str, job: str, artifact: str | None) -> StoredResult:
    """The result of a job. artifact: its URL from the job's record; without a record (None) storage is searched.

    Raises NotFound when there is none or when the artifact is in another storage; StorageUnavailable.
    """
    store = Store(url)
    if artifact is not None:
        rest = re.fullmatch(rf"{re.escape(store.url)}/{check_id(job)}/({TOKEN.pattern})/result", artifact)
        if rest is None:
            raise NotFound(f"the result of job {job} is in {artifact[:300]}, not in {store.url}; set EXTRACT_ROOT to that storage")
        return StoredResult(store, job, rest[1])
    ends = f"/result/{MANIFEST}"
    attempts = [key.split("/")[1] for key in store.entries(check_id(job)) if key.count("/") == 3 and key.endswith(ends)]
    if not attempts:
        raise NotFound(f"job {job!r} not found: no record, and no result in {store.url}; `extract list` shows all jobs")
    return StoredResult(store, job, min(attempts))  # all are complete and of the same spec


def is_finished(url: str, job: str) -> bool:
    """Whether storage holds a finished result of a job. Raises StorageUnavailable."""
    try:
        find(url, job, None)
    except NotFound:
        return False
    return True


def model_of(url: str, reference: str) -> StoredResult:
    """The result whose model is named 'job:ID/ATTEMPT' in a JobSpec. Raises NotFound for any other reference."""
    found = JOB_MODEL.fullmatch(reference)
    if found is None:
        raise NotFound(f"{reference[:80]!r} is not a job's model")
    return StoredResult(Store(url), *found.groups())


def fetch_to_cache(stored: StoredResult, on_progress: OnProgress = lambda _done, _all: None, without: str | None = None) -> Path:
    """The folder of the result in this machine's cache; downloads it if needed. Raises the errors of `fetch`.

    without: skip files whose names start with this, such as 'model/'. A later call without it downloads the rest.
    """
    folder = fetched_result(stored.job, stored.attempt)
    if (folder / MANIFEST).is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder.parent} cannot be created ({error.strerror}); set EXTRACT_CACHE_DIR to a writable folder") from None
    with file_lock(folder.with_name(f".{folder.name}.lock")):
        if not (folder / MANIFEST).is_file():  # no other process has downloaded it meanwhile
            fetch(stored, folder, on_progress, without)
    return folder


def fetch(stored: StoredResult, out: Path, on_progress: OnProgress = lambda _done, _all: None, without: str | None = None) -> list[str]:
    """Download a result into a folder that is new, empty, or holds the same result, partly or fully. Returns the file names.

    without: see `fetch_to_cache`. Raises OutputError for any other folder, BrokenArtifact when the files do not match the manifest,
    NotFound, StorageUnavailable, ExtractorError when the disk is full.
    """
    try:
        return fetch_folder(stored.store, stored.prefix, out, on_progress, without)
    except NotFound:
        raise NotFound(f"job {stored.job} has no finished result at {stored.url}; run it again with `extract submit`") from None


def fetch_folder(
    store: Store, prefix: str, out: Path, on_progress: OnProgress = lambda _done, _all: None, without: str | None = None
) -> list[str]:
    """Download a folder that was stored with a manifest. Raises the errors of `fetch`."""
    place = f"{store.url}/{prefix}/{MANIFEST}"
    manifest = store.get(f"{prefix}/{MANIFEST}")
    files = parse_listing(manifest, place)
    if MANIFEST in files:
        raise BrokenArtifact(f"{place} lists itself; run the job again")
    names = [name for name in files if without is None or not name.startswith(without)]
    wanted = {name: Wanted(f"{prefix}/{name}", files[name]["sha256"], files[name]["bytes"]) for name in names}
    total = sum(want.size for want in wanted.values())
    _start(out, manifest)
    _check_space(out, total)
    on_progress(0, total)
    fetch_all(store, wanted, store.entries(prefix), out, lambda count: on_progress(count, total))
    if without is None:
        (out / (MANIFEST + PART)).replace(out / MANIFEST)
    return names


def _start(out: Path, manifest: bytes) -> None:
    """Prepare a folder for a download: write its manifest as manifest.json.part. Raises OutputError for a folder with other files."""
    final, partial = out / MANIFEST, out / (MANIFEST + PART)
    own = {partial.name, partial.name + ".tmp"}
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(f"output {out} exists and is not a folder; name a new one")
    try:
        found = next((path.read_bytes() for path in (final, partial) if path.is_file()), None)
        if found != manifest and out.is_dir() and {path.name for path in out.iterdir()} - own:
            what = "is not an empty folder" if found is None else "holds another result"
            raise OutputError(f"output {out} exists and {what}; name a new one")
        out.mkdir(parents=True, exist_ok=True)
        if final.is_file():
            final.replace(partial)
        elif found != manifest:
            write_text(partial, manifest.decode())
    except OSError as error:
        raise OutputError(f"output {out} cannot be written ({error.strerror}); name another folder") from None


def _check_space(out: Path, total: int) -> None:
    have = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    free = shutil.disk_usage(out).free
    if total - have > free:
        raise DiskFull(f"{out} needs {total - have:,} bytes, {free:,} are free: free some space and run the same command again, it resumes")


def check_new_folder(out: Path) -> None:
    """Refuse a destination that is not a new or empty folder. Raises OutputError."""
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise OutputError(f"output {out} exists and is not an empty folder; name a new one")
    above = next((parent for parent in out.absolute().parents if os.path.lexists(parent)), None)
    if above is not None and not os.path.isdir(above):
        raise OutputError(f"output {out} cannot be created: {above} is not a folder; name another")


def copy(folder: Path, out: Path) -> list[str]:
    """Copy the files in the manifest to a new folder and verify the copy. Returns the file names.

    Raises OutputError, DiskFull, or BrokenArtifact when the result or its copy does not match the manifest.
    """
    check_new_folder(out)
    names = list(verify_manifest(folder))
    outside = [name for name in names if not (folder / name).resolve().is_relative_to(folder.resolve())]
    if outside:
        raise BrokenArtifact(f"{folder / MANIFEST} names {outside[0]!r}, which is outside the folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.parent / f".{out.name}-{secrets.token_hex(4)}"
        temporary.mkdir()
    except OSError as error:
        raise OutputError(f"output {out} cannot be written ({error.strerror}); name another folder") from None
    try:
        with explain_full_disk(out):
            for name in [*names, MANIFEST]:
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, temporary / name)
        verify_manifest(temporary)
        temporary.replace(out)
    except OSError as error:
        raise OutputError(f"output {out} cannot be written ({error.strerror}); name another folder") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return names


def summary(folder: Path) -> dict[str, Any]:
    """The content of a finished result's result.json, and under 'paths' the absolute paths of files to open.

    For a circuit job with several tasks: model, labels, target_loss, seed, bridge, and under 'tasks' the rows of tasks.json.
    'report', 'picture' and 'circuit' belong to the first circuit; further reports are under 'report TASK', and the page of all tasks is
    under 'index'.
    """
    circuits = sorted(folder.glob("circuits/*/result.json"), key=lambda place: (not place.with_name("report.html").is_file(), place))
    own = folder / "result.json"
    found = own if own.is_file() or not circuits else circuits[0]
    facts = read_json(found) if found.is_file() else {}
    if not isinstance(facts, dict):
        raise BrokenArtifact(f"{found} holds no result; run the job again")
    if (folder / "tasks.json").is_file():
        faithful = folder / "model" / "faithfulness.json"
        facts = {key: facts[key] for key in ("model", "labels", "target_loss", "seed", "not_measured") if key in facts}
        facts |= {"bridge": read_json(faithful)} if faithful.is_file() else {}
        facts["tasks"] = task_rows(folder)
    names = {"report": "report.html", "picture": "circuit.svg", "circuit": "circuit.json"}
    paths = {key: circuits[0].with_name(name) for key, name in names.items() if circuits and circuits[0].with_name(name).is_file()}
    further = {f"report {place.parent.name}": place.with_name("report.html") for place in circuits[1:]}
    paths |= {key: place for key, place in further.items() if place.is_file()}
    if (folder / "index.html").is_file():
        paths["index"] = folder / "index.html"
    if (folder / "model").is_dir():
        paths["model"] = folder / "model"
    return facts | {"paths": {key: str(path) for key, path in paths.items()}}


def task_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of tasks.json, one per task of a job with several tasks; [] for other jobs and for results not on this machine."""
    if not os.path.isfile(folder / "tasks.json"):  # unlike pathlib's, it never raises
        return []
    rows = read_json(folder / "tasks.json")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and {"task", "nodes", "meets_target"} <= row.keys() for row in rows):
        raise BrokenArtifact(f"{folder / 'tasks.json'} holds no rows of tasks; run the job again")
    return rows
