"""`extract run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from worker.cli.options import as_json as json_option
from worker.cli.options import print_json
from worker.cli.options import threads as threads_option

if TYPE_CHECKING:
    from worker.cli.views.job import View
    from worker.settings import Settings
    from worker.supervision.engine import Outcome, Wish


@click.command("run", short_help="Run a spec here and now, without a queue.")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The result folder; an unfinished run there is resumed.")
@threads_option
@json_option
def command(spec: Path, out: Path, threads: int | None, as_json: bool) -> int:
    """Run a spec here and now, without a queue. Ctrl-C saves a checkpoint; the same command resumes.

    \b
    Example: extract submit --model python-tiny --task quote_close --print-spec > spec.json
             extract run spec.json --out circuit
    """
    from extractor.jobs import output
    from extractor.spec.schema import read_job, to_json
    from worker.cli.connect import load_settings
    from worker.cli.views.job import make_view
    from worker.storage import results

    out = out.absolute()
    output.check_output(out, to_json(read_job(spec)))
    outcome = _run(spec.absolute(), out, threads, load_settings(), make_view(as_json, out.name))
    if outcome.kind == "stopped":
        from extractor.errors import Cancelled

        raise Cancelled(f"stopped, the checkpoint is in {out}; the same command resumes")
    if outcome.error is not None:
        raise outcome.error
    if as_json:
        print_json({"path": str(out), "result": results.summary(out)})
    else:
        make_view(False, out.name).show_summary(results.summary(out), out)
    return 0


def _run(spec: Path, out: Path, threads: int | None, settings: Settings, view: View) -> Outcome:
    """Supervise the engine, its log among the files that vanish when the job is done.

    The first SIGINT, SIGTERM or SIGHUP asks it to stop, a second one ends it at once.
    """
    import signal

    from extractor import files
    from worker.supervision.engine import supervise

    asked: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _frame: asked.append(number)) for number in numbers}

    def wish() -> Wish:
        return "" if not asked else "stop" if len(asked) == 1 else "kill"

    try:
        with view:
            return supervise(spec, out, out / files.WORK / "engine.log", settings, view.show, wish, threads)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
