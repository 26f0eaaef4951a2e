"""Finished results with missing or truncated files. Submitting their jobs again makes them anew."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from extractor.errors import BrokenArtifact, NotFound
from extractor.files import MANIFEST
from worker.client import results
from worker.client.service import Service
from worker.settings import Settings
from worker.storage.results import StoredResult
from worker.storage.store import Store
from worker.storage.transfer import parse_listing


def find_damaged(service: Service, jobs: Sequence[str]) -> set[str]:
    """The jobs, among these succeeded ones, whose result is damaged or gone. Raises StorageUnavailable."""
    return results.filter_jobs(jobs, partial(is_damaged, service))


def is_damaged(service: Service, job: str) -> bool:
    """Whether a job's result is damaged or gone. False for a result on a disk that is not visible from here.

    Raises StorageUnavailable.
    """
    try:
        _check(results.find_result(service.settings, service.records, job))
    except BrokenArtifact:
        return True
    except NotFound:
        record = service.records.get(job)
        return record is not None and _is_visible(service.settings, job, record.get("artifact", ""))
    return False


def _check(found: Path | StoredResult) -> None:
    """Check that every file in the manifest exists with its size. Does not read the files.

    Raises BrokenArtifact, NotFound when there is no manifest, StorageUnavailable.
    """
    place = found.url if isinstance(found, StoredResult) else str(found)
    files = parse_listing(_manifest(found), f"{place}/{MANIFEST}")
    if isinstance(found, StoredResult):
        sizes = {key.removeprefix(f"{found.prefix}/"): entry.size for key, entry in found.store.entries(found.prefix).items()}
    else:
        sizes = {name: os.path.getsize(found / name) for name in files if os.path.isfile(found / name)}
    wrong = [name for name, facts in files.items() if sizes.get(name) != facts["bytes"]]
    if wrong:
        raise BrokenArtifact(f"{wrong[0]} is missing from {place} or truncated; run the job again")


def _manifest(found: Path | StoredResult) -> bytes:
    if isinstance(found, StoredResult):
        return found.store.get(f"{found.prefix}/{MANIFEST}")
    try:
        return (found / MANIFEST).read_bytes()
    except OSError as error:
        raise NotFound(f"{found} has no readable result ({error.strerror})") from None


def _is_visible(settings: Settings, job: str, artifact: str) -> bool:
    """Whether a result at this place would be visible from here: in our storage, or in our root beside the job's folder."""
    if "://" in artifact:
        return settings.store is not None and artifact.startswith(Store(settings.store).url + "/")
    folder = settings.root / job
    return artifact == str(folder / "result") and (settings.embedded or folder.is_dir())
