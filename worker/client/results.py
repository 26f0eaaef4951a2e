"""Find, fetch and save the finished result of a job, from its folder or from storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from extractor import files
from extractor.errors import Cancelled, ExtractorError, NotFound
from worker.ids import check_id
from worker.records.records import Records
from worker.settings import Settings
from worker.storage import results

QUESTIONS_AT_ONCE = 16  # to storage


def find_stored(settings: Settings, job: str, artifact: str | None) -> results.StoredResult | None:
    """The result of a job if it lies in storage; None if it lies in a folder, or there is none."""
    if artifact is not None and "://" in artifact:
        if settings.store is None:
            raise NotFound(f"the result of job {job} lies in {artifact[:300]}; set EXTRACT_ROOT to that storage here as well")
        return results.find(settings.store, job, artifact)
    if artifact is None and settings.store is not None and results.is_finished(settings.store, job):
        return results.find(settings.store, job, None)
    return None


def find_result(settings: Settings, records: Records | None, job: str) -> Path | results.StoredResult:
    """Where the finished result of a job lies: a folder, or storage. Works from the files alone when its record has expired.

    Raises NotFound when there is none (yet), Cancelled or ExtractorError when there never will be, StorageUnavailable.
    """
    own = settings.root / check_id(job) / "result"
    record = records.get(job) if records else None
    if record is not None and record["state"] != "succeeded":
        raise ending(job, record) or NotFound(f"job {job} has no result yet, it is {record['state']}; follow it with `extract watch {job}`")
    artifact = (record or {}).get("artifact") or None
    stored = find_stored(settings, job, artifact)
    if stored is not None:
        return stored
    if record is None and not (own / files.MANIFEST).is_file():
        raise NotFound(f"job {job!r} not found; `extract list` shows the jobs there are")
    folder = Path(artifact) if artifact else own
    if not folder.is_dir():
        raise NotFound(f"the result of job {job} lies on {record and record.get('host')} in {folder}, which is not visible from here")
    return folder


def with_results(settings: Settings, jobs: Sequence[str]) -> set[str]:
    """Those of some jobs that have left a finished result, asked without their records. Raises StorageUnavailable."""
    return those(jobs, partial(has_result, settings))


def those(jobs: Sequence[str], hold: Callable[[str], bool]) -> set[str]:
    """Those of some jobs for which something holds that files or storage must be asked for, many at once."""
    with ThreadPoolExecutor(QUESTIONS_AT_ONCE) as pool:
        return {job for job, answer in zip(jobs, pool.map(hold, jobs), strict=True) if answer}


def has_result(settings: Settings, job: str) -> bool:
    """Whether a job that has no record any more has left a finished result. Raises StorageUnavailable."""
    if settings.store is not None and results.is_finished(settings.store, job):
        return True
    return (settings.root / check_id(job) / "result" / files.MANIFEST).is_file()


def result_folder(
    settings: Settings, records: Records | None, job: str, tell: results.Tell = lambda _done, _all: None, without: str | None = None
) -> Path:
    """The finished result of a job on this machine, fetched from storage if it lies there. Raises what `find_result` and fetching raise.

    without: the beginning of the names of files that need not be fetched, such as 'model/'.
    """
    found = find_result(settings, records, job)
    return found if isinstance(found, Path) else results.fetch_to_cache(found, tell, without)


def save_result(
    settings: Settings, records: Records | None, job: str, out: Path, tell: results.Tell = lambda _done, _all: None
) -> list[str]:
    """Bring the finished result of a job into a new folder, and verify it: the names of the files. From storage this resumes.

    Raises what `find_result`, `results.copy` and fetching raise.
    """
    found = find_result(settings, records, job)
    return results.copy(found, out) if isinstance(found, Path) else results.fetch(found, out, tell)


def ending(job: str, record: dict[str, str]) -> ExtractorError | None:
    """The error that the end of a job means for somebody who waited for it; None if it succeeded or has not ended."""
    if record["state"] == "cancelled":
        return Cancelled(f"job {job} was cancelled")
    if record["state"] == "failed":
        return ExtractorError(f"job {job} failed: {record.get('error_type')}: {record.get('error_message')}")
    return None
