"""What a user can do with jobs: submit, look, watch, cancel, fetch. The command line is a caller of these functions and nothing more."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from extractor import artifacts
from extractor.errors import Cancelled, ExtractorError, NotFound, ServiceUnavailable, StorageUnavailable, UsageError
from worker import local, results, server, urls
from worker.groups import Groups
from worker.records import TERMINAL, Records, check_id, connect, memory_of
from worker.settings import Settings

if TYPE_CHECKING:
    from celery import Celery

    from extractor.specs import JobSpec

OUTAGE_SECONDS = 60.0  # a watcher outlives an absence of Redis of this length
LOOK_SECONDS = 2.0  # a watcher looks this often whether somebody works
NAMED_TASKS = 3  # of more, lists of jobs say how many they are
QUESTIONS_AT_ONCE = 16  # to storage
MAX_STARTS = 3  # local workers one watcher starts before it calls for help
_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"  # no characters that look alike


@dataclass(frozen=True)
class Service:
    """A connection to the service: its settings, the Redis URL in use, the job records."""

    settings: Settings
    url: str
    records: Records


def open_service(settings: Settings) -> Service:
    """Connect to EXTRACT_REDIS_URL, or to the embedded server, started if need be.

    Raises ServiceUnavailable, or UsageError for an address that is none.
    """
    if settings.redis_url is None:
        url = server.ensure(settings)
        return Service(settings, url, Records(connect(url)))
    urls.check_safe(settings.redis_url, settings.allow_insecure)
    records = Records(connect(settings.redis_url))
    try:
        records.client.zcard("ex:open")  # says more than a ping: may we read our keys?
    except (redis.RedisError, OSError, ValueError) as error:
        raise ServiceUnavailable(urls.explain(settings.redis_url, error)) from None
    return Service(settings, settings.redis_url, records)


def without_asking(settings: Settings) -> Service:
    """The same without asking whether the server of EXTRACT_REDIS_URL is there, for those who can wait for it.

    Raises ServiceUnavailable when it is not safe or the embedded server does not start, or UsageError.
    """
    if settings.redis_url is None:
        return open_service(settings)
    urls.check_safe(settings.redis_url, settings.allow_insecure)
    return Service(settings, settings.redis_url, Records(connect(settings.redis_url)))


def submit(
    service: Service,
    spec: JobSpec,
    job: str | None = None,
    priority: str = "normal",
    group: str = "",
    memory: int = 0,
    replaces: Sequence[str] = (),
) -> str:
    """Record a job, see that somebody will run it, publish it: its id.

    job       an id of the caller's choice; submitting the same spec under it again changes nothing
    group     the batch or sweep that it is of, whose jobs take turns with all others
    memory    bytes that it needs, 0 if that is not known: only a worker that has them takes it
    replaces  how a job of that id may have ended to be queued once more

    Raises UsageError if another job has the id.
    """
    text = spec.model_dump_json()
    fields: dict[str, str | int] = {
        "spec": text,
        "kind": spec.kind,
        "model": spec.model or "",
        "task": name_tasks(spec.tasks),
        "tasks": json.dumps(spec.tasks),
        "priority": priority,
        "max_attempts": service.settings.max_attempts,
        "group": group,
        "memory": memory,
    }
    wanted = check_id(job) if job else _new_id()
    while not service.records.create(wanted, fields, replaces):
        if job is None:
            wanted = _new_id()
        elif _is_same(service.records.get(wanted), spec):
            local.ensure_worker(service.records, service.settings)
            return wanted
        else:
            raise UsageError(f"job id {wanted!r} is taken by another job; choose another --job-id")
    local.ensure_worker(service.records, service.settings)  # it boots while we publish
    if group:
        publish_next(service, group)
    else:
        _publish(service, wanted, priority, memory)
    return wanted


def publish_next(service: Service, group: str) -> None:
    """Publish the jobs of a group whose turn has come. Raises ServiceUnavailable."""
    drawn = Groups(service.records.client).draw(group)
    for job, record in service.records.get_many(drawn).items():
        _publish(service, job, record.get("priority", "normal"), memory_of(record))


def name_tasks(tasks: Sequence[str]) -> str:
    """Tasks in a few words: 'for_while, quote_close', or '20 tasks'."""
    return ", ".join(tasks) if len(tasks) <= NAMED_TASKS else f"{len(tasks)} tasks"


def _is_same(record: dict[str, str] | None, spec: JobSpec) -> bool:
    """Whether a job's record holds this spec, however it was written then."""
    from extractor.specs import parse_job

    try:
        return record is not None and parse_job(record.get("spec", "")) == spec
    except UsageError:
        return False


def submit_again(
    service: Service, spec: JobSpec, job: str, priority: str = "normal", group: str = "", memory: int = 0, damaged: bool = False
) -> str:
    """Queue a job that failed or was cancelled once more, under its own id: the engine goes on from its checkpoint.

    damaged: also one that succeeded, whose result is lost; the engine begins anew. A job in any other state is left as it is. Raises
    what `submit` raises.
    """
    return submit(service, spec, job, priority, group, memory, TERMINAL if damaged else ("failed", "cancelled"))


def resolve_model(model: str, settings: Settings, records: Records | None = None) -> str:
    """A model reference as the engine wants it: a job id becomes the model that job left, all else stays.

    From a folder that is its path; from storage 'job:ID/ATTEMPT', which every worker there can fetch. Raises UsageError when that job has
    left no model (yet), and what fetching it raises.
    """
    if os.path.exists(model) or not _is_id(model):  # unlike pathlib's, it never raises
        return model
    record = records.get(model) if records else None
    if record is not None and record["state"] != "succeeded":
        raise UsageError(f"model {model!r} is a job that is {record['state']}, not succeeded; see `extract watch {model}`")
    artifact = (record or {}).get("artifact") or None
    try:
        stored = _find_stored(settings, model, artifact)
    except StorageUnavailable:
        if record is not None:
            raise
        return model  # most names are no job's, and need no storage
    folder = results.bring(stored) if stored else Path(artifact) if artifact else settings.root / model / "result"
    if not stored and not artifact and not (folder / artifacts.MANIFEST).is_file():
        return model
    if not (folder / "model").is_dir():
        raise UsageError(f"job {model} left no model in {stored.url if stored else folder}; name a job of `extract train`, or a folder")
    return stored.model if stored else str(folder / "model")


def _find_stored(settings: Settings, job: str, artifact: str | None) -> results.Stored | None:
    """The result of a job if it lies in storage; None if it lies in a folder, or there is none."""
    if artifact is not None and "://" in artifact:
        if settings.store is None:
            raise NotFound(f"the result of job {job} lies in {artifact[:300]}; set EXTRACT_ROOT to that storage here as well")
        return results.find(settings.store, job, artifact)
    if artifact is None and settings.store is not None and results.is_finished(settings.store, job):
        return results.find(settings.store, job, None)
    return None


def watch(service: Service, job: str, after: str = "0") -> Iterator[dict[str, Any]]:
    """Every event of a job after a stream id, as it happens, ending by itself with the job.

    Each event carries its stream id under 'id'. Nothing is lost or doubled when Redis goes away and comes back. On the embedded server, a
    job whose worker died gets a new one. Raises NotFound, or ServiceUnavailable when nothing answers for a minute.
    """
    service.records.need(job)
    starts, looked_at, away_since = 0, 0.0, None
    while True:
        try:
            events = service.records.events(job, after, block=1.0)
            if not events and service.records.need(job)["state"] in TERMINAL:
                # The last event may have come between the two questions.
                events = service.records.events(job, after, block=0.001)
                if not events:
                    return
            if time.monotonic() - looked_at > LOOK_SECONDS:
                looked_at = time.monotonic()
                starts += local.ensure_worker(service.records, service.settings)
            away_since = None
        except (redis.RedisError, OSError) as error:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > OUTAGE_SECONDS:
                raise ServiceUnavailable(f"Redis went away ({error}); the job is kept, watch it again with `extract watch {job}`") from None
            service = _reopen(service)
            continue
        for after, event in events:
            yield event | {"id": after}
            if event["event"] == "state" and event["state"] in TERMINAL:
                return
            if event["event"] == "state" and event["state"] == "running":
                starts = 0
        if starts > MAX_STARTS:
            path = local.log_path(service.settings)
            raise ServiceUnavailable(f"the local worker does not stay up: {server.last_line(path)}; see {path}")


def find_result(settings: Settings, records: Records | None, job: str) -> Path | results.Stored:
    """Where the finished result of a job lies: a folder, or storage. Works from the files alone when its record has expired.

    Raises NotFound when there is none (yet), Cancelled or ExtractorError when there never will be, StorageUnavailable.
    """
    own = settings.root / check_id(job) / "result"
    record = records.get(job) if records else None
    if record is not None and record["state"] != "succeeded":
        raise ending(job, record) or NotFound(f"job {job} has no result yet, it is {record['state']}; follow it with `extract watch {job}`")
    artifact = (record or {}).get("artifact") or None
    stored = _find_stored(settings, job, artifact)
    if stored is not None:
        return stored
    if record is None and not (own / artifacts.MANIFEST).is_file():
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
    return (settings.root / check_id(job) / "result" / artifacts.MANIFEST).is_file()


def result_folder(
    settings: Settings, records: Records | None, job: str, tell: results.Tell = lambda _done, _all: None, without: str | None = None
) -> Path:
    """The finished result of a job on this machine, fetched from storage if it lies there. Raises what `find_result` and fetching raise.

    without: the beginning of the names of files that need not be fetched, such as 'model/'.
    """
    found = find_result(settings, records, job)
    return found if isinstance(found, Path) else results.bring(found, tell, without)


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


def _publish(service: Service, job: str, priority: str, memory: int) -> None:
    from kombu.exceptions import OperationalError

    from worker.app import publish

    try:
        publish(_app(service.url, service.settings), job, service.records.next_message_id(job), priority, memory)
    except OperationalError as error:
        raise ServiceUnavailable(f"job {job} is recorded but not yet published ({error}); a worker will pick it up later") from None


@cache
def _app(url: str, settings: Settings) -> Celery:
    """One for all submits of a process, with its connections: making one takes longer than publishing."""
    from worker.app import make_app

    return make_app(url, settings)


def _reopen(service: Service) -> Service:
    time.sleep(0.5)
    try:
        return open_service(service.settings)
    except ServiceUnavailable:
        return service


def _new_id() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(8))


def _is_id(text: str) -> bool:
    try:
        check_id(text)
    except UsageError:
        return False
    return True
