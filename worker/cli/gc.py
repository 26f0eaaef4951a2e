"""`extract gc`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from worker.cli.options import as_json as json_option
from worker.cli.text import print_json, print_line

if TYPE_CHECKING:
    from worker.garbage import Item

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def _seconds(_ctx: click.Context, _param: click.Parameter, text: str) -> float:
    found = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if found is None:
        raise click.BadParameter(f"{text!r} is not an age; write a number and s, m, h, d or w, as in 30d")
    return int(found[1]) * _UNITS[found[2]]


@click.command("gc", short_help="Delete files that no job uses.")
@click.option("--older-than", default="30d", show_default=True, callback=_seconds, help="Delete only files unchanged for this long.")
@click.option("--results", "with_results", is_flag=True, help="Also delete finished results whose job record has expired.")
@click.option("--dry-run", is_flag=True, help="List the files; delete nothing.")
@json_option
def command(older_than: float, with_results: bool, dry_run: bool, as_json: bool) -> int:
    """Delete files that no job uses: failed, cancelled and expired jobs, checkpoints of finished jobs, scratch folders,
    fetched results and old bridged models.

    Keeps open jobs, everything their specs name, the jobs of batches and sweeps and, without --results, finished results.

    \b
    Example: extract gc --older-than 14d --dry-run
    """
    from worker import garbage
    from worker.cli.connect import load_settings
    from worker.client.service import open_service

    service = open_service(load_settings())
    items = garbage.find(service, older_than, with_results)
    if not dry_run:
        items = garbage.remove(service, items)
    if as_json:
        print_json({"dry_run": dry_run, "bytes": sum(item.size for item in items), "items": [_facts(item) for item in items]})
    else:
        _show(items, dry_run)
    return 0


def _facts(item: Item) -> dict[str, Any]:
    facts = {"kind": item.kind, "job": item.job or None, "why": item.why, "place": item.place}
    return facts | {"bytes": item.size, "modified": round(item.modified, 3)}


def _show(items: list[Item], dry_run: bool) -> None:
    """Print one row per item and the total size."""
    import time

    from rich.console import Console
    from rich.filesize import decimal

    from worker.cli.views.tables import PlainTable

    if not items:
        print_line("nothing to delete")
        return
    console = Console(width=max(140, Console().width))
    table = PlainTable(header_style="bold")
    for title in ("what", "job", "why"):
        table.add_column(title, no_wrap=True)
    for title in ("size", "age (days)"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("where", overflow="fold")
    for item in items:
        days = f"{(time.time() - item.modified) / 86400:.1f}"
        table.add_row(*map(str, (item.kind, item.job, item.why, decimal(item.size), days, item.place)))
    console.print(table)
    total = decimal(sum(item.size for item in items))
    print_line(f"{'would delete' if dry_run else 'deleted'} {len(items)} item{'s' * (len(items) != 1)}, {total}")
