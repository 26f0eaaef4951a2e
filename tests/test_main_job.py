"""The README's main job, shortened: one command, an empty machine, the queue, the real engine."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHANCE = math.log(2)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_command_on_an_empty_machine_leaves_a_small_sufficient_and_necessary_circuit(tmp_path: Path):
    env = os.environ | {"EXTRACT_STATE_DIR": str(tmp_path / "state"), "EXTRACT_CACHE_DIR": str(tmp_path / "cache")}
    env.pop("EXTRACT_REDIS_URL", None)
    env["EXTRACT_THREADS"] = "1"  # the other tests run beside it
    extract = [sys.executable, "-m", "worker"]
    command = [*extract, "submit", "--model", "python-tiny", "--task", "quote_close", "--wait", "--out", str(tmp_path / "out")]
    # The complete job takes six minutes longer and reaches no other verdict; `python -m tests.benchmarks main_job` runs it.
    command += ["--standard", "paper"]
    command += ["--set", "bridge.optim.steps=300", "--set", "prune.trials=4", "--set", "prune.controls=20"]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1100)
    finally:
        subprocess.run([*extract, "server", "stop"], env=env, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "out" / "circuits" / "quote_close"
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["meets_target"]
    assert result["loss"]["circuit"] <= 0.15
    assert result["accuracy"]["circuit"] >= 0.93  # what 0.15 nats come to: 0.94 to 0.96
    assert result["circuit"]["edges"] <= 200
    assert result["loss"]["without_circuit"] - result["loss"]["full"] >= 0.5
    assert result["loss"]["random"] > 0.9 * CHANCE
    assert result["bridge"]["explained"]["mean"] >= 0.65
    assert result["bridge"]["prompts"]["agreement"] >= 0.95
    assert result["holds_for_dense"] is True
    assert result["causal"]["nodes"]["correlation"] > max(0.6, result["causal"]["random"]["correlation"])
    few = result["steering"]["few"]["held_out"]
    assert few["flipped"] > max(0.1, 5 * few["random_flipped"])
    assert (folder / "circuit.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (folder / "report.html").read_text(encoding="utf-8")

    script = Path(__file__).with_name("rerun_circuit.py")
    again = subprocess.run(
        [sys.executable, script, tmp_path / "out", "quote_close"], capture_output=True, text=True, check=True, timeout=120
    )
    figures = [line.split() for line in again.stdout.splitlines()]
    assert len(figures) == 13
    for name, found, stored in figures:
        assert float(found) == pytest.approx(float(stored), abs=2e-4), name
