"""What bridging a dense model costs, said before anything starts: parameters, memory by part, time.

Arithmetic over the dense model's config.json and a BridgeSpec; no torch, no weights. B sequences of T tokens a step, r of them a pass;
L layers, D and S widths of the dense and the sparse residual, M neurons, V vocabulary. Memory is that of fp32 on a CPU, within -10 % and
+35 % of the measured peak; a GPU in bf16 needs less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from extractor.errors import SpecError
from extractor.jobs.cost.hardware import Speed
from extractor.jobs.cost.units import show_bytes
from extractor.models.checks import SPARSE_TYPE
from extractor.spec.schema import MAX_BIGRAM_VOCABULARY, BridgeSpec

FLOAT = 4
LOGITS_AT_ONCE = 1 << 24  # as in `fused`, which imports torch
LOGITS_SETS = 6  # of one chunk alive at once: target, logits, their difference and what they are made of
HEAD_COPIES = 3  # of the unembedding's gradient: of the model's own predictions, of the paths', of a chunk; the last of them stays
HOLES = 1.25  # memory that malloc keeps, over what is in use, among many buffers of unlike sizes
PROCESS = 60 << 20  # bytes of modules imported on the way and of tokens at hand
SHARE = 0.9  # of the memory at hand that is planned with
MANY = 0.58  # two standard deviations of the share of layers that one crossing sequence runs through
DENSE_NEURONS = {"gelu_new": 4, "gelu_pytorch_tanh": 4, "gelu_fast": 4, "silu": 3}  # numbers kept a neuron for the backward pass
TRAFFIC = 6.0  # bytes moved for each byte of activations kept
SMALLER = (0.75, 0.5, 0.375, 0.25, 0.1875, 0.125, 0.0625)  # what is tried where nothing fits


@dataclass(frozen=True)
class DenseShape:
    """The dense model, from its config. parameters counts tied embeddings once; blocks are those without embeddings and final norm."""

    layers: int
    width: int
    heads: int
    neurons: int
    vocabulary: int
    positions: int
    parameters: int
    blocks: int
    kept_a_neuron: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> DenseShape:
        """From a config.json of GPT-2, GPT-Neo or Llama; other families by whichever of these they are like. Raises SpecError."""
        width = _named(config, "n_embd", "hidden_size", "d_model")
        heads = _named(config, "n_head", "num_heads", "num_attention_heads")
        layers = _named(config, "n_layer", "num_layers", "num_hidden_layers")
        vocabulary, neurons = _named(config, "vocab_size"), _named(config, "n_inner", "intermediate_size", default=4 * width)
        rotary = config.get("model_type") not in ("gpt2", "gpt_neo")
        positions = 0 if rotary else _named(config, "n_positions", "max_position_embeddings")
        block = _rotary_block(config, width, heads, neurons) if rotary else 4 * width**2 + 2 * width * neurons + 4 * width + width + neurons
        if not rotary:  # biases of attention, which GPT-Neo has on its output only
            block += width * (1 if config.get("model_type") == "gpt_neo" else 4)
        tied = config.get("tie_word_embeddings", not rotary)
        outside = (vocabulary * (1 if tied else 2) + positions + (1 if rotary else 2)) * width
        activation = str(config.get("activation_function") or config.get("hidden_act") or "gelu_new")
        kept = DENSE_NEURONS.get(activation, 4)
        return cls(layers, width, heads, neurons, vocabulary, positions, layers * block + outside, layers * block, kept)


def _rotary_block(config: Mapping[str, Any], width: int, heads: int, neurons: int) -> int:
    """Parameters of a block with RMSNorms, grouped queries and a gated MLP."""
    head = config.get("head_dim") or width // heads
    queries, keys = heads * head, (config.get("num_key_value_heads") or heads) * head
    attention = 2 * width * (queries + keys) + (queries + 2 * keys + width if config.get("attention_bias") else 0)
    return attention + 3 * width * neurons + (2 * neurons + width if config.get("mlp_bias") else 0) + 2 * width


def _named(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return config[name]
    if default is None:
        raise SpecError(f"the dense model's config.json gives no {names[-1]}; save the model again with transformers")
    return default


@dataclass(frozen=True)
class BridgingCost:
    """A bridging in numbers. `spec.model` holds the shape that the coupling forces; see `bridging_cost`.

    parameters   dense, sparse (without bigram), sparse_nonzero (at the end), bigram, bridges
    flops        of one step, by part
    """

    config: Mapping[str, Any]
    asked: BridgeSpec
    spec: BridgeSpec
    dense: DenseShape
    bigram: str
    parameters: dict[str, int]
    flops: dict[str, float]

    @property
    def sites(self) -> int:
        return 2 * self.dense.layers + 1

    @property
    def tokens(self) -> int:
        """Tokens of the whole training."""
        return self.spec.optim.steps * self.spec.optim.batch * self.spec.optim.context

    @property
    def trained(self) -> int:
        """Parameters with gradients and moments."""
        return sum(self.parameters[name] for name in ("sparse", "bigram", "bridges"))

    def memory(self, rows: int) -> dict[str, int]:
        """Bytes by part while `rows` sequences go through at once."""
        return {
            "sparse model and bridges": FLOAT * self.trained + self._support(),
            "gradients": FLOAT * self.trained,
            "Adam moments": 2 * FLOAT * self.trained,
            "dense model": FLOAT * self.parameters["dense"],
            "activations": self._activations(rows),
            "predictions": max(self._predictions(rows), self._optimizer()),
            "process and corpus": PROCESS,
        }

    def needed(self, rows: int) -> int:
        """Most bytes at any time: of the steps, or of the start, when bigrams are counted into a table of doubles."""
        start = 0
        if self.bigram == "dense" and self.spec.init == "scratch" and self.spec.model.bigram_init == "counts":
            start = 3 * 8 * self.dense.vocabulary**2 + FLOAT * (self.trained + self.parameters["dense"]) + PROCESS
        return max(start, sum(self.memory(rows).values()))

    def _support(self) -> int:
        """Buffers that are no parameters: which tokens a row of sparse counts names."""
        return 8 * self.parameters["bigram"] if self.bigram == "counts" else 0

    def _crossing(self, rows: int) -> float:
        """Crossing sequences of a pass, each as the share of layers that it may run through in a pass of bad luck."""
        batch = self.spec.optim.batch
        if self.spec.estimator == "exact":
            return 0.5 * rows * self.sites
        crossing = min(1.0, max(self.spec.crossing_share, min(self.sites, batch) / batch)) * rows
        return crossing * min(1.0, 0.5 + MANY * math.sqrt((1 - rows / batch) / crossing))

    def _activations(self, rows: int) -> int:
        """What autograd keeps of both passes and of the sites, with one sublayer's work beside it."""
        shape, dense, crossing = self.spec.model, self.dense, self._crossing(rows)
        neurons = shape.mlp_ratio * shape.d_model
        sparse_layer = 11 * shape.d_model + 2 * shape.d_pos_emb + 2 * neurons
        dense_layer = 8 * dense.width + dense.kept_a_neuron * dense.neurons
        own = dense.layers * sparse_layer + self.sites * (4 * dense.width + shape.d_model) + 2 * shape.d_model + dense.width
        crossed = dense.layers * (sparse_layer + dense_layer) + 4 * (shape.d_model + dense.width)
        work = 2 * max(neurons, dense.neurons) * (rows + crossing)
        return round(HOLES * FLOAT * self.spec.optim.context * (rows * own + crossing * crossed + work))

    def _predictions(self, rows: int) -> int:
        """The chunk of logits that is being scored, and the gradients that scoring leaves for the unembedding."""
        spec, size = self.spec, self.dense.vocabulary
        paths = self.sites * rows if spec.estimator == "exact" else rows
        tokens = spec.optim.context * max(spec.own_share * rows, spec.kl_share * paths)
        chunk = min(max(1, LOGITS_AT_ONCE // size), max(1, round(tokens))) * size
        head = size * spec.model.d_model + self.parameters["bigram"]
        # Later passes find the first one's gradient there already.
        copies = HEAD_COPIES if rows < spec.optim.batch else HEAD_COPIES - 1
        return FLOAT * (LOGITS_SETS * chunk + copies * head)

    def _optimizer(self) -> int:
        """The largest tensor's squared gradient and its mask, when gradients are normalised and weights projected."""
        return (FLOAT + 1) * max(self.dense.vocabulary * self.spec.model.d_model, self.parameters["bigram"])

    def seconds(self, speed: Speed) -> float:
        """Of one step: matrix products, and memory that activations, weights, gradients and moments pass through."""
        moved = TRAFFIC * self._activations(self.spec.optim.batch) + 14 * FLOAT * self.trained
        return sum(self.flops.values()) / speed.flops + moved / speed.bytes


def config_of(reference: str) -> dict[str, Any]:
    """config.json of a JobSpec's model, without its weights. Raises ModelNotFound, BrokenArtifact."""
    from extractor import files
    from extractor.models import hub
    from extractor.models.checks import CONFIG
    from extractor.models.reference import is_here, local_folder

    folder = local_folder(reference) if is_here(reference) else hub.download(reference, [CONFIG])
    return files.read_json(folder / CONFIG)


def bridging_cost(config: Mapping[str, Any], spec: BridgeSpec) -> BridgingCost:
    """The plan of bridging the model with this config.json. Raises SpecError where the config does not say enough."""
    dense = DenseShape.of(config)
    shape = spec.model
    if dense.positions and spec.optim.context > dense.positions:
        raise SpecError(
            f"bridging would read {spec.optim.context} tokens at once, the dense model has positions for {dense.positions}; "
            f"--set bridge.optim.context={dense.positions}"
        )
    partner = spec.shape_beside(dense.width, dense.width // dense.heads, bool(dense.positions))
    kind = "counts" if shape.bigram == "dense" and dense.vocabulary > MAX_BIGRAM_VOCABULARY else shape.bigram
    real = spec.model_copy(update={"model": partner.model_copy(update={"n_layer": dense.layers})})
    parameters = _parameters(dense, real, kind)
    return BridgingCost(config, spec, real, dense, kind, parameters, _flops(dense, real, parameters))


def _parameters(dense: DenseShape, spec: BridgeSpec, bigram: str) -> dict[str, int]:
    shape, size, sites = spec.model, dense.vocabulary, 2 * dense.layers + 1
    tensors = list(_tensors(dense, spec))
    table = {
        "none": 0,
        "dense": size * size,
        "counts": size * min(shape.bigram_top, size),
        "low_rank": 2 * size * min(shape.bigram_rank, size),
    }
    return {
        "dense": dense.parameters,
        "sparse": sum(entries for entries, _ in tensors),
        "sparse_nonzero": sum(kept for _, kept in tensors),
        "bigram": table[bigram],
        "bridges": sites * (2 * dense.width * shape.d_model + dense.width + shape.d_model),
    }


def _tensors(dense: DenseShape, spec: BridgeSpec) -> Iterator[tuple[int, int]]:
    """Entries and final nonzeros of every tensor of the sparse model but the bigram's; see `sparse.projection.constraints`."""
    shape, sparsity, size = spec.model, spec.sparsity, dense.vocabulary
    width, read, neurons = shape.d_model, shape.d_model + shape.d_pos_emb, shape.mlp_ratio * shape.d_model

    def kept(entries: int, fraction: float, own: int = 0, length: int = 0) -> tuple[int, int]:
        return entries, max(1, own * min(sparsity.min_per_neuron, length), round(fraction * entries))

    for _ in range(2):
        yield kept(size * width, sparsity.embedding_frac)
    if shape.added_positions:
        yield kept(shape.n_ctx * width, sparsity.embedding_frac)
    elif shape.d_pos_emb:
        yield (shape.n_ctx * shape.d_pos_emb,) * 2
    for _ in range(dense.layers):
        for own, length in ((3 * width, read), (neurons, read), (width, width), (neurons, width)):
            yield kept(own * length, sparsity.weight_frac, own, length)
        for entries in (3 * width, width, neurons, width):
            yield kept(entries, sparsity.bias_frac)
        yield (2 * read + (width // shape.d_head if shape.sinks else 0),) * 2
    yield (width + (size if spec.init == "dense" else 0),) * 2


def _flops(dense: DenseShape, spec: BridgeSpec, parameters: Mapping[str, int]) -> dict[str, float]:
    """Of one step. A product of n weights costs 2n a token forward, as much for its input's gradient and as much for its own."""
    shape, optim, size = spec.model, spec.optim, dense.vocabulary
    tokens, sites = optim.batch * optim.context, 2 * dense.layers + 1
    crossing = tokens * (sites if spec.estimator == "exact" else max(spec.crossing_share, min(1.0, sites / optim.batch)))
    blocks = dense.layers * (4 + 2 * shape.mlp_ratio) * shape.d_model**2 + dense.layers * optim.context * shape.d_model
    dense_blocks = dense.blocks + dense.layers * optim.context * dense.width
    own, paths = tokens * spec.own_share, crossing * spec.kl_share
    return {
        "dense model": 2.0 * tokens * dense_blocks,
        "sparse model": 6.0 * tokens * blocks,
        "bridges": 5.0 * (tokens + crossing / sites) * parameters["bridges"],
        "crossing paths": 0.5 * crossing * (6 * blocks + 4 * dense_blocks),
        "predictions": 2.0 * size * (own * (dense.width + 3 * shape.d_model) + paths * (3 * dense.width + 3 * shape.d_model)),
    }


# What fits.


def largest_micro_batch(plan: BridgingCost, memory: int) -> int:
    """Sequences a pass that fit into `memory` bytes, at most `micro_batch` or a whole batch, in passes of like size; 0: not even one."""
    batch = plan.spec.optim.batch
    most = min(plan.spec.optim.micro_batch or batch, batch)
    if plan.needed(1) > SHARE * memory:
        return 0
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if plan.needed(middle) <= SHARE * memory else (low, middle - 1)
    return low if plan.spec.optim.micro_batch else -(-batch // -(-batch // low))


def check(plan: BridgingCost, memory: int) -> None:
    """Raise SpecError, with the flag that would make it fit, where not even one sequence a pass fits into `memory` bytes."""
    if largest_micro_batch(plan, memory):
        return
    needs = f"bridging needs {show_bytes(plan.needed(1) / SHARE)} with one sequence a pass, {show_bytes(memory)} are at hand"
    found = next((flags for flags in _remedies(plan) if largest_micro_batch(plan_with(plan, flags), memory)), None)
    if found is None:
        raise SpecError(f"{needs}; no smaller sparse model would fit beside this dense one: use a machine with more memory")
    flags = " ".join(f"--set bridge.{name}={value}" for name, value in found.items())
    raise SpecError(f"{needs}; {flags} would fit, with {show_bytes(plan_with(plan, found).needed(1) / SHARE)}")


def plan_with(old: BridgingCost, changes: Mapping[str, Any]) -> BridgingCost:
    """The plan with fields of the BridgeSpec changed, by dotted name."""
    content = old.asked.model_dump()
    for name, value in changes.items():
        *path, last = name.split(".")
        place = content
        for part in path:
            place = place[part]
        place[last] = value
    return bridging_cost(old.config, BridgeSpec.model_validate(content))


def _remedies(old: BridgingCost) -> Iterator[dict[str, Any]]:
    """Changes that save memory, the gentlest first: no bigram, a narrower model, a shorter context, then all together."""
    shape, context = old.spec.model, old.spec.optim.context
    bigram: dict[str, Any] = {"model.bigram": "none"} if old.parameters["bigram"] else {}
    least = old.dense.width if old.spec.init == "dense" else shape.d_head
    widths = [w for w in (int(share * shape.d_model) // shape.d_head * shape.d_head for share in SMALLER) if w >= max(1, least)]
    contexts = [c for c in (int(share * context) for share in SMALLER) if c >= 8]
    if bigram:
        yield bigram
    yield from ({"model.d_model": width} for width in widths)
    yield from ({"optim.context": length} for length in contexts)
    yield from (bigram | {"model.d_model": width, "optim.context": length} for width in widths for length in contexts)


def longest_prompt(config: Mapping[str, Any], bridge: BridgeSpec) -> int | None:
    """The longest prompt, in tokens, that a circuit job's sparse model will read; None where the given model's config does not say.

    Raises SpecError.
    """
    pass

    return config.get("n_ctx") if config.get("model_type") == SPARSE_TYPE else bridging_cost(config, bridge).spec.model.n_ctx
