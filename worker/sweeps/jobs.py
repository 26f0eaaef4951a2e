"""Sweeps: queue a grid's missing jobs, follow them, collect their results.

A sweep consists of its points' jobs, whose ids are hashes of their specs, and of STATE_DIR/sweeps/ID/plan.json, which lists them.
Submitting a sweep again queues only jobs that are missing, cancelled or failed; a failed job continues from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from extractor import files
from extractor.errors import ExtractorError, NotFound, OutputError
from extractor.jobs.cost.memory import bytes_needed
from worker.client import damaged
from worker.client.results import has_result, result_folder
from worker.client.service import Service
from worker.client.submit import submit_again
from worker.client.watch import watch_group
from worker.ids import check_id
from worker.records.records import describe
from worker.settings import Settings
from worker.sweeps.grid import Facts, Sweep, SweepPoint, facts_of


def folder_of(settings: Settings, sweep: str) -> Path:
    """The default folder of a sweep's plan and frontier."""
    return settings.state_dir / "sweeps" / check_id(sweep)


def save_plan(settings: Settings, sweep: Sweep) -> None:
    """Write plan.json, from which `open_plan` restores the sweep."""
    folder = folder_of(settings, sweep.id)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be created ({error.strerror}); set EXTRACT_STATE_DIR to a writable folder") from None
    files.write_json(folder / "plan.json", sweep.to_json())


def open_plan(settings: Settings, sweep: str) -> Sweep:
    """The sweep with that id. Raises NotFound, BrokenArtifact."""
    path = folder_of(settings, sweep) / "plan.json"
    if not path.is_file():
        known = sorted(p.parent.name for p in path.parent.parent.glob("*/plan.json"))
        raise NotFound(f"sweep {sweep!r} not found; {'known sweeps: ' + ', '.join(known) if known else 'there are no sweeps yet'}")
    return Sweep.from_json(files.read_json(path))


def queue(service: Service, sweep: Sweep, priority: str = "normal") -> list[str]:
    """Queue the jobs that are missing, failed, cancelled or damaged. Returns the queued ids."""
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


def inspect(service: Service, sweep: Sweep) -> list[Facts]:
    """The present facts of every point, with 'progress' while it runs and with its numbers once it has succeeded."""
    return [_facts(service, point) for point in sweep.points]


def watch(service: Service, sweep: Sweep) -> Iterator[list[Facts]]:
    """The facts of every point, about once a second, until all have ended. Starts local workers when needed.

    Raises ServiceUnavailable when Redis does not answer for a minute or no worker stays up.
    """
    advice = "the jobs are kept; the same command continues"
    return watch_group(service, lambda service, _before: inspect(service, sweep), advice, more_starts=len(sweep.points))


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
        return facts_of(point, "missing", error="its result is gone or on another machine; run the sweep again")
    except ExtractorError as error:
        return facts_of(point, "failed", error=f"{type(error).__name__}: {error}")


def without_progress(facts: list[Facts]) -> list[dict[str, Any]]:
    """The facts in the form that sweep.json stores."""
    return [{name: value for name, value in point.items() if name not in ("progress", "metrics")} for point in facts]
