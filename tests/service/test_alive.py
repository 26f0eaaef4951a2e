"""`extract worker --alive-file`: what a liveness probe looks at."""

from __future__ import annotations

import os
import signal

from service_machine import wait_for

from worker import server


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
    server.ensure(machine.settings)
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
    assert "alive file" in answer.err
