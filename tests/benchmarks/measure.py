"""A row, medians of interleaved timings, and the memory of a fresh process."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


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


def times_faster(
    fast: Callable[[], object], plain: Callable[[], object], rounds: int = 15, before: Callable[[], object] = lambda: None
) -> float:
    """Median time of `plain` over median time of `fast`, the two taking turns, after one warm-up each; `before` each call is not timed."""
    seconds: dict[Callable[[], object], list[float]] = {fast: [], plain: []}
    for turn in range(rounds + 1):
        for call, taken in seconds.items():
            before()
            _finish()
            began = time.perf_counter()
            call()
            _finish()
            if turn:
                taken.append(time.perf_counter() - began)
    return statistics.median(seconds[plain]) / statistics.median(seconds[fast])


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_fresh_process(module: str, function: str, *arguments: object, **env: str) -> dict:
    """What `module.function(*arguments)` returns (as JSON) in a process of its own, where peaks of memory are its own too."""
    code = f"import json, sys, {module}; print(json.dumps({module}.{function}(*json.loads(sys.argv[1]))))"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)], check=True, cwd=ROOT, env=os.environ | env, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])
