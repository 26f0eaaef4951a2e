"""`extract tasks`."""

from __future__ import annotations

import click

from worker.cli.options import as_json as json_option
from worker.cli.options import print_json


@click.command("tasks", short_help="List the tasks whose circuits can be extracted.")
@click.option("--example", is_flag=True, help="Show a pair of prompts of each.")
@json_option
def command(example: bool, as_json: bool) -> int:
    """List the tasks whose circuits can be extracted.

    \b
    Example: extract tasks --example
    """
    from tasks.base import load_task, task_names

    rows = []
    for name in task_names():
        task = load_task(name)
        pair = next(task.pairs("train", 0))
        about = {"name": task.name, "description": task.description, "aliases": list(task.aliases), "answers": list(task.answers[0])}
        rows.append(about | {"example": [pair.positive, pair.negative]})
    if as_json:
        print_json(rows)
        return 0
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        click.echo(f"{row['name']:<{width}}  {row['description']}")
        if example:
            for prompt, answer in zip(row["example"], row["answers"], strict=True):
                click.echo(f"{'':<{width}}    {prompt!r} -> {answer!r}")
    return 0
