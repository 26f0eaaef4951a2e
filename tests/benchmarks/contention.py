"""Training on a machine with other work: steps per second beside processes that never sleep, over those of a quiet machine.

Steps of sparse training at d_model 128 and 512, each in a process of its own. With c cores, t threads and k busy processes of one thread,
fair shares would leave c / (t + k) of the cores to each thread, at most 1.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import torch

from tests.benchmarks.measure import Row, in_fresh_process

SECONDS, STEPS = 12.0, 250  # of a measurement, at most
SHAPES = {128: (2, 128, 9, 128), 512: (2, 512, 32, 64)}  # layers, width, sequences, tokens of each
ENGINE = {"OMP_WAIT_POLICY": "PASSIVE"}  # as `extractor.__main__` sets it
GOALS = {1: 0.6, 3: 0.3}  # by number of busy processes


def rows(threads: int) -> Iterator[Row]:
    for width in SHAPES:
        quiet = _rate(width, threads)
        for busy, goal in GOALS.items():
            fair = min(1.0, (os.cpu_count() or 1) / (threads + busy))
            others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
            try:
                share = _rate(width, threads) / quiet
            finally:
                for other in others:
                    other.kill()
            yield Row(f"steps at d_model {width} beside {busy} busy, over quiet (fair: {fair:.2f})", share, f">= {goal}")


def _rate(width: int, threads: int) -> float:
    return in_fresh_process("tests.benchmarks.contention", "steps_per_second", width, threads, OMP_NUM_THREADS=str(threads), **ENGINE)[
        "rate"
    ]


def steps_per_second(width: int, threads: int) -> dict[str, float]:
    """{rate} of training steps, over SECONDS seconds or STEPS steps."""
    from tests.benchmarks.training import _trainer

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layers, d_model, batch, context = SHAPES[width]
    step = _trainer("cpu", layers, d_model, batch, context, sparse=True)
    for _ in range(3):
        step()
    began, done = time.perf_counter(), 0
    while done < STEPS and time.perf_counter() - began < SECONDS:
        step()
        done += 1
    return {"rate": done / (time.perf_counter() - began)}
