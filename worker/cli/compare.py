"""`extract compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from worker.cli import complete
from worker.cli.options import as_json as json_option
from worker.cli.text import print_json, print_line

if TYPE_CHECKING:
    from extractor.results.result import Result

LISTED = 12  # names of a list that are printed


@click.command("compare", short_help="Compare two circuits.")
@click.argument("first", metavar="JOB|FOLDER[:TASK]", shell_complete=complete.jobs)
@click.argument("second", metavar="JOB|FOLDER[:TASK]", shell_complete=complete.jobs)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the comparison as a page, an HTML file.")
@json_option
def command(first: str, second: str, out: Path | None, as_json: bool) -> int:
    """Compare two circuits: sizes and losses, the nodes and edges that both have, and the nodes with similar values in both.

    Similar: each other's best partner of their kind of site, with a correlation of at least 0.9 in size over all tokens of
    held-out prompts of the first. What such nodes do to the answer is not compared. A result of several tasks needs :TASK
    on one side.

    \b
    Example: extract compare k3v9x2mq p8w2c5tz
             extract compare out:quote_close out:with_as --out both.html
    """
    from worker.cli.views.job import silence_transformers

    silence_transformers()
    from extractor.results.compare import compare

    results = _results(first, second)
    found = compare(*results)
    if as_json:
        print_json(found)
    else:
        _show(found, (first, second))
    if out is not None:
        _write(found, results, out)
    return 0


def _write(found: dict[str, Any], results: list[Result], out: Path) -> None:
    from worker.cli.pages import comparison, relative_address, write_page

    first, second = results
    addresses = (relative_address(first.folder, out), relative_address(second.folder, out))
    write_page(out, comparison(found, first, second, addresses))


def _results(first: str, second: str) -> list[Result]:
    """The results that the names stand for. A task that is named on one side only is meant on both."""
    from worker.cli.connect import circuit_of, split_task

    named = [split_task(name) for name in (first, second)]
    task = next((own for _, own in named if own), None)
    return [circuit_of(job, own or task) for job, own in named]


def _show(found: dict[str, Any], names: tuple[str, str]) -> None:
    from worker.cli.views.tables import PlainTable, print_table

    table = PlainTable()
    for title in ("", *names):
        table.add_column(title, justify="right" if title else "left")
    circuits = found["circuits"]
    for key in ("task", "model", "seed"):
        table.add_row(key, *("unknown" if one[key] is None else str(one[key]) for one in circuits))
    table.add_row("target, nats", *(f"{one['target_loss']:g}{'' if one['meets_target'] else ', missed'}" for one in circuits))
    table.add_row("nodes, edges", *(f"{one['nodes']:,}, {one['edges']:,}" for one in circuits))
    for key, words in (("circuit", "loss, circuit"), ("full", "loss, full model"), ("without_circuit", "loss, without the circuit")):
        table.add_row(words, *(_nats(one["loss"][key]) for one in circuits))
    print_table(table)
    if found["by_name"] is None:
        print_line("names: not compared; they are of two sparse models, in which one name is two nodes")
    else:
        for kind, one in found["by_name"].items():
            print_line(f"{kind}: {_overlap(len(one['shared']), one)}{_listed(one['shared']) if kind == 'nodes' else ''}")
    similar = found["by_values"]
    if similar is None:
        print_line(f"similar values: not compared; {found['why_no_values']}")
        return
    where = f"correlation of at least {similar['least']} over the tokens of {similar['pairs']} pairs of prompts of the first"
    print_line(f"similar values ({where}): {_overlap(len(similar['matched']), similar)}")
    for node, other, correlation, at_end in similar["matched"][:LISTED]:
        print_line(f"  {node} and {other}: correlation {correlation:+.2f}, at the last tokens {at_end:+.2f}")
    if len(similar["matched"]) > LISTED:
        print_line(f"  {len(similar['matched']) - LISTED} more; --json has all")


def _overlap(shared: int, one: dict[str, Any]) -> str:
    first, second = map(len, one["only"])
    return f"{shared} in both, {first} in the first only, {second} in the second only; overlap {one['overlap']:.2f}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f" ({', '.join(names[:LISTED])}{more})" if names else ""


def _nats(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
