"""A job from spec to manifest. Each stage writes its folder atomically.

    circuit job   corpus -> bridge (copies a sparse model) -> (prune -> validate -> report) for each task
    train job     corpus -> train -> (prune -> validate -> report) for each task

A stage whose folder exists is not run again: an interrupted job resumes where it stopped and ends with the same files.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from extractor import files
from extractor.errors import HubUnavailable, NotFound, UsageError
from extractor.jobs import output
from extractor.jobs.clock import JobClock
from extractor.jobs.job import Job
from extractor.jobs.train_job import run_train_job
from extractor.progress import Progress
from extractor.pruning import algorithms
from extractor.spec.schema import JobSpec, stages_of, to_json
from extractor.training.loop import set_up_torch


def run_job(spec: JobSpec, out: Path, progress: Progress | None = None, threads: int | None = None, bridged: Path | None = None) -> None:
    """Run a job into the folder `out`, or resume it. Raises ExtractorError, or Stopped when `progress` requests a stop.

    threads   CPU threads of torch; None: its default
    bridged   folder from which the bridged model is copied, or to which it is stored (`bridged_cache`); None: no cache
    """
    from extractor.jobs.circuit_job import run_circuit_job

    if spec.prune is not None:
        algorithms.check(spec.prune.algorithm, spec.prune.granularity)
    set_up_torch(threads)
    runner = {"circuit": run_circuit_job, "train": run_train_job}[spec.kind]
    folder = out.absolute()
    output.check_output(folder, to_json(spec))
    if (folder / files.MANIFEST).exists():
        files.verify_manifest(folder)
        shutil.rmtree(folder / files.WORK, ignore_errors=True)
        return
    clock = JobClock(stages_of(spec), folder / files.WORK)
    job = Job(spec, folder, clock.watching(progress or Progress()), stages_of(spec), bridged=bridged, clock=clock)
    try:
        with files.explain_cache():
            runner(job)
    except (UsageError, NotFound, HubUnavailable):
        output.discard_unstarted(folder)
        raise
    shutil.rmtree(job.work, ignore_errors=True)
    files.write_manifest(folder)
