"""`extract watch`."""

from __future__ import annotations

import click

from worker.cli import complete
from worker.cli.options import as_json as json_option
from worker.cli.options import no_worker as no_worker_option


@click.command("watch", short_help="Follow a job until it ends.")
@click.argument("job", required=False, shell_complete=complete.jobs)
@click.option("--from", "after", default="0", help="Show only events after this event id (as in --json).")
@no_worker_option
@json_option
def command(job: str | None, after: str, no_worker: bool, as_json: bool) -> int:
    """Follow a job until it ends, then show its result. Exit code 1 if it failed, 5 if it was cancelled. Without JOB, the newest.

    \b
    Example: extract watch k3v9x2mq
    """
    import re

    from extractor.errors import UsageError
    from worker.cli.connect import newest_job, open_for
    from worker.cli.request import follow
    from worker.ids import check_id

    job = check_id(newest_job() if job is None else job)
    if not re.fullmatch(r"[0-9]{1,15}(-[0-9]{1,15})?", after):
        raise UsageError(f"--from {after!r} is not an event id; use the 'id' of an event from `extract watch {job} --json`")
    return follow(open_for(no_worker), job, None, as_json, after)
