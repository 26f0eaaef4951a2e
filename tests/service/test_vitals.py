"""What a worker says of itself, whichever version of it speaks."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from worker.fleet import devices
from worker.fleet.vitals import Vitals
from worker.records.records import Worker

SMI = """#!/bin/sh
echo "$@" > {asked}
{answer}
"""


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """An nvidia-smi of ours, given what it does; returns what it was asked."""

    def make(answer):
        tool, asked = tmp_path / "nvidia-smi", tmp_path / "asked"
        tool.write_text(SMI.format(asked=asked, answer=answer))
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return asked

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return make


def test_without_nvidia_smi_the_device_is_the_cpu(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.detect(1) == devices.Device("cpu, 1 thread")
    assert devices.detect(8).name == "cpu, 8 threads"


@pytest.mark.parametrize(
    ("answer", "device"),
    [
        ("echo 'NVIDIA H200, 143771, 612'", devices.Device("NVIDIA H200, 140 GiB", 143771 * 2**20, 612 * 2**20, 143771 * 2**20)),
        ("echo 'A, B, 1024, 1'; echo 'A, B, 1024, 2'", devices.Device("2 x A, B, 2 GiB", 2 * 2**30, 3 * 2**20, 2**30)),
        ("echo 'NVIDIA GB10, [N/A], [N/A]'", devices.Device("NVIDIA GB10")),
        ("echo 'No devices were found'; exit 6", devices.Device("cpu, 2 threads")),
        ("exit 0", devices.Device("cpu, 2 threads")),
        ("echo nonsense", devices.Device("cpu, 2 threads")),
    ],
)
def test_nvidia_smi_names_the_gpus(smi, answer, device):
    smi(answer)
    assert devices.detect(2) == device


def test_a_worker_looks_only_at_its_own_gpus(smi, monkeypatch):
    asked = smi("echo 'NVIDIA H200, 143771, 612'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    devices.detect(1)
    assert Path(asked).read_text().split()[-2:] == ["--id", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.detect(1).name == "cpu, 1 thread"


def test_what_is_announced_is_what_others_read(machine):
    said = Worker("w", "h", "j", "p", True, "1.2", "cpu, 1 thread", 3, 4, 5, 6.5, 7.5)
    machine.records.announce(said, ttl=60)
    (heard,) = machine.records.workers()
    assert abs(heard.seen - time.time()) < 10
    assert Worker(**(vars(heard) | {"seen": 0.0})) == said


def test_the_announcement_of_an_earlier_version_is_read(machine):
    client = machine.records.client
    client.hset("ex:worker:old@h", mapping={"host": "h", "job": "j", "process": "a:b:1:c", "local": 1})
    client.zadd("ex:workers", {"old@h": 5})
    client.hset("ex:worker:odd@h", mapping={"host": "h", "memory": "much", "tokens_per_s": "inf", "colour": "blue"})
    client.zadd("ex:workers", {"odd@h": 6, "gone@h": 7})
    assert machine.records.workers() == [Worker("old@h", "h", "j", "a:b:1:c", True, seen=5), Worker("odd@h", "h", "", "", False, seen=6)]
    assert client.zcard("ex:workers") == 2


def test_an_earlier_version_reads_our_announcement(machine):
    machine.records.announce(Worker("w", "h", "", "p", False, "1.2", "cpu"), ttl=60)
    facts = machine.records.client.hgetall("ex:worker:w")
    assert (facts["host"], facts["job"], facts["process"], facts["local"]) == ("h", "", "p", "0")


def test_a_worker_says_how_fast_its_own_job_trains(machine):
    vitals = Vitals("me", machine.records, machine.settings, is_local=False, capacity=0)
    job = machine.submit()
    machine.records.claim(job, "token", 60, "host", "me", "")
    assert vitals.current(job).tokens_per_s == 0
    machine.records.report(job, "token", {"event": "progress"}, {"metrics": '{"tokens_per_s": 1234.5}'})
    assert vitals.current(job).tokens_per_s == 1234.5
    assert vitals.current("").tokens_per_s == 0
    assert Vitals("another", machine.records, machine.settings, False, 0).current(job).tokens_per_s == 0


def test_a_live_worker_tells_device_start_and_memory_of_its_engine(machine):
    machine.plan(steps=1000, seconds=0.05)
    began = time.time()
    machine.worker()
    (worker,) = machine.records.workers()
    assert worker.device == "cpu, 1 thread"
    assert began - 60 < worker.started < time.time()
    assert worker.memory == 0
    job = machine.submit()
    machine.wait_state(job, "running")
    deadline = time.monotonic() + 20
    while not machine.records.workers()[0].memory and time.monotonic() < deadline:
        time.sleep(0.05)
    (worker,) = machine.records.workers()
    assert worker.job == job
    assert 5e6 < worker.memory < 5e8
