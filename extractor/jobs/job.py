"""One running job: its spec, its output folder, its stages and the loops they run. It imports no stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from extractor import files
from extractor.progress import Progress, Stopped
from extractor.spec.schema import JobSpec
from extractor.training.checkpoints import Checkpoints, MetricsLog
from extractor.training.loop import LoopEnvironment


@dataclass
class Job:
    """One running job: its spec, its folder, whom it tells, and how long its stages took (seconds of the last attempt)."""

    spec: JobSpec
    out: Path
    progress: Progress
    stages: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    bridged: Path | None = None  # folder of its bridged model in the cache (`bridged_cache`)

    @property
    def work(self) -> Path:
        return self.out / files.WORK

    @contextmanager
    def stage(self, name: str, shown: str | None = None) -> Iterator[None]:
        """Announce a stage, as `shown` where one stage has many parts, and time it. Raises Stopped when a stop was asked for before."""
        if self.progress.should_stop():
            raise Stopped
        self.progress.stage(shown or name, self.stages.index(name) + 1, len(self.stages))
        began = time.monotonic()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - began, 2)

    def loop(self, name: str, folder: Path | None = None) -> LoopEnvironment:
        """Where a stage's training loop saves, logs and reports; `folder` is for a stage that keeps its work apart."""
        work, log = (folder, folder / "metrics.jsonl") if folder else (self.work, self.out / "metrics.jsonl")
        wants_board = name == "train" and self.spec.train is not None and self.spec.train.tensorboard
        board = self.out / "tensorboard" / (folder.name if folder else "") if wants_board else None
        return LoopEnvironment(Checkpoints(work, name), MetricsLog(log), self.progress, board)
