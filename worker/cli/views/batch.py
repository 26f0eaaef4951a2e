"""Output of batches: the selected models, the progress (a live table, or a line per change), the result."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from extractor.spec.claims import NOT_DENSE, is_foreign, is_met
from worker.batches.batch import NOT_EXPRESSIBLE, Batch, count
from worker.cli.text import print_line, say
from worker.cli.views.job import COLOURS, describe_position
from worker.cli.views.live import ChangeView, Facts, GroupView, LiveView
from worker.cli.views.tables import PlainTable, print_table, styled

MAX_COLUMNS = 8  # with more tasks, the table shows counts instead of one column per task
MAX_ROWS = 12  # running jobs, and failed ones, in the live table
_COLOURS = COLOURS | {NOT_EXPRESSIBLE: "dim", "missing": "red"}


def make_batch_view(as_json: bool) -> GroupView:
    """The view for this output. In a pipe: a line whenever a job changes its state."""
    console = Console()
    if console.is_terminal and not as_json:
        return LiveView(console, progress_table)
    return ChangeView(lambda child: str(child["state"]), _change_line, (lambda child: child) if as_json else None)


def _change_line(child: Facts) -> str:
    if child["state"] == "queued":
        return ""
    return f"{child['model']}, {child['task']} ({child['job']}): {_state(child)}"


def progress_table(facts: list[Facts]) -> PlainTable:
    """Counts by state as the title; the rows are running and failed jobs."""
    table = PlainTable(title=describe_counts(count(facts)), title_justify="left", title_style="")
    for name in ("model", "task", "job", "state"):
        table.add_column(name, no_wrap=name == "job")
    running = [child for child in facts if child["state"] == "running"]
    wrong = [child for child in facts if child["state"] in ("failed", "missing")]
    for child in [*running[:MAX_ROWS], *wrong[-MAX_ROWS:]]:
        table.add_row(child["model"], child["task"], child["job"], styled(_state(child), style=_COLOURS.get(child["state"], "")))
    return table


def show_status(batch: Batch, state: str, facts: list[Facts]) -> None:
    """Print the state of the batch, its models and job counts, then running and failed jobs."""
    selection = batch.selection
    print_line(f"batch:    {batch.id}, {state}")
    print_line(f"models:   {len(selection.taken)} accepted, {len(selection.refused)} rejected")
    print_line(f"jobs:     {describe_counts(count(facts))}")
    if any(child["state"] in ("running", "failed", "missing") for child in facts):
        table = progress_table(facts)
        table.title = None
        print_table(table)


def show_plan(batch: Batch) -> None:
    """Print the examined models: parameters, number of expressible tasks, decision."""
    table = PlainTable()
    table.add_column("model", overflow="fold")
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("tasks", justify="right", no_wrap=True)
    table.add_column("decision")
    for model in batch.selection.taken:
        expressible = f"{len(batch.tasks) - len(model.left_out)}"
        table.add_row(model.asked, f"{model.parameters:,}", expressible, styled(f"accepted: {model.reference}", style="green"))
    for model in batch.selection.refused:
        parameters = "" if model.parameters is None else f"{model.parameters:,}"
        table.add_row(model.asked, parameters, "", styled(f"rejected: {model.reason}", style="yellow"))
    print_table(table)
    for model in batch.selection.taken:
        for task, why in model.left_out.items():
            say(f"{model.asked}: {task} is omitted: {why}")
    show_starts(batch)
    print_line(f"{describe_selection(batch)}; nothing was queued")


def show_starts(batch: Batch) -> None:
    """Print on stderr which models are bridged from scratch, where the others start from their own weights."""
    for model in batch.selection.taken:
        if model.from_scratch:
            say(f"{model.asked}: {model.from_scratch}")


def describe_selection(batch: Batch) -> str:
    """'12 models accepted, 30 rejected, 23 jobs (1 omitted: not expressible)'."""
    selection = batch.selection
    limited = "" if selection.is_complete else " (the limit; --limit changes it)"
    accepted = f"{len(selection.taken)} model{'s' * (len(selection.taken) != 1)} accepted{limited}"
    omitted = sum(len(model.left_out) for model in selection.taken)
    jobs = f"{len(batch.children)} jobs" + (f" ({omitted} omitted: {NOT_EXPRESSIBLE})" if omitted else "")
    return f"{accepted}, {len(selection.refused)} rejected, {jobs}"


def describe_counts(counts: dict[str, int]) -> str:
    """'12 succeeded, 1 failed, 3 queued'."""
    return ", ".join(f"{number} {state}" for state, number in counts.items()) or "none"


def show_summary(summary: Facts, out: str) -> None:
    """Print the table of models by tasks with edges in each cell; then failed jobs, rejected models and the paths."""
    tasks = summary["tasks"]
    table = PlainTable()
    table.add_column("model", overflow="fold")
    table.add_column("parameters", justify="right", no_wrap=True)
    for name in tasks if len(tasks) <= MAX_COLUMNS else ("circuits", "target met", "median edges"):
        table.add_column(name, justify="right")
    for model in summary["models"]:
        cells = [_cell(model, task) for task in tasks] if len(tasks) <= MAX_COLUMNS else _aggregate(model)
        table.add_row(model["model"], "" if model["parameters"] is None else f"{model['parameters']:,}", *cells)
    print_table(table)
    for model in summary["models"]:
        for task, cell in model["tasks"].items():
            if cell["error"]:
                say(f"{model['model']}, {task} ({cell['job']}) {cell['state']}: {cell['error']}")
            elif is_foreign(cell):
                say(f"{model['model']}, {task}: {cell['why']}")
    for model in summary["refused"]:
        say(f"rejected: {model['reason']}")
    print_line(f"jobs: {describe_counts(summary['counts'])}; models rejected: {len(summary['refused'])}")
    print_line(f"page: {out}/index.html")
    print_line(f"result: {out}")


def show_batches(rows: list[Facts]) -> None:
    """Print a table of batches."""
    if not rows:
        print_line("no batches; queue one with `extract batch submit`")
        return
    table = PlainTable()
    for name in ("batch", "state", "models", "tasks", "jobs", "source"):
        table.add_column(name, no_wrap=name == "batch")
    for row in rows:
        state = styled(row["state"], style=_COLOURS.get(row["state"], ""))
        source = ", ".join(row["asked"].get("models", ()))
        table.add_row(row["batch"], state, str(row["models"]), str(len(row["tasks"])), describe_counts(row["counts"]), source)
    print_table(table)


def _state(child: Facts) -> str:
    if child["error"]:
        return f"{child['state']}: {child['error']}"
    return describe_position(child) or str(child["state"])


def _cell(model: Facts, task: str) -> Text:
    cell = model["tasks"].get(task)
    if cell is None:
        return styled(NOT_EXPRESSIBLE, style="dim")
    if cell["edges"] is None:
        return styled(cell["state"] if not is_foreign(cell) else NOT_DENSE, style=_COLOURS.get(cell["state"], ""))
    return (
        styled(f"{cell['edges']:,}", style="green")
        if is_met(cell)
        else styled(NOT_DENSE if is_foreign(cell) else "not met", style="yellow")
    )


def _aggregate(model: Facts) -> list[str]:
    circuits = [cell for cell in model["tasks"].values() if cell["edges"] is not None]
    met = sorted(cell["edges"] for cell in circuits if is_met(cell))
    return [f"{len(circuits)} of {len(model['tasks'])}", str(len(met)), f"{met[len(met) // 2]:,}" if met else ""]
