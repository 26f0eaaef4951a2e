"""`extractor.extract(...)`: run a circuit job in this process, and load its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from extractor.results.result import Result, load


def extract(model: str, task: str | tuple[str, ...], out: str | Path, threads: int | None = None, **options: Any) -> Result:
    """Run a circuit job in this process with a bar for each stage, and load its result. A job that was interrupted goes on.

    options   of `extractor.circuit_job`, such as preset, seed, target_loss, changes
    Raises ExtractorError for everything that can be said in one line.
    """
    from extractor.jobs.request import circuit_job
    from extractor.jobs.run import run_job
    from extractor.results.bar import StageBars

    tasks = (task,) if isinstance(task, str) else tuple(task)
    with StageBars() as progress:
        run_job(circuit_job(model, tasks, **options), Path(out), progress, threads)
    return load(out)
