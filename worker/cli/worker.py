"""`extract worker`."""

from __future__ import annotations

from pathlib import Path

import click

from worker.cli.options import alive_file as alive_file_option
from worker.cli.options import as_json as json_option
from worker.cli.options import print_json
from worker.cli.options import threads as threads_option

MOST_SECONDS = 1_000_000_000


def _number(_ctx: click.Context, _param: click.Parameter, value: float | None) -> float | None:
    """Callback of --idle-exit: no bound of a range holds off 'nan'."""
    if value is not None and value != value:
        raise click.BadParameter("nan is not a number of seconds")
    return value


@click.command("worker", short_help="Run queued jobs, one at a time.")
@click.option("--max-jobs", type=click.IntRange(1), help="Leave after this many jobs.")
@click.option(
    "--idle-exit",
    type=click.FloatRange(0, MOST_SECONDS, min_open=True),
    callback=_number,
    help="Leave after this many seconds without work.",
)
@alive_file_option
@threads_option
@click.option("--local", "is_local", is_flag=True, hidden=True)
@json_option
def command(
    max_jobs: int | None, idle_exit: float | None, alive_file: Path | None, threads: int | None, is_local: bool, as_json: bool
) -> int:
    """Run queued jobs, one at a time, until told to leave. One worker per GPU: set CUDA_VISIBLE_DEVICES.

    SIGTERM or Ctrl-C gives the running job back to the queue from its checkpoint.

    \b
    Example: CUDA_VISIBLE_DEVICES=0 extract worker --max-jobs 10
    """
    import dataclasses
    import os

    from worker.cli.connect import load_settings
    from worker.client import open_service
    from worker.serve import serve
    from worker.store import Store

    settings = load_settings()
    settings = dataclasses.replace(settings, threads=threads or settings.threads)
    if settings.store is not None:
        Store(settings.store).check()
    jobs = serve(open_service(settings).url, settings, max_jobs, idle_exit, is_local, alive_file)
    if as_json:
        print_json({"pid": os.getpid(), "jobs": jobs})
    return 0
