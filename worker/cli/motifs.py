"""`extract motifs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from worker.cli import complete
from worker.cli.options import as_json as json_option
from worker.cli.text import print_json, print_line

LISTED = 12  # motifs that are printed
_NOUNS = {"circuits": "circuit", "models": "sparse model", "shuffles": "shuffle"}


@click.command("motifs", short_help="Count small subgraphs of circuits, against shuffles.")
@click.argument("jobs", metavar="JOB|FOLDER[:TASK]...", nargs=-1, required=True, shell_complete=complete.jobs)
@click.option(
    "--shuffles", type=click.IntRange(1, 20_000), default=3000, show_default=True, help="Shuffled circuits to compare the counts with."
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Random seed of the shuffles.")
@click.option(
    "--signs",
    type=click.Choice(["each", "product"]),
    default="product",
    show_default=True,
    help="Tell motifs apart by the sign of each edge, or by whether the product of the signs around a circle is positive (balanced).",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write all motifs, with examples, as a page, an HTML file.")
@json_option
def command(jobs: tuple[str, ...], shuffles: int, seed: int, signs: Any, out: Path | None, as_json: bool) -> int:
    """Count motifs, small labelled subgraphs, over the circuits of results, and test which are more frequent or rarer than in
    shuffles that keep every node's number of edges.

    A result of several tasks counts with all, unless :TASK names one. Circuits of more than 2,000 edges are left out.

    \b
    Example: extract motifs k3v9x2mq
             extract motifs out other:quote_close --signs each --out motifs.html
    """
    from extractor.results.motifs import motifs
    from extractor.results.result import load
    from worker.cli.connect import result_at, split_task

    results = []
    for job in jobs:
        name, task = split_task(job)
        result = load(result_at(name), task)
        results += [result] if task else [*result]
    found = motifs(results, shuffles, seed, signs)
    if as_json:
        print_json(found)
    else:
        _show(found)
    if out is not None:
        _write(found, out)
    return 0


def _write(found: dict[str, Any], out: Path) -> None:
    from extractor.report.motifs_page import motifs_page
    from worker.cli.pages import relative_address, write_page

    write_page(out, motifs_page(found, lambda folder: relative_address(Path(folder), out)))


def _show(found: dict[str, Any]) -> None:
    from worker.cli.views.tables import PlainTable, print_table

    for one in found["left_out"]:
        print_line(f"left out: {one['task']} in {one['folder']}: {one['why']}")
    rows = [row for row in found["motifs"] if row["tested"] or row["rare"]]
    rows.sort(key=lambda row: not (row["significant"] or row["rare"]))
    table = PlainTable()
    for title in ("motif", "count", "expected", "sd", "p", "q", "circuits", ""):
        table.add_column(title, justify="left" if title in ("motif", "") else "right", overflow="fold")
    for row in rows[:LISTED]:
        p, q = ("p_rare", "q_rare") if row["rare"] else ("p", "q")
        verdict = "more frequent" if row["significant"] else "rarer" if row["rare"] else ""
        numbers = (
            f"{row['count']:,}",
            f"{row['expected']:.1f}",
            f"{row['sd']:.1f}",
            f"{row[p]:.4f}",
            f"{row[q]:.3f}",
            f"{row['circuits']:,}",
        )
        table.add_row(row["motif"], *numbers, verdict)
    if rows:
        print_table(table, 150)
    for line in _summary(found, len(rows)):
        print_line(line)


def _summary(found: dict[str, Any], rows: int) -> list[str]:
    from extractor.report.html import count

    frequent, rare = (sum(row[name] for row in found["motifs"]) for name in ("significant", "rare"))
    moved = "" if found["moved"] is None else f", which move {found['moved']:.0%} of the edges"
    circuits, models, shuffles = (count(found[name], noun) for name, noun in _NOUNS.items())
    lines = [
        f"{circuits} of {models}, {shuffles}{moved}",
        f"more frequent than in the shuffles: {frequent} of {found['tested']:,} tested motifs; rarer: {rare} of {found['tested_rare']:,}",
    ]
    if not frequent and found["least_q"] is not None and found["least_q"] > 0.05:
        hint = ", or test fewer motifs with --signs product" if found["signs"] == "each" else ""
        lines.append(f"a single motif cannot be significant: its q is at least {found['least_q']:.3f}; use more --shuffles{hint}")
    if rows > LISTED:
        lines.append(f"{rows - LISTED} more tested motifs: --json or --out FILE.html has all")
    return lines
