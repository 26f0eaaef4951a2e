"""A row, and medians of interleaved timings."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """value is a ratio; goal is '<= x' or '>= x'."""

    name: str
    value: float
    goal: str

    @property
    def met(self) -> bool:
        sign, number = self.goal.split()
        return self.value <= float(number) if sign == "<=" else self.value >= float(number)

    def to_json(self, machine: str) -> dict:
        return {"name": self.name, "value": round(self.value, 4), "goal": self.goal, "met": self.met, "machine": machine}


def times_faster(fast: Callable[[], object], plain: Callable[[], object], rounds: int = 15) -> float:
    """Median time of `plain` over median time of `fast`, the two taking turns, after one warm-up each."""
    seconds: dict[Callable[[], object], list[float]] = {fast: [], plain: []}
    fast(), plain()
    for _ in range(rounds):
        for call, taken in seconds.items():
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
    return statistics.median(seconds[plain]) / statistics.median(seconds[fast])
