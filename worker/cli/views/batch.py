"""What people see of a batch: which models it would take, how far it is (a table that lives, or a line per change), what it came to."""

from __future__ import annotations

from typing import Any, Protocol

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from worker.batches.batch import NOT_EXPRESSIBLE, Batch, count
from worker.cli.options import print_json
from worker.cli.views.job import COLOURS, describe_progress, describe_stage

Facts = dict[str, Any]
MOST_COLUMNS = 8  # of more tasks, the table says how many are met
MOST_ROWS = 12  # of running jobs, and of troubles, in the table that lives
_COLOURS = COLOURS | {NOT_EXPRESSIBLE: "dim", "missing": "red"}


class BatchView(Protocol):
    """Shows what all children do, again and again, inside a `with` block."""

    def __enter__(self) -> BatchView: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, facts: list[Facts]) -> None: ...


def make_batch_view(as_json: bool) -> BatchView:
    """The view that fits the output."""
    console = Console()
    return LiveView(console) if console.is_terminal and not as_json else ChangeView(as_json)


class LiveView:
    """Counts, the running jobs and the latest troubles, redrawn."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.update("", refresh=True)
        self._live.stop()

    def show(self, facts: list[Facts]) -> None:
        self._live.update(progress_table(facts), refresh=True)


class ChangeView:
    """A line whenever a child changes its state."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._seen: dict[str, str] = {}

    def __enter__(self) -> ChangeView:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, facts: list[Facts]) -> None:
        for child in facts:
            if self._seen.get(child["job"]) == child["state"]:
                continue
            self._seen[child["job"]] = child["state"]
            if self._as_json:
                print_json(child)
            elif child["state"] != "queued":
                click.echo(f"{child['model']}, {child['task']} ({child['job']}): {_line(child)}")


def progress_table(facts: list[Facts]) -> Table:
    """How many are in which state; under it what runs, and what went wrong."""
    table = Table(box=None, pad_edge=False, title=describe_counts(count(facts)), title_justify="left", title_style="")
    for name in ("model", "task", "job", "state"):
        table.add_column(name, no_wrap=name == "job")
    running = [child for child in facts if child["state"] == "running"]
    wrong = [child for child in facts if child["state"] in ("failed", "missing")]
    for child in [*running[:MOST_ROWS], *wrong[-MOST_ROWS:]]:
        table.add_row(child["model"], child["task"], child["job"], Text(_line(child), style=_COLOURS.get(child["state"], "")))
    return table


def show_status(batch: Batch, state: str, facts: list[Facts]) -> None:
    """A line for the batch, one for its models, and what runs or went wrong."""
    selection = batch.selection
    click.echo(f"batch:    {batch.id}, {state}")
    click.echo(f"models:   {len(selection.taken)} taken, {len(selection.refused)} refused")
    click.echo(f"jobs:     {describe_counts(count(facts))}")
    if any(child["state"] in ("running", "failed", "missing") for child in facts):
        table = progress_table(facts)
        table.title = None
        _print(table)


def show_plan(batch: Batch) -> None:
    """The models looked at: parameters, tasks that can be asked, verdict."""
    table = Table(box=None, pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("tasks", justify="right", no_wrap=True)
    table.add_column("verdict")
    for model in batch.selection.taken:
        asked = f"{len(batch.tasks) - len(model.left_out)}"
        table.add_row(model.asked, f"{model.parameters:,}", asked, Text(f"taken: {model.reference}", style="green"))
    for model in batch.selection.refused:
        count_ = "" if model.parameters is None else f"{model.parameters:,}"
        table.add_row(model.asked, count_, "", Text(f"refused: {model.reason}", style="yellow"))
    _print(table)
    for model in batch.selection.taken:
        for task, why in model.left_out.items():
            click.echo(f"{model.asked}: {task} is left out: {why}", err=True)
    click.echo(f"{describe_selection(batch)}; nothing is queued")


def describe_selection(batch: Batch) -> str:
    """'12 models taken, 30 refused, 23 jobs (1 left out: not expressible)'."""
    selection = batch.selection
    more = "" if selection.is_complete else " (the limit; --limit changes it)"
    taken = f"{len(selection.taken)} model{'s' * (len(selection.taken) != 1)} taken{more}"
    left_out = sum(len(model.left_out) for model in selection.taken)
    jobs = f"{len(batch.children)} jobs" + (f" ({left_out} left out: {NOT_EXPRESSIBLE})" if left_out else "")
    return f"{taken}, {len(selection.refused)} refused, {jobs}"


def describe_counts(counts: dict[str, int]) -> str:
    """'12 succeeded, 1 failed, 3 queued'."""
    return ", ".join(f"{number} {state}" for state, number in counts.items()) or "none"


def show_summary(summary: Facts, out: str) -> None:
    """The table of models and tasks, edges in each cell; then what went wrong, who was refused, and where the page lies."""
    tasks = summary["tasks"]
    table = Table(box=None, pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("parameters", justify="right", no_wrap=True)
    for name in tasks if len(tasks) <= MOST_COLUMNS else ("circuits", "target met", "median edges"):
        table.add_column(name, justify="right")
    for model in summary["models"]:
        cells = [_cell(model, task) for task in tasks] if len(tasks) <= MOST_COLUMNS else _digest(model)
        table.add_row(model["model"], "" if model["parameters"] is None else f"{model['parameters']:,}", *cells)
    _print(table)
    for model in summary["models"]:
        for task, cell in model["tasks"].items():
            if cell["error"]:
                click.echo(f"{model['model']}, {task} ({cell['job']}) {cell['state']}: {cell['error']}", err=True)
    for model in summary["refused"]:
        click.echo(f"refused: {model['reason']}", err=True)
    click.echo(f"jobs: {describe_counts(summary['counts'])}; models refused: {len(summary['refused'])}")
    click.echo(f"page: {out}/index.html")
    click.echo(f"result: {out}")


def show_batches(rows: list[Facts]) -> None:
    """A table of batches."""
    if not rows:
        click.echo("no batches; queue one with `extract batch submit`")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("batch", "state", "models", "tasks", "jobs", "asked"):
        table.add_column(name, no_wrap=name == "batch")
    for row in rows:
        state = Text(row["state"], style=_COLOURS.get(row["state"], ""))
        asked = ", ".join(row["asked"].get("models", ()))
        table.add_row(row["batch"], state, str(row["models"]), str(len(row["tasks"])), describe_counts(row["counts"]), asked)
    _print(table)


def _print(table: Table) -> None:
    Console(width=max(100, Console().width)).print(table, highlight=False)


def _line(child: Facts) -> str:
    if child["error"]:
        return f"{child['state']}: {child['error']}"
    progress = child["progress"] or {}
    if child["state"] != "running" or "stage" not in progress:
        return str(child["state"])
    steps = describe_progress(progress | {"metrics": {}}) if "step" in progress else ""
    return f"{describe_stage(progress)} {steps}".strip()


def _cell(model: Facts, task: str) -> Text:
    cell = model["tasks"].get(task)
    if cell is None:
        return Text(NOT_EXPRESSIBLE, style="dim")
    if cell["edges"] is None:
        return Text(cell["state"], style=_COLOURS.get(cell["state"], ""))
    return Text(f"{cell['edges']:,}", style="green") if cell["meets_target"] else Text("not met", style="yellow")


def _digest(model: Facts) -> list[str]:
    circuits = [cell for cell in model["tasks"].values() if cell["edges"] is not None]
    met = sorted(cell["edges"] for cell in circuits if cell["meets_target"])
    return [f"{len(circuits)} of {len(model['tasks'])}", str(len(met)), f"{met[len(met) // 2]:,}" if met else ""]
