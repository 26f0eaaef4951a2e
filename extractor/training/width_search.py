"""Search for the smallest width that reaches a loss, to compare a dense and a sparse model of equal loss.

1. Train the spec's own width. If it reaches the target, halve the width until one does not; if not, double it until one does.
2. Bisect between the two, on multiples of d_head, until they are neighbours or the smallest that reaches the target is within 2 % of it.

Only d_model and the learning rate change: lr(width) = lr * spec width / width, which fits the authors' 1.28e-2 at 1024 and our 0.15 at
128. No torch: the caller passes the function that trains a spec.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from extractor.spec.schema import TrainSpec

MAX_WIDTH_FACTOR = 4  # times the spec's width
MAX_TRAININGS = 6
CLOSE = 0.02  # a loss at most this fraction below the target ends the search


@dataclass(frozen=True)
class WidthResult:
    """One trained width: parameters and nonzero parameters of the model, held-out loss in nats per token."""

    d_model: int
    parameters: int
    nonzeros: int
    held_out_loss: float

    @classmethod
    def of(cls, d_model: int, result: dict[str, Any]) -> WidthResult:
        """From a training's result.json."""
        return cls(d_model, result["parameters"], result["nonzeros"], result["held_out_loss"])


@dataclass(frozen=True)
class Match:
    """The result of a search: the chosen width, whether it reaches the target, the reason, and all trained widths in ascending order."""

    target_loss: float
    d_model: int
    reached: bool
    why: str
    curve: tuple[WidthResult, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"curve": [asdict(candidate) for candidate in self.curve]}


def at_width(spec: TrainSpec, d_model: int) -> TrainSpec:
    """The same spec at another width, with the learning rate for that width and without `match_loss`."""
    lr = spec.optim.lr * spec.model.d_model / d_model
    model, optim = spec.model.model_copy(update={"d_model": d_model}), spec.optim.model_copy(update={"lr": lr})
    return spec.model_copy(update={"model": model, "optim": optim, "match_loss": None})


def search(spec: TrainSpec, target: float, train: Callable[[TrainSpec], WidthResult]) -> Match:
    """Find the smallest width whose held-out loss is at most `target` nats per token.

    It takes at most MAX_TRAININGS trainings of widths up to MAX_WIDTH_FACTOR times the spec's. `train` trains a spec, or returns its stored
    result. Raises what `train` raises.
    """
    unit, own = spec.model.d_head, spec.model.d_model
    seen: dict[int, WidthResult] = {}
    width: int | None = own
    while width is not None and len(seen) < MAX_TRAININGS:
        seen[width] = train(at_width(spec, width))
        width = next_width(list(seen.values()), target, unit, MAX_WIDTH_FACTOR * own)
    return conclude(list(seen.values()), target, unit, settled=width is None)


def next_width(seen: list[WidthResult], target: float, unit: int, widest: int) -> int | None:
    """The width to train next, or None when the search is done."""
    good = min((c for c in seen if c.held_out_loss <= target), key=lambda c: c.d_model, default=None)
    if good is None:
        tried = max(c.d_model for c in seen)
        return min(2 * tried, widest // unit * unit) if tried < widest // unit * unit else None
    if good.held_out_loss >= (1 - CLOSE) * target:
        return None
    below = max((c.d_model for c in seen if c.d_model < good.d_model), default=0)
    if good.d_model - below <= unit:
        return None
    middle = (good.d_model + below) // 2 // unit * unit
    return max(middle, below + unit)


def conclude(seen: list[WidthResult], target: float, unit: int, settled: bool) -> Match:
    """The chosen width and the reason, a sentence."""
    curve = tuple(sorted(seen, key=lambda c: c.d_model))
    good = [c for c in curve if c.held_out_loss <= target]
    if not good:
        best = min(curve, key=lambda c: c.held_out_loss)
        why = (
            f"{target:g} nats is out of reach: the best of {len(curve)} widths up to {curve[-1].d_model} is {best.d_model} "
            f"with {best.held_out_loss:.4f}, which is kept; train longer, or ask for a higher loss"
        )
        return Match(target, best.d_model, False, why, curve)
    kept = good[0]
    below = max((c for c in curve if c.d_model < kept.d_model), key=lambda c: c.d_model, default=None)
    floor = f"{below.d_model} has {below.held_out_loss:.4f}" if below else "nothing narrower was tried"
    if kept.d_model == unit:
        floor = "it is one head wide"
    end = "" if settled else f"; the search ended after {len(curve)} trainings, a width in between may do"
    why = f"width {kept.d_model} reaches {target:g} nats with {kept.held_out_loss:.4f}; {floor}{end}"
    return Match(target, kept.d_model, True, why, curve)
