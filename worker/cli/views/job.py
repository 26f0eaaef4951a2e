"""Progress of a job as one live line (terminal), occasional lines (pipe) or JSON lines; tables of jobs and of results."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from extractor.errors import BrokenArtifact
from extractor.spec.claims import is_foreign, is_met
from worker.broker.routing import GB
from worker.cli.text import print_json, print_line
from worker.cli.views.live_line import FRAMES_PER_SECOND, JobStory, last_line, live_line, signs_for
from worker.cli.views.progress import Event, describe_progress, describe_stage, describe_times, duration, show_number
from worker.cli.views.tables import PlainTable, styled
from worker.cli.views.verdicts import describe_tasks, verdict_lines

LINE_SECONDS = 10.0  # least time between a plain line and the next progress line
QUIET_SECONDS = 1.5  # time without an event after which a pipe hears that the job starts
COLOURS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "queued": "blue"}


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
    return BarView(job, console) if console.is_terminal and not console.is_dumb_terminal else PlainView(job)


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
    """Prints a line for each change of state or stage, and a progress line at most every ten seconds."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._place = ""
        self._last = 0.0
        self._silence = threading.Timer(QUIET_SECONDS, print_line, [f"job {job}: starting"])
        self._silence.daemon = True

    def __enter__(self) -> PlainView:
        self._silence.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._silence.cancel()

    def show(self, event: Event) -> None:
        self._silence.cancel()
        at = event.get("time", time.time())  # of the event: a replay then prints as few lines as watching live
        if event["event"] == "progress":
            if at - self._last >= LINE_SECONDS and (line := describe_progress(event)):
                self._last, place = at, self._place or describe_stage(event)  # a late watcher is not told how the stage began
                print_line(f"{place}, {line}")
        elif event["event"] == "stage":
            self._place, self._last = describe_stage(event), at
            print_line(", ".join(filter(None, [self._place, describe_times(event)])))
        elif line := describe_event(event):
            print_line(f"job {self._job}: {line}")

    def show_summary(self, facts: dict[str, Any], folder: Path) -> None:
        show_result(Console(width=max(100, Console().width)), facts, folder)


class BarView:
    """Keeps one live line at the bottom; prints notes and changes of state above it."""

    def __init__(self, job: str, console: Console) -> None:
        self._job, self._console, self._story = job, console, JobStory()
        self._signs, self._text = signs_for(console.encoding), live_line
        self._live = Live(get_renderable=self._line, console=console, refresh_per_second=FRAMES_PER_SECOND)

    def __enter__(self) -> BarView:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._text = last_line
        self._live.stop()

    def show(self, event: Event) -> None:
        self._story.on_event(event)
        if line := describe_event(event):
            self._live.console.print(styled(f"job {self._job}: {line}"))

    def show_summary(self, facts: dict[str, Any], folder: Path) -> None:
        show_result(self._console, facts, folder)

    def _line(self) -> Text:
        return Text(self._text(self._story, self._console.width, time.time(), self._signs), no_wrap=True, overflow="crop")


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
                table.add_row(key, show_number(value))
        for task, circuit in (facts.get("circuits") or {}).items():
            table.add_row(task, describe_circuit(circuit))
        return table
    table.add_column(f"{facts.get('task')} in {Path(str(facts.get('model'))).name}")
    for name in losses:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_row("loss (nats)", *(show_number(value) for value in losses.values()))
    accuracies = facts.get("accuracy") or {}
    table.add_row("accuracy", *(show_number(accuracies.get(name)) for name in losses))
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
        table.add_row(row["task"], *(show_number(number) for number in numbers), verdict)
    return table


def describe_circuit(circuit: dict[str, Any]) -> str:
    """One line for a circuit of a train job."""
    if circuit.get("nodes") is None:
        return f"no circuit: {circuit.get('why')}"
    size = f"{circuit['nodes']} nodes, {circuit['edges']} edges, loss {show_number(circuit['loss'])}"
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
        "progress": describe_position(job, job["metrics"], with_elapsed=True) if job["state"] == "running" else None,
        "error": f"{job['error']['type']}: {job['error']['message']}" if job["error"] else None,
        "circuits": describe_tasks(rows) if rows else None,
        "result": job["artifact"],
    }
    for name, value in lines.items():
        if value is not None:
            print_line(f"{name + ':':<10} {value}")


def describe_position(job: dict[str, Any], metrics: dict[str, Any] | None = None, with_elapsed: bool = False) -> str:
    """Where a running job is, as '[2/4] bridge, 120/1500, about 2 min left'; '' for a job that does not run. metrics: shown as well."""
    progress = dict(job.get("progress") or {})
    if job["state"] != "running" or "stage" not in progress:
        return ""
    if not with_elapsed:
        progress.pop("elapsed_seconds", None)
    return ", ".join(filter(None, [describe_stage(progress), describe_progress(progress | {"metrics": metrics or {}})]))


def age(created: float | None) -> str:
    """The time since then; '' if it is unknown."""
    return duration(time.time() - created) if created is not None else ""
