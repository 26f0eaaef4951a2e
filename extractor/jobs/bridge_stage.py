"""The sparse model of a circuit job: a copy of the one given, or the one that a dense model is bridged to.

What lies in model/ of the result besides the sparse model, where a dense one was given: bridges/ (the PEFT adapter), dense.json (which
model it was, by references and digests) and faithfulness.json.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from extractor import files
from extractor.bridges.pair import DENSE_JSON, FAITHFULNESS_JSON
from extractor.data.corpus import Corpus
from extractor.errors import ExtractorError
from extractor.jobs import bridged_cache
from extractor.jobs.context import GivenModel
from extractor.models.tokenizer import copy_tokenizer

if TYPE_CHECKING:
    from extractor.jobs.job import Job
    from extractor.models.load import DenseModel
    from extractor.spec.schema import BridgeSpec

FAITHFULNESS_ROWS = 64
KNOWN_TEXT_ROWS = 32
KNOWN_TEXT = 0.3  # nats a token by which a model should beat bigrams on the text it is bridged on


def make_model(job: Job, source: GivenModel, corpus: Corpus) -> None:
    """Make model/: copy a sparse model with all that came with it; bridge a dense one, or take it as it is where the job says so."""
    target = job.out / "model"
    if source.dense is not None and not job.spec.prunes_dense:
        if not target.is_dir() and not load_from_cache(job):
            bridge(job, source, source.dense, corpus)
        store_in_cache(job)
    elif target.is_dir():
        return
    elif source.dense is not None:
        write_dense(source, source.dense, target)
    else:
        with files.new_folder(target) as folder:
            shutil.copytree(source.folder.path, folder, dirs_exist_ok=True)


def load_from_cache(job: Job) -> bool:
    """Copy the bridged model that an earlier job kept. False: there is none."""
    found = job.bridged is not None and bridged_cache.load(job.bridged, job.out)
    if found:
        job.progress.note("the bridged model of an earlier job is used: same model, text and settings")
    return found


def store_in_cache(job: Job) -> None:
    """Keep the bridged model for later jobs. Where the disk is too full, this job goes on without that."""
    if job.bridged is None or job.bridged.is_dir():
        return
    try:
        bridged_cache.store(job.out, job.bridged)
    except (ExtractorError, OSError) as error:
        job.progress.note(f"the bridged model is not kept for other jobs: {error}")


def bridge(job: Job, source: GivenModel, dense: DenseModel, corpus: Corpus) -> None:
    """Write model/: the sparse model bridged to a dense one. Raises SpecError where nothing fits into memory, Stopped."""
    from extractor.bridges.faithfulness import faithfulness
    from extractor.bridges.train import train_bridges

    spec = job.spec.bridge
    assert spec is not None
    spec = fitted(job, dense, spec)
    warn_of_unknown_text(job, dense, corpus)
    pair = train_bridges(dense, spec, corpus, job.spec.seed, job.loop("bridge"))
    found = faithfulness(pair, corpus, spec.optim.context, job.spec.seed, FAITHFULNESS_ROWS)
    with files.new_folder(job.out / "model") as folder:
        pair.save(folder)
        copy_tokenizer(source.folder.path, folder)
        files.write_json(folder / DENSE_JSON, dense.facts)
        files.write_json(folder / FAITHFULNESS_JSON, found)
    pair.adapter.unload()  # what is found from here on is found with the files


def write_dense(source: GivenModel, dense: DenseModel, target: Path) -> None:
    """model/ with the dense model itself, as a sparse GPT without zeros. Raises UnsupportedModel for architectures that are not GPT-2's."""
    from extractor.bridges.as_sparse import dense_as_sparse

    model = dense_as_sparse(dense)
    with files.new_folder(target) as folder:
        model.save_pretrained(folder)
        copy_tokenizer(source.folder.path, folder)


def fitted(job: Job, dense: DenseModel, spec: BridgeSpec) -> BridgeSpec:
    """The spec with the micro-batch that memory allows here, after saying what is to come. Raises SpecError where nothing fits."""
    from extractor.jobs.cost import bridging, hardware, text

    plan, memory = bridging.bridging_cost(dense.model.config.to_dict(), spec), hardware.memory_at_hand()
    bridging.check(plan, memory)
    job.progress.note(text.line(plan, memory, hardware.measure_speed(spec.optim.precision)))
    rows = bridging.largest_micro_batch(plan, memory)
    return spec if rows >= spec.optim.batch else spec.model_copy(update={"optim": spec.optim.model_copy(update={"micro_batch": rows})})


def warn_of_unknown_text(job: Job, dense: DenseModel, corpus: Corpus) -> None:
    """Say so where the dense model is hardly better than bigrams on the corpus: the sparse model then has nothing to learn from it."""
    from extractor.bridges.faithfulness import bigram_loss
    from extractor.sparse.bigram import Counts
    from extractor.training.loop import next_token_loss

    assert job.spec.bridge is not None
    ids, size = corpus.held_out_batch(job.spec.seed, KNOWN_TEXT_ROWS, job.spec.bridge.optim.context), dense.model.config.vocab_size
    with torch.no_grad():
        losses = [next_token_loss(dense.model, row[None].to(dense.model.device)).item() for row in ids]
    gain = bigram_loss(Counts(size, *corpus.bigram_triples(size)), ids) - sum(losses) / len(losses)
    if gain < KNOWN_TEXT:
        job.progress.note(
            f"warning: on this corpus {job.spec.model} is {gain:.2f} nats a token better than bigrams; "
            "is it the kind of text the model was trained on? Name another with --corpus"
        )
