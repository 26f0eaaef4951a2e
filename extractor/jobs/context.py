"""Values that the stages of a circuit job pass on: the given model, the loaded model, the splits of one task, one run for a circuit."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from extractor.bridges.pair import BridgedPair, open_pair
from extractor.circuits.mean_activations import measure_means
from extractor.data.build_corpus import build_corpus
from extractor.data.corpus import Corpus
from extractor.data.prompts import TaskBatch, TokenizedTask
from extractor.data.self_text import sampled_corpus
from extractor.data.sources import AUTO, NO_DENSE_TO_WRITE, SELF, TextKind, default_sources, sources_of_training
from extractor.data.text_kind import measure_text_kind
from extractor.errors import BrokenArtifact, HubUnavailable, NotFound, SpecError
from extractor.files import read_json, write_json
from extractor.models.checks import vocab_size_of
from extractor.models.load import open_dense
from extractor.models.reference import BUNDLED, ModelFolder, model_digest, open_model
from extractor.models.sparse_folder import DENSE_JSON
from extractor.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from extractor.jobs.job import Job
    from extractor.models.load import DenseModel
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM
    from extractor.spec.schema import CorpusSpec, JobSpec


SOURCES = "sources.json"  # in .work: the sources that were chosen for 'auto'


@dataclass(frozen=True)
class TaskSplits:
    """A task in the model's tokens, and batches of its splits.

    shifted   shifted held-out prompts;  shifted_search: shifted pairs of the train and the select split. None where there are none that fit
    """

    tokenized: TokenizedTask
    train: TaskBatch
    select: TaskBatch
    held_out: TaskBatch
    shifted: TaskBatch | None = None
    shifted_search: tuple[TaskBatch, TaskBatch] | None = None


@dataclass(frozen=True)
class LoadedModel:
    """The model that a job prunes, on the device and frozen, with its tokenizer and corpus. `name`: its name in circuit.json."""

    model: SparseGPTForCausalLM
    tokenizer: Tokenizer
    corpus: Corpus
    name: str
    spec: JobSpec
    folder: Path
    dense: DenseModel | None = None

    @cached_property
    def pair(self) -> BridgedPair | None:
        """The model with the dense model it is bridged to; None without one, or where the dense model is no longer available."""
        return self._pair_or_why if isinstance(self._pair_or_why, BridgedPair) else None

    @property
    def why_no_pair(self) -> str | None:
        """Why `pair` is None, in one line."""
        return self._pair_or_why if isinstance(self._pair_or_why, str) else None

    @cached_property
    def _pair_or_why(self) -> BridgedPair | str:
        try:
            return open_pair(self.folder, self.dense, self.model)
        except (NotFound, HubUnavailable) as error:
            return str(error)

    @cached_property
    def means(self) -> dict[str, torch.Tensor]:
        """site -> mean of every node over the corpus, (width,). The same for all tasks."""
        assert self.spec.prune is not None
        return measure_means(self.model, self.corpus, self.spec.prune.mean_tokens, self.spec.seed)


@dataclass(frozen=True)
class CircuitRun:
    """The search for one circuit.

    label      the task's name in the names of stages; '' where the job has one circuit only
    behaviour  whose behaviour the task is, see `bridges.behaviour`; None without a dense model beside the pruned one
    """

    job: Job
    loaded: LoadedModel
    splits: TaskSplits
    label: str = ""
    behaviour: dict | None = None

    @property
    def task(self) -> str:
        return self.splits.tokenized.task.name

    @property
    def why_not_dense(self) -> str | None:
        """Why the circuit says nothing of the dense model; None where it does, or where there is no dense model.

        Judged on held-out prompts; what shifted prompts say is in the result.
        """
        from extractor.bridges.behaviour import why_not_dense

        return None if self.behaviour is None else why_not_dense(self.behaviour)

    @property
    def suffix(self) -> str:
        """Ends the names of this circuit's files below .work, in a job with several circuits."""
        return f" {self.label}" if self.label else ""

    def stage(self, name: str) -> AbstractContextManager[None]:
        return self.job.stage(name, self.label)

    def seconds(self) -> dict[str, float]:
        """{stage: seconds} of the stages that this circuit needed, shared ones first."""
        return {**self.job.seconds.get("", {}), **self.job.seconds.get(self.label, {})}


def has_begun(job: Job) -> bool:
    """Whether an earlier attempt has begun the bridging."""
    return any(job.work.glob("bridge-*.safetensors")) or (job.out / "model").is_dir()


def digest_at_begin(job: Job) -> str | None:
    """The digest of the dense model that an earlier attempt began with; None where none has begun, or where it is not known.

    The last release wrote down only that of a finished bridging. Its bundled models are the first versions.
    """
    for path in (job.out / "model" / DENSE_JSON, job.work / DENSE_JSON):
        if path.is_file():
            return read_json(path).get("sha256")
    first = BUNDLED / f"{job.spec.model}-1"
    is_bundled = first.parent == BUNDLED and first.is_dir()
    return model_digest(first) if has_begun(job) and is_bundled else None


class GivenModel:
    """The model that the job's spec names; `dense` is None for a sparse model. `vocab_size`: the tokens that it has embeddings for.

    Raises what `open_model`, `load_tokenizer` and `open_dense` raise.
    """

    def __init__(self, job: Job):
        spec = job.spec
        assert spec.model is not None  # JobSpec's validator checks it
        begun = digest_at_begin(job)
        self.folder: ModelFolder = open_model(spec.model, begun)
        self.tokenizer = load_tokenizer(self.folder.path)
        self.dense = None if self.folder.is_sparse else open_dense(spec.model, spec.adapter, begun)
        if self.dense and begun not in (None, self.dense.facts["sha256"]):
            raise BrokenArtifact(f"model {spec.model} has changed since this job began; restore it, or submit the job again")
        self.vocab_size = self.dense.model.config.vocab_size if self.dense else vocab_size_of(self.folder.path)

    def corpus(self, job: Job) -> Corpus:
        """The job's corpus in this model's tokens; without a chosen one, text that the model knows. Raises SpecError, Stopped."""
        spec = job.spec.corpus
        if spec.sources == AUTO and (kept := self._kept_sources(job)):
            spec = spec.model_copy(update={"sources": kept})
        elif spec.sources == AUTO:
            text_kind = self._text_kind()
            sources = default_sources(text_kind, sources_of_training(self.folder.path))
            if self.dense is None:
                sources = tuple(source for source in sources if source != SELF)
            spec = spec.model_copy(update={"sources": sources})
            write_json(job.work / SOURCES, list(sources))
            better = "prose better than code" if text_kind == "text" else "code better than prose"
            job.progress.note(
                f"{job.spec.model} knows {better}: its text is {', '.join(sources)}; choose another corpus with --corpus or --dataset"
            )
        if (text := job.text(spec)) != spec:
            spec, job.bridged = text, None  # the address in the cache is that of the text of this version
        if SELF not in spec.sources:
            return build_corpus(spec, self.tokenizer, progress=job.progress, vocab_size=self.vocab_size)
        return self._with_own_text(job, spec)

    def _kept_sources(self, job: Job) -> tuple[str, ...]:
        """The sources that an earlier attempt of this job chose for 'auto'; () where it has chosen none.

        The last release wrote down no choice: it always had generated programs.
        """
        path = job.work / SOURCES
        if path.is_file():
            return tuple(read_json(path))
        if not has_begun(job):
            return ()
        return default_sources(self._text_kind(), ("generated",))

    def _text_kind(self) -> TextKind:
        from extractor.models.load import load_model

        return measure_text_kind(self.dense.model if self.dense else load_model(self.folder), self.tokenizer)

    def _with_own_text(self, job: Job, spec: CorpusSpec) -> Corpus:
        """The corpus with the text that the dense model writes in place of the source 'self'."""
        if self.dense is None:
            raise SpecError(NO_DENSE_TO_WRITE.format(job.spec.model))
        rest = spec.model_copy(update={"sources": tuple(source for source in spec.sources if source != SELF)})
        folders = build_corpus(rest, self.tokenizer, progress=job.progress, vocab_size=self.vocab_size).folders
        own = sampled_corpus(self.dense.model, self.dense.facts, self.tokenizer, spec.self_tokens, spec.seed, job.progress)
        return Corpus(*folders, *own.folders)
