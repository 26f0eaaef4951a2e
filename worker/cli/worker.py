"""`extract worker`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from worker.broker.routing import GB
from worker.cli.options import alive_file as alive_file_option
from worker.cli.options import as_json as json_option
from worker.cli.options import threads as threads_option
from worker.cli.text import clean_log, print_json


def _memory(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    """Callback of --memory: '24GB' -> bytes; 'any' -> 0."""
    if value is None or value == "any":
        return None if value is None else 0
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)(?:GB?)?", value, re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise click.BadParameter(f"{value!r} is not an amount of memory; write 24GB, or 'any'")
    return int(float(found[1]) * GB)


MAX_SECONDS = 1_000_000_000


def _number(_ctx: click.Context, _param: click.Parameter, value: float | None) -> float | None:
    """Callback of --idle-exit: FloatRange accepts 'nan', so refuse it here."""
    if value is not None and value != value:
        raise click.BadParameter("nan is not a number of seconds")
    return value


@click.command("worker", short_help="Run queued jobs, one at a time.")
@click.option("--each-gpu", is_flag=True, help="Start one worker per GPU in CUDA_VISIBLE_DEVICES. Default: per GPU of the machine.")
@click.option("--processes", type=click.IntRange(1, 256), help="Start N workers on CPUs; divide the cores with --threads.")
@click.option("--max-jobs", type=click.IntRange(1), help="Exit after this many jobs.")
@click.option(
    "--idle-exit",
    type=click.FloatRange(0, MAX_SECONDS, min_open=True),
    callback=_number,
    help="Exit after this many seconds without work.",
)
@click.option(
    "--memory", callback=_memory, help="Run only jobs that need at most this memory. Default: GPU memory, or free RAM. 'any': all jobs."
)
@alive_file_option
@threads_option
@click.option("--local", "is_local", is_flag=True, hidden=True)
@json_option
def command(each_gpu: bool, processes: int | None, as_json: bool, **options: object) -> int:
    """Run queued jobs, one at a time, until stopped. For one worker per GPU use --each-gpu or set CUDA_VISIBLE_DEVICES.

    SIGTERM or Ctrl-C saves a checkpoint and returns the running job to the queue.

    \b
    Example: CUDA_VISIBLE_DEVICES=0 extract worker --max-jobs 10
             extract worker --each-gpu
             extract worker --processes 4 --threads 2
    """
    import os

    if each_gpu or processes:
        failed = _fleet(each_gpu, processes, options)
        if as_json:
            print_json({"pid": os.getpid(), "failed": failed})
        return 1 if failed else 0
    jobs = _serve(**options)  # type: ignore[arg-type]
    if as_json:
        print_json({"pid": os.getpid(), "jobs": jobs})
    return 0


def _serve(
    max_jobs: int | None, idle_exit: float | None, memory: int | None, alive_file: Path | None, threads: int | None, is_local: bool
) -> int:
    """Run a worker in this process. Returns the number of attempts at jobs."""
    import dataclasses

    from worker.cli.connect import load_settings
    from worker.client.service import open_service
    from worker.fleet import devices
    from worker.fleet.worker import serve
    from worker.storage.store import Store

    clean_log()
    settings = load_settings()
    settings = dataclasses.replace(settings, threads=threads or settings.threads)
    if settings.store is not None:
        Store(settings.store).check()
    if memory is None:  # an embedded server has one machine: its worker runs every job, and the engine reports what does not fit
        memory = 0 if settings.embedded else devices.capacity(settings.threads)
    return serve(open_service(settings).url, settings, max_jobs, idle_exit, is_local, alive_file, memory)


def _fleet(each_gpu: bool, processes: int | None, options: dict[str, object]) -> int:
    """Run several workers. Returns how many exited with an error. Raises UsageError."""
    from extractor.errors import UsageError
    from worker.fleet import devices, machine

    if each_gpu and processes:
        raise UsageError("--each-gpu and --processes both set the number of workers; give one of them")
    if options["alive_file"] is not None:
        raise UsageError("--alive-file works with a single worker only; leave it out")
    envs: dict[str, dict[str, str]] = {f"CPU {number}": {"CUDA_VISIBLE_DEVICES": ""} for number in range(processes or 0)}
    if each_gpu:
        envs = {f"GPU {name}": {"CUDA_VISIBLE_DEVICES": name} for name in devices.visible_gpus()}
    if not envs:
        raise UsageError("nvidia-smi shows no GPU; for CPUs start `extract worker --processes N --threads T`")
    arguments = [
        f"--{name.replace('_', '-')}={value}" for name, value in options.items() if name in ("max_jobs", "idle_exit", "threads") and value
    ]
    if options["memory"] is not None:
        arguments.append(f"--memory={int(str(options['memory'])) / GB:g}GB" if options["memory"] else "--memory=any")
    return machine.run(envs, arguments)
