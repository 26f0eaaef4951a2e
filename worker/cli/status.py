"""`extract status`."""

from __future__ import annotations

from pathlib import Path

import click

from worker.cli.options import as_json as json_option
from worker.cli.options import no_worker as no_worker_option
from worker.cli.options import print_json


@click.command("status", short_help="Show a job, or the whole service.")
@click.argument("job", required=False)
@no_worker_option
@json_option
def command(job: str | None, no_worker: bool, as_json: bool) -> int:
    """Show a job, or the server, the workers and the open jobs.

    \b
    Example: extract status k3v9x2mq
    """
    from worker.cli.connect import open_for
    from worker.client import overview, task_rows
    from worker.records import check_id, describe

    if job is not None:
        check_id(job)
    service = open_for(no_worker)
    facts = overview(service) if job is None else describe(job, service.records.need(job))
    rows = task_rows(Path(facts["artifact"])) if facts.get("artifact") else []
    if as_json:
        print_json(facts | {"circuits": rows} if rows else facts)
        return 0
    from worker.cli.view import show_job, show_overview

    show_overview(facts) if job is None else show_job(facts, rows)
    return 0
