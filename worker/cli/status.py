"""`extract status`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from worker.cli import complete
from worker.cli.options import as_json as json_option
from worker.cli.options import no_worker as no_worker_option
from worker.cli.text import print_json

if TYPE_CHECKING:
    from worker.client.service import Service


@click.command("status", short_help="Show a job, or the whole service.")
@click.argument("job", required=False, shell_complete=complete.jobs)
@click.option("--once", is_flag=True, help="Print the page once, also in a terminal.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Maximum number of open jobs and of workers.")
@no_worker_option
@json_option
def command(job: str | None, once: bool, limit: int, no_worker: bool, as_json: bool) -> int:
    """Show a job, or the whole service: jobs by state, queues, workers, running and queued jobs.

    In a terminal the page of the service is redrawn every second until Ctrl-C.

    \b
    Example: extract status k3v9x2mq
             extract status --limit 50
    """
    from worker.cli.connect import open_for
    from worker.ids import check_id

    if job is not None:
        check_id(job)
    service = open_for(no_worker, only_again=True)
    return _show_service(service, once, limit, as_json) if job is None else _show_job(service, job, as_json)


def _show_service(service: Service, once: bool, limit: int, as_json: bool) -> int:
    from rich.console import Console

    from worker.cli.views.status import show_live, show_once
    from worker.monitoring.overview import overview

    console = Console()
    if as_json:
        print_json(overview(service, limit))
    elif once or not console.is_terminal:
        show_once(overview(service, limit), limit)
    else:
        show_live(_poller(service, limit), limit, console)
    return 0


def _poller(service: Service, limit: int) -> Callable[[], dict[str, Any] | None]:
    """A function that returns the overview of the service; None while Redis does not answer, and then it reconnects."""
    import redis

    from extractor.errors import ServiceUnavailable
    from worker.client.service import open_service
    from worker.monitoring.overview import overview

    def poll() -> dict[str, Any] | None:
        nonlocal service
        try:
            return overview(service, limit)
        except redis.RedisError:
            with contextlib.suppress(ServiceUnavailable):
                service = open_service(service.settings)
            return None

    return poll


def _show_job(service: Service, job: str, as_json: bool) -> int:
    from worker.records.records import describe
    from worker.storage.results import task_rows

    facts = describe(job, service.records.need(job))
    rows = task_rows(Path(facts["artifact"])) if facts.get("artifact") else []
    if as_json:
        print_json(facts | {"circuits": rows} if rows else facts)
        return 0
    from worker.cli.views.job import show_job

    show_job(facts, rows)
    return 0
