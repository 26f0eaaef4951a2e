"""A job from spec to manifest: the stages in order, each leaving its folder whole or not at all.

    circuit job   corpus -> bridge (dense models) -> prune -> validate -> report; of several tasks as a train job does
    train job     corpus -> train -> (prune TASK -> validate TASK -> report TASK) for each task

A stage that has left its folder is not run again: an interrupted job goes on where it was, and ends in the same files.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from extractor import artifacts
from extractor.data.corpus import Corpus, corpus_for
from extractor.errors import NotFound, UnsupportedModel, UsageError
from extractor.progress import Progress, Stopped
from extractor.specs import JobSpec, TrainSpec, to_json
from extractor.training import Checkpoints, LoopEnvironment, MetricsLog, set_up_torch

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CIRCUIT_STAGES = ("prune", "validate", "report")


@dataclass
class Job:
    """One running job: its spec, its folder, whom it tells, and how long its stages took (seconds of the last attempt)."""

    spec: JobSpec
    out: Path
    progress: Progress
    stages: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    twin: Path | None = None  # where its twin is looked for, and kept (`twins`)

    @property
    def work(self) -> Path:
        return self.out / artifacts.WORK

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


def run_job(spec: JobSpec, out: Path, progress: Progress | None = None, threads: int | None = None, twin: Path | None = None) -> None:
    """Run a whole job into `out`. Raises ExtractorError, or Stopped when `progress` asked for a stop (call again to go on).

    twin: where the twin of a dense model is taken from if it is kept there, and kept if it is not; see `extractor.twins`
    """
    from extractor.task_circuits import run_circuit_job

    set_up_torch(threads)
    runner = {"circuit": run_circuit_job, "train": run_train_job}[spec.kind]
    folder = out.absolute()
    artifacts.check_output(folder, to_json(spec))
    if (folder / artifacts.MANIFEST).exists():
        artifacts.verify_manifest(folder)
        shutil.rmtree(folder / artifacts.WORK, ignore_errors=True)
        return
    job = Job(spec, folder, progress or Progress(), stages_of(spec), twin=twin)
    try:
        runner(job)
    except (UsageError, NotFound):
        artifacts.discard_unstarted(folder)
        raise
    shutil.rmtree(job.work, ignore_errors=True)
    artifacts.write_manifest(folder)


def stages_of(spec: JobSpec) -> tuple[str, ...]:
    """The stages of a job, in order, as they are announced."""
    if spec.kind == "circuit" and len(spec.tasks) == 1:
        return ("corpus", "bridge", *CIRCUIT_STAGES)
    first = {"circuit": "bridge", "train": "train"}[spec.kind]
    return ("corpus", first, *(f"{stage} {task}" for task in spec.tasks for stage in CIRCUIT_STAGES))


def run_train_job(job: Job) -> None:
    """A model from scratch with its tokenizer, card and result.json, and a circuit for each task.

    Raises UnknownTask, NotFound and SpecError for tasks there are not, UnsupportedModel where circuits are asked of a model that is not a
    sparse_gpt.
    """
    spec = job.spec.train
    assert spec is not None  # JobSpec's validator saw to it
    check_tasks(job.spec)
    with job.stage("corpus"):
        tokenizer, corpus = corpus_for(job.spec.corpus, spec, job.progress)
    if not (job.out / "model").is_dir():
        if spec.match_loss is None:
            with job.stage("train"):
                leave_model(job, job.out, spec, tokenizer, corpus, job.loop("train"))
        else:
            match_width(job, spec, spec.match_loss, tokenizer, corpus)
    if job.spec.tasks:
        from extractor.task_circuits import circuits_of_trained

        circuits = circuits_of_trained(job, corpus)
        numbers = artifacts.read_json(job.out / "result.json")
        artifacts.write_json(job.out / "result.json", numbers | {"circuits": circuits})


def check_tasks(spec: JobSpec) -> None:
    """Refuse, before any training, tasks that no model could be asked. Raises UnknownTask, NotFound, SpecError, UnsupportedModel."""
    from extractor.task_sources import open_tasks

    open_tasks(spec.tasks, spec.task_files)
    if spec.tasks and spec.train is not None and spec.train.architecture != "sparse_gpt":
        raise UnsupportedModel(
            f"circuits are found in sparse_gpt models, this job trains a {spec.train.architecture}; leave out its tasks, "
            "or train the dense twin of a sparse model instead"
        )


def match_width(job: Job, spec: TrainSpec, target: float, tokenizer: Tokenizer, corpus: Corpus) -> None:
    """Train widths until the smallest that reaches the target loss is known (`extractor.sweeps.match`); it becomes model/ and result.json.

    Each width keeps a folder of its own below .work, so that an interrupted search repeats no finished training.
    """
    from extractor.sweeps.match import Candidate, search

    def folder_of(width: int) -> Path:
        return job.work / f"width-{width}"

    def train(at_width: TrainSpec) -> Candidate:
        width = at_width.model.d_model
        folder = folder_of(width)
        if not (folder / "model").is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            with job.stage("train", f"train width {width}"):
                leave_model(job, folder, at_width, tokenizer, corpus, job.loop("train", folder))
        return Candidate.of(width, artifacts.read_json(folder / "result.json"))

    found = search(spec, target, train)
    chosen = folder_of(found.d_model)
    numbers = artifacts.read_json(chosen / "result.json")
    artifacts.write_json(job.out / "result.json", numbers | {"match": found.to_json()})
    artifacts.write_text(job.out / "metrics.jsonl", (chosen / "metrics.jsonl").read_text(encoding="utf-8"))
    with artifacts.new_folder(job.out / "model") as folder:
        shutil.copytree(chosen / "model", folder, dirs_exist_ok=True)


def leave_model(job: Job, out: Path, spec: TrainSpec, tokenizer: Tokenizer, corpus: Corpus, env: LoopEnvironment) -> None:
    """Train a model of this spec and leave result.json and, last, model/ in `out`."""
    from extractor.card import train_card, train_result
    from extractor.data.tokenizer import save_tokenizer
    from extractor.ranks import train_model

    model = train_model(spec, corpus, tokenizer.get_vocab_size(), job.spec.seed, env)
    made = job.spec.model_copy(update={"train": spec})
    result = train_result(made, model, corpus, tokenizer)
    artifacts.write_json(out / "result.json", result)
    with artifacts.new_folder(out / "model") as folder:
        model.save_pretrained(folder)
        save_tokenizer(tokenizer, folder, spec.model.n_ctx)
        artifacts.write_text(folder / "README.md", train_card(made, result))
