"""The times in a job's events: they go on where an earlier attempt stopped, and nothing of the job depends on them."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from extractor.jobs.clock import CLOCK_JSON, JobClock
from extractor.jobs.cost.time_left import JobPart
from extractor.progress import Progress

STAGES = ("bridge", "prune", "report")
PARTS = [JobPart("bridge", "", 100.0, 100), JobPart("prune", "rank", 20.0), JobPart("prune", "cut", 20.0), JobPart("report", "", 10.0)]


class Attempt:
    """One attempt at a job of which every event takes a second."""

    def __init__(self, work: Path):
        self.told: list[dict[str, Any]] = []
        clock = JobClock(STAGES, work, count().__next__)
        clock.expect(PARTS)
        self.progress = clock.watching(Progress(self.told.append, report_seconds=0.0))


def test_events_carry_the_times_and_keep_what_they_had(tmp_path: Path):
    attempt = Attempt(tmp_path)
    progress, told = attempt.progress, attempt.told
    progress.stage("bridge", 1, 3)
    for step in range(1, 21):
        progress.step(step, 100, loss=1.0)
    progress.note("a note")
    first, last = told[0], told[-2]
    assert first == {
        "event": "stage", "stage": "bridge", "index": 1, "of": 3,
        "elapsed_seconds": 1.0, "total_seconds_left": None, "next": ["prune", "report"],
    }  # fmt: skip
    assert (last["step"], last["total"], last["metrics"]) == (20, 100, {"loss": 1.0})
    assert (last["index"], last["of"], last["elapsed_seconds"]) == (1, 3, 21.0)
    assert last["total_seconds_left"] == pytest.approx(80 + 50, rel=0.01)
    assert told[-1] == {"event": "note", "stage": "bridge", "message": "a note"}


def test_the_next_attempt_knows_what_the_first_one_measured(tmp_path: Path):
    first = Attempt(tmp_path)
    first.progress.stage("bridge", 1, 3)
    for step in range(1, 51):
        first.progress.step(step, 100, loss=1.0)
    first.progress.checkpointed(50)
    second = Attempt(tmp_path)
    second.progress.stage("bridge", 1, 3)
    second.progress.step(51, 100, loss=1.0)
    second.progress.step(52, 100, loss=1.0)
    assert second.told[-1]["elapsed_seconds"] == 52.0 + 3.0
    assert second.told[-1]["total_seconds_left"] == pytest.approx(48 + 50, rel=0.01)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"elapsed": "x"}',
        '{"elapsed": 1, "looped": [1], "finished": {}}',
        '{"elapsed": 1, "looped": [1, 2], "finished": 3}',
    ],
)
def test_what_cannot_be_read_is_measured_again(tmp_path: Path, text: str):
    (tmp_path / CLOCK_JSON).write_text(text)
    attempt = Attempt(tmp_path)
    attempt.progress.stage("bridge", 1, 3)
    assert attempt.told[-1]["elapsed_seconds"] == 1.0


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path):
    attempt = Attempt(tmp_path / "is not there" / "nor here")
    (tmp_path / "is not there").write_text("a file")
    attempt.progress.stage("bridge", 1, 3)
    attempt.progress.checkpointed(1)
    attempt.progress.stage("prune", 2, 3)
    assert [event["event"] for event in attempt.told] == ["stage", "checkpoint", "stage"]


def test_nothing_is_written_before_something_is_worth_it(tmp_path: Path):
    attempt = Attempt(tmp_path)
    attempt.progress.stage("bridge", 1, 3)
    attempt.progress.step(1, 100, loss=1.0)
    assert list(tmp_path.iterdir()) == [], "a job that fails at its start leaves no work"
    attempt.progress.stage("prune", 2, 3)
    assert json.loads((tmp_path / CLOCK_JSON).read_text())["finished"] == {"bridge": 2.0}


def test_a_phase_is_an_event_and_in_all_that_follow_until_the_next_stage():
    told: list[dict[str, Any]] = []
    progress = Progress(told.append)
    progress.stage("prune", 1, 2)
    progress.step(1, 9)
    progress.phase("robust edges")
    progress.step(1, 9)
    progress.stage("report", 2, 2)
    progress.step(1, 9)
    assert [event.get("phase") for event in told] == [None, None, "robust edges", "robust edges", None, None]
    assert told[2] == {
        "event": "progress", "stage": "prune", "phase": "robust edges", "step": None, "total": None, "metrics": {}, "seconds_left": None,
    }  # fmt: skip
    assert "phase" not in told[1]


def test_each_phase_has_its_own_count():
    told: list[dict[str, Any]] = []
    progress = Progress(told.append, report_seconds=0.0)
    progress.stage("prune", 1, 1)
    progress.phase("nodes")
    progress.step(1, 9)
    progress.phase("edges")
    progress.step(2, 9)
    assert told[-1]["seconds_left"] is None, "the steps of the nodes are no measure"
