"""The bridge stage: makes model/ of a circuit job, a copy of the given sparse model or a sparse model bridged to the given dense one.

For a dense model, model/ also has bridges/ (the PEFT adapter), dense.json (references and digests of the dense model) and
faithfulness.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from extractor import files
from extractor.data.corpus import Corpus
from extractor.data.focus import FocusPrompts, focus_prompts
from extractor.data.prompts import get_task
from extractor.data.task_choice import open_tasks
from extractor.errors import ExtractorError
from extractor.jobs import bridged_cache
from extractor.jobs.context import GivenModel
from extractor.jobs.cost.bridging import longest_prompt
from extractor.models.sparse_folder import DENSE_JSON, FAITHFULNESS_JSON, copy_sparse
from extractor.models.tokenizer import copy_tokenizer
from tasks.base import task_names

if TYPE_CHECKING:
    from extractor.jobs.job import Job
    from extractor.models.load import DenseModel
    from extractor.spec.schema import BridgeSpec

OUTLIER_ROWS = 8  # training sequences
FAITHFULNESS_ROWS = 64  # held-out sequences
BIGRAM_GAIN_ROWS = 32  # held-out sequences
MIN_BIGRAM_GAIN = 0.3  # nats per token; a smaller gain of the dense model over bigrams means that the corpus does not suit it


def make_model(job: Job, given: GivenModel, corpus: Corpus) -> None:
    """Make model/: copy a sparse model with its known files; bridge a dense one, or convert it where the job prunes it itself."""
    target = job.out / "model"
    job.keep_generator_version()
    if given.dense is not None:
        files.write_json(job.work / DENSE_JSON, given.dense.facts)  # a later attempt goes on with this model only
    if given.dense is not None and not job.spec.prunes_dense:
        if not target.is_dir() and not load_from_cache(job, given.dense):
            bridge(job, given, given.dense, corpus)
        store_in_cache(job)
    elif target.is_dir():
        return
    elif given.dense is not None:
        write_dense(given, given.dense, target)
    else:
        with files.new_folder(target) as folder:
            left = copy_sparse(given.folder.path, folder)
        if left:
            job.progress.note(f"not copied with the model from {given.folder.path}: {', '.join(left[:5])} ({len(left)} in total)")


def load_from_cache(job: Job, dense: DenseModel) -> bool:
    """Copy the bridged model from the cache into model/. Returns False where the cache does not have it.

    The cache has one of another version of a bundled model where a job that the last release began has stored its own: it is left alone.
    """
    known = job.bridged / "model" / DENSE_JSON if job.bridged else None
    if known and known.is_file() and files.read_json(known).get("sha256") != dense.facts["sha256"]:
        job.progress.note(f"the cached bridged model is that of another version of {job.spec.model}; this job trains its own")
        job.bridged = None
    was_there = job.bridged is not None and job.bridged.is_dir()
    is_cached = job.bridged is not None and bridged_cache.load(job.bridged, job.out)
    if was_there and not is_cached:
        job.progress.note("the cached bridged model of an earlier job is damaged; it is deleted and trained again")
    if is_cached:
        job.progress.note("using the cached bridged model of an earlier job with the same model, corpus and settings")
    return is_cached


def store_in_cache(job: Job) -> None:
    """Store the bridged model in the cache for later jobs. An error, such as a full disk, does not stop this job."""
    if job.bridged is None or job.bridged.is_dir():
        return
    try:
        bridged_cache.store(job.out, job.bridged)
    except (ExtractorError, OSError) as error:
        job.progress.note(f"the bridged model is not cached for other jobs: {error}")


def bridge(job: Job, given: GivenModel, dense: DenseModel, corpus: Corpus) -> None:
    """Train a sparse model with bridges to the dense one and write model/. Raises SpecError where it does not fit into memory, Stopped."""
    from extractor.bridges.faithfulness import faithfulness
    from extractor.bridges.train import train_bridges

    spec = job.spec.bridge
    assert spec is not None
    spec = with_micro_batch(job, dense, spec)
    warn_of_unsuited_corpus(job, dense, corpus)
    note_outliers(job, dense, corpus)
    pair = train_bridges(dense, spec, corpus, job.spec.seed, job.loop("bridge"), focus_of(job, given, spec))
    job.progress.phase("faithfulness")
    measured = faithfulness(pair, corpus, spec.optim.context, job.spec.seed, FAITHFULNESS_ROWS)
    with files.new_folder(job.out / "model") as folder:
        pair.save(folder)
        copy_tokenizer(given.folder.path, folder)
        files.write_json(folder / DENSE_JSON, dense.facts)
        files.write_json(folder / FAITHFULNESS_JSON, measured)
    pair.adapter.unload()  # later stages open the pair from its files


def focus_of(job: Job, given: GivenModel, spec: BridgeSpec) -> FocusPrompts | None:
    """The prompts that are part of a bridging: of all tasks of tasks/, so that jobs of any of them share it, and of the job's own tasks."""
    if not spec.focus:
        return None
    tasks = {name: get_task(name) for name in task_names()} | open_tasks(job.spec.tasks, job.spec.task_files)
    longest = longest_prompt(given.dense.model.config.to_dict(), spec) if given.dense else None
    longest = longest or spec.optim.context
    note, following = job.progress.note, spec.focus_tokens
    return focus_prompts(tasks.values(), given.tokenizer, longest, job.spec.seed, given.vocab_size, note, following)


def write_dense(given: GivenModel, dense: DenseModel, target: Path) -> None:
    """Write the dense model itself to model/, as a sparse GPT without zeros. Raises UnsupportedModel for other architectures than GPT-2."""
    from extractor.bridges.as_sparse import dense_as_sparse

    model = dense_as_sparse(dense)
    with files.new_folder(target) as folder:
        model.save_pretrained(folder)
        copy_tokenizer(given.folder.path, folder)


def with_micro_batch(job: Job, dense: DenseModel, spec: BridgeSpec) -> BridgeSpec:
    """The spec with the micro-batch that fits into memory; notes the cost. Raises SpecError where not even one sequence fits."""
    from extractor.jobs.cost import bridging, hardware, text

    cost, memory = bridging.bridging_cost(dense.model.config.to_dict(), spec), hardware.available_memory()
    bridging.check(cost, memory)
    job.progress.note(text.line(cost, memory, hardware.measure_speed(spec.optim.precision)))
    rows = bridging.largest_micro_batch(cost, memory)
    return spec if rows >= spec.optim.batch else spec.model_copy(update={"optim": spec.optim.model_copy(update={"micro_batch": rows})})


def warn_of_unsuited_corpus(job: Job, dense: DenseModel, corpus: Corpus) -> None:
    """Note a warning where the dense model hardly beats bigrams on the corpus: the sparse model then has little to learn from it."""
    from extractor.bridges.faithfulness import bigram_loss
    from extractor.sparse.bigram import Counts
    from extractor.training.loop import next_token_loss

    assert job.spec.bridge is not None
    ids, size = corpus.held_out_batch(job.spec.seed, BIGRAM_GAIN_ROWS, job.spec.bridge.optim.context), dense.model.config.vocab_size
    with torch.no_grad():
        losses = [next_token_loss(dense.model, row[None].to(dense.model.device)).item() for row in ids]
    gain = bigram_loss(Counts(size, *corpus.bigram_triples(size)), ids) - sum(losses) / len(losses)
    if gain < MIN_BIGRAM_GAIN:
        job.progress.note(
            f"warning: on this corpus {job.spec.model} is only {gain:.2f} nats per token better than a bigram model; "
            "it may not be the kind of text the model was trained on. Choose another with --corpus"
        )


def note_outliers(job: Job, dense: DenseModel, corpus: Corpus) -> None:
    """Note the sites of the dense model with massive activations, if any."""
    from extractor.bridges.outliers import outliers_line, site_outliers
    from extractor.models.dense.base import wrap_dense

    assert job.spec.bridge is not None
    ids = corpus.batch(job.spec.seed, 0, OUTLIER_ROWS, job.spec.bridge.optim.context).to(dense.model.device)
    if (line := outliers_line(site_outliers(wrap_dense(dense.model), ids))) is not None:
        job.progress.note(line)
