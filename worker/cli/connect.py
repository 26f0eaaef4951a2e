"""Opening the service for a command."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from extractor.errors import NotFound, UsageError
from worker.cli.text import say

if TYPE_CHECKING:
    from extractor.results.result import Result
    from worker.client.service import Service
    from worker.records.records import Records
    from worker.settings import Settings


def load_settings(no_worker: bool = False) -> Settings:
    """The settings from the environment. no_worker: start no local worker."""
    from worker.settings import from_env

    settings = from_env()
    return dataclasses.replace(settings, start_worker=settings.start_worker and not no_worker)


def open_for(no_worker: bool = False, only_again: bool = False) -> Service:
    """Connect, and start a local worker if jobs are open and none runs. Raises ServiceUnavailable.

    only_again: start one only in place of one that died; for commands that just look.
    """
    from worker.client.service import open_service
    from worker.fleet import local

    service = open_service(load_settings(no_worker))
    local.ensure_worker(service.records, service.settings, only_again)
    return service


def result_at(job: str) -> Path:
    """The result folder of a job id, or the folder itself. Raises UsageError, NotFound, ServiceUnavailable."""
    from worker.client import results, service
    from worker.ids import check_id

    if not job:
        raise UsageError("a job id or a result folder is empty text")
    folder = Path(job).expanduser()
    if folder.is_dir():
        return folder.absolute()
    if os.sep in job:
        raise NotFound(f"there is no folder {job}; name a result folder, or the id of a job")
    check_id(job)
    settings = load_settings()
    return results.result_folder(settings, service.open_service(settings).records, job)


def results_at(name: str) -> list[tuple[str, Path]]:
    """Name and folder of the result of a job or a folder; of a batch those of all its jobs that have a circuit.

    Raises NotFound for a batch without one, and what `result_at` raises.
    """
    from worker.batches import batch as batches
    from worker.client.results import result_folder
    from worker.client.service import open_service
    from worker.ids import is_id

    if Path(name).expanduser().is_dir() or not is_id(name):
        return [(name, result_at(name))]
    service = open_service(load_settings())
    batch = batches.find(service, name)
    if batch is None:
        return [(name, result_at(name))]
    done = [child for child in batches.inspect(service, batch) if child["state"] == "succeeded"]
    folders = [(child["model"], result_folder(service.settings, service.records, child["job"])) for child in done]
    found = [(model, folder) for model, folder in folders if any(folder.glob("circuits/*/result.json"))]
    if not found:
        raise NotFound(f"batch {name} has no finished job with a circuit; see `extract batch status {name}`")
    return found


def split_task(name: str) -> tuple[str, str | None]:
    """The job or folder of JOB|FOLDER[:TASK], and the task where one is named."""
    if Path(name).is_dir() or ":" not in name:
        return name, None
    job, _, task = name.rpartition(":")
    return job, task


def circuit_of(job: str, task: str | None) -> Result:
    """The result of one task, of a job or a folder. Loads no model.

    Raises UsageError where there are several circuits and no task is named, and what `result_at` and `extractor.load` raise.
    """
    from extractor.results.result import load

    result = load(result_at(job), task)
    if task is None and len(result.tasks) > 1:
        raise UsageError(f"{job} has circuits of {', '.join(result.tasks)}; name one, as {job}:{result.tasks[0]}")
    return result


def newest_finished() -> str:
    """The id of the job that was queued last of those of `extract list` that succeeded and have a task; says it on stderr.

    Raises NotFound, ServiceUnavailable.
    """
    from worker.client import results, service

    job = results.newest_finished(service.open_service(load_settings()).records)
    if job is None:
        raise NotFound("no job with a circuit has finished yet; name a job or a result folder, `extract list` shows the jobs")
    say(f"job {job}: the newest that has finished")
    return job


def newest_job() -> str:
    """The id of the job that was queued last of those of `extract list`; says it on stderr. Raises NotFound, ServiceUnavailable."""
    from worker.client import service

    for job, _ in service.open_service(load_settings()).records.newest(1, alone=True):
        say(f"job {job}: the newest")
        return job
    raise NotFound("there is no job yet; queue one with `extract submit`")


def resolve_model(model: str, settings: Settings, records: Records | None = None) -> str:
    """A model reference for the engine; says on stderr when it is that of a job. Raises what `submit.resolve_model` raises."""
    from worker.client import submit

    found = submit.resolve_model(model, settings, records)
    if found != model:
        say(f"model {model}: the model of job {model.removeprefix('job:')}, {found}")
    return found


def warn_without_worker(service: Service, memory: int = 0) -> None:
    """Warn on stderr when no live worker can run a job that needs `memory` bytes."""
    from worker.broker import routing
    from worker.fleet import local

    alive = local.live_workers(service.records, service.settings)
    if alive or local.is_registered(service.settings):
        if alive and not any(routing.reaches(worker.capacity, memory) for worker in alive):
            say(f"warning: no live worker has the {memory / routing.GB:.0f} GB that the job needs; the job waits")
        return
    say("warning: no live worker; the job waits until you start `extract worker`")
