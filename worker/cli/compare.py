"""`extract compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from worker.cli import complete
from worker.cli.options import as_json as json_option
from worker.cli.text import print_json

LISTED = 12  # names of a list that are printed


@click.command("compare", short_help="Compare two circuits.")
@click.argument("first", shell_complete=complete.jobs)
@click.argument("second", shell_complete=complete.jobs)
@json_option
def command(first: str, second: str, as_json: bool) -> int:
    """Compare two circuits, each a job id or a result folder, with :TASK where it has several tasks: sizes and losses, the
    nodes and edges that both have, and the nodes that play one role in both.

    \b
    Example: extract compare k3v9x2mq p8w2c5tz
             extract compare out:quote_close out:with_as
    """
    from worker.cli.views.job import silence_transformers

    silence_transformers()
    from extractor.results.compare import compare

    found = compare(_result(first), _result(second))
    if as_json:
        print_json(found)
    else:
        _show(found)
    return 0


def _result(name: str) -> Any:
    """The result that a name, or NAME:TASK, stands for."""
    from extractor.results.result import load
    from worker.cli.connect import result_at

    job, colon, task = (name, "", "") if Path(name).is_dir() else name.rpartition(":")
    return load(result_at(job if colon else name), task if colon else None)


def _show(found: dict[str, Any]) -> None:
    from worker.cli.views.tables import PlainTable, print_table

    table = PlainTable()
    for title in ("", "first", "second"):
        table.add_column(title, justify="right" if title else "left")
    circuits = found["circuits"]
    rows: list[tuple[str, Any]] = [
        ("task", lambda one: one["task"]),
        ("model", lambda one: one["model"]),
        ("seed", lambda one: one["seed"]),
    ]
    rows += [("target, nats", lambda one: f"{one['target_loss']:g}{'' if one['meets_target'] else ', missed'}")]
    rows += [("nodes, edges", lambda one: f"{one['nodes']:,}, {one['edges']:,}")]
    for key, words in (("circuit", "loss, circuit"), ("full", "loss, full model"), ("without_circuit", "loss, without the circuit")):
        rows.append((words, lambda one, key=key: _nats(one["loss"][key])))
    for words, value in rows:
        table.add_row(words, *(str(value(one)) for one in circuits))
    print_table(table)
    if found["by_name"] is None:
        click.echo("two sparse models: names of nodes do not mean the same")
    else:
        for kind, one in found["by_name"].items():
            click.echo(f"{kind}: {_overlap(len(one['shared']), one)}{_listed(one['shared']) if kind == 'nodes' else ''}")
    roles = found["by_role"]
    if roles is None:
        click.echo("roles: not compared; the models read different tokens, or the second has no positions for the prompts of the first")
        return
    click.echo(f"roles: {_overlap(len(roles['matched']), roles)}")
    for node, other, correlation in roles["matched"][:LISTED]:
        click.echo(f"  {node} and {other}: correlation {correlation:+.2f}")
    if len(roles["matched"]) > LISTED:
        click.echo(f"  {len(roles['matched']) - LISTED} more; --json has all")


def _overlap(shared: int, one: dict[str, Any]) -> str:
    first, second = map(len, one["only"])
    return f"{shared} in both, {first} in the first only, {second} in the second only; overlap {one['overlap']:.2f}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f" ({', '.join(names[:LISTED])}{more})" if names else ""


def _nats(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
