"""`extract tasks`, `extract tasks show`, `extract tasks check`, `extract tasks layers`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from worker.cli import complete
from worker.cli.options import as_json as json_option
from worker.cli.options import positive
from worker.cli.text import print_json, print_line, say

if TYPE_CHECKING:
    from extractor.jobs.check_tasks import TaskCheck
    from tasks.base import Pair, Task

BUILT_IN = "built-in"
_MODEL = click.option(
    "--model", required=True, shell_complete=complete.models, help="A bundled name, a folder, a hub id, or the id of a finished job."
)
_ADAPTER = click.option("--adapter", help="A LoRA on that model: a folder or a hub id.")


@click.group("tasks", invoke_without_command=True, short_help="List tasks, show one, or measure a model on them.")
@click.option("--example", is_flag=True, help="Show an example pair of prompts for each task.")
@json_option
@click.pass_context
def command(context: click.Context, example: bool, as_json: bool) -> int:
    """List the built-in tasks and those of installed packages.

    \b
    Example: extract tasks --example
             extract tasks show quote_close --model python-tiny
             extract tasks check --model python-tiny
             extract tasks layers quote_close --model python-tiny
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
        print_line(f"{row['name']:<{width}}  {said}{source}")
        if example and row["problem"] is None:
            for prompt, answer in zip(row["example"], row["answers"], strict=True):
                print_line(f"{'':<{width}}    {prompt!r} -> {answer!r}")
    return 0


@command.command("show", short_help="Show a task and its tokens under a model's tokenizer.")
@click.argument("task")
@_MODEL
@_ADAPTER
@click.option("--pairs", type=click.IntRange(1, 1000), default=3, show_default=True, help="Number of prompt pairs to show.")
@json_option
def show(task: str, model: str, adapter: str | None, pairs: int, as_json: bool) -> int:
    """Show the prompts and answers of TASK (a name or a JSONL file of pairs) and their tokens under a model's tokenizer.

    \b
    Example: extract tasks show quote_close --model python-tiny --pairs 5
    """
    from extractor.data.task_choice import check_expressible, choose
    from extractor.errors import TaskNotExpressible
    from extractor.jobs.check_tasks import samples, tokenizer_of

    (found,) = choose([task]).tasks
    tokenizer, vocab_size = tokenizer_of(_resolve(model, adapter)[0])
    facts: dict[str, Any] = _about(found) | {"source": _source(found), "model": model, "expressible": True, "why": None}
    try:
        expression = check_expressible(found, tokenizer, vocab_size=vocab_size)
        facts |= {"spelling": list(expression.answers) or None, "tokens": list(expression.answer_ids) or None}
        facts["pairs"] = samples(expression, tokenizer, pairs)
    except TaskNotExpressible as error:
        facts |= {"expressible": False, "why": str(error), "spelling": None, "tokens": None, "pairs": []}
    if as_json:
        print_json(facts)
    else:
        _show(facts)
    return 0


@command.command("check", short_help="Measure a model's loss and accuracy on tasks.")
@_MODEL
@_ADAPTER
@click.option(
    "--task",
    "tasks",
    multiple=True,
    shell_complete=complete.tasks,
    help="A name, a JSONL file of pairs, or 'all'. Repeatable. Default: all.",
)
@click.option("--pairs", type=click.IntRange(1, 100_000), default=256, show_default=True, help="Held-out pairs per task.")
@click.option("--target-loss", type=float, default=0.15, show_default=True, callback=positive, help="Target loss in nats.")
@json_option
def check(model: str, adapter: str | None, tasks: tuple[str, ...], pairs: int, target_loss: float, as_json: bool) -> int:
    """Check for each task whether the model's tokenizer can express it, and measure the full model on held-out prompts.

    \b
    Example: extract tasks check --model gpt2
    """
    from extractor.data.task_choice import choose
    from extractor.jobs.check_tasks import check_tasks, open_on_device
    from extractor.models.reference import open_model
    from extractor.training.loop import set_up_torch
    from worker.cli.views.job import silence_transformers
    from worker.settings import from_env

    chosen = choose(tasks or ("all",)).tasks
    reference, tuned = _resolve(model, adapter)
    open_model(reference)
    silence_transformers()
    set_up_torch(from_env().threads)
    full_model, tokenizer = open_on_device(reference, tuned)
    rows = list(_with_progress(check_tasks(full_model, tokenizer, chosen, target_loss, pairs), len(chosen), quiet=as_json))
    if as_json:
        facts = {"model": reference, "adapter": tuned, "target_loss": target_loss, "pairs": pairs}
        print_json(facts | {"tasks": [vars(row) for row in rows]})
    else:
        _show_checks(rows, target_loss)
    return 0


@command.command("layers", short_help="Show in which layers what tells prompts apart reaches their last token.")
@click.argument("task", shell_complete=complete.tasks)
@_MODEL
@_ADAPTER
@click.option("--pairs", type=click.IntRange(1, 1000), default=32, show_default=True, help="Number of prompt pairs to measure on.")
@json_option
def layers(task: str, model: str, adapter: str | None, pairs: int, as_json: bool) -> int:
    """Show in which layers of a dense model what tells the two prompts of a pair of TASK apart reaches their last token.

    Measured by exchanging residuals between the prompts. `extract submit --layers A-B` makes these layers sparse and leaves the others as
    the dense model has them.

    \b
    Example: extract tasks layers quote_close --model gpt2
    """
    from extractor.data.task_choice import choose
    from extractor.jobs.answer_layers import measure_layers
    from extractor.training.loop import set_up_torch
    from worker.cli.views.job import silence_transformers
    from worker.settings import from_env

    found, *more = choose([task]).tasks
    if more:
        raise click.UsageError(f"{task!r} names {len(more) + 1} tasks, and one is measured at a time: name one of them")
    reference, tuned = _resolve(model, adapter)
    silence_transformers()
    set_up_torch(from_env().threads)
    facts = measure_layers(reference, tuned, found, pairs)
    if as_json:
        print_json(facts)
        return 0
    print_line("share of the answer that moves with the residual before a layer:")
    print_line("layer   last token   all others")
    for row in facts["layers"]:
        last, others = (f"{row[name] + 0.0:.0%}".replace("-0%", "0%") for name in ("last", "others"))
        print_line(f"{row['layer']:>5}   {last:>10}   {others:>10}")
    print_line(f"task loss of the model on {facts['pairs']} pairs: {facts['loss']:.3f} nats (chance 0.693)")
    if facts["span"] is None:
        say("nothing moves to the last token: the prompts differ there already, or the model does not tell them apart")
    else:
        advice = f"--layers does not go with it: {facts['obstacle']}" if facts["obstacle"] else f"`extract submit --layers {facts['span']}`"
        say(f"what tells the prompts apart reaches the last token in layers {facts['span']}: {advice}")
    return 0


def _rows() -> list[dict[str, Any]]:
    """All tasks with their source; for an unusable task only name, source and problem."""
    from tasks.base import load_task, task_names
    from tasks.installed import installed_tasks

    rows = [_about(task) | _example(task) | {"source": BUILT_IN, "problem": None} for task in map(load_task, task_names())]
    empty: dict[str, Any] = {"description": "", "aliases": [], "answers": [], "example": []}
    for offer in installed_tasks():
        found = empty | {"name": offer.name} if offer.problem else _about(offer.load()) | _example(offer.load())
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
    """Model and adapter as a spec names them; a job id means that job's model. Needs no service."""
    from extractor.models.reference import resolve_pair
    from worker.cli.connect import resolve_model
    from worker.settings import from_env

    return resolve_pair(resolve_model(model, from_env()), adapter)


def _show(facts: dict[str, Any]) -> None:
    """Print a task and its sample prompts, with a bar between tokens."""
    lines = {
        "task": facts["name"],
        "about": facts["description"],
        "aliases": ", ".join(facts["aliases"]) or None,
        "source": facts["source"],
        "answers": f"not expressible: {facts['why']}" if facts["why"] else "vary from pair to pair",
    }
    if facts["spelling"]:
        lines["answers"] = " or ".join(f"{text!r} (token {i})" for text, i in zip(facts["spelling"], facts["tokens"], strict=True))
    for name, value in lines.items():
        if value is not None:
            print_line(f"{name + ':':<9} {value}")
    for pair in facts["pairs"]:
        print_line("")
        for side in ("positive", "negative"):
            tokens = "│".join(repr(token)[1:-1] for token in pair[side]["tokens"])
            print_line(f"  {tokens} -> {pair[side]['answer']!r}")


def _with_progress(rows: Iterable[TaskCheck], total: int, quiet: bool) -> Iterable[TaskCheck]:
    """Yield the rows and show a progress bar on stderr if that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        yield from progress.track(rows, total=total, description="checking tasks")


def _show_checks(rows: list[TaskCheck], target_loss: float) -> None:
    from worker.cli.views.tables import PlainTable, print_table, styled

    table = PlainTable()
    for name in ("task", "loss (nats)", "accuracy", f"below {target_loss:g}", "answers"):
        table.add_column(name, no_wrap=name == "task", justify="right" if name in ("loss (nats)", "accuracy") else "left")
    for row in rows:
        if row.loss is None or row.accuracy is None:
            table.add_row(row.task, "", "", "", styled(f"not expressible: {_short(row)}", style="yellow"))
            continue
        verdict = styled("yes", style="green") if row.meets_target else styled("no", style="red")
        answers = " ".join(map(repr, row.answers)) if row.answers else "vary"
        table.add_row(row.task, f"{row.loss:.4g}", f"{row.accuracy:.4g}", verdict, styled(answers))
    print_table(table, width=120)
    if any(not row.expressible for row in rows):
        say("`extract tasks show TASK --model MODEL` prints the full reason why a task is not expressible")


def _short(row: TaskCheck) -> str:
    """The first reason why a task is not expressible, without the common prefix and suffix."""
    why = (row.why or "").removesuffix("; choose another model or task")
    return why.partition("under this tokenizer: ")[2].partition("; ")[0] or why
