"""`extract sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from worker.cli import complete
from worker.cli.options import as_json as json_option
from worker.cli.options import no_worker as no_worker_option
from worker.cli.options import positive
from worker.cli.text import print_json, print_line, say

if TYPE_CHECKING:
    from worker.client.service import Service
    from worker.sweeps.grid import Sweep


@click.command("sweep", short_help="Train and prune a grid of models and draw the frontier.")
@click.option(
    "--grid", multiple=True, metavar="NAME=VALUE,VALUE", help="An axis: width, l0 (nonzeros as 16k, or a fraction), or any field."
)
@click.option(
    "--task", "tasks", multiple=True, shell_complete=complete.tasks, help="A task to find circuits for; see `extract tasks`. Repeatable."
)
@click.option("--preset", type=click.Choice(["tiny", "small", "paper"]), default="tiny", show_default=True, help="Size of the work.")
@click.option(
    "--set", "changes", multiple=True, metavar="FIELD=VALUE", help="Override a field of all models; see `extract train --fields`."
)
@click.option("--target-loss", type=float, default=0.15, show_default=True, callback=positive, help="Target loss of a circuit (nats).")
@click.option("--dense", is_flag=True, help="Train dense baselines, without sparsity.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Random seed.")
@click.option("--corpus", multiple=True, help="Training text: 'stdlib', 'generated', a folder, a .txt, .py or .jsonl file. Repeatable.")
@click.option("--priority", type=click.Choice(["high", "normal", "low"]), default="normal", show_default=True, help="Place in the queue.")
@click.option("--status", "sweep_id", metavar="ID", help="Show an existing sweep and collect its results.")
@click.option("--wait", is_flag=True, help="Follow the sweep until it ends, then draw the frontier.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the frontier. Default: STATE_DIR/sweeps/ID.")
@click.option("--print-specs", is_flag=True, help="Print every point's job and spec as JSON; queue nothing.")
@no_worker_option
@json_option
def command(grid: tuple[str, ...], sweep_id: str | None, **options: Any) -> int:
    """Queue one job per point of a grid: train a model, then prune it.

    Re-running is safe: it queues only jobs that are missing, failed, cancelled or damaged.

    \b
    Example: extract sweep --grid width=64,128 --grid l0=16k,24k,32k --task quote_close --task bracket_counting --wait
    """
    from extractor.errors import UsageError, require
    from worker.cli.connect import load_settings, open_for, warn_without_worker
    from worker.sweeps.jobs import folder_of, open_plan, queue, save_plan

    if sweep_id is not None and grid:
        raise UsageError("--status shows an existing sweep; leave out --grid")
    settings = load_settings(options["no_worker"])
    sweep = open_plan(settings, sweep_id) if sweep_id else _plan(grid, options)
    if options["print_specs"]:
        print_json([{"job": p.job, "axes": p.axes, "spec": p.spec.model_dump(mode="json")} for p in sweep.points])
        return 0
    require("matplotlib", "the frontier of a sweep", "sweep")
    out = _check_out(options["out"] or folder_of(settings, sweep.id), given=options["out"] is not None)
    service = open_for(options["no_worker"], only_again=sweep_id is not None and not options["wait"])
    if sweep_id is None:
        save_plan(settings, sweep)
        queued = queue(service, sweep, options["priority"])
        if queued:
            warn_without_worker(service)
        if not options["wait"]:
            return _show_queued(service, sweep, queued, options["as_json"])
    return _gather(service, sweep, out, options["wait"], options["as_json"])


def _plan(grid: tuple[str, ...], options: dict[str, Any]) -> Sweep:
    from extractor.spec.fields import parse_changes
    from worker.sweeps.grid import SweepRequest, parse_grid, plan

    same = {name: options[name] for name in ("tasks", "preset", "target_loss", "seed", "dense", "corpus")}
    return plan(SweepRequest(settings=parse_changes(options["changes"]), **same), parse_grid(grid))


def _check_out(out: Path, given: bool) -> Path:
    """Return a folder that is new, empty or written by an earlier sweep. Raises OutputError for any other."""
    from worker.storage.results import check_new_folder

    if given and not (out / "sweep.json").is_file():
        check_new_folder(out)
    return out.absolute()


def _show_queued(service: Service, sweep: Sweep, queued: list[str], as_json: bool) -> int:
    from worker.sweeps.jobs import inspect

    facts = inspect(service, sweep)
    if as_json:
        jobs = [{"job": p["job"], "label": p["label"], "state": p["state"], "queued_now": p["job"] in queued} for p in facts]
        print_json({"sweep": sweep.id, "jobs": jobs})
        return 0
    print_line(sweep.id)
    for point in facts:
        print_line(f"  {point['job']}  {point['state']:<10} {point['label']}")
    say(f"follow it: extract sweep --status {sweep.id} --wait")
    return 0


def _gather(service: Service, sweep: Sweep, out: Path, wait: bool, as_json: bool) -> int:
    """Follow the sweep if `wait`, then draw its results. Returns exit code 1 if a point has failed."""
    from worker.cli.views.sweep import make_sweep_view, show_frontier
    from worker.sweeps.claims import compare
    from worker.sweeps.frontier import write_frontier
    from worker.sweeps.jobs import inspect, watch, without_progress

    tasks = sweep.points[0].spec.tasks
    facts = inspect(service, sweep)
    if wait:
        try:
            with make_sweep_view(as_json, sweep.id, tasks) as view:
                for facts in watch(service, sweep):
                    view.show(facts)
        except KeyboardInterrupt:
            say(f"stopped watching; the jobs continue. Watch again: extract sweep --status {sweep.id} --wait")
            return 130
    comparison = compare(without_progress(facts), tasks)
    written = write_frontier(out, sweep.id, comparison)
    if as_json:
        print_json({"sweep": sweep.id, "path": str(out), **written})
    else:
        show_frontier(facts, written, out)
    return 1 if any(point["state"] in ("failed", "cancelled", "missing") for point in facts) else 0
