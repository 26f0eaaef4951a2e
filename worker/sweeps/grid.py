"""A grid of train jobs: from the command line to points, each one job, and from their results to comparable facts.

    width=64,128  l0=8k,16k,32k   ->   six train jobs with a circuit for each task   ->   sweep.json, the frontier

    width   d_model. The learning rate scales with 1/width (`training.width_search`), and so do the fractions of embeddings and biases, so
            that their numbers of nonzeros stay equal; fields given with --set stay fixed
    l0      total nonzeros of all block matrices (c_attn, c_fc, both c_proj; 8k, 1.5M), or a fraction of them if at most 1
    a.b     any field of the training's spec: optim.lr, model.n_layer, sparsity.min_per_neuron

The job id of a point is a hash of its spec, so the same grid finds its earlier jobs again. Torch-free. Paper: Sec. 3.1.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from extractor import files
from extractor.errors import BrokenArtifact, SpecError, UsageError, first_line
from extractor.jobs.request import TrainRequest
from extractor.spec.schema import JobSpec, TrainSpec, to_json
from extractor.spec.sizes import block_entries, block_matrices, kept_in_blocks

_SUFFIXES = {"k": 1e3, "K": 1e3, "m": 1e6, "M": 1e6}
_ALIASES = {"model.d_model": "width"}
_SCALED = ("sparsity.embedding_frac", "sparsity.bias_frac")
_BLOCK_MATRICES = ("c_attn.weight", "c_proj.weight", "c_fc.weight", "c_gate.weight")
MAX_POINTS = 256
Facts = dict[str, Any]  # the facts of a point, as in sweep.json


@dataclass(frozen=True)
class SweepRequest:
    """The options shared by all points. settings: dotted spec fields -> values as text."""

    tasks: tuple[str, ...]
    preset: str = "tiny"
    target_loss: float = 0.15
    seed: int = 0
    dense: bool = False
    corpus: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepPoint:
    """One point of the grid: its values on the axes, its job's spec and id."""

    axes: dict[str, Any]
    spec: JobSpec
    job: str

    @property
    def label(self) -> str:
        """'width 64, l0 16k'."""
        return ", ".join(f"{name} {_short(value)}" for name, value in self.axes.items())


@dataclass(frozen=True)
class Sweep:
    """The points of a sweep. The id is a hash of their specs."""

    points: tuple[SweepPoint, ...]

    @property
    def id(self) -> str:
        return "s" + _digest("".join(sorted(point.job for point in self.points)))[:9]

    def to_json(self) -> dict[str, Any]:
        points = [{"job": p.job, "axes": p.axes, "spec": p.spec.model_dump(mode="json")} for p in self.points]
        return {"version": 1, "sweep": self.id, "points": points}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Sweep:
        """Raises BrokenArtifact for anything not written by `to_json`."""
        try:
            points = tuple(SweepPoint(dict(p["axes"]), JobSpec.model_validate(p["spec"]), p["job"]) for p in found["points"])
            if not points or any(p.spec.train is None or not re.fullmatch(r"p[0-9a-f]{1,64}", p.job) for p in points):
                raise ValueError("it contains no train jobs of a sweep")
            return cls(points)
        except (KeyError, TypeError, ValueError) as error:
            raise BrokenArtifact(f"the plan of this sweep is not readable ({first_line(error)}); give its grid again") from None


def parse_grid(texts: Iterable[str]) -> dict[str, list[str]]:
    """Axis -> values, as text: 'width=64,128' and 'l0=8k,16k', or both in one 'width=64,128,l0=8k,16k'. Raises UsageError."""
    grid: dict[str, list[str]] = {}
    for text in texts:
        name = ""
        for piece in text.split(","):
            head, equals, value = piece.rpartition("=")
            if equals:
                name = _ALIASES.get(head.strip(), head.strip())
                if name in grid:
                    raise UsageError(f"--grid gives {name!r} twice; name each axis once, with all its values")
                grid[name] = []
            if not name or not value.strip():
                raise UsageError(f"--grid {text!r} is not NAME=VALUE,VALUE; for example --grid width=64,128 --grid l0=8k,16k")
            if value.strip() not in grid[name]:
                grid[name].append(value.strip())
    if not grid:
        raise UsageError("a sweep needs a grid; for example --grid width=64,128 --grid l0=8k,16k")
    return grid


def plan(order: SweepRequest, grid: Mapping[str, Sequence[str]]) -> Sweep:
    """All points of the grid; every spec is checked. Raises UsageError, SpecError, UnknownTask."""
    for name in grid:
        if name in order.settings or (name == "width" and "model.d_model" in order.settings):
            raise UsageError(f"{name!r} is both an axis of the grid and a --set; leave one out")
    if order.dense and {"l0", "sparsity.weight_frac"} & grid.keys():
        raise UsageError("a dense model has no l0; leave that axis out, or --dense")
    if "l0" in grid and "sparsity.weight_frac" in {*grid, *order.settings}:
        raise UsageError("l0 and sparsity.weight_frac set the same quantity; leave one out")
    if math.prod(map(len, grid.values())) > MAX_POINTS:
        raise UsageError(f"this grid has {math.prod(map(len, grid.values()))} points, more than {MAX_POINTS}; make it smaller")
    base = _build(order, {})
    chosen = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    points = {point.job: point for point in (_point(order, base, axes) for axes in chosen)}
    return Sweep(tuple(points.values()))


def _point(order: SweepRequest, base: TrainSpec, axes: dict[str, str]) -> SweepPoint:
    changes = {name: value for name, value in axes.items() if name not in ("width", "l0")}
    shown: dict[str, Any] = {name: _plain(value) for name, value in axes.items()}
    if "width" in axes:
        shown["width"] = width = _width(axes["width"])
        changes |= {"model.d_model": str(width)} | {
            name: value for name, value in _scaled(base, width).items() if name not in {*changes, *order.settings}
        }
    if "l0" in axes:
        wanted = amount(axes["l0"])
        frac = weight_frac(wanted, _build(order, changes), ", ".join(f"{name} {value}" for name, value in axes.items()))
        changes["sparsity.weight_frac"] = repr(frac)
        shown["l0"] = int(wanted) if wanted > 1 else wanted
    spec = _job(order, changes)
    shape = spec.train.model if spec.train else base.model
    if shape.d_model % shape.d_head:
        raise UsageError(f"width {shape.d_model} is not a multiple of model.d_head, {shape.d_head}; choose a multiple")
    return SweepPoint(shown, spec, "p" + _digest(to_json(spec))[:11])


def _scaled(base: TrainSpec, width: int) -> dict[str, str]:
    """The fields that scale with the width, relative to the preset's width."""
    ratio = base.model.d_model / width
    scaled = {"optim.lr": repr(base.optim.lr * ratio)}
    for name in _SCALED:
        fraction = getattr(base.sparsity, name.partition(".")[2])
        if fraction < 1:  # dense tensors stay dense
            scaled[name] = repr(min(1.0, fraction * ratio))
    return scaled


def _job(order: SweepRequest, changes: Mapping[str, str]) -> JobSpec:
    training = TrainRequest(
        preset=order.preset,
        dense=order.dense,
        tasks=order.tasks,
        target_loss=order.target_loss,
        changes={**order.settings, **changes},
        seed=order.seed,
        corpus=order.corpus,
    )
    return training.to_spec()


def _build(order: SweepRequest, changes: Mapping[str, str]) -> TrainSpec:
    train = _job(order, changes).train
    assert train is not None  # a train job has it
    return train


def weight_frac(l0: float, spec: TrainSpec, where: str) -> float:
    """The fraction of nonzeros of every block matrix for a total of `l0` nonzeros (itself a fraction if at most 1).

    Raises UsageError, with the valid range, for fewer nonzeros than are protected per neuron and for more than all weights.
    """
    total, protected = block_entries(spec.model), spec.sparsity.min_per_neuron
    least_frac = max(matrix.protected(protected) / matrix.entries for matrix in block_matrices(spec.model))
    least = math.ceil(least_frac * total)
    wanted = l0 * total if l0 <= 1 else l0
    if not least <= wanted <= total:
        raise UsageError(
            f"{where}: {wanted:,.0f} nonzeros are out of range; at width {spec.model.d_model} with {spec.model.n_layer} layers l0 ranges "
            f"from {least:,} ({protected} per neuron, sparsity.min_per_neuron) to {total:,} (all weights)"
        )
    return wanted / total


def amount(text: str) -> float:
    """'8k' -> 8000. Raises UsageError."""
    factor = _SUFFIXES.get(text[-1:], 1.0)
    try:
        value = float(text[:-1] if factor != 1.0 else text) * factor
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageError(f"l0 {text!r} is not a number of weights; write 16000, 16k, 1.5M, or a fraction such as 0.05")
    return value


def _width(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) == 0:
        raise SpecError(f"width {text!r} is not a whole number of channels")
    return int(text)


def _plain(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _short(value: Any) -> str:
    if not isinstance(value, (int, float)) or value < 1000:
        return f"{value:g}" if isinstance(value, float) else str(value)
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value % 100 == 0 else str(value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def facts_of(point: SweepPoint, state: str, result: Path | None = None, error: str | None = None) -> Facts:
    """The facts of a point: its position, and with a finished result its sizes, held-out loss (nats per token) and circuits.

    Raises BrokenArtifact when the result cannot be read.
    """
    spec = point.spec.train
    assert spec is not None
    facts: Facts = {"job": point.job, "label": point.label, "axes": point.axes, "state": state, "error": error}
    facts |= {
        "d_model": spec.model.d_model,
        "n_layer": spec.model.n_layer,
        "l0": kept_in_blocks(spec.model, spec.sparsity),
        "seed": point.spec.seed,
    }
    if result is None:
        return facts
    found = files.read_json(result / "result.json")
    try:
        facts |= {name: found[name] for name in ("parameters", "nonzeros", "held_out_loss")}
        facts["l0"] = sum(kept for name, kept in found["l0"].items() if name.endswith(_BLOCK_MATRICES))
        return facts | {"tasks": found.get("circuits", {}), "result": str(result)}
    except KeyError as missing:
        raise BrokenArtifact(f"{result / 'result.json'} lacks {missing}; run the job again") from None
