"""What a job is, stage by stage: frozen pydantic models that forbid unknown keys.

One `JobSpec` is the only thing that travels: it is written to a file for `extract run`, put in the job record for the queue, and
left as spec.json in the result. Lengths are in tokens, losses in nats, fractions between 0 and 1. The paper's value stands in each field.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from extractor.errors import SpecError

CIRCUIT_STAGES = ("prune", "validate", "report")


CHANCE = math.log(2)  # task loss of a circuit that knows nothing
MAX_BIGRAM_VOCABULARY = 8192  # a dense (V, V) table beyond this costs more memory than the model
Fraction = Annotated[float, Field(gt=0, le=1)]
MOST_LETTERS = 80  # of what a message quotes
Count = Annotated[int, Field(ge=1, le=10**12)]
Positive = Annotated[float, Field(gt=0)]
TaskLoss = Annotated[float, Field(gt=0, lt=CHANCE)]


class Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DatasetSpec(Spec):
    """A Hugging Face dataset, streamed: never downloaded whole."""

    name: str  # hub id, or the absolute folder of a local dataset
    config: str | None = None  # the dataset's configuration ("subset"), where it has several
    split: str = "train"
    revision: str | None = None  # commit sha, pinned when the job is made; None for a folder
    text_column: str = "text"
    tokens: Count = 10_000_000  # at most this many are taken


class CorpusSpec(Spec):
    """Where text comes from; every source and dataset weighs the same.

    `sources` are 'stdlib', 'generated', 'prose', or absolute paths to a folder, a .txt, .py or .jsonl file; or 'auto' alone: the kind of
    text that the model of a circuit job knows.
    """

    sources: tuple[str, ...] = ("stdlib", "generated")
    datasets: tuple[DatasetSpec, ...] = ()
    generated_programs: Count = 12_000  # programs of the seeded generator, about 190 tokens each at a vocabulary of 1,024
    seed: int = 0  # of the generator of programs

    @model_validator(mode="after")
    def _has_text(self) -> CorpusSpec:
        if not self.sources and not self.datasets:
            raise ValueError("a corpus needs at least one source or dataset")
        return self


class SparseModelSpec(Spec):
    """Shape of the weight-sparse GPT (Sec. 2.1, App. A.1)."""

    n_layer: Count = 2  # paper: 8
    d_model: Count = 128  # paper: 2048; the authors' script: 1024
    d_head: Count = 16  # paper: 16
    mlp_ratio: Count = 4  # paper: 4
    n_ctx: Count = 64  # tokens; paper: 256
    activation: Literal["gelu", "relu"] = "gelu"  # paper: exact GELU
    activation_frac: Fraction = 0.25  # AbsTopK keeps this share of each site; paper: 1/4; 1 switches it off
    d_pos_emb: int = Field(0, ge=0)  # position channels beside the residual that every read sees; paper: none
    added_positions: bool = False  # positions added to the embedding; a bridge switches them on where the dense model has them
    sinks: bool = True  # a learned logit per head in the softmax denominator; the authors' script: off
    bigram: Literal["none", "dense", "counts", "low_rank"] = "dense"  # by current token, added to the logits; paper: dense (V, V)
    bigram_top: Count = 32  # 'counts': entries kept per row, those seen most often in the corpus
    bigram_rank: Count = 64  # 'low_rank': (V, rank) times (rank, V)
    bigram_init: Literal["counts", "uniform"] = "counts"  # log frequencies of the corpus (ours), or uniform in [0, 0.02] (authors' script)


class SparsitySpec(Spec):
    """How many weights stay nonzero, and when (Sec. 2.1, App. A.2)."""

    weight_frac: Fraction = 0.05  # nonzero share of every matrix; paper: about 1/1000 at its scale; authors' script: 1/64
    embedding_frac: Fraction = 0.1  # of embedding and unembedding; a fraction of their own, as in the authors' script
    bias_frac: Fraction = 0.25  # of every bias, as in the authors' script
    min_per_neuron: int = Field(4, ge=0)  # nonzeros kept per neuron and attention channel, on its own side; paper: 4
    anneal: Literal["linear", "exponential"] = "linear"  # of the L0 fraction from 1 to its target; paper: linear
    anneal_start: float = Field(0.01, ge=0, le=1)  # share of steps; authors' script: 0.01
    anneal_end: Fraction = 0.5  # share of steps; paper: 0.5, and 0.8 for the largest and sparsest


class OptimSpec(Spec):
    """The optimiser and the batches (App. A.2)."""

    steps: Count = 1000  # optimiser steps
    batch: Count = 64  # sequences a step, over all ranks; authors' script: 512
    context: Count = 64  # tokens a sequence; paper: 256
    lr: float = Field(1.28e-2, gt=0)  # peak; authors' script: 1.28e-2 at d_model 1024
    beta1: float = Field(0.9, ge=0, lt=1)  # paper: 0.9
    beta2: float = Field(0.95, ge=0, lt=1)  # paper: 0.95
    eps: float = Field(0.1, gt=0)  # paper: 0.1, which makes Adam close to momentum SGD
    weight_decay: float = Field(0.1, ge=0)  # of matrices; paper: 0.1
    decay_order: Literal["adamw", "after_projection"] = "adamw"  # when weights decay; authors' script: after the projection
    warmup: float = Field(0.01, ge=0, le=1)  # share of steps; paper: 0.01, longer helps slightly
    sharkfin: bool = True  # learning rate times sqrt(target / current L0 fraction); without it annealing gives nothing (paper)
    gradient: Literal["normalise", "clip"] = "normalise"  # divide by the common RMS (authors' script), or clip it to 1 (paper's text)
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast; weights, moments and losses stay fp32
    micro_batch: Count | None = None  # sequences a forward pass; None: all, halved whenever memory runs out


class TrainSpec(Spec):
    """A sparse model from scratch, or (`architecture='gpt2'`) an ordinary Hugging Face GPT-2."""

    architecture: Literal["sparse_gpt", "gpt2"] = "sparse_gpt"
    vocab_size: Count = 1024  # of the BPE trained on the corpus; paper: 2048
    tokenizer: str | None = None  # a model reference whose tokenizer is taken instead
    match_loss: float | None = Field(None, gt=0)  # nats a token on held-out text: find the smallest width that reaches it
    tensorboard: bool = False  # also write event files to tensorboard/
    model: SparseModelSpec = SparseModelSpec()
    sparsity: SparsitySpec = SparsitySpec()
    optim: OptimSpec = OptimSpec()

    @property
    def is_dense(self) -> bool:
        """Whether nothing is sparse: every weight and every activation stays."""
        sparsity = self.sparsity
        return sparsity.weight_frac == sparsity.embedding_frac == sparsity.bias_frac == self.model.activation_frac == 1

    @model_validator(mode="after")
    def _context_fits(self) -> TrainSpec:
        if self.optim.context > self.model.n_ctx:
            raise ValueError(f"optim.context ({self.optim.context}) is longer than model.n_ctx ({self.model.n_ctx})")
        return self


class BridgeSpec(Spec):
    """A sparse model coupled to a frozen dense one (Sec. 2.3, App. A.3). Layers and vocabulary come from the dense model.

    init='dense' starts from the dense model's weights (at least as wide, with its d_head, without sinks), and AbsTopK is annealed with
    the weights.
    """

    init: Literal["scratch", "dense"] = "scratch"  # paper: scratch
    over_sites: Literal["mean", "sum"] = "mean"  # how the terms that every site has enter the loss; paper: sum
    estimator: Literal["split", "exact"] = "split"  # of the paths' KL: each sequence crosses at one site, or at all (paper)
    model: SparseModelSpec = SparseModelSpec()
    sparsity: SparsitySpec = SparsitySpec()
    optim: OptimSpec = OptimSpec()
    bridge_lr: float = Field(3e-3, gt=0)  # encoders and decoders are dense and have a rate of their own
    encoder_frac: Fraction = 0.25  # AbsTopK after the encoder
    ce_coef: float = Field(1.0, ge=0)  # the sparse model's own loss; paper: 1
    nmse_coef: float = Field(1.0, ge=0)  # paper: 1
    kl_to_sparse_coef: float = Field(1.0, ge=0)  # dense residual -> sparse tail; paper: 1
    kl_to_dense_coef: float = Field(1.0, ge=0)  # sparse residual -> dense tail; paper: 1
    crossing_share: Fraction = 1.0  # of a batch's sequences that cross over at some site, in either direction, each step
    kl_share: Fraction = 0.5  # of positions at which the KL of crossing paths is scored, drawn anew each step
    own_share: Fraction = 1.0  # of positions at which the sparse model's own loss and KL are scored, drawn anew each step
    kl_plain_coef: float = Field(1.0, ge=0)  # KL(dense || sparse), a fourth term

    def shape_beside(self, width: int, d_head: int, has_positions: bool) -> SparseModelSpec:
        """The shape of a dense model's partner: `model`, but for what it must share with that model.

        A table of positions is as long as the training's contexts: later rows would stay as they were drawn.
        """
        shape, positions = self.model, has_positions and not self.model.d_pos_emb
        shared: dict = {"added_positions": positions, "n_ctx": self.optim.context if positions else shape.n_ctx}
        if self.init == "dense":
            shared |= {"sinks": False, "d_head": d_head, "d_model": max(shape.d_model, width)}
        return shape.model_copy(update=shared)


class PruneSpec(Spec):
    """Learned masks in populations, then elimination (Sec. 2.2, App. A.5)."""

    algorithm: str = "masks"  # that ranks nodes: masks (the paper's), attribution, random
    granularity: Literal["node", "edge"] = "edge"  # what is eliminated; paper: nodes
    ablation: Literal["mean", "zero", "resample"] = "mean"  # what stands for what is off; paper: mean
    trials: Count = 8  # mask sets in all, each with hyper-parameters of its own; paper: 256
    minutes: float | None = Field(None, gt=0)  # no new round of trials is begun after that long; None: all trials are made
    population: Count = 8  # mask sets learned at once; paper: 8
    steps: Count = 200  # of learning masks
    pairs: Count = 64  # pairs a batch; paper: 64
    k_coef: float = Field(2e-3, gt=0)  # centre of the search; paper: 1e-4
    k_coefs: tuple[Positive, ...] = ()  # given: one mask set per value, and no search
    lr: float = Field(1e-2, gt=0)  # centre of the search; paper: 3e-3
    beta2: float = 0.95  # paper: 0.95, the centre of its search
    weight_decay: float = 1e-3  # of the masks, centre of the search; paper: 1e-3
    warmup: float = 0.05  # share of steps; paper: 0.05, the centre of its search
    temperature: float = Field(1.0, gt=0)  # of the sigmoid whose derivative stands in for the Heaviside's; centre of the search
    init_mean: float = 0.1  # where masks start; an element is on while its mask is above 0; paper: 0.1
    init_noise: float = 1e-2  # standard deviation round it; paper: 1e-2
    edge_steps: Count = 100  # of learning edge masks, with granularity 'edge'
    edge_k_coefs: tuple[Positive, ...] = ()  # one edge mask set per value, such as 1e-4, 3e-4, 1e-3, 3e-3; empty: elimination only
    targets: tuple[TaskLoss, ...] = (0.05, 0.3)  # nats; circuits for these too, beside the job's target
    seeds: Count = 1  # searches from as many seeds, to see how far their circuits agree
    select_pairs: Count = 512  # the fixed batch on which sizes are chosen
    trial_pairs: Count = 256  # drawn anew for each round of the elimination
    held_out_pairs: Count = 512  # on which the result is measured
    margin: float = Field(0.02, ge=0)  # nats; sizes are chosen this far below the target, for the held-out split
    necessity: float = Field(0.5, ge=0)  # nats that removing the circuit must cost the full model; 0 (the paper) asks for sufficiency only
    mean_tokens: Count = 32_768  # corpus tokens over which means are measured


class TaskFileSpec(Spec):
    """A task of the user's own: a file of pairs (`tasks.files`), and the content that the job was made for."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")  # becomes the name of a folder
    path: str  # absolute
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class JobSpec(Spec):
    """One job.

    kind 'circuit'   a model and tasks in, a validated circuit for each of them out
    kind 'train'     a model from scratch, and a circuit for each of `tasks`
    """

    version: Literal[1] = 1
    kind: Literal["circuit", "train"]
    model: str | None = None  # bundled name, absolute folder, or hub id @ revision
    adapter: str | None = None  # a LoRA on the dense model: absolute folder, or hub id @ revision
    subject: Literal["twin", "dense"] = "twin"  # of a dense model: the sparse model it is bridged to, or (GPT-2s) the dense model itself
    labels: Literal["task", "model"] = "task"  # whose answers are the right ones: the task's, or those the given model gives
    tasks: tuple[str, ...] = ()
    task_files: tuple[TaskFileSpec, ...] = ()  # where those of `tasks` are found that are the user's own
    target_loss: TaskLoss = 0.15  # nats; paper: 0.15
    seed: int = Field(0, ge=0, lt=2**31)
    preset: Literal["tiny", "small", "paper"] = "tiny"
    corpus: CorpusSpec = CorpusSpec()
    train: TrainSpec | None = None
    bridge: BridgeSpec | None = None
    prune: PruneSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_task_as_it_was_written_before(cls, data: Any) -> Any:
        """A circuit job had a single 'task', and then no 'tasks'."""
        if not isinstance(data, dict) or "task" not in data:
            return data
        content = {name: value for name, value in data.items() if name != "task"}
        if data["task"] is not None:
            if content.get("tasks"):
                raise ValueError("'task' and 'tasks' say the same; leave out 'task'")
            content["tasks"] = [data["task"]]
        return content

    @model_validator(mode="after")
    def _parts_match_kind(self) -> JobSpec:
        needed = {"circuit": ("model", "tasks", "bridge", "prune"), "train": ("train",)}[self.kind]
        if self.tasks:
            needed = (*needed, "prune")
        missing = [name for name in needed if getattr(self, name) in (None, ())]
        if missing:
            raise ValueError(f"a {self.kind} job needs {', '.join(missing)}")
        return self

    @property
    def prunes_dense(self) -> bool:
        """Whether a dense model is pruned itself, without a bridge to a sparse one."""
        return self.subject == "dense"

    @model_validator(mode="after")
    def _tasks_are_told_apart(self) -> JobSpec:
        names = [file.name for file in self.task_files]
        for listed, kind in ((self.tasks, "tasks"), (names, "task_files")):
            twice = next((name for name in listed if listed.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"{kind} name {twice!r} twice")
        stray = next((name for name in names if name not in self.tasks), None)
        if stray is not None:
            raise ValueError(f"task_files hold {stray!r}, which is none of the job's tasks")
        return self


def parse_job(text: str | bytes, origin: str = "spec") -> JobSpec:
    """A JobSpec from JSON text. Raises SpecError with one line that names the first wrong field."""
    try:
        spec = JobSpec.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = " ".join(".".join(str(part) for part in first["loc"]).split())[:MOST_LETTERS] or "the whole"
        raise SpecError(f"{origin}: {place}: {first['msg']} ({error.error_count()} problem(s) in all)") from None
    json.loads(text, object_pairs_hook=lambda pairs: _refuse_doubles(pairs, origin))
    return spec


def _refuse_doubles(pairs: list[tuple[str, Any]], origin: str) -> None:
    """JSON readers differ in which of two equal keys they take. Raises SpecError."""
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SpecError(f"{origin}: {twice[:MOST_LETTERS]}: stands there twice; leave one of the two")


def read_job(path: Path) -> JobSpec:
    """A JobSpec from a file. Raises SpecError."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise SpecError(f"spec file {path} cannot be read: {error.strerror}") from None
    return parse_job(text, str(path))


def to_json(spec: Spec) -> str:
    """The canonical text of a spec: sorted keys, so that equal specs are equal files."""
    return json.dumps(spec.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"


def stages_of(spec: JobSpec) -> tuple[str, ...]:
    """The stages of a job, in order, as they are announced."""
    if spec.kind == "circuit" and len(spec.tasks) == 1:
        return ("corpus", "bridge", *CIRCUIT_STAGES)
    first = {"circuit": "bridge", "train": "train"}[spec.kind]
    return ("corpus", first, *(f"{stage} {task}" for task in spec.tasks for stage in CIRCUIT_STAGES))
