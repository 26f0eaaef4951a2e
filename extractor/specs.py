"""What a job is, stage by stage: frozen pydantic models that forbid unknown keys.

One `JobSpec` is the only thing that travels: it is written to a file for `extract run`, put in the job record for the queue, and
left as spec.json in the result. Lengths are in tokens, losses in nats, fractions between 0 and 1. The paper's value stands in each field.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from extractor.errors import SpecError

MAX_BIGRAM_VOCABULARY = 8192  # a dense (V, V) table beyond this costs more memory than the model
Fraction = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CorpusSpec(Spec):
    """Where text comes from. `sources` are 'stdlib', 'generated', or absolute paths to a folder, a .txt, .py or .jsonl file."""

    sources: tuple[str, ...] = Field(("stdlib", "generated"), min_length=1)
    generated_programs: Count = 12_000  # programs of the seeded generator, about 190 tokens each at a vocabulary of 1,024
    seed: int = 0


class SparseModelSpec(Spec):
    """Shape of the weight-sparse GPT (Sec. 2.1, App. A.1)."""

    n_layer: Count = 2
    d_model: Count = 128  # paper: 2048
    d_head: Count = 16  # paper: 16
    mlp_ratio: Count = 4
    n_ctx: Count = 64  # tokens; paper: 256
    activation_frac: Fraction = 0.25  # AbsTopK keeps this share of each site; paper: 1/4
    sinks: bool = True  # a learned logit per head in the softmax denominator
    bigram: bool = True  # a dense (V, V) table added to the logits; off for large vocabularies


class SparsitySpec(Spec):
    """How many weights stay nonzero, and when (Sec. 2.1, App. A.2)."""

    weight_frac: Fraction = 0.05  # nonzero share of every matrix; paper: about 1/1000 at its scale
    embedding_frac: Fraction = 0.1  # of embedding and unembedding; the paper's script gives these a fraction of their own
    bias_frac: Fraction = 0.25
    min_per_neuron: int = Field(4, ge=0)  # nonzeros kept per neuron and attention channel, on its own side; paper: 4
    anneal_start: float = Field(0.01, ge=0, le=1)  # share of steps
    anneal_end: Fraction = 0.5  # share of steps; paper: 0.5


class OptimSpec(Spec):
    """The optimiser and the batches (App. A.2)."""

    steps: Count = 1000
    batch: Count = 64  # sequences
    context: Count = 64  # tokens a sequence
    lr: float = Field(1.28e-2, gt=0)  # peak; paper's script: 1.28e-2 at d_model 1024
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 0.1  # makes Adam close to momentum; gradients are normalised to RMS 1 first
    weight_decay: float = 0.1
    warmup: float = Field(0.01, ge=0, le=1)  # share of steps


class TrainSpec(Spec):
    """A sparse model from scratch, or (`architecture='gpt2'`) an ordinary Hugging Face GPT-2."""

    architecture: Literal["sparse_gpt", "gpt2"] = "sparse_gpt"
    vocab_size: Count = 1024  # of the BPE trained on the corpus
    model: SparseModelSpec = SparseModelSpec()
    sparsity: SparsitySpec = SparsitySpec()
    optim: OptimSpec = OptimSpec()

    @model_validator(mode="after")
    def _context_fits(self) -> TrainSpec:
        if self.optim.context > self.model.n_ctx:
            raise ValueError(f"optim.context ({self.optim.context}) is longer than model.n_ctx ({self.model.n_ctx})")
        return self


class BridgeSpec(Spec):
    """A sparse model coupled to a frozen dense one (Sec. 2.3, App. A.3). Layers and vocabulary come from the dense model."""

    model: SparseModelSpec = SparseModelSpec()
    sparsity: SparsitySpec = SparsitySpec()
    optim: OptimSpec = OptimSpec()
    bridge_lr: float = Field(3e-3, gt=0)  # encoders and decoders are dense and have a rate of their own
    encoder_frac: Fraction = 0.25  # AbsTopK after the encoder
    nmse_coef: float = Field(1.0, ge=0)  # paper: 1
    kl_to_sparse_coef: float = Field(1.0, ge=0)  # dense residual -> sparse tail; paper: 1
    kl_to_dense_coef: float = Field(1.0, ge=0)  # sparse residual -> dense tail; paper: 1
    crossing_share: Fraction = 1.0  # of a batch's sequences that cross over at some site, in either direction, each step
    kl_share: Fraction = 0.5  # of positions at which the KL of crossing paths is scored, drawn anew each step
    kl_plain_coef: float = Field(1.0, ge=0)  # KL(dense || sparse), a fourth term


class PruneSpec(Spec):
    """Learned node masks, then the smallest k (Sec. 2.2, App. A.5)."""

    steps: Count = 200
    pairs: Count = 64  # pairs a batch; paper: 64
    lr: float = Field(5e-3, gt=0)  # paper: 3e-3 as the centre of its search
    beta2: float = 0.95
    weight_decay: float = 1e-3
    warmup: float = 0.05  # share of steps
    temperature: float = Field(1.0, gt=0)  # of the sigmoid whose derivative stands in for the Heaviside's
    init_mean: float = 0.1
    init_noise: float = 1e-2
    k_coefs: tuple[float, ...] = Field((2e-4,), min_length=1)  # one mask set is learned per value, the smallest circuit wins
    select_pairs: Count = 512  # the fixed batch of the bisection
    trial_pairs: Count = 256  # drawn anew for each node that is tried for elimination
    held_out_pairs: Count = 512
    margin: float = Field(0.04, ge=0)  # nats; the bisection aims this far below the target, for the held-out split
    necessity: float = Field(0.5, ge=0)  # nats that removing the circuit must cost the full model; 0 (the paper) asks for sufficiency only
    mean_tokens: Count = 32_768  # corpus tokens over which means are measured


class JobSpec(Spec):
    """One job. kind 'circuit': a model and a task in, a validated circuit out. kind 'train': a model from scratch."""

    version: Literal[1] = 1
    kind: Literal["circuit", "train"]
    model: str | None = None  # bundled name, absolute folder, or hub id @ revision
    task: str | None = None
    target_loss: float = Field(0.15, gt=0)  # nats; paper: 0.15
    seed: int = Field(0, ge=0, lt=2**31)
    preset: Literal["tiny", "small", "paper"] = "tiny"
    corpus: CorpusSpec = CorpusSpec()
    train: TrainSpec | None = None
    bridge: BridgeSpec | None = None
    prune: PruneSpec | None = None

    @model_validator(mode="after")
    def _parts_match_kind(self) -> JobSpec:
        needed = {"circuit": ("model", "task", "bridge", "prune"), "train": ("train",)}[self.kind]
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(f"a {self.kind} job needs {', '.join(missing)}")
        return self


def parse_job(text: str | bytes, origin: str = "spec") -> JobSpec:
    """A JobSpec from JSON text. Raises SpecError with one line that names the first wrong field."""
    try:
        return JobSpec.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise SpecError(f"{origin}: {place}: {first['msg']} ({error.error_count()} problem(s) in all)") from None


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
