"""`extract cancel`."""

from __future__ import annotations

import click

from worker.cli import complete
from worker.cli.options import as_json as json_option
from worker.cli.text import print_json, print_line


@click.command("cancel", short_help="Cancel a job.")
@click.argument("job", shell_complete=complete.jobs)
@json_option
def command(job: str, as_json: bool) -> int:
    """Cancel a job. A queued job ends at once; a running job saves a checkpoint and stops within seconds.

    \b
    Example: extract cancel k3v9x2mq
    """
    from worker.cli.connect import load_settings
    from worker.client.service import open_service
    from worker.ids import check_id

    check_id(job)
    state = open_service(load_settings()).records.cancel(job)
    if as_json:
        print_json({"job": job, "state": state, "cancelling": state == "running"})
    elif state == "running":
        print_line(f"cancelling job {job}; follow it with `extract watch {job}`")
    elif state == "cancelled":
        print_line(f"job {job} is cancelled")
    else:
        print_line(f"job {job} had already ended: {state}")
    return 0
