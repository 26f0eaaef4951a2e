"""Finished results that are no longer what they were: files gone or cut short. Whoever asks for their jobs again has them made anew."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from extractor import artifacts
from extractor.errors import BrokenArtifact, NotFound
from worker import client
from worker.client import Service
from worker.results import Stored
from worker.settings import Settings
from worker.store import Store
from worker.transfer import parse_listing


def among(service: Service, jobs: Sequence[str]) -> set[str]:
    """Those of some jobs that have succeeded whose result is damaged or gone. Raises StorageUnavailable."""
    with ThreadPoolExecutor(client.QUESTIONS_AT_ONCE) as pool:
        answers = pool.map(lambda job: is_damaged(service, job), jobs)
        return {job for job, answer in zip(jobs, answers, strict=True) if answer}


def is_damaged(service: Service, job: str) -> bool:
    """Whether the result that a job has left is damaged or gone; one that lies where we cannot look is taken to be whole.

    Raises StorageUnavailable.
    """
    record = service.records.get(job)
    try:
        check(client.find_result(service.settings, service.records, job))
    except BrokenArtifact:
        return True
    except NotFound:
        return record is not None and _lies_here(service.settings, record)
    return False


def check(found: Path | Stored) -> None:
    """Whether every file that the manifest of a result names is there, in its size; what is in them is not read.

    Raises BrokenArtifact, NotFound when there is no manifest, StorageUnavailable.
    """
    if isinstance(found, Stored):
        place, listing = f"{found.url}/{artifacts.MANIFEST}", found.store.get(f"{found.prefix}/{artifacts.MANIFEST}")
        sizes = {key.removeprefix(f"{found.prefix}/"): entry.size for key, entry in found.store.entries(found.prefix).items()}
    else:
        try:
            place, listing = str(found / artifacts.MANIFEST), (found / artifacts.MANIFEST).read_bytes()
            sizes = {path.relative_to(found).as_posix(): path.stat().st_size for path in found.rglob("*") if path.is_file()}
        except OSError as error:
            raise NotFound(f"{found} holds no result that can be read ({error.strerror})") from None
    wrong = [name for name, facts in parse_listing(listing, place).items() if sizes.get(name) != facts["bytes"]]
    if wrong:
        raise BrokenArtifact(f"{wrong[0]} is missing from {place.rpartition('/')[0]} or was cut short; run the job again")


def _lies_here(settings: Settings, record: dict[str, str]) -> bool:
    """Whether we would see the result of a job if it were there."""
    artifact = record.get("artifact", "")
    if "://" in artifact:
        return settings.store is not None and artifact.startswith(Store(settings.store).url + "/")
    is_ours = settings.embedded or record.get("host") == socket.gethostname()
    return is_ours and os.path.dirname(os.path.dirname(artifact)) == str(settings.root)
