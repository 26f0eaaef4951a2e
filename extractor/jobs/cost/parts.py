"""The parts of a job with their seconds on the reference machine, for the estimate of the time left. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from extractor.jobs.cost.bridging import BridgingCost, bridging_cost
from extractor.jobs.cost.constants import (
    CORPUS_SECONDS,
    FLOAT_BYTES,
    LARGE,
    LARGE_POWER,
    MASK_SECONDS,
    MEASURES,
    PRUNE_SECONDS,
    RACE_SECONDS,
    REFERENCE_BYTES,
    REFERENCE_ENTRIES,
    REFERENCE_FLOPS,
    REFERENCE_PAIRS,
    REPORT_SECONDS,
    SMALLEST_SHARE,
    STEP_SECONDS,
    VALIDATE_SECONDS,
)
from extractor.jobs.cost.hardware import Speed
from extractor.jobs.cost.time_left import JobPart
from extractor.models.checks import SPARSE_TYPE
from extractor.models.shape import DenseShape
from extractor.spec.schema import JobSpec, PruneSpec, TrainSpec
from extractor.spec.sizes import block_entries

REFERENCE = Speed(REFERENCE_FLOPS, REFERENCE_BYTES)


def job_parts(spec: JobSpec, config: Mapping[str, Any] | None) -> list[JobPart]:
    """The parts of a job in order. config: config.json of the given model of a circuit job. Raises UnsupportedModel, SpecError."""
    model, entries, is_bridged = _model(spec, config)
    scale = _scale(entries)
    parts = [JobPart("corpus", "", CORPUS_SECONDS, is_work=False), model]
    if model.steps and (spec.train is not None or is_bridged):
        phase, seconds = MEASURES[model.stage]
        parts.append(JobPart(model.stage, phase, scale * seconds, is_work=False))
    if spec.prune is not None:
        scale = _scale(entries, spec.prune)
        for task in spec.tasks:
            suffix = f" {task}" if len(spec.tasks) > 1 or spec.kind == "train" else ""
            parts += _of_circuit(spec.prune, scale, is_bridged, suffix)
    return parts


def _scale(entries: int, prune: PruneSpec | None = None) -> float:
    """Seconds as a multiple of the reference model's. prune: of a search, by the number of its pairs too."""
    size = entries / REFERENCE_ENTRIES
    size = size if size <= LARGE else LARGE * (size / LARGE) ** LARGE_POWER
    pairs = 1.0 if prune is None else (prune.select_pairs + prune.held_out_pairs + prune.trial_pairs) / REFERENCE_PAIRS
    return max(SMALLEST_SHARE, size * pairs)


def _model(spec: JobSpec, config: Mapping[str, Any] | None) -> tuple[JobPart, int, bool]:
    """The part that makes the model, entries of the matrices of its blocks, and whether a dense model stands beside it."""
    if spec.train is not None:
        optim = spec.train.optim
        seconds = None if spec.train.match_loss is not None else optim.steps * _training_step(spec.train)
        return JobPart("train", "", seconds, optim.steps if seconds else 0), block_entries(spec.train.model), False
    assert config is not None  # a circuit job has a model
    assert spec.bridge is not None  # JobSpec's validator checks it
    if config.get("model_type") == SPARSE_TYPE:
        width, layers = int(config.get("d_model", 0)), int(config.get("n_layer", 0))
        neurons, readers = int(config.get("d_mlp", int(config.get("mlp_ratio", 4)) * width)), 2 if config.get("gated") else 1
        mixed = int(config["heads"]) * int(config["d_head"]) if config.get("heads") else width
        return JobPart("bridge", "", 0.0), layers * (4 * mixed + (1 + readers) * neurons) * width, False
    if spec.prunes_dense:
        return JobPart("bridge", "", 0.0), DenseShape.of(config).block_parameters, True
    cost: BridgingCost = bridging_cost(config, spec.bridge)
    steps = cost.spec.optim.steps
    entries = block_entries(cost.spec.model) * cost.sparse_layers // cost.dense.layers  # the other layers are no part of a circuit
    return JobPart("bridge", "", steps * cost.seconds(REFERENCE), steps), entries, True


def _training_step(train: TrainSpec) -> float:
    """Seconds of a step on the reference machine: 6 operations per weight and token, and traffic of weights, gradients and moments."""
    size, tokens = block_entries(train.model) + 2 * train.vocab_size * train.model.d_model, train.optim.batch * train.optim.context
    return STEP_SECONDS + 6.0 * size * tokens / REFERENCE_FLOPS + 14 * FLOAT_BYTES * size / REFERENCE_BYTES


def _of_circuit(prune: PruneSpec, scale: float, is_bridged: bool, suffix: str) -> Iterator[JobPart]:
    """The parts of the search for one circuit. scale: as `_scale` gives it."""
    standards = ("paper", "robust") if prune.standard == "robust" else ("paper",)
    found = [_of_search(prune, scale, standard, f"prune{suffix}") for standard in standards]
    for parts in found:
        yield from parts
    again = (prune.seeds - 1) * sum(part.seconds or 0.0 for part in found[-1])
    yield JobPart(f"validate{suffix}", "", scale * VALIDATE_SECONDS[standards[-1], prune.controls > 0] + again)
    yield JobPart(f"report{suffix}", "", scale * REPORT_SECONDS[is_bridged])


def _of_search(prune: PruneSpec, scale: float, standard: str, stage: str) -> list[JobPart]:
    """The phases of the search by one standard: the ranking by what the spec asks for, the others as measured."""
    prefix, less = ("robust ", 2) if standard == "robust" else ("", 1)  # the robust standard halves what masks are learned with
    if prune.algorithm in ("race", "edges"):
        nodes_first = {"rank": RACE_SECONDS["robust"]["rank"], "cut": RACE_SECONDS["robust"]["cut"]} if prune.granularity == "node" else {}
        steps, seconds = 0, nodes_first | RACE_SECONDS[standard]
    else:
        rounds = math.ceil((len(prune.k_coefs) or prune.trials) / prune.population)
        steps = rounds * max(1, prune.steps // less) if prune.algorithm == "masks" else 0
        rank = steps * MASK_SECONDS[standard] * max(1, prune.population) / 8 * prune.pairs / 64
        seconds = {"rank": rank if prune.minutes is None else min(rank, 60 * prune.minutes), **PRUNE_SECONDS[standard]}
    if prune.granularity == "node":
        seconds = {phase: spent for phase, spent in seconds.items() if "edges" not in phase}
    return [JobPart(stage, prefix + phase, scale * spent, steps if phase == "rank" else 0) for phase, spent in seconds.items()]
