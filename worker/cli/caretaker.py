"""`extract caretaker`."""

from __future__ import annotations

from pathlib import Path

import click

from worker.cli.options import alive_file as alive_file_option
from worker.cli.options import as_json as json_option
from worker.cli.text import clean_log, print_json


@click.command("caretaker", short_help="Requeue lost jobs while no worker runs.")
@alive_file_option
@json_option
def command(alive_file: Path | None, as_json: bool) -> int:
    """Return jobs of lost workers to the queue, until stopped. Runs no jobs.

    Every worker does this as well. A cluster that scales its workers to zero needs one caretaker.

    \b
    Example: extract caretaker
    """
    import os

    from worker.cli.connect import load_settings
    from worker.client.service import open_service
    from worker.fleet.caretaker import run_caretaker

    clean_log()
    settings = load_settings()
    run_caretaker(open_service(settings).url, settings, alive_file)
    if as_json:
        print_json({"pid": os.getpid()})
    return 0
