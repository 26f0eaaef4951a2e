"""A job from spec to manifest: the stages in order, each leaving its folder whole or not at all.

    circuit job   corpus -> bridge (dense models) -> prune -> validate -> report; of several tasks as a train job does
    train job     corpus -> train -> (prune TASK -> validate TASK -> report TASK) for each task

A stage that has left its folder is not run again: an interrupted job goes on where it was, and ends in the same files.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from extractor import files
from extractor.errors import NotFound, UsageError
from extractor.jobs import output
from extractor.jobs.job import Job
from extractor.jobs.train_job import run_train_job
from extractor.progress import Progress
from extractor.spec.schema import JobSpec, stages_of, to_json
from extractor.training.loop import set_up_torch


def run_job(spec: JobSpec, out: Path, progress: Progress | None = None, threads: int | None = None, bridged: Path | None = None) -> None:
    """Run a whole job into `out`. Raises ExtractorError, or Stopped when `progress` asked for a stop (call again to go on).

    bridged: where the bridged model of a dense one is taken from, or kept if it is not there yet; see `extractor.jobs.bridged_cache`
    """
    from extractor.jobs.circuit_job import run_circuit_job

    set_up_torch(threads)
    runner = {"circuit": run_circuit_job, "train": run_train_job}[spec.kind]
    folder = out.absolute()
    output.check_output(folder, to_json(spec))
    if (folder / files.MANIFEST).exists():
        files.verify_manifest(folder)
        shutil.rmtree(folder / files.WORK, ignore_errors=True)
        return
    job = Job(spec, folder, progress or Progress(), stages_of(spec), bridged=bridged)
    try:
        runner(job)
    except (UsageError, NotFound):
        output.discard_unstarted(folder)
        raise
    shutil.rmtree(job.work, ignore_errors=True)
    files.write_manifest(folder)
