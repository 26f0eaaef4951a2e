"""`extract caretaker`."""

from __future__ import annotations

from pathlib import Path

import click

from worker.cli.options import alive_file as alive_file_option
from worker.cli.options import as_json as json_option
from worker.cli.options import print_json


@click.command("caretaker", short_help="Bring back lost jobs where workers come and go.")
@alive_file_option
@json_option
def command(alive_file: Path | None, as_json: bool) -> int:
    """Bring back jobs whose worker was lost, until told to leave; run none.

    Every worker does this beside its job. A cluster that starts workers as jobs come, and may have none for a while, needs one of these.

    \b
    Example: extract caretaker
    """
    import os

    from worker.cli.connect import load_settings
    from worker.client.service import open_service
    from worker.fleet.caretaker import keep_up

    settings = load_settings()
    keep_up(open_service(settings).url, settings, alive_file)
    if as_json:
        print_json({"pid": os.getpid()})
    return 0
