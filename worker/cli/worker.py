"""`extract worker`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from worker.broker.routing import GB
from worker.cli.options import alive_file as alive_file_option
from worker.cli.options import as_json as json_option
from worker.cli.options import print_json
from worker.cli.options import threads as threads_option


def _memory(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    """Callback of --memory: '24GB' -> bytes; 'any' -> 0."""
    if value is None or value == "any":
        return None if value is None else 0
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)(?:GB?)?", value, re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise click.BadParameter(f"{value!r} is no amount of memory; write 24GB, or 'any'")
    return int(float(found[1]) * GB)


MOST_SECONDS = 1_000_000_000


def _number(_ctx: click.Context, _param: click.Parameter, value: float | None) -> float | None:
    """Callback of --idle-exit: no bound of a range holds off 'nan'."""
    if value is not None and value != value:
        raise click.BadParameter("nan is not a number of seconds")
    return value


@click.command("worker", short_help="Run queued jobs, one at a time.")
@click.option("--each-gpu", is_flag=True, help="One worker for each GPU of CUDA_VISIBLE_DEVICES (default: of the machine).")
@click.option("--processes", type=click.IntRange(1, 256), help="So many workers, on CPUs; share the cores out with --threads.")
@click.option("--max-jobs", type=click.IntRange(1), help="Leave after this many jobs.")
@click.option(
    "--idle-exit",
    type=click.FloatRange(0, MOST_SECONDS, min_open=True),
    callback=_number,
    help="Leave after this many seconds without work.",
)
@click.option(
    "--memory", callback=_memory, help="Take jobs that need at most this; default: memory of the GPU, or free RAM. 'any': all jobs."
)
@alive_file_option
@threads_option
@click.option("--local", "is_local", is_flag=True, hidden=True)
@json_option
def command(each_gpu: bool, processes: int | None, as_json: bool, **options: object) -> int:
    """Run queued jobs, one at a time, until told to leave. One worker per GPU: --each-gpu, or set CUDA_VISIBLE_DEVICES.

    SIGTERM or Ctrl-C gives the running job back to the queue from its checkpoint.

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
    """Be a worker; how many attempts at jobs were made."""
    import dataclasses

    from worker.cli.connect import load_settings
    from worker.client.service import open_service
    from worker.fleet import devices
    from worker.fleet.worker import serve
    from worker.storage.store import Store

    settings = load_settings()
    settings = dataclasses.replace(settings, threads=threads or settings.threads)
    if settings.store is not None:
        Store(settings.store).check()
    if memory is None:  # nobody else would take what does not fit here, and the engine says best why it does not
        memory = 0 if settings.embedded else devices.capacity(settings.threads)
    return serve(open_service(settings).url, settings, max_jobs, idle_exit, is_local, alive_file, memory)


def _fleet(each_gpu: bool, processes: int | None, options: dict[str, object]) -> int:
    """Keep several workers up; how many left with an error. Raises UsageError."""
    from extractor.errors import UsageError
    from worker.fleet import devices, machine

    if each_gpu and processes:
        raise UsageError("--each-gpu and --processes each say how many workers there are; give one of them")
    if options["alive_file"] is not None:
        raise UsageError("--alive-file is of one worker; several are watched over already")
    envs: dict[str, dict[str, str]] = {f"CPU {number}": {"CUDA_VISIBLE_DEVICES": ""} for number in range(processes or 0)}
    if each_gpu:
        envs = {f"GPU {name}": {"CUDA_VISIBLE_DEVICES": name} for name in devices.visible_gpus()}
    if not envs:
        raise UsageError("no GPU is visible to nvidia-smi; start `extract worker --processes N --threads T` for CPUs")
    arguments = [
        f"--{name.replace('_', '-')}={value}" for name, value in options.items() if name in ("max_jobs", "idle_exit", "threads") and value
    ]
    if options["memory"] is not None:
        arguments.append(f"--memory={int(str(options['memory'])) / GB:g}GB" if options["memory"] else "--memory=any")
    return machine.run(envs, arguments)
