"""The README's main job on this machine, from an empty state: time, memory, `--help`. Values: share of the limit that is used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.benchmarks.measure import Row

SECONDS, BYTES, HELP_SECONDS = 300, 2e9, 0.5
COMMAND = ["submit", "--model", "python-tiny", "--task", "quote_close", "--wait", "--json"]


def rows(threads: int) -> Iterator[Row]:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "worker", "--help"], check=True, capture_output=True)
    yield Row(f"extract --help, over {HELP_SECONDS} s", (time.perf_counter() - began) / HELP_SECONDS, "<= 1.0")
    with tempfile.TemporaryDirectory() as state:
        env = os.environ | {"EXTRACT_STATE_DIR": state, "EXTRACT_CACHE_DIR": f"{state}/cache", "EXTRACT_THREADS": str(threads)}
        env.pop("EXTRACT_REDIS_URL", None)
        try:
            seconds, peak, result = _run(env)
        finally:
            subprocess.run([sys.executable, "-m", "worker", "server", "stop"], env=env, capture_output=True)
    yield Row(f"main job, over {SECONDS} s", seconds / SECONDS, "<= 1.0")
    yield Row("main job, all processes' memory, over 2 GB", peak / BYTES, "<= 1.0")
    yield Row("circuit's held-out loss, over the target", result["loss"]["circuit"] / result["target_loss"], "<= 1.0")
    yield Row("circuit's edges, over 200", result["circuit"]["edges"] / 200, "<= 1.0")
    bridge, steering = result["bridge"], result["steering"]
    yield Row("share of KL explained on the worst source, mean over passes", bridge["explained"]["mean"], ">= 0.7")
    yield Row("prompts on which dense and sparse agree", bridge["prompts"]["agreement"], ">= 0.95")
    yield Row("dense model's probability of the other answer, one node steered", steering["probability"][-1], ">= 0.5")
    yield Row("the same without steering", steering["probability"][0], "<= 0.05")
    yield Row("the same, random directions of equal norm, the worst", steering["random_worst"][-1], "<= 0.1")


def _run(env: dict[str, str]) -> tuple[float, float, dict]:
    """Seconds, peak proportional memory in bytes of everything the job started, result.json."""
    before = set(psutil.pids())
    began, peak = time.perf_counter(), 0.0
    job = subprocess.Popen([sys.executable, "-m", "worker", *COMMAND], env=env, stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    os.set_blocking(job.stdout.fileno(), True)
    lines: list[str] = []
    try:
        for line in job.stdout:
            lines.append(line)
            peak = max(peak, sum(_memory(pid) for pid in set(psutil.pids()) - before))
        job.wait()
    except KeyboardInterrupt:
        job.send_signal(signal.SIGINT)
        raise
    seconds = time.perf_counter() - began
    found = next(Path(env["EXTRACT_STATE_DIR"]).glob("jobs/*/result/circuits/quote_close/result.json"))
    return seconds, peak, json.loads(found.read_text(encoding="utf-8"))


def _memory(pid: int) -> float:
    try:
        return psutil.Process(pid).memory_full_info().pss
    except psutil.Error:
        return 0.0
