"""What a user can do with jobs: submit, look, watch, cancel, fetch. The command line is a caller of these functions and nothing more."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from extractor import files
from extractor.errors import ServiceUnavailable, StorageUnavailable, UsageError
from worker.broker.fair_share import Groups
from worker.client.results import find_stored
from worker.client.service import Service
from worker.fleet import local
from worker.ids import check_id, is_id, new_id
from worker.records.records import TERMINAL, Records, memory_of
from worker.settings import Settings
from worker.storage import results

if TYPE_CHECKING:
    from celery import Celery

    from extractor.spec.schema import JobSpec

NAMED_TASKS = 3  # of more, lists of jobs say how many they are


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
    wanted = check_id(job) if job else new_id()
    while not service.records.create(wanted, fields, replaces):
        if job is None:
            wanted = new_id()
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
    from extractor.spec.schema import parse_job

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
    if os.path.exists(model) or not is_id(model):  # unlike pathlib's, it never raises
        return model
    record = records.get(model) if records else None
    if record is not None and record["state"] != "succeeded":
        raise UsageError(f"model {model!r} is a job that is {record['state']}, not succeeded; see `extract watch {model}`")
    artifact = (record or {}).get("artifact") or None
    try:
        stored = find_stored(settings, model, artifact)
    except StorageUnavailable:
        if record is not None:
            raise
        return model  # most names are no job's, and need no storage
    folder = results.fetch_to_cache(stored) if stored else Path(artifact) if artifact else settings.root / model / "result"
    if not stored and not artifact and not (folder / files.MANIFEST).is_file():
        return model
    if not (folder / "model").is_dir():
        raise UsageError(f"job {model} left no model in {stored.url if stored else folder}; name a job of `extract train`, or a folder")
    return stored.model if stored else str(folder / "model")


def _publish(service: Service, job: str, priority: str, memory: int) -> None:
    from kombu.exceptions import OperationalError

    from worker.broker.app import publish

    try:
        publish(_app(service.url, service.settings), job, service.records.next_message_id(job), priority, memory)
    except OperationalError as error:
        raise ServiceUnavailable(f"job {job} is recorded but not yet published ({error}); a worker will pick it up later") from None


@cache
def _app(url: str, settings: Settings) -> Celery:
    """One for all submits of a process, with its connections: making one takes longer than publishing."""
    from worker.broker.app import make_app

    return make_app(url, settings)
