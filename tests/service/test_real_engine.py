"""The queue with the real engine and a small spec: what a killed worker costs is time, not bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from service_machine import PROJECT, wait_for

from extractor.spec.schema import BridgeSpec, CorpusSpec, JobSpec, OptimSpec, PruneSpec, SparseModelSpec, SparsitySpec, to_json
from worker import processes

SMALL = JobSpec(
    kind="circuit",
    model="python-tiny",
    tasks=("quote_close",),
    target_loss=0.69,
    corpus=CorpusSpec(sources=("generated",), generated_programs=300),
    bridge=BridgeSpec(
        model=SparseModelSpec(d_model=8, d_head=8, mlp_ratio=2, n_ctx=32),
        sparsity=SparsitySpec(weight_frac=0.1),
        optim=OptimSpec(steps=150, batch=6, context=24, lr=0.1),
    ),
    prune=PruneSpec(
        steps=20,
        pairs=8,
        trials=2,
        population=2,
        edge_steps=5,
        edge_k_coefs=(1e-3,),
        targets=(),
        select_pairs=32,
        trial_pairs=16,
        held_out_pairs=16,
        mean_tokens=2048,
        necessity=0,
        controls=0,
    ),
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[str, str]:
    """The files of the job that nothing happens to."""
    home = tmp_path_factory.mktemp("calm")
    (home / "spec.json").write_text(to_json(SMALL))
    command = [sys.executable, "-m", "extractor", str(home / "spec.json"), "--out", str(home / "out"), "--threads", "1"]
    subprocess.run(command, cwd=PROJECT, env=os.environ | {"EXTRACT_CACHE_DIR": str(cache)}, check=True, stdout=subprocess.DEVNULL)
    return _files(home / "out")


@pytest.mark.slow
def test_a_job_whose_worker_is_killed_in_mid_training_ends_in_the_same_bytes(machine, monkeypatch, cache, calm):
    monkeypatch.setenv("EXTRACT_ENGINE", "extractor")
    monkeypatch.setenv("EXTRACT_CHECKPOINT_SECONDS", "0.3")
    monkeypatch.setenv("EXTRACT_CACHE_DIR", str(cache))
    job = machine.submit("shaken", SMALL)
    first = machine.worker()
    wait_for(lambda: _checkpoint(_events(machine, job)) >= 10, "a checkpoint in mid training", seconds=60)
    first.kill()
    machine.worker()
    wait_for(lambda: machine.records.need(job)["state"] == "succeeded", "the job to end", seconds=120)
    assert int(machine.records.need(job)["attempt"]) == 2
    notes = [event["message"] for event in _events(machine, job) if event["event"] == "note"]
    assert any(note.startswith("resumed bridge at step") for note in notes)

    assert _files(machine.settings.root / job / "result") == calm


@pytest.mark.slow
def test_a_machine_that_shares_no_disk_ends_a_killed_one_s_job_in_the_same_bytes(machine, bucket, monkeypatch, calm):
    monkeypatch.setenv("EXTRACT_ENGINE", "extractor")
    monkeypatch.setenv("EXTRACT_CHECKPOINT_SECONDS", "0.3")
    job = machine.submit("shaken", SMALL)
    first = machine.worker()
    wait_for(lambda: _checkpoint(_events(machine, job)) >= 10, "a checkpoint in mid training", seconds=60)
    bucket.wait_stored(job, len(bucket.stored(job)) + 1)
    first.kill()
    machine.worker(**bucket.elsewhere("b"))
    wait_for(lambda: machine.records.need(job)["state"] == "succeeded", "the job to end", seconds=120)
    notes = [event["message"] for event in _events(machine, job) if event["event"] == "note"]
    assert any(note.startswith("resumed bridge at step") for note in notes)

    assert machine.extract("result", job, "--out", str(machine.home / "shaken")).code == 0
    assert _files(machine.home / "shaken") == calm


def _events(machine, job: str) -> list[dict]:
    return [event for _, event in machine.records.events(job, "0", block=0.01)]


def _checkpoint(events: list[dict]) -> int:
    return max((event["step"] for event in events if event["event"] == "checkpoint" and event["stage"] == "bridge"), default=0)


def _files(folder: Path) -> dict[str, str]:
    """sha256 by name of every file, times aside (result.json and the page that shows them)."""
    files = json.loads((folder / "manifest.json").read_text())["files"]
    return {name: facts["sha256"] for name, facts in files.items() if not name.endswith(("result.json", "report.html"))}


@pytest.mark.gpu
def test_jobs_on_a_gpu_leave_no_memory_behind_and_a_killed_engine_does_not_spoil_the_next(machine, monkeypatch):
    import torch

    from worker.fleet import devices

    assert torch.cuda.is_available(), "asked in a parent of the worker's, which must not keep the engine from its GPU"
    monkeypatch.setenv("EXTRACT_ENGINE", "extractor")
    monkeypatch.setenv("EXTRACT_CACHE_DIR", str(machine.home / "cache"))
    monkeypatch.setenv("EXTRACT_CHECKPOINT_SECONDS", "0.3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    before = devices.detect(1).used
    machine.worker()
    killed = machine.submit("killed", SMALL)
    wait_for(lambda: _checkpoint(_events(machine, killed)) >= 10, "a checkpoint in mid training", seconds=120)
    wait_for(lambda: devices.detect(1).used > before + (64 << 20), "the engine to take memory of the GPU", seconds=60)
    os.kill(processes.read_pid(machine.settings.root / killed / "engine.log.pid").pid, signal.SIGKILL)  # type: ignore[union-attr]
    for job in (killed, machine.submit("next", SMALL)):
        machine.wait_state(job, "succeeded", seconds=300)
    wait_for(lambda: devices.detect(1).used < before + (64 << 20), "the GPU's memory to be free again", seconds=30)
