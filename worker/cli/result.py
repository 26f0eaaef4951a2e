"""`extract result`."""

from __future__ import annotations

from pathlib import Path

import click

from worker.cli import complete
from worker.cli.options import as_json as json_option
from worker.cli.text import print_json, say


@click.command("result", short_help="Show or copy the result of a job.")
@click.argument("job", metavar="[JOB|FOLDER]", required=False, shell_complete=complete.jobs)
@click.option("--out", type=click.Path(path_type=Path), help="Copy the result to this new folder and verify every file.")
@click.option("--open", "open_report", is_flag=True, help="Open the report in a browser.")
@json_option
def command(job: str | None, out: Path | None, open_report: bool, as_json: bool) -> int:
    """Show the result of a finished job, copy it, or open its report. A result in storage is downloaded first; the
    same command resumes an interrupted download. Without JOB, the newest finished job with a circuit.

    \b
    Example: extract result k3v9x2mq --out circuit
    """
    from worker.cli.connect import newest_finished
    from worker.storage import results

    name = newest_finished() if job is None else job
    is_folder = Path(name).expanduser().is_dir()
    folder, files = _of_folder(Path(name).expanduser(), out) if is_folder else _of_job(name, out)
    facts = results.summary(folder)
    if as_json:
        print_json({"job": None if is_folder else name, "path": str(folder), "files": files, "result": facts})
    else:
        from worker.cli.views.job import PlainView

        PlainView(name).show_summary(facts, folder)
    return _open(facts, name) if open_report else 0


def _of_job(job: str, out: Path | None) -> tuple[Path, list[str]]:
    """The folder of a job's result, or its new copy, and the names of its files, all verified."""
    from extractor.files import verify_manifest
    from worker.cli.connect import load_settings
    from worker.cli.views.transfer import fetching
    from worker.client.results import result_folder, save_result
    from worker.client.service import open_service
    from worker.ids import check_id

    check_id(job)
    settings = load_settings()
    records = open_service(settings).records
    with fetching(job) as on_progress:
        if out is not None:
            files = save_result(settings, records, job, out, on_progress)
            return out.absolute(), files
        folder = result_folder(settings, records, job, on_progress)
    return folder, list(verify_manifest(folder))


def _of_folder(folder: Path, out: Path | None) -> tuple[Path, list[str]]:
    """The same of a result folder."""
    from extractor.files import verify_manifest
    from worker.storage import results

    if out is not None:
        return out.absolute(), results.copy(folder, out)
    return folder.absolute(), list(verify_manifest(folder))


def _open(facts: dict, job: str) -> int:
    """Open the report, of several tasks the page of all, and say so. Returns the exit code: 1 where there is no browser."""
    from extractor.errors import NotFound
    from extractor.results.shown import open_browser

    page = facts["paths"].get("index") or facts["paths"].get("report")
    if page is None:
        raise NotFound(f"{job} has no report; only the circuits of `extract submit` have one")
    report, kind = Path(page), "its folder has all reports, copy that" if "index" in facts["paths"] else "the report is one file, copy it"
    if open_browser(report.as_uri()):
        say(f"opened in the browser: {report}")
        return 0
    say(f"there is no browser here; {kind} to where one is: {report}")
    return 1
