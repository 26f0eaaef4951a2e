"""One running job: its spec, its output folder, its stages and the training loops in them. Imports no stage."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from extractor import files
from extractor.data.programs import GENERATOR_VERSION
from extractor.data.sources import EARLIER_GENERATED
from extractor.jobs.clock import JobClock
from extractor.jobs.cost.parts import job_parts
from extractor.progress import Progress, Stopped
from extractor.spec.schema import CorpusSpec, JobSpec
from extractor.training.checkpoints import Checkpoints, MetricsLog
from extractor.training.loop import LoopEnvironment


@dataclass
class Job:
    """One running job.

    stages    all stages in order, as `spec.schema.stages_of` lists them
    seconds   {task: {stage: seconds}} of this attempt; stages that all circuits share are under ''
    bridged   folder of the job's bridged model in the cache (`bridged_cache`); None: no cache
    clock     what adds the time left to progress events; None where nobody asks for it
    """

    spec: JobSpec
    out: Path
    progress: Progress
    stages: tuple[str, ...]
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    bridged: Path | None = None
    clock: JobClock | None = None

    @property
    def work(self) -> Path:
        return self.out / files.WORK

    @property
    def generator_version(self) -> int:
        """The version of the program generator with which the job began. The last release, of version 3, wrote down none."""
        path = self.work / "generator.json"
        if path.is_file():
            return int(files.read_json(path))
        has_begun = any(self.work.rglob("*.safetensors")) or (self.out / "model").is_dir()
        return 3 if has_begun else GENERATOR_VERSION

    def keep_generator_version(self) -> None:
        """Write it down for later attempts, before the first checkpoint."""
        files.write_json(self.work / "generator.json", self.generator_version)

    def text(self, corpus: CorpusSpec) -> CorpusSpec:
        """The corpus with the generated programs with which the job began, so that its text does not change while it runs."""
        if self.generator_version == GENERATOR_VERSION:
            return corpus
        return corpus.model_copy(update={"sources": tuple(EARLIER_GENERATED if s == "generated" else s for s in corpus.sources)})

    def expect(self, config: Mapping[str, Any] | None = None) -> None:
        """Let the clock know the parts of the job. config: config.json of the given model, if there is one."""
        if self.clock is not None:
            self.clock.expect(job_parts(self.spec, config))

    @contextmanager
    def stage(self, name: str, task: str = "", shown: str | None = None) -> Iterator[None]:
        """Announce and time a stage. Raises Stopped when a stop was requested before it.

        task    names the circuit in a job with several; '' for stages that all circuits share, and in a job with one circuit
        shown   what progress shows instead of the stage's name
        """
        if self.progress.should_stop():
            raise Stopped
        listed = f"{name} {task}" if task else name
        self.progress.stage(shown or listed, self.stages.index(listed) + 1, len(self.stages))
        started = time.monotonic()
        yield
        seconds = self.seconds.setdefault(task, {})
        seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - started, 2)

    def loop(self, name: str, folder: Path | None = None) -> LoopEnvironment:
        """Checkpoints, metrics log and progress of a training loop; `folder`: where it keeps them instead of the job's own folder."""
        work, log = (folder, folder / "metrics.jsonl") if folder else (self.work, self.out / "metrics.jsonl")
        wants_board = name == "train" and self.spec.train is not None and self.spec.train.tensorboard
        board = self.out / "tensorboard" / (folder.name if folder else "") if wants_board else None
        return LoopEnvironment(Checkpoints(work, name), MetricsLog(log), self.progress, board)
