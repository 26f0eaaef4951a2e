"""The lines and the JSON that commands print. No escape code in the text of others (names, notes, errors, records) reaches the terminal.

`worker.cli.views.tables` is the same for tables.
"""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import click

from extractor.errors import printable


def say(line: str) -> None:
    """Print a line on stderr."""
    click.echo(printable(line), err=True)


def print_line(line: str = "", colour: str | None = None) -> None:
    """Print a line on stdout."""
    click.secho(printable(line), fg=colour)


def print_json(value: Any) -> None:
    """Print a JSON value on one line of stdout. A number that is not finite becomes null: JSON has none."""
    click.echo(json.dumps(_finite(value), allow_nan=False))


def clean_log() -> None:
    """Show what this process logs as `print_line` does: a message may quote others."""
    logging.getLogger("extract").addFilter(_clean)


def _clean(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), None
    return True


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
