"""`extract batch` and its subcommands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from worker.cli import complete
from worker.cli.options import as_json as json_option
from worker.cli.options import no_worker as no_worker_option
from worker.cli.options import positive
from worker.cli.text import print_json, print_line, say

if TYPE_CHECKING:
    from worker.batches.batch import Batch
    from worker.client.service import Service

_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def _parameters(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    """Callback of --max-params: '200M' -> 200000000."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)([kKmMbB]?)", value)
    number = int(float(found[1]) * _FACTORS[found[2].lower()]) if found else 0
    if number < 1:
        raise click.BadParameter(f"{value!r} is not a number of parameters; for example 200M, 1.5B or 124000000")
    return number


@click.group("batch", short_help="Extract circuits from many models.")
def command() -> None:
    """Extract circuits from many models, found by a hub search, in a file or in a folder. Every command takes --json.

    \b
    Example: extract batch submit --models hub:filter=gpt2 --task all --max-params 200M --limit 50 --dry-run
             extract batch watch BATCH
             extract batch result BATCH --out FOLDER
    """


_OPTIONS = (
    click.option(
        "--models",
        multiple=True,
        required=True,
        metavar="hub:QUERY|FILE|DIR",
        help="Source of models: a hub search, a file with one reference per line, or a folder. Repeatable.",
    ),
    click.option(
        "--task",
        "tasks",
        multiple=True,
        shell_complete=complete.tasks,
        required=True,
        help="A name from `extract tasks`, a JSONL file, or 'all'. Repeatable.",
    ),
    click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Maximum number of models."),
    click.option("--max-params", "most_parameters", callback=_parameters, metavar="N", help="Maximum parameters per model: 200M, 1.5B."),
    click.option("--org", "owners", multiple=True, metavar="OWNER", help="Accept hub models of this owner only. Repeatable."),
    click.option("--preset", type=click.Choice(["tiny", "small", "paper"]), default="tiny", show_default=True, help="Size of the work."),
    click.option("--target-loss", type=float, default=0.15, show_default=True, callback=positive, help="Target loss of a circuit (nats)."),
    click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Random seed."),
    click.option(
        "--init", type=click.Choice(["dense", "scratch"]), help="Initial weights of the sparse models. Default: set by the preset."
    ),
    click.option(
        "--strict/--no-strict",
        default=True,
        show_default=True,
        help="Find no circuit of a task that a dense model does not do, or on which its sparse model disagrees with it.",
    ),
    click.option(
        "--corpus",
        multiple=True,
        help="Training text: 'stdlib', 'generated', 'prose', 'self', a folder, a .txt, .py or .jsonl file. Repeatable.",
    ),
    click.option("--set", "changes", multiple=True, metavar="FIELD=VALUE", help="Override a field of the preset. Repeatable."),
    click.option("--priority", type=click.Choice(["high", "normal", "low"]), default="low", show_default=True, help="Place in the queue."),
    click.option("--dry-run", is_flag=True, help="List accepted models, and rejected ones with the reason; queue nothing."),
    click.option("--wait", is_flag=True, help="Follow the batch until it ends, then show its result."),
    no_worker_option,
    json_option,
)


def _submit_options(function: Any) -> Any:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@command.command("submit", short_help="Select models and queue one job per model and task.")
@_submit_options
def submit(priority: str, dry_run: bool, wait: bool, no_worker: bool, as_json: bool, **asked: Any) -> int:
    """Select models by their metadata and queue one job per model and task.

    Re-running is safe: it queues only jobs that are missing, failed, cancelled or damaged.

    \b
    Example: extract batch submit --models hub:filter=gpt2 --task all --max-params 200M --limit 50
             extract batch submit --models my-models.txt --models models/ --task quote_close --wait
    """
    from worker.batches import batch as batches_batch
    from worker.batches import request
    from worker.cli.connect import open_for, warn_without_worker
    from worker.cli.views.batch import describe_selection, show_plan, show_starts

    order = request.BatchRequest(**asked)
    if dry_run:
        batch = _plan(order, None, as_json)
        print_json(_selection_facts(batch)) if as_json else show_plan(batch)
        return 0
    service = open_for(no_worker)
    batch = _plan(order, service, as_json)
    request.check_any(batch)
    if not as_json:
        show_starts(batch)
    batches_batch.save(service, batch)
    queued = batches_batch.queue(service, batch, priority)
    if queued:
        warn_without_worker(service)
    if wait:
        return _follow(service, batch, as_json)
    if as_json:
        print_json(_selection_facts(batch) | {"queued": queued})
    else:
        print_line(batch.id)
        say(f"{describe_selection(batch)}, {len(queued)} newly queued; follow the batch: extract batch watch {batch.id}")
    return 0


def _plan(order: Any, service: Service | None, as_json: bool) -> Batch:
    """Select the models of the batch; show the progress in a terminal."""
    from rich.console import Console

    from worker.batches import batch as batches_batch
    from worker.batches import request

    with Console(stderr=True, quiet=as_json).status("examining models") as status:

        def on_progress(examined: int, taken: int) -> None:
            status.update(f"{examined:,} models examined, {taken:,} accepted")

        return request.plan(order, lambda batch: batches_batch.find(service, batch) if service else None, on_progress)


def _selection_facts(batch: Batch) -> dict[str, Any]:
    taken = [
        {"model": m.asked, "reference": m.reference, "parameters": m.parameters, "left_out": dict(m.left_out)}
        | ({"from_scratch": m.from_scratch} if m.from_scratch else {})
        for m in batch.selection.taken
    ]
    refused = [{"model": m.asked, "reason": m.reason} for m in batch.selection.refused]
    facts = {"batch": batch.id, "tasks": list(batch.tasks), "jobs": len(batch.children), "models": taken, "refused": refused}
    return facts | {"is_complete": batch.selection.is_complete}


@command.command("status", short_help="Show the state of a batch.")
@click.argument("batch")
@no_worker_option
@json_option
def status(batch: str, no_worker: bool, as_json: bool) -> int:
    """Show the state of a batch and its jobs. Exit code 1 if a job has failed, 5 if a job was cancelled.

    \b
    Example: extract batch status b1f0c3a97e
    """
    from worker.batches import batch as batches_batch
    from worker.cli.views.batch import show_status

    service, found = _open(batch, no_worker, only_again=True)
    facts = batches_batch.inspect(service, found)
    counts = batches_batch.count(facts)
    if as_json:
        print_json(
            _selection_facts(found) | {"state": batches_batch.state_of(counts), "counts": counts, "jobs": facts, "asked": found.asked}
        )
    else:
        show_status(found, batches_batch.state_of(counts), facts)
    return _exit(batch, counts)


@command.command("watch", short_help="Follow a batch until it ends.")
@click.argument("batch")
@no_worker_option
@json_option
def watch(batch: str, no_worker: bool, as_json: bool) -> int:
    """Follow a batch until it ends, then show its result. Exit code 1 if a job failed, 5 if a job was cancelled.

    \b
    Example: extract batch watch b1f0c3a97e
    """
    service, found = _open(batch, no_worker)
    return _follow(service, found, as_json)


@command.command("cancel", short_help="Cancel every job of a batch.")
@click.argument("batch")
@json_option
def cancel(batch: str, as_json: bool) -> int:
    """Cancel every open job of a batch. Queued jobs end at once; running jobs save a checkpoint and stop within seconds.

    \b
    Example: extract batch cancel b1f0c3a97e
    """
    from worker.batches import batch as batches_batch

    found = batches_batch.cancel(*_open(batch, no_worker=True))
    if as_json:
        print_json({"batch": batch} | found)
    else:
        print_line(
            f"batch {batch}: {found['cancelled']} jobs cancelled, {found['running']} being cancelled, {found['ended']} had already ended"
        )
    return 0


@command.command("result", short_help="Summarise a batch and write its page.")
@click.argument("batch")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the page and summary.json. Default: STATE_DIR/batches/BATCH.")
@click.option("--open", "open_page", is_flag=True, help="Open the page in a browser.")
@json_option
def result(batch: str, out: Path | None, open_page: bool, as_json: bool) -> int:
    """Summarise a batch: the circuit of every model and task, and the rejected models. Writes summary.json and index.html.

    \b
    Example: extract batch result b1f0c3a97e --out everything --open
    """
    service, found = _open(batch, no_worker=True)
    code, place = _show_result(service, found, out, as_json)
    if open_page:
        click.launch(str(place / "index.html"))
    return code


@command.command("list", short_help="List batches, newest first.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Maximum number of batches.")
@json_option
def list_(limit: int, as_json: bool) -> int:
    """List batches, newest first.

    \b
    Example: extract batch list --limit 5
    """
    from worker.batches import batch as batches_batch
    from worker.cli.connect import open_for
    from worker.cli.views.batch import show_batches

    service = open_for(no_worker=True)
    rows = []
    for batch in batches_batch.newest(service, limit, on_unreadable=lambda error: say(f"not listed: {error}")):
        counts = batches_batch.count(batches_batch.inspect(service, batch))
        row = {"batch": batch.id, "state": batches_batch.state_of(counts), "created": batch.created, "models": len(batch.selection.taken)}
        rows.append(row | {"refused": len(batch.selection.refused), "tasks": batch.tasks, "counts": counts, "asked": batch.asked})
    print_json(rows) if as_json else show_batches(rows)
    return 0


def _open(batch: str, no_worker: bool, only_again: bool = False) -> tuple[Service, Batch]:
    from worker.batches import batch as batches_batch
    from worker.cli.connect import open_for
    from worker.ids import check_id

    check_id(batch)
    service = open_for(no_worker, only_again)
    return service, batches_batch.need(service, batch)


def _follow(service: Service, batch: Batch, as_json: bool) -> int:
    from worker.batches import batch as batches_batch
    from worker.cli.views.batch import make_batch_view

    try:
        with make_batch_view(as_json) as view:
            for facts in batches_batch.watch(service, batch):
                view.show(facts)
    except KeyboardInterrupt:
        again, end = f"extract batch watch {batch.id}", f"extract batch cancel {batch.id}"
        say(f"stopped watching; batch {batch.id} continues. Watch it again: {again}    Cancel it: {end}")
        return 130
    return _show_result(service, batch, None, as_json)[0]


def _show_result(service: Service, batch: Batch, out: Path | None, as_json: bool) -> tuple[int, Path]:
    """Write summary and page and show the summary. Returns the exit code and the folder."""
    from worker.batches import results
    from worker.cli.views.batch import show_summary

    place = results.check_out(out or results.folder_of(service.settings, batch.id))
    summary = results.gather(service, batch)
    results.write(place, summary)
    if as_json:
        print_json(summary | {"path": str(place)})
    else:
        show_summary(summary, str(place))
    return _exit(batch.id, summary["counts"]), place


def _exit(batch: str, counts: dict[str, int]) -> int:
    """The exit code for these job counts; prints the error on stderr."""
    from worker.batches import batch as batches_batch

    error = batches_batch.ending(batch, counts)
    if error is None:
        return 0
    say(f"error: {error}")
    return error.exit_code
