"""What the stages of a circuit job hand to each other: the model as named, the loaded model, the splits of one task, one circuit."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from extractor.bridges.pair import open_pair
from extractor.circuits.circuit import Circuit
from extractor.circuits.mean_activations import measure_means
from extractor.data.build_corpus import build_corpus
from extractor.data.corpus import Corpus
from extractor.data.prompts import TaskBatch, TokenizedTask
from extractor.data.sources import AUTO, default_sources
from extractor.data.text_kind import measure_text_kind
from extractor.errors import NotFound
from extractor.models.load import open_dense
from extractor.models.reference import ModelFolder, open_model
from extractor.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from extractor.bridges.pair import BridgedPair
    from extractor.jobs.job import Job
    from extractor.models.load import DenseModel
    from extractor.sparse.modeling_sparse_gpt import SparseGPTForCausalLM
    from extractor.spec.schema import JobSpec


MAX_DRAWN_EDGES = 4000  # edges; a picture of more takes minutes and tens of megabytes, and shows nothing


@dataclass(frozen=True)
class TaskSplits:
    """The task under the model's tokenizer, cut into its three splits."""

    expression: TokenizedTask
    train: TaskBatch
    select: TaskBatch
    held_out: TaskBatch


@dataclass(frozen=True)
class LoadedModel:
    """The sparse model of a job, on the device and frozen, with what it reads and the name that its circuits carry."""

    model: SparseGPTForCausalLM
    tokenizer: Tokenizer
    corpus: Corpus
    name: str
    spec: JobSpec
    folder: Path
    dense: DenseModel | None = None

    @cached_property
    def pair(self) -> BridgedPair | None:
        """The model with the dense one it was bridged to; None where there is none, or it is no longer to be had."""
        try:
            return open_pair(self.folder, self.dense, self.model)
        except NotFound:
            return None

    @cached_property
    def means(self) -> dict[str, torch.Tensor]:
        """The mean of every node over the corpus, by site: the same for all tasks."""
        assert self.spec.prune is not None
        return measure_means(self.model, self.corpus, self.spec.prune.mean_tokens, self.spec.seed)


@dataclass(frozen=True)
class CircuitRun:
    """One circuit to be found. `suffix`, ' TASK', tells its stages from those of the job's other circuits; '' where there is one only."""

    job: Job
    subject: LoadedModel
    question: TaskSplits
    suffix: str = ""

    @property
    def task(self) -> str:
        return self.question.expression.task.name

    def stage(self, name: str) -> AbstractContextManager[None]:
        return self.job.stage(name + self.suffix)

    def is_drawn(self, circuit: Circuit) -> bool:
        """Whether picture and report are worth making: among many circuits, one that is nearly the full model is not."""
        return not self.suffix or len(circuit.edges) <= MAX_DRAWN_EDGES

    def seconds(self) -> dict[str, float]:
        """How long the stages took that this circuit needed, by plain name."""
        mine = {name: took for name, took in self.job.seconds.items() if " " not in name or name.endswith(self.suffix or "\0")}
        return {name.removesuffix(self.suffix): took for name, took in mine.items()}


class GivenModel:
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
            from extractor.models.load import load_model

            nature = measure_text_kind(self.dense.model if self.dense else load_model(self.folder), self.tokenizer)
            spec = spec.model_copy(update={"sources": default_sources(nature)})
            if nature == "text":
                job.progress.note(
                    f"{job.spec.model} knows prose better than code: bridging on {', '.join(spec.sources)}; --corpus or --dataset"
                )
        return build_corpus(spec, self.tokenizer, progress=job.progress)
