"""What of an engine's events is recorded, and when: counts at most once a second, all else at once."""

from __future__ import annotations

import pytest

from worker.records.records import describe
from worker.supervision.event_reporter import EventReporter

STAGE = {"event": "stage", "stage": "prune", "index": 3, "of": 5, "elapsed_seconds": 310.0, "total_seconds_left": 160.0, "next": ["report"]}
PHASE = {
    "event": "progress", "stage": "prune", "phase": "robust edges", "step": None, "total": None, "metrics": {}, "seconds_left": None,
    "elapsed_seconds": 320.5, "total_seconds_left": None,
}  # fmt: skip
COUNT = PHASE | {"step": 70, "total": 144, "seconds_left": 20.0, "elapsed_seconds": 340.0, "total_seconds_left": 130.0}


@pytest.fixture
def report(machine):
    machine.records.create("mine", {"spec": "{}", "kind": "circuit", "max_attempts": 3})
    machine.records.claim("mine", "token", 60, "host", "worker", "")
    return EventReporter("mine", "token", machine.records)


def told(machine):
    return [event for _, event in machine.records.events("mine", "0", 0.01) if event["event"] != "state"]


def progress(machine):
    return describe("mine", machine.records.need("mine"))["progress"]


def test_a_stage_or_phase_right_after_a_count_is_told_at_once(machine, report):
    for event in (STAGE, COUNT, PHASE, {"event": "note", "message": "a note"}, STAGE):
        report(event)
    assert [event["event"] for event in told(machine)] == ["stage", "progress", "progress", "note", "stage"]


def test_counts_are_told_once_a_second_and_the_last_before_what_follows(machine, report):
    for step in range(50):
        report(COUNT | {"step": step})
    assert [event["step"] for event in told(machine)] == [0]
    report(STAGE)
    assert [event.get("step") for event in told(machine)] == [0, 49, None]


def test_the_record_has_phase_and_times(machine, report):
    report(STAGE)
    assert progress(machine) == {"stage": "prune", "index": 3, "of": 5, "elapsed_seconds": 310.0, "total_seconds_left": 160.0}
    report(PHASE)
    known = {"stage": "prune", "index": 3, "of": 5, "phase": "robust edges", "elapsed_seconds": 320.5}
    assert progress(machine) == known, "what is not known is not there"
    report(COUNT)
    times = {"seconds_left": 20.0, "elapsed_seconds": 340.0, "total_seconds_left": 130.0}
    assert progress(machine) == known | {"step": 70, "total": 144} | times
    report(STAGE)
    assert "phase" not in progress(machine)


def test_events_of_an_earlier_engine_leave_no_times(machine, report):
    report(COUNT)
    old = {"event": "progress", "stage": "prune", "step": 1, "total": 9, "metrics": {"loss": 1.0}, "seconds_left": 3.0}
    report({"event": "stage", "stage": "report", "index": 4, "of": 5})
    report(old)
    report({"event": "note", "message": "flushes the count"})
    assert progress(machine) == {"stage": "report", "index": 4, "of": 5, "step": 1, "total": 9, "seconds_left": 3.0}


def test_status_shows_phase_and_time_left(machine, report, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    report(STAGE)
    report(COUNT)
    one = machine.extract("status", "mine", "--no-worker").out
    assert "progress:  [3/5] prune, robust edges 70/144, 5 min 40 s elapsed, about 2 min 10 s left" in one
    page = machine.extract("status", "--no-worker").out
    assert "3/5 prune, robust edges" in page
    assert "2 min 10 s" in page
