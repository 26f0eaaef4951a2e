"""The bars of a job that runs in Python."""

from __future__ import annotations

import pytest

from extractor.results.bar import StageBars


def test_a_bar_names_the_phase_and_the_time_left_of_the_job(capsys: pytest.CaptureFixture[str]):
    with StageBars() as progress:
        progress.stage("prune", 3, 5)
        progress.phase("robust edges")
        progress.on_event(
            {"event": "progress", "phase": "robust edges", "step": 70, "total": 144, "metrics": {}, "total_seconds_left": 130.0}
        )
        progress.on_event({"event": "progress", "phase": "choose", "step": None, "total": None, "metrics": {}})
    told = capsys.readouterr().err
    assert "prune (3 of 5), robust edges" in told
    assert "70/144" in told
    assert "about 2 min 10 s left" in told
    assert "prune (3 of 5), choose" in told


def test_events_of_an_earlier_version_have_no_phase(capsys: pytest.CaptureFixture[str]):
    with StageBars() as progress:
        progress.on_event({"event": "stage", "stage": "bridge", "index": 1, "of": 2})
        progress.on_event({"event": "progress", "stage": "bridge", "step": 2, "total": 2, "metrics": {"loss": 1.5}, "seconds_left": None})
    told = capsys.readouterr().err
    assert "bridge (1 of 2): 100%" in told
    assert "loss=1.5" in told
