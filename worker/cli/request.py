"""The shared part of `submit` and `train`: print a spec, print its cost, or queue it and follow it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from extractor.errors import UsageError
from worker.cli.connect import load_settings, warn_without_worker
from worker.cli.text import print_json, print_line, say

if TYPE_CHECKING:
    from extractor.spec.schema import JobSpec
    from worker.client.service import Service

Build = Callable[["Service | None"], "JobSpec"]


def request(build: Build, options: dict[str, Any]) -> int:
    """Carry out the options of `request_options`. Returns the exit code.

    build: returns the spec; its argument is the service, or None when nothing is queued. Its errors pass through.
    """
    from extractor.jobs.cost.memory import bytes_needed
    from worker.client.service import open_service
    from worker.client.submit import submit
    from worker.fleet import local
    from worker.ids import check_id
    from worker.records.records import TERMINAL
    from worker.storage.results import check_new_folder

    if options["job_id"] is not None:
        check_id(options["job_id"])
    if options["out"] is not None:
        if not options["wait"]:
            raise UsageError("--out needs --wait; or use `extract result JOB --out DIR` later")
        check_new_folder(options["out"])
    if options["print_spec"]:
        from extractor.spec.schema import to_json

        click.echo(to_json(build(None)), nl=False)
        return 0
    if options["dry_run"]:
        from worker.cli.views.cost import show_preflight

        show_preflight(build(None), options["as_json"])
        return 0
    service = open_service(load_settings(options["no_worker"]))
    spec = build(service)
    if options["no_worker"] and not service.records.any_open():
        local.forget_dead(service.settings)
    memory = bytes_needed(spec)
    job = submit(service, spec, options["job_id"], options["priority"], memory=memory)
    state = service.records.need(job)["state"]
    if options["job_id"] and state in TERMINAL:
        say(f"job {job} was submitted before and is {state}; nothing is queued. Choose another --job-id to run it again")
    warn_without_worker(service, memory)
    if options["wait"]:
        return follow(service, job, options["out"], options["as_json"])
    if options["as_json"]:
        print_json({"job": job, "state": state})
    else:
        print_line(job)
        say(f"follow it: extract watch {job}    its result, once it is done: extract result {job}")
    return 0


def follow(service: Service, job: str, out: Path | None, as_json: bool, after: str = "0") -> int:
    """Follow a job until it ends, then show its result; copy it to `out` if given. Returns the exit code."""
    from worker.cli.views.job import make_view
    from worker.cli.views.transfer import fetching
    from worker.client.results import ending, result_folder, save_result
    from worker.client.watch import watch
    from worker.records.records import describe
    from worker.storage import results

    view = make_view(as_json, job)
    try:
        with view:
            for event in watch(service, job, after):
                view.show(event)
    except KeyboardInterrupt:
        say(f"stopped watching; job {job} continues. Watch it again: extract watch {job}    Cancel it: extract cancel {job}")
        return 130
    record = service.records.need(job)
    error = ending(job, record)
    if error is not None:
        if as_json:
            print_json(describe(job, record))
        raise error
    with fetching(job) as on_progress:
        if out is not None:
            save_result(service.settings, service.records, job, out, on_progress)
            folder = out
        else:
            folder = result_folder(service.settings, service.records, job, on_progress)
    if as_json:
        print_json(describe(job, record) | {"result": results.summary(folder), "path": str(folder.absolute())})
    else:
        view.show_summary(results.summary(folder), folder)
    return 0
