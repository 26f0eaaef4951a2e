"""`extract steer`."""

from __future__ import annotations

import sys
from typing import Any

import click

from worker.cli import complete
from worker.cli.options import as_json as json_option
from worker.cli.text import print_json


@click.command("steer", short_help="Patch a circuit's nodes into the dense model.")
@click.argument("job", metavar="[JOB|FOLDER]", required=False, shell_complete=complete.jobs)
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="ID",
    help="A node such as 0.mlp.act_in.12; several must be at one site. Default: the most effective node.",
)
@click.option("--toward", required=True, metavar="PROMPT", help="Prompt that gives the new values of the nodes.")
@click.option(
    "--prompt", metavar="PROMPT", help="Prompt for the dense model, equally long in tokens. Default: a held-out prompt of the task."
)
@click.option("--strength", type=float, help="Fraction of the change, from 0 to 1. Default: 0, 0.1, ... 1.")
@click.option("--way", type=click.Choice(["read", "stream"]), help="Edit the input of one sublayer, or the residual stream from there on.")
@click.option("--task", shell_complete=complete.tasks, help="Task of the circuit, if the job has several.")
@json_option
def command(job: str | None, strength: float | None, task: str | None, as_json: bool, **asked: Any) -> int:
    """Patch nodes of a circuit into the dense model of JOB (an id or a result folder) and measure how its answer changes.
    Without JOB, of the newest finished job with a circuit.

    \b
    Example: extract steer k3v9x2mq --toward "print('hello"
             extract steer k3v9x2mq --node 0.mlp.act_in.12 --prompt 'print("hello' --toward "print('hello" --strength 0.5
    """
    from extractor.errors import UsageError

    if strength is not None and not 0 <= strength <= 1:
        raise UsageError(f"--strength {strength:g} is not between 0 (no change) and 1 (the full change)")
    from worker.cli.connect import newest_finished, result_at
    from worker.cli.views.job import silence_transformers

    silence_transformers()
    from extractor.bridges.steering.evaluate import STRENGTHS
    from extractor.bridges.steering.prompt import open_result, steer_result

    result = open_result(result_at(newest_finished() if job is None else job), task)
    strengths = STRENGTHS if strength is None else sorted({0.0, strength})
    found = steer_result(result, strengths=strengths, **asked)
    if as_json:
        print_json(found)
    else:
        _show(found)
    return 0


def _show(found: dict[str, Any]) -> None:
    """Print the prompts and one row per strength."""
    from rich.console import Console

    from worker.cli.views.tables import PlainTable, styled

    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(styled(f"model  {found['model']}"))
    console.print(styled(f"prompt  {found['prompt']!r}"))
    console.print(styled(f"steered toward  {found['toward']!r}"))
    site = "input of one sublayer" if found["way"] == "read" else "residual stream from there on"
    console.print(styled(f"nodes  {', '.join(found['nodes'])}  ({site})"))
    first, second = found["answers"]
    titles = ("strength", repr(first), repr(second), f"{found['other']!r} among both", "random, mean", "random, max")
    table = PlainTable(header_style="bold")
    for title in titles:
        table.add_column(styled(title), justify="right")
    table.add_column("most likely next tokens")
    for step in found["steps"]:
        numbers = (step["probability"][first], step["probability"][second], step["between"], step["random"], step["random_worst"])
        likely = "  ".join(f"{token!r} {p:.2f}" for token, p in step["top"])
        flipped = "bold green" if step["between"] > 0.5 else ""
        table.add_row(styled(f"{step['strength']:g}"), *(styled(f"{n:.4f}") for n in numbers), styled(likely), style=flipped)
    console.print(table)
