"""A job from spec to manifest: the stages in order, each leaving its folder whole or not at all.

    circuit job   corpus -> bridge (dense models) -> prune -> validate -> report
    train job     corpus -> train

A stage that has left its folder is not run again: an interrupted job goes on where it was, and ends in the same files.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from extractor import artifacts
from extractor.corpus import Corpus, build_corpus, documents
from extractor.errors import NotFound, UsageError
from extractor.progress import Progress, Stopped
from extractor.specs import CorpusSpec, JobSpec, to_json
from extractor.training import Checkpoints, LoopEnvironment, MetricsLog, set_up_torch

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel


@dataclass
class Job:
    """One running job: its spec, its folder, whom it tells, and how long its stages took (seconds of the last attempt)."""

    spec: JobSpec
    out: Path
    progress: Progress
    stages: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        return self.out / artifacts.WORK

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and time it. Raises Stopped when a stop is asked for before it begins."""
        if self.progress.should_stop():
            raise Stopped
        self.progress.stage(name, self.stages.index(name) + 1, len(self.stages))
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 2)

    def loop(self, name: str) -> LoopEnvironment:
        """Where a stage's training loop saves, logs and reports."""
        return LoopEnvironment(Checkpoints(self.work, name), MetricsLog(self.out / "metrics.jsonl"), self.progress)


def run_job(spec: JobSpec, out: Path, progress: Progress | None = None, threads: int | None = None) -> None:
    """Run a whole job into `out`. Raises ExtractorError, or Stopped when `progress` asked for a stop (call again to go on)."""
    from extractor.extraction import run_circuit_job

    set_up_torch(threads)
    runner, stages = {
        "circuit": (run_circuit_job, ("corpus", "bridge", "prune", "validate", "report")),
        "train": (run_train_job, ("corpus", "train")),
    }[spec.kind]
    folder = out.absolute()
    artifacts.check_output(folder, to_json(spec))
    if (folder / artifacts.MANIFEST).exists():
        artifacts.verify_manifest(folder)
        shutil.rmtree(folder / artifacts.WORK, ignore_errors=True)
        return
    job = Job(spec, folder, progress or Progress(), stages)
    try:
        runner(job)
    except (UsageError, NotFound):
        artifacts.discard_unstarted(folder)
        raise
    shutil.rmtree(job.work, ignore_errors=True)
    artifacts.write_manifest(folder)


def run_train_job(job: Job) -> None:
    """A sparse model from scratch, or an ordinary GPT-2, with its tokenizer, card and result.json."""
    spec = job.spec.train
    assert spec is not None  # JobSpec's validator saw to it
    with job.stage("corpus"):
        tokenizer, corpus = own_tokenizer(job.spec.corpus, spec.vocab_size)
    if not (job.out / "model").is_dir():
        with job.stage("train"):
            _train(job, tokenizer, corpus)


def own_tokenizer(spec: CorpusSpec, vocab_size: int) -> tuple[Tokenizer, Corpus]:
    """A tokenizer trained on a corpus, and the corpus in its tokens."""
    from extractor.tokenizer import train_tokenizer

    texts = itertools.chain.from_iterable(documents(spec, source) for source in spec.sources)
    tokenizer = train_tokenizer(texts, vocab_size)
    return tokenizer, build_corpus(spec, tokenizer)


def _train(job: Job, tokenizer: Tokenizer, corpus: Corpus) -> None:
    from extractor.card import train_card, train_result
    from extractor.tokenizer import save_tokenizer

    spec = job.spec.train
    assert spec is not None
    env, vocabulary = job.loop("train"), tokenizer.get_vocab_size()
    model: PreTrainedModel
    if spec.architecture == "gpt2":
        from extractor.dense.train import train_gpt2

        model = train_gpt2(spec, corpus, vocabulary, job.spec.seed, env)
    else:
        from extractor.sparse.train import train_sparse

        model = train_sparse(spec, corpus, vocabulary, job.spec.seed, env)
    result = train_result(job.spec, model, corpus, tokenizer)
    artifacts.write_json(job.out / "result.json", result)
    with artifacts.new_folder(job.out / "model") as folder:
        model.save_pretrained(folder)
        save_tokenizer(tokenizer, folder, spec.model.n_ctx)
        artifacts.write_text(folder / "README.md", train_card(job.spec, result))
