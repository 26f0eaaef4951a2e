"""`extract tasks`, `extract tasks show`, `extract tasks check`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from worker.cli.options import as_json as json_option
from worker.cli.options import positive, print_json, say

if TYPE_CHECKING:
    from extractor.jobs.check_tasks import TaskCheck
    from tasks.base import Pair, Task

BUILT_IN = "built-in"
_MODEL = click.option("--model", required=True, help="A bundled name, a folder, a hub id, or the id of a finished job.")
_ADAPTER = click.option("--adapter", help="A LoRA on that model: a folder or a hub id.")


@click.group("tasks", invoke_without_command=True, short_help="List the tasks, show one, or check which a model can do.")
@click.option("--example", is_flag=True, help="Show a pair of prompts of each.")
@json_option
@click.pass_context
def command(context: click.Context, example: bool, as_json: bool) -> int:
    """List the tasks whose circuits can be extracted: built-in ones and those of installed packages.

    \b
    Example: extract tasks --example
             extract tasks show quote_close --model python-tiny
             extract tasks check --model python-tiny
    """
    if context.invoked_subcommand is not None:
        return 0
    rows = _rows()
    if as_json:
        print_json(rows)
        return 0
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        said = row["description"] if row["problem"] is None else f"cannot be used: {row['problem']}"
        source = "" if row["source"] == BUILT_IN else f"  ({row['source']})"
        click.echo(f"{row['name']:<{width}}  {said}{source}")
        if example and row["problem"] is None:
            for prompt, answer in zip(row["example"], row["answers"], strict=True):
                click.echo(f"{'':<{width}}    {prompt!r} -> {answer!r}")
    return 0


@command.command("show", short_help="Show a task: what it asks, and how a model's tokenizer writes it.")
@click.argument("task")
@_MODEL
@_ADAPTER
@click.option("--pairs", type=click.IntRange(1, 1000), default=3, show_default=True, help="Pairs of prompts shown.")
@json_option
def show(task: str, model: str, adapter: str | None, pairs: int, as_json: bool) -> int:
    """Show what TASK (a name, or a JSONL file of pairs) asks, and how the tokenizer of a model writes it.

    \b
    Example: extract tasks show quote_close --model python-tiny --pairs 5
    """
    from extractor.data.task_choice import check_expressible, choose
    from extractor.errors import TaskNotExpressible
    from extractor.jobs.check_tasks import samples, tokenizer_of

    (found,) = choose([task]).tasks
    tokenizer = tokenizer_of(_resolve(model, adapter)[0])
    facts: dict[str, Any] = _about(found) | {"source": _source(found), "model": model, "expressible": True, "why": None}
    try:
        expression = check_expressible(found, tokenizer)
        facts |= {"spelling": list(expression.answers) or None, "tokens": list(expression.answer_ids) or None}
        facts["pairs"] = samples(expression, tokenizer, pairs)
    except TaskNotExpressible as error:
        facts |= {"expressible": False, "why": str(error), "spelling": None, "tokens": None, "pairs": []}
    if as_json:
        print_json(facts)
    else:
        _show(facts)
    return 0


@command.command("check", short_help="Say which tasks a model can do, before any job.")
@_MODEL
@_ADAPTER
@click.option("--task", "tasks", multiple=True, help="A name, a JSONL file of pairs, or 'all'. Repeatable. Default: all.")
@click.option("--pairs", type=click.IntRange(1, 100_000), default=256, show_default=True, help="Held-out pairs that each is measured on.")
@click.option("--target-loss", type=float, default=0.15, show_default=True, callback=positive, help="Loss to be below, in nats.")
@json_option
def check(model: str, adapter: str | None, tasks: tuple[str, ...], pairs: int, target_loss: float, as_json: bool) -> int:
    """Say of each task whether the tokenizer of a model can express it, and how well the whole model does it on held-out prompts.

    \b
    Example: extract tasks check --model gpt2
    """
    from extractor.data.task_choice import choose
    from extractor.jobs.check_tasks import check_tasks, open_on_device
    from extractor.models.reference import open_model
    from extractor.training.loop import set_up_torch
    from worker.cli.views.job import quieten
    from worker.settings import from_env

    chosen = choose(tasks or ("all",)).tasks
    reference, tuned = _resolve(model, adapter)
    open_model(reference)
    quieten()
    set_up_torch(from_env().threads)
    whole, tokenizer = open_on_device(reference, tuned)
    rows = list(_followed(check_tasks(whole, tokenizer, chosen, target_loss, pairs), len(chosen), quiet=as_json))
    if as_json:
        facts = {"model": reference, "adapter": tuned, "target_loss": target_loss, "pairs": pairs}
        print_json(facts | {"tasks": [vars(row) for row in rows]})
    else:
        _show_checks(rows, target_loss)
    return 0


def _rows() -> list[dict[str, Any]]:
    """All tasks, each with its source; of one that cannot be used name, source and problem only."""
    from tasks.base import load_task, task_names
    from tasks.installed import installed_tasks

    rows = [_about(task) | _example(task) | {"source": BUILT_IN, "problem": None} for task in map(load_task, task_names())]
    nothing: dict[str, Any] = {"description": "", "aliases": [], "answers": [], "example": []}
    for offer in installed_tasks():
        found = nothing | {"name": offer.name} if offer.problem else _about(offer.load()) | _example(offer.load())
        rows.append(found | {"source": offer.source, "problem": offer.problem})
    return rows


def _about(task: Task) -> dict[str, Any]:
    return {"name": task.name, "description": task.description, "aliases": list(task.aliases)}


def _example(task: Task) -> dict[str, Any]:
    pair: Pair = next(task.pairs("train", 0))
    return {"answers": list(pair.answers or task.answers[0]), "example": [pair.positive, pair.negative]}


def _source(task: Task) -> str:
    from tasks.base import task_names
    from tasks.files import FileTask
    from tasks.installed import installed_tasks

    if isinstance(task, FileTask):
        return task.path
    return BUILT_IN if task.name in task_names() else next(offer.source for offer in installed_tasks() if offer.name == task.name)


def _resolve(model: str, adapter: str | None) -> tuple[str, str | None]:
    """Model and adapter as a spec would have them; a job's id names its model. No service is needed."""
    from extractor.models.reference import resolve_pair
    from worker.client.submit import resolve_model
    from worker.settings import from_env

    return resolve_pair(resolve_model(model, from_env()), adapter)


def _show(facts: dict[str, Any]) -> None:
    """A task and its samples, a bar between tokens."""
    lines = {
        "task": facts["name"],
        "asks": facts["description"],
        "aliases": ", ".join(facts["aliases"]) or None,
        "source": facts["source"],
        "answers": f"cannot be asked: {facts['why']}" if facts["why"] else "vary from pair to pair",
    }
    if facts["spelling"]:
        lines["answers"] = " or ".join(f"{text!r} (token {i})" for text, i in zip(facts["spelling"], facts["tokens"], strict=True))
    for name, value in lines.items():
        if value is not None:
            click.echo(f"{name + ':':<9} {value}")
    for pair in facts["pairs"]:
        click.echo("")
        for side in ("positive", "negative"):
            tokens = "│".join(repr(token)[1:-1] for token in pair[side]["tokens"])
            click.echo(f"  {tokens} -> {pair[side]['answer']!r}")


def _followed(rows: Iterable[TaskCheck], total: int, quiet: bool) -> Iterable[TaskCheck]:
    """The rows, a bar on stderr while they come, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        yield from progress.track(rows, total=total, description="checking tasks")


def _show_checks(rows: list[TaskCheck], target_loss: float) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in ("task", "loss (nats)", "accuracy", f"below {target_loss:g}", "answers"):
        table.add_column(name, no_wrap=name == "task", justify="right" if name in ("loss (nats)", "accuracy") else "left")
    for row in rows:
        if row.loss is None or row.accuracy is None:
            table.add_row(row.task, "", "", "", Text(f"cannot be asked: {_short(row)}", style="yellow"))
            continue
        verdict = Text("yes", style="green") if row.meets_target else Text("no", style="red")
        answers = " ".join(map(repr, row.answers)) if row.answers else "vary"
        table.add_row(row.task, f"{row.loss:.4g}", f"{row.accuracy:.4g}", verdict, Text(answers))
    console = Console()
    (console if console.is_terminal else Console(width=max(120, console.width))).print(table, highlight=False)
    if any(not row.expressible for row in rows):
        say("`extract tasks show TASK --model MODEL` says in full why a task cannot be asked")


def _short(row: TaskCheck) -> str:
    """The first reason against a task, without what every such message has."""
    why = (row.why or "").removesuffix("; choose another model or task")
    return why.partition("under this tokenizer: ")[2].partition("; ")[0] or why
