"""Sweeps on the service: queue a grid's missing jobs, see how far they are, gather what they left.

A sweep is nothing but its points' jobs, whose ids follow from their specs, and STATE_DIR/sweeps/ID/plan.json, which names them. So a
sweep that is asked for again queues only what is missing, was cancelled or has failed, and a failed job goes on from its checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis

from extractor import files
from extractor.errors import ExtractorError, NotFound, OutputError, ServiceUnavailable
from extractor.jobs.cost.memory import bytes_needed
from worker.client import damaged
from worker.client.results import has_result, result_folder
from worker.client.service import Service, open_service
from worker.client.submit import submit_again
from worker.client.watch import MAX_STARTS, OUTAGE_SECONDS
from worker.fleet import local
from worker.ids import check_id
from worker.records.records import describe
from worker.settings import Settings
from worker.sweeps.grid import Facts, Sweep, SweepPoint, facts_of

LOOK_SECONDS = 1.0


def folder_of(settings: Settings, sweep: str) -> Path:
    """Where a sweep's plan and frontier lie."""
    return settings.state_dir / "sweeps" / check_id(sweep)


def save_plan(settings: Settings, sweep: Sweep) -> None:
    """Write plan.json, so that the id alone finds the sweep again."""
    folder = folder_of(settings, sweep.id)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made ({error.strerror}); set EXTRACT_STATE_DIR to a folder you may write") from None
    files.write_json(folder / "plan.json", sweep.to_json())


def open_plan(settings: Settings, sweep: str) -> Sweep:
    """The sweep of that id. Raises NotFound, BrokenArtifact."""
    path = folder_of(settings, sweep) / "plan.json"
    if not path.is_file():
        known = sorted(p.parent.name for p in path.parent.parent.glob("*/plan.json"))
        raise NotFound(f"sweep {sweep!r} not found; {'there are ' + ', '.join(known) if known else 'there is none yet'}")
    return Sweep.from_json(files.read_json(path))


def queue(service: Service, sweep: Sweep, priority: str = "normal") -> list[str]:
    """Queue what is missing, failed, cancelled or damaged: the ids that were queued."""
    return [
        submit_again(service, point.spec, point.job, priority, sweep.id, bytes_needed(point.spec), damaged=True)
        for point in sweep.points
        if _is_wanted(service, point.job)
    ]


def _is_wanted(service: Service, job: str) -> bool:
    record = service.records.get(job)
    if record is None and not has_result(service.settings, job):
        return True
    state = record["state"] if record else "succeeded"
    return state in ("failed", "cancelled") or (state == "succeeded" and damaged.is_damaged(service, job))


def look(service: Service, sweep: Sweep) -> list[Facts]:
    """The facts of every point as of now: with 'progress' while it runs, with its numbers once it has succeeded."""
    return [_facts(service, point) for point in sweep.points]


def watch(service: Service, sweep: Sweep) -> Iterator[list[Facts]]:
    """The facts of every point, about once a second, until all have ended.

    Local workers are started as they are needed. Raises ServiceUnavailable when nothing answers for a minute, or no worker stays up.
    """
    starts, away_since, ended = 0, None, -1
    while True:
        try:
            starts += local.ensure_worker(service.records, service.settings)
            facts = look(service, sweep)
            away_since = None
        except redis.RedisError as error:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > OUTAGE_SECONDS:
                raise ServiceUnavailable(f"Redis went away ({error}); the jobs are kept, the same command goes on") from None
            time.sleep(LOOK_SECONDS)
            with suppress(ServiceUnavailable):
                service = open_service(service.settings)  # the embedded server is started again
            continue
        yield facts
        done = sum(point["state"] not in ("queued", "running") for point in facts)
        if done == len(facts):
            return
        if done > ended:
            starts, ended = 0, done
        if starts > MAX_STARTS + len(facts):
            raise ServiceUnavailable(f"the local worker does not stay up; see {local.log_path(service.settings)}")
        time.sleep(LOOK_SECONDS)


def _facts(service: Service, point: SweepPoint) -> Facts:
    record = service.records.get(point.job)
    state = record["state"] if record else "succeeded"
    if record is not None and state != "succeeded":
        found = describe(point.job, record)
        error = f"{found['error']['type']}: {found['error']['message']}" if found["error"] else None
        return facts_of(point, state, error=error) | {"progress": found["progress"], "metrics": found["metrics"]}
    try:
        return facts_of(point, "succeeded", result_folder(service.settings, service.records, point.job))
    except NotFound:
        return facts_of(point, "missing", error="its result is gone, or on another machine; run the sweep again")
    except ExtractorError as error:
        return facts_of(point, "failed", error=f"{type(error).__name__}: {error}")


def without_progress(facts: list[Facts]) -> list[dict[str, Any]]:
    """The facts as sweep.json keeps them."""
    return [{name: value for name, value in point.items() if name not in ("progress", "metrics")} for point in facts]
