"""The settings of a job as frozen pydantic models that forbid unknown keys.

A `JobSpec` defines a job completely: a file with it is the input of `extract run`, the queue stores it in the job's record, and the result
has it as spec.json. Lengths are in tokens, losses in nats, fractions between 0 and 1. The comment of a field is its help text, with the
paper's value.
"""

from __future__ import annotations

import json
import math
import re
import stat
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from extractor.errors import NotFound, SpecError
from extractor.spec import limits
from extractor.spec.limits import Count

CIRCUIT_STAGES = ("prune", "validate", "report")
CHANCE = math.log(2)  # nats; task loss of a circuit without nodes
MAX_BIGRAM_VOCABULARY = 8192  # tokens; with a larger vocabulary a dense (V, V) table would need more memory than the model
Fraction = Annotated[float, Field(gt=0, le=1)]
MAX_SPEC_BYTES = 1 << 26  # of a spec file; a spec of a hundred task files has some kilobytes
MAX_QUOTED = 80  # characters of an input that a message quotes
Positive = Annotated[float, Field(gt=0)]
TaskLoss = Annotated[float, Field(gt=0, lt=CHANCE)]


class Spec(BaseModel):
    """LATER: fields that earlier versions lack; not written at their defaults, since the text of a spec identifies a running job."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    LATER: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _no_truth_as_number(cls, content: Any) -> Any:
        """pydantic takes true as 1."""
        for name, value in content.items() if isinstance(content, dict) else ():
            kind = cls.model_fields[name].annotation if name in cls.model_fields else bool
            if isinstance(value, bool) and kind is not bool and bool not in get_args(kind):
                raise ValueError(f"{name} is {str(value).lower()}, neither true nor false may stand there")
        return content

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields, found = type(self).model_fields, write(self)
        unchanged = [name for name in self.LATER if getattr(self, name) == fields[name].default]
        return {name: value for name, value in found.items() if name not in unchanged}


class DatasetSpec(Spec):
    """A Hugging Face dataset. It is streamed, never downloaded completely."""

    name: str  # hub id, or the absolute folder of a local dataset
    config: str | None = None  # configuration ("subset") of a dataset with several
    split: str = "train"
    revision: str | None = None  # commit sha, pinned when the job is created; None for a folder
    text_column: str = "text"
    tokens: Count = 10_000_000  # maximum tokens taken from this dataset


class CorpusSpec(Spec):
    """The text that models read; all sources and datasets have equal weight.

    `sources`: 'stdlib', 'generated', 'prose', absolute paths of folders, .txt, .py or .jsonl files; in a circuit job also 'self', text that
    its dense model writes, or only 'auto', text that its model knows: see `extractor.data.sources`.
    """

    LATER = ("self_tokens",)
    sources: tuple[str, ...] = ("stdlib", "generated")
    datasets: tuple[DatasetSpec, ...] = ()
    generated_programs: Count = 12_000  # programs of the seeded generator; about 190 tokens each with a vocabulary of 1,024
    seed: int = 0  # seed of the program generator, and of text that a model writes
    self_tokens: limits.MeasuredTokens = 200_000  # tokens that the dense model writes, for 'self'

    @model_validator(mode="after")
    def _has_text(self) -> CorpusSpec:
        if not self.sources and not self.datasets:
            raise ValueError("a corpus needs at least one source or dataset")
        return self


class SparseModelSpec(Spec):
    """Shape of the weight-sparse GPT (Sec. 2.1, App. A.1)."""

    LATER = ("heads", "neurons", "gated")
    n_layer: limits.Layers = 2  # paper: 8
    d_model: limits.Width = 128  # paper: 2048; the authors' script: 1024
    d_head: limits.Width = 16  # paper: 16
    mlp_ratio: limits.Ratio = 4  # paper: 4
    heads: limits.Width | None = None  # attention heads of a layer; None: d_model / d_head
    neurons: limits.Width | None = None  # of a layer's MLP; None: mlp_ratio times d_model
    gated: bool = False  # MLPs with a gate, as in Llama (ours)
    n_ctx: limits.Tokens = 64  # tokens; paper: 256
    activation: Literal["gelu", "relu"] = "gelu"  # paper: exact GELU
    activation_frac: Fraction = 0.25  # fraction of each site's activations that AbsTopK keeps; paper: 1/4; 1 switches it off
    d_pos_emb: int = Field(0, ge=0, le=1 << 17)  # extra position channels that every read of the residual sees; paper: none
    added_positions: bool = False  # position embeddings added to token embeddings; a bridging switches them on if the dense model has them
    sinks: bool = True  # one learned logit per head in the softmax denominator; authors' script: off
    bigram: Literal["none", "dense", "counts", "low_rank"] = "dense"  # logits added by the current token; paper: dense (V, V)
    bigram_top: limits.PerToken = 32  # 'counts': entries kept per row, the most frequent in the corpus
    bigram_rank: limits.PerToken = 64  # 'low_rank': (V, rank) times (rank, V)
    bigram_init: Literal["counts", "uniform"] = "counts"  # log frequencies (ours), or uniform in [0, 0.02] (authors' script)

    @property
    def n_head(self) -> int:
        return self.d_model // self.d_head if self.heads is None else self.heads

    @property
    def d_mlp(self) -> int:
        return self.mlp_ratio * self.d_model if self.neurons is None else self.neurons


def _check_heads(shape: SparseModelSpec) -> None:
    if shape.heads is None and shape.d_model % shape.d_head:
        raise ValueError(f"model.d_model ({shape.d_model}) is not a multiple of model.d_head ({shape.d_head})")


class SparsitySpec(Spec):
    """Fractions of weights that stay nonzero, and their annealing (Sec. 2.1, App. A.2)."""

    weight_frac: Fraction = 0.05  # nonzero fraction of every matrix; paper: about 1/1000 at its scale; authors' script: 1/64
    embedding_frac: Fraction = 0.1  # nonzero fraction of embedding and unembedding, as in the authors' script
    bias_frac: Fraction = 0.25  # nonzero fraction of every bias, as in the authors' script
    min_per_neuron: int = Field(4, ge=0, le=1 << 17)  # nonzeros kept for each neuron and attention channel; paper: 4
    anneal: Literal["linear", "exponential"] = "linear"  # shape of the L0 fraction's descent from 1 to its target; paper: linear
    anneal_start: float = Field(0.01, ge=0, le=1)  # fraction of steps at which annealing starts; authors' script: 0.01
    anneal_end: Fraction = 0.5  # fraction of steps at which annealing ends; paper: 0.5, and 0.8 for the largest and sparsest models


class OptimSpec(Spec):
    """The optimiser and the batches (App. A.2)."""

    steps: Count = 1000  # optimiser steps
    batch: limits.Rows = 64  # sequences per step, over all processes; authors' script: 512
    context: limits.Tokens = 64  # tokens per sequence; paper: 256
    lr: float = Field(1.28e-2, gt=0)  # peak learning rate; authors' script: 1.28e-2 at d_model 1024
    beta1: float = Field(0.9, ge=0, lt=1)  # paper: 0.9
    beta2: float = Field(0.95, ge=0, lt=1)  # paper: 0.95
    eps: float = Field(0.1, gt=0)  # paper: 0.1, which makes Adam close to momentum SGD
    weight_decay: float = Field(0.1, ge=0)  # weight decay of matrices; paper: 0.1
    decay_order: Literal["adamw", "after_projection"] = "adamw"  # in the update, or after the projection (authors' script)
    warmup: float = Field(0.01, ge=0, le=1)  # fraction of steps; paper: 0.01, longer helps slightly
    sharkfin: bool = True  # multiply the learning rate by sqrt(target / current L0 fraction); without it annealing does not help (paper)
    gradient: Literal["normalise", "clip"] = "normalise"  # divide by the common RMS (authors' script), or clip it to 1 (paper's text)
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast; weights, moments and losses stay in fp32
    micro_batch: limits.Rows | None = None  # sequences per forward pass; None: the batch, halved whenever memory runs out

    @model_validator(mode="after")
    def _step_fits(self) -> OptimSpec:
        if self.batch * self.context > limits.MAX_STEP_TOKENS:
            raise ValueError(
                f"batch ({self.batch:,}) times context ({self.context:,}) is more than {limits.MAX_STEP_TOKENS:,} tokens a step"
            )
        return self


class TrainSpec(Spec):
    """A sparse model from scratch, or (`architecture='gpt2'`) an ordinary Hugging Face GPT-2."""

    architecture: Literal["sparse_gpt", "gpt2"] = "sparse_gpt"
    vocab_size: limits.Vocabulary = 1024  # tokens of the BPE tokenizer trained on the corpus; paper: 2048
    tokenizer: str | None = None  # reference of a model whose tokenizer is used instead
    match_loss: float | None = Field(None, gt=0)  # nats per token on held-out text: find the smallest width that reaches this loss
    tensorboard: bool = False  # also write event files to tensorboard/
    model: SparseModelSpec = SparseModelSpec()
    sparsity: SparsitySpec = SparsitySpec()
    optim: OptimSpec = OptimSpec()

    @property
    def is_dense(self) -> bool:
        """Whether all weights and activations stay."""
        sparsity = self.sparsity
        return sparsity.weight_frac == sparsity.embedding_frac == sparsity.bias_frac == self.model.activation_frac == 1

    @model_validator(mode="after")
    def _context_fits(self) -> TrainSpec:
        if self.optim.context > self.model.n_ctx:
            raise ValueError(f"optim.context ({self.optim.context}) is longer than model.n_ctx ({self.model.n_ctx})")
        _check_heads(self.model)
        if self.model.d_pos_emb and self.model.added_positions:
            raise ValueError("model.d_pos_emb and model.added_positions exclude each other: a model has one table of positions")
        return self


class BridgeSpec(Spec):
    """A sparse model bridged to a frozen dense one (Sec. 2.3, App. A.3). Layers and vocabulary are those of the dense model.

    With init='dense' training starts from the dense model's weights: the sparse model is at least as wide, with the same d_head and without
    sinks, and AbsTopK is annealed together with the weights.
    """

    LATER = ("focus", "focus_coef", "focus_tokens", "layers")
    init: Literal["scratch", "dense"] = "scratch"  # initial weights: random, or those of the dense model; paper: scratch
    over_sites: Literal["mean", "sum"] = "mean"  # reduction of the per-site loss terms; paper: sum
    estimator: Literal["split", "exact"] = "split"  # KL of hybrid passes: a sequence crosses at one site, or at every site (paper)
    model: SparseModelSpec = SparseModelSpec()
    sparsity: SparsitySpec = SparsitySpec()
    optim: OptimSpec = OptimSpec()
    bridge_lr: float = Field(3e-3, gt=0)  # learning rate of encoders and decoders, which are dense
    encoder_frac: Fraction = 0.25  # fraction of activations that AbsTopK keeps after the encoder
    ce_coef: float = Field(1.0, ge=0)  # weight of the sparse model's cross-entropy; paper: 1
    nmse_coef: float = Field(1.0, ge=0)  # weight of the bridges' normalised mean squared error; paper: 1
    kl_to_sparse_coef: float = Field(1.0, ge=0)  # weight of the KL of passes that cross from dense to sparse; paper: 1
    kl_to_dense_coef: float = Field(1.0, ge=0)  # weight of the KL of passes that cross from sparse to dense; paper: 1
    crossing_share: Fraction = 1.0  # fraction of a batch's sequences that cross to the other model at some site, per step
    kl_share: Fraction = 0.5  # fraction of positions at which the KL of hybrid passes is computed, redrawn each step
    own_share: Fraction = 1.0  # fraction of positions at which the sparse model's own loss and KL are computed, redrawn each step
    kl_plain_coef: float = Field(1.0, ge=0)  # weight of KL(dense || sparse) without a crossing, an additional term (ours)
    focus: float = Field(0.0, ge=0, le=8)  # prompts of tasks in each step, as a share of the batch's sequences (ours); paper: none
    focus_coef: float = Field(1.0, ge=0)  # weight of the KLs at and after the ends of these prompts, each weighted as on text
    focus_tokens: int = Field(0, ge=0)  # most tokens of a program after its prompt, whose mean KL counts as the answer's does (ours)
    layers: str | None = None  # A-B: only these become sparse, with init 'dense' (ours); None: all

    @property
    def sparse_layers(self) -> tuple[int, int] | None:
        """First and last of the layers that become sparse; None: all do."""
        if self.layers is None:
            return None
        first, _, last = self.layers.partition("-")
        if not all(re.fullmatch(r"[0-9]{1,4}", part) for part in (first, last)):
            raise ValueError(f"layers ({self.layers[:MAX_QUOTED]!r}) are written A-B, such as 3-7: the first and the last of them, from 0")
        return int(first), int(last)

    @model_validator(mode="after")
    def _heads_fit(self) -> BridgeSpec:
        if self.init == "scratch":  # otherwise the dense model's heads are taken
            _check_heads(self.model)
        return self

    @model_validator(mode="after")
    def _layers_fit(self) -> BridgeSpec:
        if self.sparse_layers is not None:
            first, last = self.sparse_layers
            if first > last:
                raise ValueError(f"layers ({self.layers}) end before they begin")
            if self.init != "dense":
                raise ValueError(
                    f"layers ({self.layers}) leave the others as the dense model has them: that needs init dense (--init dense)"
                )
        return self


class PruneSpec(Spec):
    """A ranking, or several that race, then elimination (Sec. 2.2, App. A.5)."""

    LATER = ("standard", "controls", "confident")
    standard: Literal["paper", "robust"] = "paper"  # what circuits must hold under: one ablation, calibrated; or also the worst of several
    algorithm: str = "masks"  # ranking: race (several in turn), edges, attribution (of nodes), masks (the paper's), random
    granularity: Literal["node", "edge"] = "edge"  # elements that are eliminated; paper: nodes
    ablation: Literal["mean", "zero", "resample"] = "mean"  # replacement values of ablated nodes; paper: mean
    trials: limits.Trials = 8  # total number of mask sets, each with its own hyperparameters; paper: 256
    minutes: float | None = Field(None, gt=0)  # start no new ranking or round of trials after this many minutes; None: run all
    population: limits.Population = 8  # mask sets learned in parallel; paper: 8
    steps: Count = 200  # optimiser steps of mask learning
    pairs: limits.Rows = 64  # pairs per batch; paper: 64
    k_coef: float = Field(2e-3, gt=0)  # penalty on the number of nodes, centre of the search; paper: 1e-4
    k_coefs: tuple[Positive, ...] = ()  # one mask set per value, without a search; empty: search around k_coef
    lr: float = Field(1e-2, gt=0)  # learning rate of masks, centre of the search; paper: 3e-3
    beta2: float = Field(0.95, ge=0, lt=1)  # fixed; paper: 0.95, centre of its search
    weight_decay: float = Field(1e-3, ge=0)  # weight decay of masks, centre of the search; paper: 1e-3
    warmup: float = Field(0.05, ge=0, le=1)  # fraction of steps, fixed; paper: 0.05, centre of its search
    temperature: float = Field(1.0, gt=0)  # of the sigmoid that replaces the Heaviside step in the gradient; centre of the search
    init_mean: float = 0.1  # mean of initial mask values; an element is on while its value is above 0; paper: 0.1
    init_noise: float = Field(1e-2, ge=0)  # standard deviation of initial mask values; paper: 1e-2
    edge_steps: Count = 100  # optimiser steps of edge mask learning, with granularity 'edge'
    edge_k_coefs: tuple[Positive, ...] = ()  # one edge mask set per value, such as 1e-4, 3e-4, 1e-3, 3e-3; empty: elimination only
    targets: tuple[TaskLoss, ...] = (0.05, 0.3)  # nats; further targets, for each of which a circuit is found
    seeds: limits.Population = 1  # number of searches with different seeds, whose circuits are compared
    select_pairs: limits.Rows = 512  # pairs of the fixed batch on which circuit sizes are chosen
    trial_pairs: limits.Rows = 256  # pairs redrawn for each round of the elimination
    held_out_pairs: limits.Rows = 512  # pairs on which the result is measured
    margin: float = Field(0.02, ge=0)  # nats; sizes are chosen for this much less than the target, to meet it on the held-out split
    confident: bool = False  # choose by two standard errors instead of the margin, and remove edges that cost nothing; earlier versions: no
    necessity: float = Field(0.5, ge=0)  # nats by which removing the circuit must raise the full model's loss; 0: sufficiency only (paper)
    controls: int = Field(200, ge=0, le=10_000)  # random live circuits in validation; 0: neither these nor null searches, adversary, CPR
    mean_tokens: limits.MeasuredTokens = 32_768  # tokens of the corpus on which mean activations are measured


class TaskFileSpec(Spec):
    """A task from a user's file of pairs (`tasks.files`), with the digest of its content when the job was created."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")  # also the name of a folder
    path: str  # absolute
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class JobSpec(Spec):
    """One job.

    kind 'circuit'   find a validated circuit in `model` for each of `tasks`
    kind 'train'     train a model from scratch, then find a circuit for each of `tasks`
    """

    LATER = ("strict",)
    version: Literal[1] = 1
    kind: Literal["circuit", "train"]
    model: str | None = None  # bundled name, absolute folder, or hub id @ revision
    adapter: str | None = None  # a LoRA on the dense model: absolute folder, or hub id @ revision
    subject: Literal["twin", "dense"] = "twin"  # of a dense model: prune the sparse model bridged to it, or itself
    labels: Literal["task", "model"] = "task"  # right answers: those of the task, or those that the given model gives
    tasks: tuple[str, ...] = ()
    task_files: tuple[TaskFileSpec, ...] = ()  # files of those `tasks` that are defined by the user
    strict: bool = False  # find no circuit of a task that the dense model does not do, or where the sparse model disagrees with it
    target_loss: TaskLoss = 0.15  # nats; paper: 0.15
    seed: int = Field(0, ge=0, lt=2**31)
    preset: Literal["tiny", "small", "paper"] = "tiny"
    corpus: CorpusSpec = CorpusSpec()
    train: TrainSpec | None = None
    bridge: BridgeSpec | None = None
    prune: PruneSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_single_task(cls, data: Any) -> Any:
        """Read a spec of an older version, with a single 'task' instead of 'tasks'."""
        if not isinstance(data, dict) or "task" not in data:
            return data
        content = {name: value for name, value in data.items() if name != "task"}
        if data["task"] is not None:
            if content.get("tasks"):
                raise ValueError("'task' and 'tasks' have the same meaning; leave out 'task'")
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
        """Whether the job prunes the dense model itself, without a bridge to a sparse one."""
        return self.subject == "dense"

    @model_validator(mode="after")
    def _tasks_are_distinct(self) -> JobSpec:
        names = [file.name for file in self.task_files]
        for listed, kind in ((self.tasks, "tasks"), (names, "task_files")):
            twice = next((name for name in listed if listed.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"{kind} name {twice!r} twice")
        stray = next((name for name in names if name not in self.tasks), None)
        if stray is not None:
            raise ValueError(f"task_files hold {stray!r}, which is not one of the job's tasks")
        return self


def parse_job(text: str | bytes, origin: str = "spec") -> JobSpec:
    """A JobSpec from JSON text. Raises SpecError with one line that names the first wrong field."""
    try:
        spec = JobSpec.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = " ".join(".".join(str(part) for part in first["loc"]).split())[:MAX_QUOTED] or "the complete spec"
        raise SpecError(f"{origin}: {place}: {first['msg']} ({error.error_count()} problems in total)") from None
    json.loads(text, object_pairs_hook=lambda pairs: _refuse_duplicate_keys(pairs, origin))
    return spec


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]], origin: str) -> None:
    """Reject duplicate keys, of which JSON readers may use either. Raises SpecError."""
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise SpecError(f"{origin}: {name[:MAX_QUOTED]}: this key occurs twice; remove one")
        seen.add(name)


def read_job(path: Path) -> JobSpec:
    """A JobSpec from a regular file of at most MAX_SPEC_BYTES; others are not opened: a pipe may block, a device never ends.

    Raises NotFound, SpecError.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise SpecError(f"spec file {path} cannot be read: it is a pipe, a socket or a device; save the spec to a file")
        if found.st_size > MAX_SPEC_BYTES:
            raise SpecError(f"spec file {path} has {found.st_size:,} bytes, more than {MAX_SPEC_BYTES:,}; that is no spec")
        text = path.read_bytes() if found.st_size else b""  # files of /proc say that they have no bytes, and some of them block
    except FileNotFoundError:
        raise NotFound(f"spec file {path} cannot be read: there is no such file") from None
    except OSError as error:
        raise SpecError(f"spec file {path} cannot be read: {error.strerror}") from None
    return parse_job(text, str(path))


def to_json(spec: Spec) -> str:
    """The canonical text of a spec: with sorted keys, so that equal specs give equal files."""
    return json.dumps(spec.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"


def stages_of(spec: JobSpec) -> tuple[str, ...]:
    """The stages of a job in order, by the names that progress events carry."""
    if spec.kind == "circuit" and len(spec.tasks) == 1:
        return ("corpus", "bridge", *CIRCUIT_STAGES)
    first = {"circuit": "bridge", "train": "train"}[spec.kind]
    return ("corpus", first, *(f"{stage} {task}" for task in spec.tasks for stage in CIRCUIT_STAGES))
