"""`extract run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from worker.cli.options import as_json as json_option
from worker.cli.options import threads as threads_option
from worker.cli.text import print_json

if TYPE_CHECKING:
    from worker.cli.views.job import View
    from worker.settings import Settings
    from worker.supervision.engine import Outcome, StopRequest


@click.command("run", short_help="Run a spec directly, without the queue.")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Result folder; an unfinished run in it is resumed.")
@threads_option
@json_option
def command(spec: Path, out: Path, threads: int | None, as_json: bool) -> int:
    """Run a spec directly, without the queue. Ctrl-C saves a checkpoint; the same command resumes the run.

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
    if outcome.kind in ("stopped", "killed"):
        from extractor.errors import Cancelled

        end = "stopped; the checkpoint is" if outcome.error is None else f"{outcome.error}, without a new checkpoint; an earlier one may be"
        raise Cancelled(f"{end} in {out}; the same command resumes the run")
    if outcome.error is not None:
        raise outcome.error
    if as_json:
        print_json({"path": str(out), "result": results.summary(out)})
    else:
        make_view(False, out.name).show_summary(results.summary(out), out)
    return 0


def _run(spec: Path, out: Path, threads: int | None, settings: Settings, view: View) -> Outcome:
    """Supervise the engine. Its log is in the work folder, which is deleted when the job has finished.

    The first SIGINT, SIGTERM or SIGHUP requests a stop with a checkpoint, a second one kills the engine.
    """
    import signal

    from extractor import files
    from worker.supervision.engine import supervise

    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _frame: received.append(number)) for number in numbers}

    def stop_request() -> StopRequest:
        return "" if not received else "stop" if len(received) == 1 else "kill"

    try:
        with view:
            return supervise(spec, out, out / files.WORK / "engine.log", settings, view.show, stop_request, threads)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
