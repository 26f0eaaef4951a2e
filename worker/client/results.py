"""Find, download and copy the finished result of a job, from its folder or from storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from extractor import files
from extractor.errors import Cancelled, ExtractorError, NotFound
from worker.ids import check_id
from worker.records.records import Records, describe
from worker.settings import Settings
from worker.storage import results

PARALLEL_REQUESTS = 16  # to storage
SEARCHED = 200  # newest jobs among which one with a circuit is sought


def find_stored(settings: Settings, job: str, artifact: str | None) -> results.StoredResult | None:
    """The result of a job in storage; None if it is in a folder or does not exist."""
    if artifact is not None and "://" in artifact:
        if settings.store is None:
            raise NotFound(f"the result of job {job} is in {artifact[:300]}; set EXTRACT_ROOT to that storage here as well")
        return results.find(settings.store, job, artifact)
    if artifact is None and settings.store is not None and results.is_finished(settings.store, job):
        return results.find(settings.store, job, None)
    return None


def find_result(settings: Settings, records: Records | None, job: str) -> Path | results.StoredResult:
    """The place of a job's finished result: a folder, or storage. Searches the files when the record has expired.

    Raises NotFound when there is none (yet), Cancelled or ExtractorError when the job was cancelled or failed, StorageUnavailable.
    """
    own = settings.root / check_id(job) / "result"
    record = records.get(job) if records else None
    if record is not None and record["state"] != "succeeded":
        raise ending(job, record) or NotFound(f"job {job} has no result yet: it is {record['state']}; follow it with `extract watch {job}`")
    artifact = (record or {}).get("artifact") or None
    stored = find_stored(settings, job, artifact)
    if stored is not None:
        return stored
    if record is None and not (own / files.MANIFEST).is_file():
        raise NotFound(f"job {job!r} not found; `extract list` shows all jobs")
    folder = Path(artifact) if artifact else own
    if not folder.is_dir():
        raise NotFound(f"the result of job {job} is on {record and record.get('host')} in {folder}, which is not visible from here")
    return folder


def with_results(settings: Settings, jobs: Sequence[str]) -> set[str]:
    """The jobs that have a finished result, found without their records. Raises StorageUnavailable."""
    return filter_jobs(jobs, partial(has_result, settings))


def filter_jobs(jobs: Sequence[str], predicate: Callable[[str], bool]) -> set[str]:
    """The jobs for which the predicate is true. It may read files or storage: many calls run in parallel."""
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        return {job for job, answer in zip(jobs, pool.map(predicate, jobs), strict=True) if answer}


def has_result(settings: Settings, job: str) -> bool:
    """Whether a job without a record has a finished result. Raises StorageUnavailable."""
    if settings.store is not None and results.is_finished(settings.store, job):
        return True
    return (settings.root / check_id(job) / "result" / files.MANIFEST).is_file()


def newest_finished(records: Records) -> str | None:
    """The id of the job that was queued last of those outside of batches and sweeps that succeeded and have a task; None without one."""
    found = records.newest(SEARCHED, alone=True)
    return next((job for job, record in found if record["state"] == "succeeded" and describe(job, record)["tasks"]), None)


def result_folder(
    settings: Settings,
    records: Records | None,
    job: str,
    on_progress: results.OnProgress = lambda _done, _all: None,
    without: str | None = None,
) -> Path:
    """The folder of a job's finished result on this machine; downloads it from storage. Raises the errors of `find_result` and `fetch`.

    without: do not download files whose names start with this, such as 'model/'.
    """
    found = find_result(settings, records, job)
    return found if isinstance(found, Path) else results.fetch_to_cache(found, on_progress, without)


def save_result(
    settings: Settings, records: Records | None, job: str, out: Path, on_progress: results.OnProgress = lambda _done, _all: None
) -> list[str]:
    """Copy or download the finished result of a job into a new folder and verify it. Returns the file names. A download resumes.

    Raises the errors of `find_result`, `results.copy` and `results.fetch`.
    """
    found = find_result(settings, records, job)
    return results.copy(found, out) if isinstance(found, Path) else results.fetch(found, out, on_progress)


def ending(job: str, record: dict[str, str]) -> ExtractorError | None:
    """The error for a job that failed or was cancelled; None if it succeeded or has not ended."""
    if record["state"] == "cancelled":
        return Cancelled(f"job {job} was cancelled")
    if record["state"] == "failed":
        return ExtractorError(f"job {job} failed: {record.get('error_type')}: {record.get('error_message')}")
    return None
