"""The train job: corpus -> train -> (prune -> validate -> report) for each task.

The result has model/, result.json and circuits/TASK/. With `match_loss` the job trains several widths and keeps the smallest that reaches
this loss.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from extractor import files
from extractor.data.build_corpus import corpus_for
from extractor.data.corpus import Corpus
from extractor.errors import UnsupportedModel
from extractor.spec.schema import JobSpec, TrainSpec
from extractor.training.loop import LoopEnvironment

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from extractor.jobs.job import Job


def run_train_job(job: Job) -> None:
    """Train a model from scratch, write it with tokenizer, card and result.json, and find a circuit for each task.

    Raises UnknownTask, NotFound and SpecError for tasks that do not exist, UnsupportedModel for circuits in a model that is no sparse_gpt.
    """
    spec = job.spec.train
    assert spec is not None  # JobSpec's validator checks it
    check_tasks(job.spec)
    job.expect()
    with job.stage("corpus"):
        tokenizer, corpus = corpus_for(job.text(job.spec.corpus), spec, job.progress)
        longest = max(spec.optim.context, spec.model.n_ctx if job.spec.tasks else 0)  # circuits read texts as long as the model's context
        for line in corpus.check_context(longest, spec.optim.context):
            job.progress.note(line)
    job.keep_generator_version()
    if not (job.out / "model").is_dir():
        if spec.match_loss is None:
            with job.stage("train"):
                write_model(job, job.out, spec, tokenizer, corpus, job.loop("train"))
        else:
            match_width(job, spec, spec.match_loss, tokenizer, corpus)
    if job.spec.tasks:
        from extractor.jobs.circuit_job import circuits_of_trained, write_task_index

        circuits = circuits_of_trained(job, corpus)
        numbers = files.read_json(job.out / "result.json")
        files.write_json(job.out / "result.json", numbers | {"circuits": circuits})
        if len(circuits) > 1:
            write_task_index(job, [{"task": task} | facts for task, facts in circuits.items()], "sparse_gpt")


def check_tasks(spec: JobSpec) -> None:
    """Check the job's tasks before any training. Raises UnknownTask, NotFound, SpecError, UnsupportedModel."""
    from extractor.data.task_choice import open_tasks

    open_tasks(spec.tasks, spec.task_files)
    if spec.tasks and spec.train is not None and spec.train.architecture != "sparse_gpt":
        raise UnsupportedModel(
            f"circuits are found in sparse_gpt models, this job trains a {spec.train.architecture}; leave out its tasks, "
            "or train the dense baseline of a sparse model instead"
        )


def match_width(job: Job, spec: TrainSpec, target: float, tokenizer: Tokenizer, corpus: Corpus) -> None:
    """Find the smallest width that reaches the target loss (`training.width_search`) and write its model/ and result.json.

    target: nats per token on held-out text. Each width has its own folder below .work, so that a resumed search repeats no training.
    """
    from extractor.training.width_search import WidthResult, search

    def folder_of(width: int) -> Path:
        return job.work / f"width-{width}"

    def train(at_width: TrainSpec) -> WidthResult:
        width = at_width.model.d_model
        folder = folder_of(width)
        if not (folder / "model").is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            with job.stage("train", shown=f"train width {width}"):
                write_model(job, folder, at_width, tokenizer, corpus, job.loop("train", folder))
        return WidthResult.of(width, files.read_json(folder / "result.json"))

    found = search(spec, target, train)
    chosen = folder_of(found.d_model)
    numbers = files.read_json(chosen / "result.json")
    files.write_json(job.out / "result.json", numbers | {"match": found.to_json()})
    files.write_text(job.out / "metrics.jsonl", (chosen / "metrics.jsonl").read_text(encoding="utf-8"))
    with files.new_folder(job.out / "model") as folder:
        shutil.copytree(chosen / "model", folder, dirs_exist_ok=True)


def write_model(job: Job, out: Path, spec: TrainSpec, tokenizer: Tokenizer, corpus: Corpus, env: LoopEnvironment) -> None:
    """Train a model of this spec; write result.json and, last, model/ into `out`."""
    from extractor.models.tokenizer import save_tokenizer
    from extractor.training.distributed import train_model
    from extractor.training.model_card import train_card, train_result

    model = train_model(spec, corpus, tokenizer.get_vocab_size(), job.spec.seed, env)
    made = job.spec.model_copy(update={"train": spec})
    job.progress.phase("numbers")
    result = train_result(made, model, corpus, tokenizer)
    files.write_json(out / "result.json", result)
    with files.new_folder(out / "model") as folder:
        model.save_pretrained(folder)
        save_tokenizer(tokenizer, folder, spec.model.n_ctx)
        files.write_text(folder / "README.md", train_card(made, result))
