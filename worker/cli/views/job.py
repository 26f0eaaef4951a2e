"""Progress of a job as bars (terminal), occasional lines (pipe) or JSON lines; tables of jobs and of results."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from extractor.errors import BrokenArtifact, printable
from extractor.spec.claims import is_foreign, is_met
from worker.broker.routing import GB
from worker.cli.text import print_json, print_line
from worker.cli.views.tables import PlainTable, styled
from worker.cli.views.verdicts import describe_tasks, verdict_lines

MAX_SECONDS = 1e10  # a longer duration is not credible and is not shown
LINE_SECONDS = 10.0  # least time between two plain progress lines
COLOURS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "queued": "blue"}

Event = dict[str, Any]


class View(Protocol):
    """Shows the events of a job, in order, inside a `with` block, and its result afterwards."""

    def __enter__(self) -> View: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, event: Event) -> None: ...

    def show_summary(self, facts: dict[str, Any], folder: Path) -> None: ...


def silence_transformers() -> None:
    """Switch off progress bars and warnings of transformers."""
    import warnings

    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)


def make_view(as_json: bool, job: str) -> View:
    """The view for this output: JSON lines, a terminal or a pipe."""
    if as_json:
        return JsonView()
    console = Console()
    return BarView(job, console) if console.is_terminal else PlainView(job)


class JsonView:
    """Prints one JSON object per line."""

    def __enter__(self) -> JsonView:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, event: Event) -> None:
        print_json(event)

    def show_summary(self, facts: dict[str, Any], folder: Path) -> None:
        print_json({"result": facts, "path": str(folder)})


class PlainView:
    """Prints a line for each change of state or stage, and a progress line about every ten seconds."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._place = ""
        self._last = 0.0

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, event: Event) -> None:
        if event["event"] == "progress":
            # Use the time of the event: a replay then prints as few lines as watching live.
            at = event.get("time", time.time())
            if at - self._last < LINE_SECONDS:
                return
            self._last = at
            print_line(f"{self._place} {describe_progress(event)}")
            return
        if event["event"] == "stage":
            self._place = describe_stage(event)
            self._last = event.get("time", time.time())
            print_line(self._place)
        elif line := describe_event(event):
            print_line(f"job {self._job}: {line}")

    def show_summary(self, facts: dict[str, Any], folder: Path) -> None:
        show_result(Console(width=max(100, Console().width)), facts, folder)


class BarView:
    """Draws a progress bar for each stage."""

    def __init__(self, job: str, console: Console) -> None:
        self._job, self._console = job, console
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[facts]}", markup=False),
        )
        self._progress = Progress(*columns, console=console)
        self._bar: Any = None

    def __enter__(self) -> BarView:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        if event["event"] == "stage":
            self._finish_bar()
            self._bar = self._progress.add_task(printable(describe_stage(event)), total=1, facts="")
        elif event["event"] == "progress" and self._bar is not None:
            facts = "  ".join(filter(None, [_metrics(event), _left(event)]))
            self._progress.update(self._bar, completed=event.get("step"), total=event.get("total"), facts=facts)
        elif line := describe_event(event):
            self._progress.console.print(styled(f"job {self._job}: {line}"))
        if event["event"] == "state" and event["state"] == "succeeded":
            self._finish_bar()

    def show_summary(self, facts: dict[str, Any], folder: Path) -> None:
        show_result(self._console, facts, folder)

    def _finish_bar(self) -> None:
        if self._bar is not None:
            total = self._progress.tasks[self._progress.task_ids.index(self._bar)].total
            self._progress.update(self._bar, completed=total, facts="")
            self._bar = None


def describe_stage(event: Event) -> str:
    """'[2/4] bridge'."""
    return f"[{event.get('index')}/{event.get('of')}] {event.get('stage')}"


def describe_progress(event: Event) -> str:
    """'120/1500  loss 2.31  12,300 tokens/s  1 min 20 s left'."""
    return "  ".join(filter(None, [f"{event.get('step')}/{event.get('total')}", _metrics(event), _left(event)]))


def describe_event(event: Event) -> str:
    """A line for an event that is neither stage nor progress; '' for an event that is not shown."""
    kind = event["event"]
    if kind == "note":
        return str(event.get("message"))
    if kind == "cancelling":
        return "cancelling"
    if kind != "state":
        return ""
    if event["state"] == "running":
        return f"running on {event.get('worker')}" + (f", attempt {event['attempt']}" if event.get("attempt", 1) > 1 else "")
    if event["state"] == "queued" and event.get("reason"):
        return f"back in the queue: {event['reason']}"
    return str(event["state"])


def show_result(console: Console, facts: dict[str, Any], folder: Path) -> None:
    """Print a result. Raises BrokenArtifact if a field is missing or has a wrong type."""
    try:
        console.print(summary_table(facts), highlight=False)
        show_paths(facts, folder)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise BrokenArtifact(f"the result in {folder} is incomplete or malformed ({type(error).__name__}: {error})") from None


def summary_table(facts: dict[str, Any]) -> PlainTable:
    """The result of one circuit (loss and accuracy per condition), of several circuits, or of a training."""
    if "tasks" in facts:
        return tasks_table(facts["tasks"])
    table = PlainTable()
    losses = facts.get("loss")
    if not isinstance(losses, dict):
        table.add_column("result")
        table.add_column("")
        for key, value in facts.items():
            if isinstance(value, (str, int, float)):
                table.add_row(key, _number(value))
        for task, circuit in (facts.get("circuits") or {}).items():
            table.add_row(task, describe_circuit(circuit))
        return table
    table.add_column(f"{facts.get('task')} in {Path(str(facts.get('model'))).name}")
    for name in losses:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_row("loss (nats)", *(_number(value) for value in losses.values()))
    accuracies = facts.get("accuracy") or {}
    table.add_row("accuracy", *(_number(accuracies.get(name)) for name in losses))
    return table


def tasks_table(rows: list[dict[str, Any]]) -> PlainTable:
    """The circuits of a job with several tasks. Losses (nats) of the circuit, the full model, its complement and random circuits.

    paper: edges of the circuit by the paper's standard, where the circuit shown is a robust one
    """
    table = PlainTable()
    table.add_column("task", no_wrap=True)
    for name in ("nodes", "edges", "paper", "loss", "full", "accuracy", "without", "random"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("target")
    for row in rows:
        paper = row.get("paper_edges") if row.get("standard") == "robust" else None
        losses = (row[name] for name in ("loss", "full_loss", "accuracy", "without", "random"))
        numbers = (row["nodes"], row["edges"], paper, *losses)
        verdict = styled("met", style="green") if is_met(row) else styled("not met", style="yellow")
        if row["nodes"] is None:
            verdict = styled(f"no circuit: {row['why']}", style="red")
        elif is_foreign(row):
            verdict = styled(f"of the sparse model only: {row['why']}", style="yellow")
        elif row["nodes"] == 0 and row["meets_target"]:
            verdict = styled("met without any node", style="green")
        table.add_row(row["task"], *(_number(number) for number in numbers), verdict)
    return table


def describe_circuit(circuit: dict[str, Any]) -> str:
    """One line for a circuit of a train job."""
    if circuit.get("nodes") is None:
        return f"no circuit: {circuit.get('why')}"
    size = f"{circuit['nodes']} nodes, {circuit['edges']} edges, loss {_number(circuit['loss'])}"
    return size if circuit.get("meets_target") else f"target not met: {size}; {circuit.get('why')}"


def show_paths(facts: dict[str, Any], folder: Path) -> None:
    """Print the lines below the table: size, verdict and paths."""
    for line in verdict_lines(facts):
        print_line(line)
    paths = facts.get("paths", {})
    if "tasks" in facts:  # with many tasks one line per report would hide the table
        paths = {name: path for name, path in paths.items() if name in ("index", "model")}
        if any(row["nodes"] is not None for row in facts["tasks"]):
            print_line(f"reports: {folder / 'circuits' / 'TASK' / 'report.html'}")
    for name, path in paths.items():
        print_line(f"{name}: {path}")
    print_line(f"result: {folder}")


def show_jobs(jobs: list[dict[str, Any]]) -> None:
    """Print a table of jobs."""
    if not jobs:
        print_line("no jobs; queue one with `extract submit`")
        return
    table = PlainTable()
    for name in ("job", "state", "kind", "task", "model", "progress", "age"):
        table.add_column(name, no_wrap=name == "job")
    for job in jobs:
        model = Path(job["model"]).name if job["model"] else ""
        state = styled(job["state"], style=COLOURS.get(job["state"], ""))
        position = describe_position(job, job["metrics"])
        table.add_row(job["job"], state, job["kind"], job["task"] or "", model, position, age(job["created"]))
    Console().print(table, highlight=False)


def show_job(job: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Print a job, one fact per line. rows: the rows of its tasks.json."""
    lines = {
        "job": job["job"],
        "state": job["state"] + (" (cancelling)" if job["cancelling"] else ""),
        "task": ", ".join(job["tasks"]) or None,
        "model": job["model"],
        "attempt": job["attempt"],
        "worker": job["worker"] if job["state"] == "running" else None,
        "needs": f"{job['memory'] / GB:.1f} GB of memory" if job["memory"] else None,
        "group": job["group"],
        "waits for": f"job {job['waits']}, which trains the bridged model for both" if job["waits"] else None,
        "progress": describe_position(job, job["metrics"]) if job["state"] == "running" else None,
        "error": f"{job['error']['type']}: {job['error']['message']}" if job["error"] else None,
        "circuits": describe_tasks(rows) if rows else None,
        "result": job["artifact"],
    }
    for name, value in lines.items():
        if value is not None:
            print_line(f"{name + ':':<10} {value}")


def describe_position(job: dict[str, Any], metrics: dict[str, Any] | None = None) -> str:
    """Where a running job is, as '[2/4] bridge 120/1500'; '' for a job that does not run. metrics: shown as well."""
    progress = job.get("progress") or {}
    if job["state"] != "running" or "stage" not in progress:
        return ""
    steps = describe_progress(progress | {"metrics": metrics or {}}) if "step" in progress else ""
    return f"{describe_stage(progress)} {steps}".strip()


def age(created: float | None) -> str:
    """The time since then; '' if it is unknown."""
    return duration(time.time() - created) if created is not None else ""


def _metrics(event: Event) -> str:
    """'loss 2.31  12,300 tokens/s'. All other metrics are in metrics.jsonl and --json."""
    metrics = event.get("metrics")
    if not isinstance(metrics, dict):
        return ""
    parts = [f"loss {_number(metrics['loss'])}"] if "loss" in metrics else []
    if isinstance(metrics.get("tokens_per_s"), (int, float)):
        parts.append(f"{metrics['tokens_per_s']:,.0f} tokens/s")
    return "  ".join(parts)


def _left(event: Event) -> str:
    left = event.get("seconds_left")
    text = duration(left) if isinstance(left, (int, float)) else ""
    return f"{text} left" if text else ""


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def duration(seconds: float) -> str:
    """'1 h 20 min'; '' for a duration that is not credible."""
    if not abs(seconds) < MAX_SECONDS:
        return ""
    whole = int(seconds)
    for size, name, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // smaller} {part}"
    return f"{whole} s"
