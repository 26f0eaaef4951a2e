"""What people see of a sweep: a table that lives (terminal), a line for each change (pipe), JSON lines; then what it found."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from worker.cli.options import print_json
from worker.cli.views.job import COLOURS, describe_progress, describe_stage

Facts = dict[str, Any]


class SweepView(Protocol):
    """Shows the facts of all points, again and again, inside a `with` block."""

    def __enter__(self) -> SweepView: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, facts: list[Facts]) -> None: ...


def make_sweep_view(as_json: bool, sweep: str, tasks: tuple[str, ...]) -> SweepView:
    """The view that fits the output."""
    console = Console()
    return LiveTable(console, tasks) if console.is_terminal and not as_json else ChangeView(sweep, tasks, as_json)


class LiveTable:
    """The table of all points, redrawn."""

    def __init__(self, console: Console, tasks: tuple[str, ...]) -> None:
        self._tasks = tasks
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.update("", refresh=True)
        self._live.stop()

    def show(self, facts: list[Facts]) -> None:
        self._live.update(points_table(facts, self._tasks), refresh=True)


class ChangeView:
    """A line whenever a point changes its state or stage."""

    def __init__(self, sweep: str, tasks: tuple[str, ...], as_json: bool) -> None:
        self._tasks, self._as_json = tasks, as_json
        self._seen: dict[str, str] = {}
        if not as_json:
            click.echo(f"sweep {sweep}")

    def __enter__(self) -> ChangeView:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, facts: list[Facts]) -> None:
        for point in facts:
            stage = (point.get("progress") or {}).get("stage", "") if point["state"] == "running" else ""
            now = f"{point['state']} {stage}".strip()
            if self._seen.get(point["job"]) == now:
                continue
            self._seen[point["job"]] = now
            if self._as_json:
                print_json({name: point.get(name) for name in ("job", "label", "state", "progress", "error", "held_out_loss", "tasks")})
            else:
                click.echo(f"{point['label']} ({point['job']}): {_state(point)}{_outcome(point, self._tasks)}")


def points_table(facts: list[Facts], tasks: tuple[str, ...]) -> Table:
    """One row for each point: what it is, how far, its loss, the edges of each circuit."""
    table = Table(box=None, pad_edge=False)
    table.add_column("point", no_wrap=True)
    table.add_column("state")
    for name in ("loss", *tasks):
        table.add_column(name, justify="right", no_wrap=True)
    for point in facts:
        state = Text(_state(point), style=COLOURS.get(point["state"], ""))
        loss = f"{point['held_out_loss']:.4f}" if "held_out_loss" in point else ""
        circuits = [_edges((point.get("tasks") or {}).get(task)) for task in tasks]
        table.add_row(point["label"], state, loss, *circuits)
    return table


def show_frontier(facts: list[Facts], comparison: Facts, out: Path) -> None:
    """The table, the verdicts, the failures, and where the files lie."""
    Console(width=max(100, Console().width)).print(points_table(facts, tuple(comparison["tasks"])), highlight=False)
    for claim in comparison["findings"]:
        click.echo(f"{claim['claim']}: {claim['verdict']}")
    for point in facts:
        if point["error"]:
            click.echo(f"{point['label']} ({point['job']}) {point['state']}: {point['error']}", err=True)
    click.echo(f"page: {out / 'index.html'}")
    click.echo(f"result: {out}")


def _state(point: Facts) -> str:
    progress = point.get("progress") or {}
    if point["state"] != "running" or "stage" not in progress:
        return str(point["state"])
    steps = describe_progress(progress | {"metrics": {}}) if "step" in progress else ""
    return f"{describe_stage(progress)} {steps}".strip()


def _outcome(point: Facts, tasks: tuple[str, ...]) -> str:
    if point["error"]:
        return f", {point['error']}"
    if "held_out_loss" not in point:
        return ""
    return "".join([f", loss {point['held_out_loss']:.4f}", *(f", {task} {_edges(point['tasks'].get(task))}" for task in tasks)])


def _edges(circuit: Facts | None) -> str:
    if circuit is None:
        return ""
    return f"{circuit['edges']} edges" if circuit["meets_target"] else "not met"
