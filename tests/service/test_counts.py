"""What is counted without reading records: always what a count of the records would give."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from worker.fleet.caretaker import Caretaker
from worker.records.counts import Counts
from worker.records.transitions import KEEP_SECONDS, STATES

JOBS = ("one", "two", "three")
ACTS = {
    "create": lambda records, job: records.create(job, {"spec": "{}", "kind": "train", "max_attempts": 2}),
    "claim": lambda records, job: records.claim(job, "mine", 60, "host", "worker", ""),
    "beat": lambda records, job: records.beat(job, "mine", 60),
    "report": lambda records, job: records.report(job, "mine", {"event": "note"}, {"step": 1}),
    "succeed": lambda records, job: records.end(job, "mine", "succeeded", "/x"),
    "fail": lambda records, job: records.end(job, "mine", "failed", error=("SpecError", "bad")),
    "crash": lambda records, job: records.release(job, "mine", "why", counts=True),
    "preempt": lambda records, job: records.release(job, "mine", "why", counts=False),
    "reap": lambda records, job: records.reap(job, "mine", "lost", gone=True),
    "cancel": lambda records, job: records.get(job) and records.cancel(job),
    "forget": lambda records, job: records.client.delete(f"ex:job:{job}") if ended(records, job) else None,
}


@pytest.fixture
def records(machine):
    return machine.records


def ended(records, job):
    return (records.get(job) or {}).get("state") in ("succeeded", "failed", "cancelled")


def stories(*acts):
    """Lists of (act, job): two jobs are there and one runs, so that most acts change something."""
    start = [("create", "one"), ("create", "two"), ("claim", "one")]
    return some.lists(some.tuples(some.sampled_from(sorted(acts)), some.sampled_from(JOBS)), max_size=40).map(lambda more: start + more)


def recount(records):
    found = Counter(records.client.hget(key, "state") for key in records.client.scan_iter("ex:job:*"))
    return {state: found[state] for state in STATES}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stories(*(ACTS.keys() - {"forget"})))
def test_after_any_transitions_the_counts_are_those_of_a_recount(records, acts):
    records.client.flushdb()
    claimed = 0
    for act, job in acts:
        claimed += ACTS[act](records, job) == "claimed"
    assert Counts(records.client).by_state() == recount(records)
    assert Counts(records.client).totals()["attempts"] == claimed
    assert Counts(records.client).totals()["submitted"] == len({job for act, job in acts if act == "create"})


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stories(*ACTS))
def test_records_of_a_version_that_did_not_count_are_counted_once(records, acts):
    records.client.flushdb()
    for act, job in acts:
        ACTS[act](records, job)
    records.client.delete(*(f"ex:state:{state}" for state in STATES), "ex:totals")
    counts = Counts(records.client)
    counts.prepare()
    assert counts.by_state() == recount(records)
    records.client.delete("ex:state:queued")
    counts.prepare()
    assert counts.by_state()["queued"] == 0, "the second time it only looks at its mark"


def test_an_expired_record_no_longer_counts(records):
    ACTS["create"](records, "old")
    records.cancel("old")
    assert Counts(records.client).by_state()["cancelled"] == 1
    records.client.zincrby("ex:state:cancelled", -KEEP_SECONDS - 1, "old")
    assert Counts(records.client).by_state()["cancelled"] == 0


def test_waiting_times_and_lease_ages_are_those_of_the_worst(records):
    counts = Counts(records.client)
    assert (counts.longest_wait(), counts.oldest_lease()) == (0, 0)
    for job in JOBS:
        ACTS["create"](records, job)
    records.client.zincrby("ex:state:queued", -100, "one")
    assert 100 <= counts.longest_wait() < 110
    for job in ("two", "three"):
        ACTS["claim"](records, job)
        records.client.zincrby("ex:state:running", -100, job)
    records.beat("two", "mine", 60)
    assert 100 <= counts.oldest_lease() < 110
    records.beat("three", "mine", 60)
    assert counts.oldest_lease() < 10
    records.beat("one", "mine", 60)
    assert counts.by_state()["running"] == 2, "a stranger's heartbeat makes no job run"


def test_what_workers_of_an_earlier_version_change_is_found_by_the_caretaker(machine, records, monkeypatch):
    for job in JOBS:
        ACTS["create"](records, job)
    ACTS["claim"](records, "two")
    client, counts = records.client, Counts(records.client)
    before = {state: client.zrange(f"ex:state:{state}", 0, -1, withscores=True) for state in STATES}
    ACTS["claim"](records, "one")
    ACTS["succeed"](records, "two")
    ACTS["create"](records, "four")
    for state, members in before.items():  # as if an earlier version had done that
        client.delete(f"ex:state:{state}")
        if members:
            client.zadd(f"ex:state:{state}", {job: score - 1000 for job, score in members})
    monkeypatch.setenv("EXTRACT_REPUBLISH", "0.001")
    caretaker = Caretaker("me", records, machine.settings, lambda _: None, current_job=lambda: "")
    caretaker._tick()
    assert counts.by_state() == recount(records) == {"queued": 2, "running": 1, "succeeded": 1, "failed": 0, "cancelled": 0}
    client.zincrby("ex:state:running", -1000, "one")
    caretaker._tick()
    assert counts.oldest_lease() < 100, "its lease stands"
