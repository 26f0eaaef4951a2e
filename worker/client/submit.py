"""Submit a job: write its record, make sure that a worker runs, publish its message."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from extractor import files
from extractor.errors import NotFound, ServiceUnavailable, StorageUnavailable, UsageError
from worker.broker.fair_share import Groups
from worker.client.results import find_stored
from worker.client.service import Service
from worker.fleet import local
from worker.ids import check_id, is_id, new_id
from worker.records.records import TERMINAL, Records, memory_of
from worker.settings import Settings
from worker.storage import results
from worker.storage.model_names import is_model_name

if TYPE_CHECKING:
    from celery import Celery

    from extractor.spec.schema import JobSpec

NAMED_TASKS = 3  # with more tasks, lists of jobs show their number instead of their names


def submit(
    service: Service,
    spec: JobSpec,
    job: str | None = None,
    priority: str = "normal",
    group: str = "",
    memory: int = 0,
    replaces: Sequence[str] = (),
) -> str:
    """Record a job, start a local worker if needed, publish the job. Returns its id.

    job       id chosen by the caller; submitting the same spec under it again has no effect
    group     id of its batch or sweep; the jobs of a group take turns with all other jobs
    memory    bytes that the job needs, 0 if unknown; only workers with that much memory take it
    replaces  end states in which an earlier job with this id is queued again

    Raises UsageError if another job or a model has the id.
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
    wanted = _check_free(job) if job else new_id()
    while not service.records.create(wanted, fields, replaces):
        if job is None:
            wanted = new_id()
        elif _is_same(service.records.get(wanted), spec):
            local.ensure_worker(service.records, service.settings)
            return wanted
        else:
            raise UsageError(f"job id {wanted!r} is taken by another job; choose another --job-id")
    local.ensure_worker(service.records, service.settings)  # it starts up while the job is published
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
    """A short text for tasks: 'for_while, quote_close', or '20 tasks'."""
    return ", ".join(tasks) if len(tasks) <= NAMED_TASKS else f"{len(tasks)} tasks"


def _check_free(job: str) -> str:
    """The id itself. Raises UsageError if it is not an id, or names a model that everybody on this server may ask for."""
    if check_id(job).startswith("-"):
        raise UsageError(f"job id {job!r} begins with '-', as options do; choose another --job-id")
    if is_model_name(job):
        raise UsageError(f"job id {job!r} is the name of a model, which `--model {job}` must go on meaning; choose another --job-id")
    return job


def _is_same(record: dict[str, str] | None, spec: JobSpec) -> bool:
    """Whether a job's record contains this spec, in any earlier format."""
    from extractor.spec.schema import parse_job

    try:
        return record is not None and parse_job(record.get("spec", "")) == spec
    except UsageError:
        return False


def submit_again(
    service: Service, spec: JobSpec, job: str, priority: str = "normal", group: str = "", memory: int = 0, damaged: bool = False
) -> str:
    """Queue a failed or cancelled job again under its id: the engine continues from its checkpoint. Does nothing in other states.

    damaged: also queue a job that succeeded but whose result is damaged; the engine starts anew. Raises the errors of `submit`.
    """
    return submit(service, spec, job, priority, group, memory, TERMINAL if damaged else ("failed", "cancelled"))


def resolve_model(model: str, settings: Settings, records: Records | None = None) -> str:
    """A model reference for the engine: a job id, or 'job:ID', becomes a reference to that job's model, other references stay.

    For a result in a folder that is its path; in storage it is 'job:ID/ATTEMPT', which every worker can download. A folder and the name of
    a model come before a job of that id. Raises UsageError when the job has no model (yet), NotFound for an unknown 'job:ID', and the
    errors of downloading it.
    """
    job = model.removeprefix("job:")
    is_named = job != model and is_id(job)
    if not is_named and (os.path.exists(model) or not is_id(model) or is_model_name(model)):  # os.path.exists never raises
        return model
    record = records.get(job) if records else None
    if record is not None and record["state"] != "succeeded":
        raise UsageError(
            f"model {model!r} is a job that has not succeeded (state: {record['state']}); see `extract watch {job}`, "
            "or name a model of the hub as OWNER/NAME"
        )
    artifact = (record or {}).get("artifact") or None
    try:
        stored = find_stored(settings, job, artifact)
    except StorageUnavailable:
        if record is not None or is_named:
            raise
        return model  # most names are not job ids and need no storage
    folder = results.fetch_to_cache(stored) if stored else Path(artifact) if artifact else settings.root / job / "result"
    if not stored and not artifact and not (folder / files.MANIFEST).is_file():
        if is_named:
            raise NotFound(f"job {job!r} has no finished result here; `extract list` shows all jobs")
        return model
    if not (folder / "model").is_dir():
        raise UsageError(f"job {job} has no model in {stored.url if stored else folder}; name a job of `extract train`, or a folder")
    return stored.model if stored else str(folder / "model")


def _publish(service: Service, job: str, priority: str, memory: int) -> None:
    from kombu.exceptions import OperationalError

    from worker.broker.app import publish

    try:
        publish(_app(service.url, service.settings), job, service.records.next_message_id(job), priority, memory)
    except OperationalError as error:
        raise ServiceUnavailable(f"job {job} is recorded but not published yet ({error}); a worker will find it later") from None


@cache
def _app(url: str, settings: Settings) -> Celery:
    """One application per process: creating one takes longer than publishing a job."""
    from worker.broker.app import make_app

    return make_app(url, settings)
