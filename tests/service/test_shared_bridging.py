"""Jobs that need the same bridged model: one makes it, the others wait in the queue and hold no worker."""

from __future__ import annotations

import os
import signal

from service_machine import circuit_spec, train_spec, wait_for

SLOW = {"steps": 10, "seconds": 0.25}


def bridged(machine, job: str) -> bool:
    """Whether a job's engine did the first stage itself."""
    return any(event["event"] == "progress" and event["stage"] == "bridge" for event in machine.story(job))


def one_behind_the_other(machine):
    """Two workers, of which the first makes a bridged model for job `first`, and job `second`, which waits for it."""
    machine.plan(**SLOW)
    machine.worker()
    machine.worker()
    machine.submit("first", circuit_spec("quote_close"))
    machine.wait_step("first", 1)
    machine.submit("second", circuit_spec("for_while"))
    wait_for(lambda: machine.records.need("second").get("waits") == "first", "the second to wait", detail=lambda: machine.story("second"))
    assert machine.state_of("second") == "queued"


def test_the_first_makes_it_and_no_worker_waits_for_it(machine):
    one_behind_the_other(machine)
    assert "waits for: job first" in machine.extract("status", "second").out
    train = machine.submit("train", train_spec())
    machine.wait_state(train, "running", "succeeded")  # the other worker is free for it
    assert bridged(machine, "first")
    assert machine.wait_state("second", "succeeded")["attempt"] == "1"
    assert not bridged(machine, "second")
    waits = [event for event in machine.story("second") if event.get("reason", "").startswith("waits for job first")]
    assert len(waits) == 1
    assert machine.wait_state("first", "succeeded")["attempt"] == "1"
    assert len(machine.records.client.keys("ex:twin:*")) == 0


def test_a_later_job_finds_it_made(machine):
    machine.worker()
    machine.wait_state(machine.submit("first", circuit_spec("quote_close")), "succeeded")
    machine.wait_state(machine.submit("later", circuit_spec("with_as")), "succeeded")
    assert bridged(machine, "first")
    assert not bridged(machine, "later")


def test_where_its_maker_is_cancelled_the_next_makes_it(machine):
    one_behind_the_other(machine)
    machine.records.cancel("first")
    machine.wait_state("second", "succeeded")
    assert machine.state_of("first") == "cancelled"
    assert bridged(machine, "second")


def test_a_maker_whose_worker_is_killed_stays_its_maker(machine):
    one_behind_the_other(machine)
    worker = machine.records.need("first")["worker"]
    os.kill(int(worker.partition("-")[2].partition("@")[0]), signal.SIGKILL)
    machine.wait_state("second", "succeeded", seconds=40)
    assert machine.state_of("first") in ("running", "succeeded")
    assert not bridged(machine, "second")
    assert machine.wait_state("first", "succeeded")["attempt"] == "2"
