"""Output of sweeps: a live table (terminal), a line per change (pipe) or JSON lines; then the result."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from worker.cli.text import print_line, say
from worker.cli.views.job import COLOURS, describe_position
from worker.cli.views.live import ChangeView, Facts, GroupView, LiveView
from worker.cli.views.tables import PlainTable, print_table, styled

_JSON_KEYS = ("job", "label", "state", "progress", "error", "held_out_loss", "tasks")


def make_sweep_view(as_json: bool, sweep: str, tasks: tuple[str, ...]) -> GroupView:
    """The view for this output. In a pipe: a line whenever a point changes its state or stage."""
    console = Console()
    if console.is_terminal and not as_json:
        return LiveView(console, lambda facts: points_table(facts, tasks))
    if as_json:
        return ChangeView(_phase, lambda _: "", lambda point: {name: point.get(name) for name in _JSON_KEYS})
    print_line(f"sweep {sweep}")
    return ChangeView(_phase, lambda point: f"{point['label']} ({point['job']}): {_state(point)}{_outcome(point, tasks)}")


def _phase(point: Facts) -> str:
    stage = (point.get("progress") or {}).get("stage", "") if point["state"] == "running" else ""
    return f"{point['state']} {stage}".strip()


def points_table(facts: list[Facts], tasks: tuple[str, ...]) -> PlainTable:
    """One row per point: label, state, held-out loss, edges of each circuit."""
    table = PlainTable()
    table.add_column("point", no_wrap=True)
    table.add_column("state")
    for name in ("loss", *tasks):
        table.add_column(name, justify="right", no_wrap=True)
    for point in facts:
        state = styled(_state(point), style=COLOURS.get(point["state"], ""))
        loss = f"{point['held_out_loss']:.4f}" if "held_out_loss" in point else ""
        circuits = [_edges((point.get("tasks") or {}).get(task)) for task in tasks]
        table.add_row(point["label"], state, loss, *circuits)
    return table


def show_frontier(facts: list[Facts], comparison: Facts, out: Path) -> None:
    """Print the table, the verdict on each claim, the failed points and the paths."""
    print_table(points_table(facts, tuple(comparison["tasks"])))
    for claim in comparison["findings"]:
        print_line(f"{claim['claim']}: {claim['verdict']}")
    for point in facts:
        if point["error"]:
            say(f"{point['label']} ({point['job']}) {point['state']}: {point['error']}")
    print_line(f"page: {out / 'index.html'}")
    print_line(f"result: {out}")


def _state(point: Facts) -> str:
    return describe_position(point) or str(point["state"])


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
