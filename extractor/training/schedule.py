"""The annealed fraction of nonzero weights, and the learning rate that depends on it (App. A.2)."""

from __future__ import annotations

import math

from extractor.spec.schema import OptimSpec, SparsitySpec


def annealed_fraction(step: int, steps: int, target: float, sparsity: SparsitySpec) -> float:
    """Nonzero fraction after step `step`: 1 until anneal_start, down to `target` at anneal_end, then constant."""
    start, end = sparsity.anneal_start * steps, sparsity.anneal_end * steps
    if step < start:
        return 1.0
    if step >= end:
        return target
    done = (step - start) / (end - start)
    return target**done if sparsity.anneal == "exponential" else 1.0 + (target - 1.0) * done


def sharkfin(step: int, optim: OptimSpec, sparsity: SparsitySpec) -> float:
    """Learning-rate factor: linear warm-up, linear decay, and with `optim.sharkfin` sqrt(target / current L0 fraction).

    This is how the authors' script writes 1 / sqrt(L0 fraction): the peak rate is reached when annealing ends.
    """
    warm = max(1, int(optim.warmup * optim.steps))
    ramp = min(1.0, (step + 1) / warm) * (1 - step / optim.steps)
    if not optim.sharkfin:
        return ramp
    current = annealed_fraction(step, optim.steps, sparsity.weight_frac, sparsity)
    return ramp * math.sqrt(sparsity.weight_frac / current)
