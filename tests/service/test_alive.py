"""`extract worker --alive-file`: what a liveness probe looks at."""

from __future__ import annotations

import json
import os
import signal

from service_machine import wait_for

from worker.broker import embedded_redis, routing
from worker.broker.app import KEY_PREFIX


def test_the_file_is_touched_while_redis_answers_and_not_while_it_is_away(machine):
    alive = machine.home / "alive"
    url = machine.service.url
    worker = machine.worker("--alive-file", str(alive), EXTRACT_REDIS_URL=url)
    log = machine.home / "worker-0.log"
    wait_for(alive.exists, "the file")
    alive.unlink()
    wait_for(alive.exists, "the file to be touched again")
    os.kill(machine.server_pid(), signal.SIGKILL)
    wait_for(lambda: "Redis cannot be reached" in log.read_text(), "the worker to notice")
    alive.unlink()
    noticed = log.read_text().count("Redis cannot be reached")
    wait_for(lambda: log.read_text().count("Redis cannot be reached") > noticed + 1, "two more turns of the caretaker")
    assert not alive.exists()
    embedded_redis.ensure(machine.settings)
    wait_for(alive.exists, "the file after Redis came back")
    assert worker.poll() is None


def test_a_file_that_an_earlier_worker_left_is_removed_and_one_that_cannot_be_written_refused(machine, monkeypatch):
    alive = machine.home / "alive"
    alive.touch()
    monkeypatch.setenv("EXTRACT_REDIS_URL", "redis://localhost:1/0")
    assert machine.extract("worker", "--alive-file", str(alive)).code == 4
    assert not alive.exists()
    answer = machine.extract("worker", "--alive-file", str(machine.home / "nowhere" / "alive"))
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "--alive-file" in answer.err


def test_a_caretaker_without_a_worker_brings_back_a_job_whose_only_worker_was_killed(machine, monkeypatch):
    machine.plan(steps=1000, seconds=0.05)
    monkeypatch.setenv("EXTRACT_REDIS_URL", machine.service.url)  # not embedded, so that no command starts a worker
    worker = machine.worker()
    job = machine.submit()
    machine.wait_step(job, 2)
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    queue = KEY_PREFIX + routing.queue_of("normal")
    assert machine.records.client.llen(queue) == 0, "the message is with the dead worker"
    alive = machine.home / "alive"
    caretaker = machine.spawn("caretaker", "--alive-file", str(alive), "--json")
    machine.wait_state(job, "queued")
    wait_for(lambda: machine.records.client.llen(queue) == 1, "the message: what a scaler looks at")
    assert alive.exists()
    wait_for(lambda: not machine.records.workers(), "the dead worker's announcement to run out")
    caretaker.terminate()
    out, err = caretaker.communicate(timeout=20)
    assert (caretaker.returncode, json.loads(out)) == (0, {"pid": caretaker.pid})
    assert f"job {job}: worker" in err
