"""`extract list`."""

from __future__ import annotations

import click

from worker.cli.options import as_json as json_option
from worker.cli.options import no_worker as no_worker_option
from worker.cli.text import print_json, print_line


@click.command("list", short_help="List jobs, newest first.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Maximum number of jobs.")
@click.option("--all", "every", is_flag=True, help="Include the jobs of batches and sweeps.")
@no_worker_option
@json_option
def command(limit: int, every: bool, no_worker: bool, as_json: bool) -> int:
    """List jobs, newest first; --all includes the jobs of batches and sweeps (`extract batch list` lists batches).

    \b
    Example: extract list --limit 5
    """
    from worker.cli.connect import open_for
    from worker.records.records import describe

    records = open_for(no_worker, only_again=True).records
    jobs = [describe(job, record) for job, record in records.newest(limit, alone=not every)]
    if as_json:
        print_json(jobs)
        return 0
    from worker.cli.views.job import show_jobs

    if not jobs and records.newest(1):
        print_line("all jobs belong to batches or sweeps; list them with `extract list --all`")
    else:
        show_jobs(jobs)
    return 0
