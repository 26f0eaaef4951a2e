"""What a bridging costs, computed before it starts: parameters, memory by part, time.

Arithmetic over the dense model's config.json and a BridgeSpec; no torch, no weights. A step reads B sequences of T tokens, r of them per
pass (the micro-batch). L layers; D and S: widths of the dense and the sparse residual; M neurons; V vocabulary. Memory is that of fp32 on a
CPU; a GPU in bf16 needs less. Constants and their accuracy: `constants`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from extractor.errors import SpecError, UnsupportedModel
from extractor.jobs.cost.constants import (
    ACTIVATIONS_PER_NEURON,
    CROSSING_SPREAD,
    DEFAULT_ACTIVATIONS_PER_NEURON,
    FLOAT_BYTES,
    FOLLOWING_TOKENS,
    FRAGMENTATION,
    HEAD_GRADIENTS,
    LOGITS_AT_ONCE,
    LOGITS_COPIES,
    PROCESS_BYTES,
    PROMPT_GRADIENTS,
    PROMPT_LENGTH,
    SAMPLE_COPIES,
    SAMPLED_NUMBERS,
    SAMPLED_TOKENS,
    SMALLER,
    TRAFFIC_PER_BYTE,
    USABLE_SHARE,
)
from extractor.jobs.cost.hardware import Speed
from extractor.jobs.cost.units import show_bytes
from extractor.models.checks import SPARSE_TYPE
from extractor.models.dense.start import ROTARY_CONTEXT, obstacle
from extractor.models.shape import DenseShape
from extractor.spec.beside import shape_beside
from extractor.spec.schema import BridgeSpec
from extractor.spec.sizes import bigram_entries, bigram_kind, block_entries, block_matrices, kept_in_blocks, tensor_sizes


@dataclass(frozen=True)
class BridgingCost:
    """The cost of one bridging; see `bridging_cost`.

    config       the dense model's config.json
    requested    the spec of the job
    spec         the same with the shape that the sparse model gets beside this dense one
    bigram       the kind of bigram
    parameters   numbers: dense, sparse (without bigram), sparse_nonzero (after training), bigram, bridges
    flops        floating-point operations of one step, by part
    """

    config: Mapping[str, Any]
    requested: BridgeSpec
    spec: BridgeSpec
    dense: DenseShape
    bigram: str
    parameters: dict[str, int]
    flops: dict[str, float]

    @property
    def sites(self) -> int:
        """Bridge sites: two per layer, of parallel blocks one, and one before the final norm."""
        return self.dense.sites

    @property
    def tokens(self) -> int:
        """Tokens of the complete training."""
        return self.spec.optim.steps * self.spec.optim.batch * self.spec.optim.context

    @property
    def held(self) -> int:
        """Number of parameters of the sparse model and the bridges."""
        return sum(self.parameters[name] for name in ("sparse", "bigram", "bridges"))

    @property
    def trained(self) -> int:
        """Number of those with gradients and Adam moments: where some layers stay dense, those of the others and of their bridges."""
        if self.spec.layers is None:
            return self.held
        blocks = block_entries(self.spec.model) * self.sparse_layers // self.dense.layers
        return blocks + self.parameters["bridges"] * self.crossed // self.sites

    @property
    def sparse_layers(self) -> int:
        """Number of layers that become sparse."""
        first, last = self.spec.sparse_layers or (0, self.dense.layers - 1)
        return last - first + 1

    @property
    def crossed(self) -> int:
        """Number of sites at which passes cross."""
        return self.sparse_layers * ((self.sites - 1) // self.dense.layers) + 1

    def memory(self, rows: int) -> dict[str, int]:
        """Bytes by part in a step with a micro-batch of `rows` sequences."""
        return {
            "sparse model and bridges": FLOAT_BYTES * self.held + self._support(),
            "gradients": FLOAT_BYTES * self.trained,
            "Adam moments": 2 * FLOAT_BYTES * self.trained,
            "dense model": FLOAT_BYTES * self.parameters["dense"],
            "activations": self._activations(rows),
            "predictions": max(self._predictions(rows), self._optimizer()),
            "process and corpus": PROCESS_BYTES,
        }

    def bytes_needed(self, rows: int) -> int:
        """Peak of memory in bytes: in a step, or at the start, when bigrams are counted in a table of doubles or a basis is chosen."""
        start, models = 0, FLOAT_BYTES * (self.held + self.parameters["dense"]) + PROCESS_BYTES
        if self.bigram == "dense" and self.spec.init == "scratch" and self.spec.model.bigram_init == "counts":
            start = 3 * 8 * self.dense.vocabulary**2 + models
        if self.spec.init == "dense":
            sampled = min(SAMPLED_NUMBERS, self.sites * self.dense.width * SAMPLED_TOKENS)
            start = models + FLOAT_BYTES * (self.parameters["dense"] + SAMPLE_COPIES * sampled)  # the dense weights with norms folded in
        return max(start, sum(self.memory(rows).values()))

    def _support(self) -> int:
        """Bytes of buffers without gradients: the token ids of sparse bigram counts."""
        return 8 * self.parameters["bigram"] if self.bigram == "counts" else 0

    def _crossing(self, rows: int) -> float:
        """Upper estimate of the crossing sequences of one micro-batch in full passes; each runs through a part of the layers."""
        batch = self.spec.optim.batch
        if self.spec.estimator == "exact":
            return 0.5 * rows * self.crossed
        crossing = min(1.0, max(self.spec.crossing_share, min(self.crossed, batch) / batch)) * rows
        return crossing * min(1.0, 0.5 + CROSSING_SPREAD * math.sqrt((1 - rows / batch) / crossing))

    def _activations(self, rows: int) -> int:
        """Bytes that autograd keeps of both passes and of the sites, and the temporary values of one sublayer."""
        shape, dense, crossing = self.spec.model, self.dense, self._crossing(rows)
        neurons, mixed = shape.d_mlp, shape.n_head * shape.d_head
        sparse_layer = 7 * shape.d_model + 4 * mixed + 2 * shape.d_pos_emb + (5 if shape.gated else 2) * neurons
        activation = str(self.config.get("activation_function") or self.config.get("hidden_act") or "gelu_new")
        dense_layer = 8 * dense.width + ACTIVATIONS_PER_NEURON.get(activation, DEFAULT_ACTIVATIONS_PER_NEURON) * dense.neurons
        layers = dense.layers - (self.spec.sparse_layers or (0, 0))[0]  # before these, nothing has a gradient
        own = layers * sparse_layer + self.crossed * (4 * dense.width + shape.d_model) + 2 * shape.d_model + dense.width
        crossed = layers * (sparse_layer + dense_layer) + 4 * (shape.d_model + dense.width)
        work = 2 * max(neurons, dense.neurons) * (rows + crossing)
        prompts = rows * self.spec.focus  # which all cross; they are shorter than a context, but padded to the longest of them
        text = rows * own + crossing * crossed + work
        return round(FRAGMENTATION * FLOAT_BYTES * self.spec.optim.context * (text + prompts * (own + 0.5 * crossed)))

    def _predictions(self, rows: int) -> int:
        """Bytes of one chunk of logits and of the unembedding's gradients."""
        spec, size = self.spec, self.dense.vocabulary
        paths = self.crossed * rows if spec.estimator == "exact" else rows
        tokens = spec.optim.context * max(spec.own_share * rows, spec.kl_share * paths)
        chunk = min(max(1, LOGITS_AT_ONCE // size), max(1, round(tokens))) * size
        head = size * spec.model.d_model + self.parameters["bigram"] if spec.layers is None else 0
        # With several micro-batches the gradient of the earlier ones is in memory as well.
        copies = HEAD_GRADIENTS if rows < spec.optim.batch else HEAD_GRADIENTS - 1
        copies += PROMPT_GRADIENTS if spec.focus else 0
        return FLOAT_BYTES * (LOGITS_COPIES * chunk + copies * head)

    def _optimizer(self) -> int:
        """Bytes of the largest tensor's squared gradient and of its mask: normalised gradients, projected weights."""
        of_blocks = max(matrix.entries for matrix in block_matrices(self.spec.model))
        of_embeddings = max(self.dense.vocabulary * self.spec.model.d_model, self.parameters["bigram"])
        return (FLOAT_BYTES + 1) * (of_embeddings if self.spec.layers is None else of_blocks)

    def seconds(self, speed: Speed) -> float:
        """Seconds of one step: matrix products, and memory traffic of activations, weights, gradients and moments."""
        moved = TRAFFIC_PER_BYTE * self._activations(self.spec.optim.batch) + 14 * FLOAT_BYTES * self.trained
        return sum(self.flops.values()) / speed.flops + moved / speed.bytes


def config_of(reference: str) -> dict[str, Any]:
    """config.json of a JobSpec's model; does not download weights. Raises ModelNotFound, BrokenArtifact."""
    from extractor import files
    from extractor.models import hub
    from extractor.models.checks import CONFIG
    from extractor.models.reference import is_here, local_folder

    folder = local_folder(reference) if is_here(reference) else hub.download(reference, [CONFIG])
    return files.read_json(folder / CONFIG)


def bridging_cost(config: Mapping[str, Any], spec: BridgeSpec) -> BridgingCost:
    """The cost of bridging the model with this config.json.

    Raises UnsupportedModel for a config that lacks a number or has an absurd one; SpecError where the dense model has fewer positions than
    the training's context, or where training cannot start from its weights and the spec says that it does.
    """
    dense = DenseShape.of(config)
    if dense.positions and spec.optim.context > dense.positions:
        raise SpecError(
            f"bridging reads {spec.optim.context} tokens at once, the dense model has positions for {dense.positions}; "
            f"--set bridge.optim.context={dense.positions}"
        )
    if spec.init == "dense" and (why := start_obstacle(config, dense, spec)):
        otherwise = "use --init scratch" if spec.layers is None else "leave out the layers, and use --init scratch"
        raise SpecError(f"bridging cannot start from the dense model's weights: {why}; {otherwise}")
    if spec.sparse_layers is not None and spec.sparse_layers[1] >= dense.layers:
        raise SpecError(f"layers {spec.layers} are to be sparse, the dense model has layers 0 to {dense.layers - 1}; choose among these")
    partner = shape_beside(spec, dense)
    real = spec.model_copy(update={"model": partner.model_copy(update={"n_layer": dense.layers})})
    parameters = _parameters(dense, real)
    return BridgingCost(config, spec, real, dense, bigram_kind(real.model, dense.vocabulary), parameters, _flops(dense, real, parameters))


def start_obstacle(config: Mapping[str, Any], dense: DenseShape, spec: BridgeSpec) -> str | None:
    """Why a sparse model of this spec cannot start from the weights of the model with this config.json; None where it can."""
    partner = shape_beside(spec.model_copy(update={"init": "dense"}), dense)
    if why := obstacle(config, max(spec.optim.context, partner.n_ctx)):
        return why
    if spec.model.d_pos_emb:
        return "the dense model's positions exclude position channels in the sparse one (bridge.model.d_pos_emb=0 would do)"
    if partner.d_mlp < dense.neurons:
        ratio = -(-dense.neurons // partner.d_model)
        has = f"it has {dense.neurons} neurons a layer, the sparse model {partner.d_mlp}"
        return f"{has} (bridge.model.mlp_ratio={ratio} would do)"
    return None


def _parameters(dense: DenseShape, spec: BridgeSpec) -> dict[str, int]:
    shape, sites = spec.model, dense.sites
    tensors = list(tensor_sizes(shape, spec.sparsity, dense.vocabulary, logits_bias=spec.init == "dense"))
    kept, (first, last) = sum(tensor.kept for tensor in tensors), spec.sparse_layers or (0, shape.n_layer - 1)
    if spec.layers is not None:  # the others, and the embeddings, keep all their weights
        one_layer = (block_entries(shape) - kept_in_blocks(shape, spec.sparsity)) // shape.n_layer
        kept = sum(tensor.entries for tensor in tensors) - (last - first + 1) * one_layer
    return {
        "dense": dense.parameters,
        "sparse": sum(tensor.entries for tensor in tensors),
        "sparse_nonzero": kept,
        "bigram": bigram_entries(shape, dense.vocabulary),
        "bridges": sites * (2 * dense.width * shape.d_model + dense.width + shape.d_model),
    }


def _flops(dense: DenseShape, spec: BridgeSpec, parameters: Mapping[str, int]) -> dict[str, float]:
    """Floating-point operations of one step. n weights cost 2n per token forward, 2n for the input's gradient, 2n for their own."""
    shape, optim, size = spec.model, spec.optim, dense.vocabulary
    first, last = spec.sparse_layers or (0, dense.layers - 1)
    tokens, sites = float(optim.batch * optim.context), (last - first + 1) * ((dense.sites - 1) // dense.layers) + 1
    crossing = tokens * (sites if spec.estimator == "exact" else max(spec.crossing_share, min(1.0, sites / optim.batch)))
    blocks = dense.layers * (sum(matrix.entries for matrix in block_matrices(shape)) + optim.context * shape.n_head * shape.d_head)
    dense_blocks = dense.block_parameters + dense.layers * optim.context * dense.width
    own, paths = tokens * spec.own_share, crossing * spec.kl_share
    # Prompts all cross. They are scored at their last token, and after it; half of them, the shifted ones, have tokens after it.
    after = optim.batch * spec.focus * min(spec.focus_tokens, FOLLOWING_TOKENS) / 2
    prompts, scored = PROMPT_LENGTH * spec.focus * tokens + after, optim.batch * spec.focus + after
    tokens, crossing = tokens + prompts, crossing + prompts
    own, paths = own + scored, paths + scored
    # The dense model itself stands for the layers before the sparse ones; frozen ones behind them give their input's gradient alone.
    inside, behind = ((last + 1 - first) / dense.layers, (dense.layers - 1 - last) / dense.layers)
    head = 2 if spec.layers else 3
    return {
        "dense model": 2.0 * tokens * dense_blocks,
        "sparse model": tokens * blocks * (6 * inside + 4 * behind),
        "bridges": 5.0 * (tokens + crossing / sites) * parameters["bridges"] * sites / dense.sites,
        "crossing paths": crossing * (blocks * (3 * inside + 4 * behind) + dense_blocks * (2 * inside + 4 * behind)),
        "predictions": 2.0 * size * (own * (dense.width + head * shape.d_model) + paths * (3 * dense.width + head * shape.d_model)),
    }


def largest_micro_batch(cost: BridgingCost, memory: int) -> int:
    """The largest micro-batch, in sequences, that fits into `memory` bytes; 0 where a single sequence does not fit.

    At most the spec's `micro_batch`; without one the batch is divided into micro-batches of nearly equal size.
    """
    batch = cost.spec.optim.batch
    most = min(cost.spec.optim.micro_batch or batch, batch)
    if cost.bytes_needed(1) > USABLE_SHARE * memory:
        return 0
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost.bytes_needed(middle) <= USABLE_SHARE * memory else (low, middle - 1)
    return low if cost.spec.optim.micro_batch else -(-batch // -(-batch // low))


def check(cost: BridgingCost, memory: int) -> None:
    """Raise SpecError where a micro-batch of one sequence does not fit into `memory` bytes; the message names flags that make it fit."""
    if largest_micro_batch(cost, memory):
        return
    needs = f"bridging needs {show_bytes(cost.bytes_needed(1) / USABLE_SHARE)} with a micro-batch of 1, {show_bytes(memory)} are available"
    found = next((changes for changes in _smaller(cost) if _fits(cost, changes, memory)), None)
    if found is None:
        raise SpecError(f"{needs}; no smaller sparse model fits beside this dense model: use a machine with more memory")
    flags = " ".join(f"--set bridge.{name}={value}" for name, value in found.items())
    raise SpecError(f"{needs}; {flags} would fit, with {show_bytes(cost_with(cost, found).bytes_needed(1) / USABLE_SHARE)}")


def _fits(cost: BridgingCost, changes: Mapping[str, Any], memory: int) -> bool:
    """Whether the bridging is possible with these changes, and fits into `memory` bytes."""
    try:
        return largest_micro_batch(cost_with(cost, changes), memory) > 0
    except (SpecError, ValueError):  # too narrow for the dense model's neurons or heads
        return False


def cost_with(old: BridgingCost, changes: Mapping[str, Any]) -> BridgingCost:
    """The cost with fields of the BridgeSpec changed, by dotted name."""
    content = old.requested.model_dump()
    for name, value in changes.items():
        *path, last = name.split(".")
        place = content
        for part in path:
            place = place[part]
        place[last] = value
    return bridging_cost(old.config, BridgeSpec.model_validate(content))


def _smaller(old: BridgingCost) -> Iterator[dict[str, Any]]:
    """Changes that save memory, smallest changes first: no bigram, a narrower model, a shorter context, then all together."""
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


def longest_prompt(config: Mapping[str, Any], bridge: BridgeSpec, prunes_dense: bool = False) -> int | None:
    """Most tokens of a prompt that the model that a circuit job prunes can read; None where the config does not say.

    Raises what `bridging_cost` raises; UnsupportedModel where the job prunes the dense model itself, which is not possible.
    """
    if config.get("model_type") == SPARSE_TYPE:
        return config.get("n_ctx")
    if not prunes_dense:
        return bridging_cost(config, bridge).spec.model.n_ctx
    positions = DenseShape.of(config).positions or ROTARY_CONTEXT
    if why := obstacle(config, positions):
        raise UnsupportedModel(f"the dense model cannot be pruned as it is: {why}; bridge it instead (no --dense)")
    return positions
