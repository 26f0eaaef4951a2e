"""The sparse model of a circuit job: a copy of the one given, or the twin of a dense model, made by bridging.

What lies in model/ of the result besides the sparse model, where a dense one was given: bridges/ (the PEFT adapter), dense.json (which
model it was, by references and digests) and faithfulness.json.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from extractor import artifacts, twins
from extractor.data.corpus import Corpus, build_corpus
from extractor.data.nature import AUTO, default_sources, nature_of
from extractor.data.tokenizer import copy_tokenizer, load_tokenizer
from extractor.errors import ExtractorError, NotFound
from extractor.models import ModelFolder, open_adapter, open_model

if TYPE_CHECKING:
    from extractor.bridges.coupled import Coupled
    from extractor.dense.load import DenseModel
    from extractor.pipeline import Job
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM
    from extractor.specs import BridgeSpec

DENSE_JSON = "dense.json"
FAITHFULNESS_JSON = "faithfulness.json"
FAITHFULNESS_ROWS = 64
KNOWN_TEXT_ROWS = 32
KNOWN_TEXT = 0.3  # nats a token by which a model should beat bigrams on the text it is bridged on


class Source:
    """The model that a job names, opened once. `dense` is None where it is a sparse model already."""

    def __init__(self, job: Job):
        spec = job.spec
        assert spec.model is not None  # JobSpec's validator saw to it
        self.folder: ModelFolder = open_model(spec.model)
        self.tokenizer = load_tokenizer(self.folder.path)
        self.dense = None if self.folder.is_sparse else open_dense(spec.model, spec.adapter)

    def corpus(self, job: Job) -> Corpus:
        """The job's text in this model's tokens; where none was asked for, the kind that the model knows."""
        spec = job.spec.corpus
        if spec.sources == AUTO:
            from extractor.dense.load import load_model

            nature = nature_of(self.dense.model if self.dense else load_model(self.folder), self.tokenizer)
            spec = spec.model_copy(update={"sources": default_sources(nature)})
            if nature == "text":
                job.progress.note(
                    f"{job.spec.model} knows prose better than code: bridging on {', '.join(spec.sources)}; --corpus or --dataset"
                )
        return build_corpus(spec, self.tokenizer, progress=job.progress)


def open_dense(reference: str, adapter: str | None) -> DenseModel:
    """The dense model of a JobSpec's references, the adapter merged. Raises what `open_model` and `load_dense` raise."""
    from extractor.dense.load import load_dense

    return load_dense(open_model(reference), open_adapter(adapter) if adapter else None)


def leave_twin(job: Job, source: Source, corpus: Corpus) -> None:
    """Make model/: copy a sparse model with all that came with it; bridge a dense one, or take it as it is where the job says so."""
    target = job.out / "model"
    if source.dense is not None and job.spec.subject == "twin":
        if not target.is_dir() and not take_kept(job):
            bridge(job, source, source.dense, corpus)
        keep(job)
    elif target.is_dir():
        return
    elif source.dense is not None:
        leave_dense(source, source.dense, target)
    else:
        with artifacts.new_folder(target) as folder:
            shutil.copytree(source.folder.path, folder, dirs_exist_ok=True)


def take_kept(job: Job) -> bool:
    """Copy the twin that an earlier job kept; whether there was one."""
    found = job.twin is not None and twins.fetch(job.twin, job.out)
    if found:
        job.progress.note("the twin is that of an earlier job: the same model, text and recipe")
    return found


def keep(job: Job) -> None:
    """Keep the twin for later jobs. A disk too full for that costs them time, not this job its result."""
    if job.twin is None or job.twin.is_dir():
        return
    try:
        twins.keep(job.out, job.twin)
    except (ExtractorError, OSError) as error:
        job.progress.note(f"the twin is not kept for other jobs: {error}")


def bridge(job: Job, source: Source, dense: DenseModel, corpus: Corpus) -> None:
    """model/ with the twin of a dense model. Raises SpecError where nothing fits into memory, Stopped."""
    from extractor.bridges.faithfulness import faithfulness
    from extractor.bridges.train import train_bridges

    spec = job.spec.bridge
    assert spec is not None
    spec = fitted(job, dense, spec)
    warn_of_unknown_text(job, dense, corpus)
    pair = train_bridges(dense, spec, corpus, job.spec.seed, job.loop("bridge"))
    found = faithfulness(pair, corpus, spec.optim.context, job.spec.seed, FAITHFULNESS_ROWS)
    with artifacts.new_folder(job.out / "model") as folder:
        pair.save(folder)
        copy_tokenizer(source.folder.path, folder)
        artifacts.write_json(folder / DENSE_JSON, dense.facts)
        artifacts.write_json(folder / FAITHFULNESS_JSON, found)
    pair.adapter.unload()  # what is found from here on is found with the files


def leave_dense(source: Source, dense: DenseModel, target: Path) -> None:
    """model/ with the dense model itself, as a sparse GPT without zeros. Raises UnsupportedModel for architectures that are not GPT-2's."""
    from extractor.bridges.as_sparse import dense_as_sparse

    model = dense_as_sparse(dense)
    with artifacts.new_folder(target) as folder:
        model.save_pretrained(folder)
        copy_tokenizer(source.folder.path, folder)


def fitted(job: Job, dense: DenseModel, spec: BridgeSpec) -> BridgeSpec:
    """The spec with the micro-batch that memory allows here, after saying what is to come. Raises SpecError where nothing fits."""
    from extractor import machine, plan_text, preflight

    plan, memory = preflight.plan(dense.model.config.to_dict(), spec), machine.memory_at_hand()
    preflight.check(plan, memory)
    job.progress.note(plan_text.line(plan, memory, machine.measure_speed(spec.optim.precision)))
    rows = preflight.fitting(plan, memory)
    return spec if rows >= spec.optim.batch else spec.model_copy(update={"optim": spec.optim.model_copy(update={"micro_batch": rows})})


def warn_of_unknown_text(job: Job, dense: DenseModel, corpus: Corpus) -> None:
    """Say so where the dense model is hardly better than bigrams on the corpus: the twin can then learn nothing worth knowing."""
    from extractor.bridges.faithfulness import bigram_loss
    from extractor.sparse.bigram import Counts
    from extractor.training import next_token_loss

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


def open_twin(folder: Path, dense: DenseModel | None = None, sparse: SparseGPTForCausalLM | None = None) -> Coupled:
    """The pair whose sparse half is `folder`. Raises NotFound where there are no bridges, or the dense model is no longer to be had.

    dense, sparse   the halves, where they are open already
    """
    from extractor.bridges.coupled import open_coupled

    if dense is None:
        if not (folder / DENSE_JSON).is_file():
            raise NotFound(f"model {folder} has no bridges: it was not made from a dense model")
        known = artifacts.read_json(folder / DENSE_JSON)
        dense = open_dense(known["model"], known["adapter"])
    return open_coupled(folder, dense, sparse)
