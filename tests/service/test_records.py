"""The job record: which transitions there are, and who may make them."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import time

import pytest

from extractor.errors import NotFound, UsageError
from worker import processes
from worker.fleet.caretaker import Caretaker
from worker.records.records import describe


@pytest.fixture
def records(machine):
    records = machine.records
    records.create("job", {"spec": "{}", "kind": "train", "max_attempts": 2})
    return records


def claim(records, token="mine", ttl=5.0):
    return records.claim("job", token, ttl, "host", "worker", "")


def state(records):
    return records.need("job")["state"]


def test_a_queued_job_is_claimed_once(records):
    assert claim(records) == "claimed"
    assert claim(records, "other") == "held"
    assert records.need("job")["attempt"] == "1"


def test_a_delivery_after_the_lease_ran_out_is_still_dropped_only_the_reaper_takes_jobs_back(records):
    claim(records, ttl=0.001)
    time.sleep(0.01)
    assert claim(records, "other") == "held"


def test_a_delivery_of_an_unknown_or_ended_job_means_no_work(records):
    assert records.claim("nothing", "t", 5, "h", "w", "") == "unknown"
    records.cancel("job")
    assert claim(records) == "terminal"


def test_only_the_owner_may_renew_report_release_or_end(records):
    claim(records)
    assert records.beat("job", "other", 5) == "lost"
    assert records.report("job", "other", {"event": "note"}, {"step": 9}) == "lost"
    assert records.release("job", "other", "why", counts=True) == "lost"
    assert records.end("job", "other", "succeeded", "/x") == "lost"
    assert "step" not in records.need("job")
    assert records.beat("job", "mine", 5) == ""
    assert records.end("job", "mine", "succeeded", "/x") == "succeeded"
    assert records.end("job", "mine", "failed") == "lost"


def test_a_lease_that_ran_out_while_nobody_took_the_job_is_renewed(records):
    claim(records, ttl=0.001)
    time.sleep(0.01)
    assert records.beat("job", "mine", 5) == ""
    assert records.reap("job", "mine", "lost", gone=False) == "kept"


def test_the_reaper_takes_a_job_only_without_lease_or_with_a_dead_owner(records):
    claim(records)
    assert records.reap("job", "mine", "lost", gone=False) == "kept"
    assert records.reap("job", "another token", "lost", gone=True) == "kept"
    assert records.reap("job", "mine", "lost", gone=True) == "queued"
    assert records.beat("job", "mine", 5) == "lost"


def test_crashes_are_counted_and_preemptions_are_not(records):
    for _ in range(4):
        assert claim(records) == "claimed"
        assert records.release("job", "mine", "leaving", counts=False) == "queued"
    claim(records)
    assert records.release("job", "mine", "crash", counts=True) == "queued"
    claim(records)
    assert records.release("job", "mine", "crash", counts=True) == "failed"
    assert describe("job", records.need("job"))["error"] == {"type": "Crashed", "message": "crash (2 of 2 attempts)"}


def test_a_cancelled_job_is_not_queued_again_whoever_gives_it_up(records):
    claim(records)
    assert records.cancel("job") == "running"
    assert records.beat("job", "mine", 5) == "cancel"
    assert records.reap("job", "mine", "lost", gone=True) == "cancelled"
    assert records.open_ids() == []


def test_cancelling_twice_or_too_late_changes_nothing(records):
    claim(records)
    records.end("job", "mine", "succeeded", "/x")
    before = records.need("job")
    assert records.cancel("job") == "succeeded"
    assert records.need("job") == before
    with pytest.raises(NotFound, match="nothing"):
        records.cancel("nothing")


def test_a_job_is_recorded_once(records):
    assert records.create("job", {"spec": "other", "kind": "train", "max_attempts": 2}) is False
    assert records.need("job")["spec"] == "{}"


def test_each_transition_leaves_one_event(records):
    claim(records)
    records.report("job", "mine", {"event": "note", "metrics": {"empty": [], "exact": 0.1234567890123456}}, {"step": 1})
    records.end("job", "mine", "failed", error=("SpecError", "bad"))
    events = [event for _, event in records.events("job", "0", 0.001)]
    assert [event.get("state", event["event"]) for event in events] == ["queued", "running", "note", "failed"]
    assert events[2]["metrics"] == {"empty": [], "exact": 0.1234567890123456}
    assert events[3]["error"] == {"type": "SpecError", "message": "bad"}


def test_an_ended_job_keeps_its_last_progress_and_all_else(records):
    claim(records)
    records.report("job", "mine", {"event": "note", "message": "early"}, {})
    for step in range(300):
        records.report("job", "mine", {"event": "progress", "stage": "bridge", "step": step, "total": 300}, {"step": step})
    records.client.xadd("ex:ev:job", {"nonsense": "1"})
    middle = records.events("job", "0", 0.001)[150][0]
    before = records.client.memory_usage("ex:ev:job")
    records.end("job", "mine", "succeeded", "/result")
    events = records.events("job", "0", 0.001)
    names = [event.get("state", event["event"]) for _, event in events]
    assert [name for name in names if name != "progress"] == ["queued", "running", "note", "succeeded"]
    assert [event["step"] for _, event in events if event["event"] == "progress"] == list(range(242, 300))
    assert [event.get("step", event["event"]) for _, event in records.events("job", middle, 0.001)] == [*range(242, 300), "state"]
    assert records.client.memory_usage("ex:ev:job") < before / 3
    assert records.client.ttl("ex:ev:job") > 29 * 24 * 3600


def test_the_record_of_an_ended_job_expires_and_of_an_open_one_does_not(records):
    assert records.client.ttl("ex:job:job") == -1
    records.cancel("job")
    assert records.client.ttl("ex:job:job") > 29 * 24 * 3600
    assert records.client.ttl("ex:ev:job") > 29 * 24 * 3600
    records.client.delete("ex:job:job")
    assert records.newest(10) == []
    assert records.client.zcard("ex:jobs") == 0


def test_the_jobs_of_a_large_batch_do_not_hide_the_others(records):
    for number in range(450):
        group = "" if number in (0, 250) else "batch"
        records.create(f"j{number}", {"spec": "{}", "kind": "circuit", "max_attempts": 2, "group": group})
        records.client.zadd("ex:jobs", {f"j{number}": number})
    records.client.zrem("ex:jobs", "job")
    records.client.delete("ex:job:j300")
    assert [job for job, _ in records.newest(2, alone=True)] == ["j250", "j0"]
    assert [job for job, _ in records.newest(1, alone=True)] == ["j250"]
    assert [job for job, _ in records.newest(3)] == ["j449", "j448", "j447"]
    assert len(records.newest(1000)) == 449
    assert records.client.zscore("ex:jobs", "j300") is None


@pytest.mark.parametrize("bad", ["", "../up", "a/b", "a b", "x" * 65, "é", "a\n", "."])
def test_what_is_no_id_reaches_neither_redis_nor_the_disk(records, bad):
    for use in (records.get, records.cancel, records.next_message_id):
        with pytest.raises(UsageError, match="not a job id"):
            use(bad)


def test_expired_leases_tell_nothing_until_owners_had_time_to_renew_them(machine, records, monkeypatch):
    monkeypatch.setenv("EXTRACT_LEASE_TTL", "60")
    published = []
    caretaker = Caretaker("me", records, machine.settings, published.append, current_job=lambda: "")
    claim(records, ttl=0.001)
    time.sleep(0.01)
    caretaker.reap()
    assert state(records) == "running", "the server has only just started"
    monkeypatch.setattr(records.client, "info", lambda _: {"uptime_in_seconds": 61})
    caretaker.connection_returned()
    caretaker.reap()
    assert state(records) == "running", "our own connection has only just returned"
    caretaker = Caretaker("me", records, machine.settings, published.append, current_job=lambda: "")
    caretaker.reap()
    assert state(records) == "queued"
    assert published == ["job"]


def test_a_dead_owner_on_this_machine_is_recognised_at_once(machine, records, monkeypatch):
    monkeypatch.setenv("EXTRACT_LEASE_TTL", "60")
    caretaker = Caretaker("me", records, machine.settings, lambda _: None, current_job=lambda: "")
    alive, dead = processes.identify(), subprocess.Popen(["true"])
    was = processes.identify(dead.pid)
    dead.wait()
    records.claim("job", "mine", 60, "host", "worker", str(alive))
    caretaker.reap()
    assert state(records) == "running"
    records.client.hset("ex:job:job", "process", str(was))
    caretaker.reap()
    assert state(records) == "queued"


@pytest.mark.parametrize(
    ("change", "embedded", "gone"),
    [
        ({}, True, False),
        ({"pid": 2**22 + 1}, False, True),
        ({"started": "1"}, False, True),
        ({"space": "0"}, True, False),
        ({"boot": "another"}, True, True),
        ({"boot": "another"}, False, False),
    ],
)
def test_a_process_counts_as_gone_only_when_that_is_certain(change, embedded, gone):
    assert processes.is_gone(dataclasses.replace(processes.identify(), **change), same_machine=embedded) is gone


def test_a_pid_of_another_container_is_never_signalled(monkeypatch):
    sent = []
    monkeypatch.setattr("os.kill", lambda *what: sent.append(what))
    elsewhere = dataclasses.replace(processes.identify(), space="0")
    processes.send(elsewhere, signal.SIGKILL)
    processes.send(dataclasses.replace(elsewhere, boot="another"), signal.SIGKILL)
    assert sent == []
    processes.send(processes.identify(), signal.SIGKILL)
    assert len(sent) == 1
