"""The live line of a watched job: it fits, it says the most that fits, it lives from the first moment; plain lines make no noise."""

from __future__ import annotations

import time
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from worker.cli.views import job as job_view
from worker.cli.views.job import BarView, PlainView
from worker.cli.views.live_line import JobStory, LineSigns, last_line, live_line, signs_for

START = 1_000.0
SIGNS = LineSigns()


def stage(name: str, index: int, of: int, at: float, **more: Any) -> dict[str, Any]:
    return {"event": "stage", "stage": name, "index": index, "of": of, "time": START + at} | more


def progress(at: float, phase: str = "", step: int | None = None, total: int | None = None, **more: Any) -> dict[str, Any]:
    event = {"event": "progress", "step": step, "total": total, "metrics": {}, "seconds_left": None, "time": START + at}
    return event | ({"phase": phase} if phase else {}) | more


def state(name: str, at: float, **more: Any) -> dict[str, Any]:
    return {"event": "state", "state": name, "time": START + at} | more


MAIN = (
    state("queued", 0),
    state("running", 2, worker="w"),
    stage("corpus", 1, 5, 5, elapsed_seconds=0.0, total_seconds_left=None, next=["bridge", "prune", "validate", "report"]),
    stage("bridge", 2, 5, 15, elapsed_seconds=10.0, total_seconds_left=None, next=["prune", "validate", "report"]),
    progress(115, step=500, total=1800, elapsed_seconds=110.0, total_seconds_left=400.0) | {"metrics": {"loss": 2.31}},
    stage("prune", 3, 5, 313, elapsed_seconds=308.0, total_seconds_left=160.0, next=["validate", "report"]),
    progress(345, "robust edges", 70, 144, elapsed_seconds=340.0, total_seconds_left=130.0),
)


def after(*events: dict[str, Any]) -> JobStory:
    story = JobStory()
    for event in events:
        story.on_event(event)
    return story


def shown(story: JobStory, at: float, width: int = 80) -> str:
    line = live_line(story, width, START + at, SIGNS)
    assert cell_len(line) <= width
    return line[2:] if line[0] in SIGNS.spinner else line


def test_the_line_says_all_stages_where_there_is_room():
    assert shown(after(*MAIN), 345, 130) == (
        "corpus ✓ 10 s  bridge ✓ 4 min 58 s  prune ▸ robust edges 70/144  validate  report  5 min 43 s elapsed, about 2 min 10 s left"
    )
    assert shown(after(*MAIN[:5]), 115, 130) == (
        "corpus ✓ 10 s  bridge ▸ 500/1800, loss 2.31  prune  validate  report  1 min 53 s elapsed, about 6 min 40 s left"
    )


def test_in_eighty_columns_it_says_place_phase_and_both_times():
    assert shown(after(*MAIN), 345) == "[3/5] prune ▸ robust edges 70/144  5 min 43 s elapsed, about 2 min 10 s left"
    assert shown(after(*MAIN[:5]), 115) == "[2/5] bridge ▸ 500/1800  prune  validate  report  1 min 53 s, 6 min 40 s left"


@pytest.mark.parametrize("width", range(1, 140))
def test_it_fits_every_width(width: int):
    long = stage("prune set_or_string_fixedvarname", 45, 62, 400, next=["validate set_or_string_fixedvarname", "report x"])
    for story in (after(), after(*MAIN), after(*MAIN, long), after(long, progress(410, "robust first edges", 70_000, 144_000))):
        shown(story, 420, width)
        assert cell_len(last_line(story, width, START + 420, SIGNS)) <= width


def test_of_several_tasks_the_present_one_is_named():
    many = stage(
        "prune for_while",
        9,
        62,
        0,
        elapsed_seconds=5_000.0,
        total_seconds_left=7_300.0,
        next=["validate for_while", "report for_while", "prune x"],
    )
    story = after(many, progress(5, "edges", 7, 50, elapsed_seconds=5_005.0, total_seconds_left=7_300.0))
    assert shown(story, 5, 120) == "[9/62] for_while: prune ▸ edges 7/50  validate  report  1 h 23 min elapsed, about 2 h left"
    assert shown(story, 5) == "[9/62] for_while: prune ▸ edges 7/50  1 h 23 min, 2 h left"
    name = "set_or_string_fixedvarname"
    long = after(
        stage(f"prune {name}", 45, 62, 0), progress(5, "robust edges", 70, 144, elapsed_seconds=5_005.0, total_seconds_left=2_100.0)
    )
    assert shown(long, 5, 110) == f"[45/62] {name}: prune ▸ robust edges 70/144  1 h 23 min elapsed, about 35 min left"
    assert shown(long, 5) == "[45/62] set_or_str…: prune ▸ robust edges 70/144  1 h 23 min, 35 min left"


def test_it_lives_from_the_first_moment_and_moves():
    story = JobStory()
    assert shown(story, time.time() - START + 1).startswith("starting")
    story.on_event(MAIN[0])
    assert shown(story, 3) == "waiting for a worker  3 s"
    story.on_event(MAIN[1])
    assert shown(story, 4) == "starting  2 s"
    drawn = {live_line(story, 80, START + moment / 4, SIGNS)[0] for moment in range(8)}
    assert len(drawn) == 8, "within two seconds"


def test_time_passes_between_two_events():
    story = after(*MAIN)
    assert shown(story, 355).endswith("  5 min 53 s elapsed, about 2 min left")
    assert shown(story, 900).endswith("about 10 s left"), "it never is below nothing"


def test_a_count_to_one_and_a_count_that_is_not_there_are_not_shown():
    assert "0/1" not in shown(after(*MAIN[:6], progress(320, "robust first edges", 0, 1)), 320)
    assert shown(after(*MAIN[:6], progress(320, "cut")), 320).startswith("[3/5] prune ▸ cut  validate")


def test_events_of_earlier_versions_are_shown_without_the_end():
    old = (
        {"event": "stage", "stage": "bridge", "index": 1, "of": 2},
        {"event": "progress", "step": 3, "total": 9, "metrics": {"loss": 2.5}},
    )
    story = after(*old)
    assert live_line(story, 80, time.time(), SIGNS)[2:] == "bridge ▸ 3/9, loss 2.5  0 s elapsed"
    story = after(state("running", 0), *({**event, "time": START + 5} for event in old))
    assert shown(story, 50) == "bridge ▸ 3/9, loss 2.5  50 s elapsed"


def test_a_watcher_who_comes_late_sees_the_stage(capsys: pytest.CaptureFixture[str]):
    event = MAIN[-1] | {"stage": "prune", "index": 3, "of": 5}
    assert shown(after(event), 345).startswith("[3/5] prune ▸ robust edges 70/144  5 min 40 s elapsed")
    assert shown(after(MAIN[-1] | {"stage": "prune"}), 345).startswith("[..] prune ▸")
    PlainView("mine").show(event)
    assert capsys.readouterr().out.startswith("[3/5] prune, robust edges 70/144, 5 min 40 s elapsed")


def test_a_job_that_goes_back_to_the_queue_waits_again():
    story = after(*MAIN, state("queued", 400, reason="preempted"))
    assert shown(story, 430) == "waiting for a worker  30 s"
    story.on_event(state("running", 500, worker="w"))
    story.on_event(stage("corpus", 1, 5, 505, elapsed_seconds=395.0, total_seconds_left=150.0))
    assert "6 min 40 s elapsed" in shown(story, 510), "of both attempts"


def test_what_stays_is_the_time_of_every_stage():
    done = after(*MAIN, stage("validate", 4, 5, 420), stage("report", 5, 5, 450), state("succeeded", 470))
    wide = last_line(done, 120, START + 471, SIGNS)
    assert wide == "corpus ✓ 10 s  bridge ✓ 4 min 58 s  prune ✓ 1 min 47 s  validate ✓ 30 s  report ✓ 20 s"
    assert last_line(done, 40, START + 471, SIGNS) == "validate ✓ 30 s  report ✓ 20 s"
    assert last_line(after(*MAIN), 80, START + 345, SIGNS).startswith("[3/5] prune"), "a watcher who leaves sees where it was"


def test_the_line_is_ascii_where_the_output_is():
    signs = signs_for("ascii")
    assert live_line(after(*MAIN), 80, START, signs).isascii()
    assert signs_for("utf-8") == SIGNS


def test_notes_stand_above_the_line(capsys: pytest.CaptureFixture[str]):
    with BarView("mine", Console(force_terminal=True, width=80, color_system=None)) as view:
        for event in MAIN:
            view.show(event)
        view.show({"event": "note", "message": "a note", "time": START})
    out = capsys.readouterr().out
    assert "job mine: a note" in out
    assert out.index("job mine: queued") < out.index("job mine: a note")
    assert "[3/5] prune ▸ robust edges 70/144" in out.rpartition("job mine: a note")[2]


def test_a_terminal_that_cannot_redraw_gets_plain_lines(monkeypatch: pytest.MonkeyPatch):
    console = Console(force_terminal=True)
    monkeypatch.setattr(job_view, "Console", lambda: console)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(job_view.make_view(False, "mine"), BarView)
    console._environ = {"TERM": "dumb"}
    assert isinstance(job_view.make_view(False, "mine"), PlainView)


def test_plain_lines_name_phase_and_times(capsys: pytest.CaptureFixture[str]):
    view = PlainView("mine")
    for event in MAIN:
        view.show(event)
    assert capsys.readouterr().out.splitlines() == [
        "job mine: queued",
        "job mine: running on w",
        "[1/5] corpus, 0 s elapsed",
        "[2/5] bridge, 10 s elapsed",
        "[2/5] bridge, 500/1800, loss 2.31, 1 min 50 s elapsed, about 6 min 40 s left",
        "[3/5] prune, 5 min 8 s elapsed, about 2 min 40 s left",
        "[3/5] prune, robust edges 70/144, 5 min 40 s elapsed, about 2 min 10 s left",
    ]


def test_plain_lines_are_ten_seconds_apart_and_count_nothing_to_one(capsys: pytest.CaptureFixture[str]):
    view = PlainView("mine")
    view.show(MAIN[5])
    for second in range(60):
        view.show(progress(313 + second, "robust first edges", 0, 1, elapsed_seconds=308.0 + second, total_seconds_left=60.0))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert not [line for line in lines if "0/1" in line]


def test_a_pipe_hears_of_a_silent_start(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(job_view, "QUIET_SECONDS", 0.05)
    with PlainView("mine"):
        time.sleep(0.3)
    assert capsys.readouterr().out == "job mine: starting\n"
    with PlainView("mine") as view:
        view.show(MAIN[0])
        time.sleep(0.3)
    assert capsys.readouterr().out == "job mine: queued\n"
