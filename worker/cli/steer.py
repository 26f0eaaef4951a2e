"""`extract steer`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from worker.cli.options import as_json as json_option
from worker.cli.options import print_json


@click.command("steer", short_help="Edit a circuit's node inside the dense model.")
@click.argument("job")
@click.option(
    "--node", "nodes", multiple=True, metavar="ID", help="A node, as 0.mlp.act_in.12; several of one site go together. Default: the best."
)
@click.option("--toward", required=True, metavar="PROMPT", help="Nodes take the values they have after this prompt.")
@click.option("--prompt", metavar="PROMPT", help="What the dense model reads, as many tokens. Default: a held-out prompt of the task.")
@click.option("--strength", type=float, help="From 0, nothing, to 1, all of the change. Default: 0, 0.1, ... 1.")
@click.option("--way", type=click.Choice(["read", "stream"]), help="Edit what one sublayer reads, or the residual from there on.")
@click.option("--task", help="Whose circuit, in a job that has several.")
@json_option
def command(job: str, strength: float | None, task: str | None, as_json: bool, **asked: Any) -> int:
    """Edit nodes of a circuit inside the dense model that JOB (an id, or a result folder) was made from, and see its answer change.

    \b
    Example: extract steer k3v9x2mq --toward "print('hello"
             extract steer k3v9x2mq --node 0.mlp.act_in.12 --prompt 'print("hello' --toward "print('hello" --strength 0.5
    """
    from extractor.errors import UsageError

    if strength is not None and not 0 <= strength <= 1:
        raise UsageError(f"--strength {strength:g} is not between 0 (no change) and 1 (the whole change)")
    from worker.cli.views.job import quieten

    quieten()
    from extractor.bridges.steering.evaluate import STRENGTHS
    from extractor.bridges.steering.prompt import open_result, steer_result

    result = open_result(_folder(job), task)
    strengths = STRENGTHS if strength is None else sorted({0.0, strength})
    found = steer_result(result, strengths=strengths, **asked)
    if as_json:
        print_json(found)
    else:
        _show(found)
    return 0


def _folder(job: str) -> Path:
    """The result folder of a job id, or the folder itself."""
    from worker.cli.connect import load_settings
    from worker.client import results, service, submit

    if Path(job).is_dir():
        return Path(job).absolute()
    submit.check_id(job)
    settings = load_settings()
    return results.result_folder(settings, service.open_service(settings).records, job)


def _show(found: dict[str, Any]) -> None:
    """The prompts, and a row for each strength."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(Text(f"{found['model']} reads  {found['prompt']!r}\nsteered toward  {found['toward']!r}"))
    console.print(Text(f"by  {', '.join(found['nodes'])}  ({'one read' if found['way'] == 'read' else 'the residual from there on'})"))
    first, second = found["answers"]
    titles = ("strength", repr(first), repr(second), f"{found['other']!r} of the two", "random", "strongest")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(Text(title), justify="right")
    table.add_column("most likely next")
    for step in found["steps"]:
        numbers = (step["probability"][first], step["probability"][second], step["between"], step["random"], step["random_worst"])
        likely = "  ".join(f"{token!r} {p:.2f}" for token, p in step["top"])
        flipped = "bold green" if step["between"] > 0.5 else ""
        table.add_row(Text(f"{step['strength']:g}"), *(Text(f"{n:.4f}") for n in numbers), Text(likely), style=flipped)
    console.print(table)
