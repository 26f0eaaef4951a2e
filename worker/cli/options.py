"""Options that several commands share, and the one way to print JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

as_json = click.option("--json", "as_json", is_flag=True, help="Machine-readable output on stdout.")
no_worker = click.option("--no-worker", is_flag=True, help="Do not start a local worker.")
out_folder = click.option("--out", type=click.Path(path_type=Path), help="Copy the result to this new folder; needs --wait.")
threads = click.option("--threads", type=click.IntRange(1), help="CPU threads of the engine; default: all.")

_REQUEST = (
    click.option("--preset", type=click.Choice(["tiny", "small", "paper"]), default="tiny", show_default=True, help="How much work to do."),
    click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Same seed, same result."),
    click.option("--corpus", multiple=True, help="Text: 'stdlib', 'generated', a folder, .txt, .py or .jsonl file. Repeatable."),
    click.option(
        "--priority", type=click.Choice(["high", "normal", "low"]), default="normal", show_default=True, help="Place in the queue."
    ),
    click.option("--job-id", help="An id of your own; submitting the same again changes nothing."),
    click.option("--wait", is_flag=True, help="Follow the job until it ends and show its result."),
    out_folder,
    click.option("--print-spec", is_flag=True, help="Print the job's spec for `extract run`; queue nothing."),
    no_worker,
    as_json,
)


def request_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that queues a job."""
    for option in reversed(_REQUEST):
        function = option(function)
    return function


def print_json(value: Any) -> None:
    """One JSON value on one line of stdout."""
    click.echo(json.dumps(value))
