"""One line that says where a watched job is. It is redrawn several times a second, and fits the width of the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.cells import cell_len, set_cell_size

from extractor.errors import printable
from extractor.jobs.cost.units import show_roughly
from worker.cli.views.progress import Event, describe_loss, describe_place, describe_work, duration, seconds

FRAMES_PER_SECOND = 4
_TASK = 10  # characters of a task's name in a narrow terminal
_LONG, _SHORT = 42, 28  # cells that are kept for the times, so that the line does not change its form with them
_WAITING = {"queued": "waiting for a worker", "running": "starting"}  # of a state, before the first stage


@dataclass(frozen=True)
class LineSigns:
    """The characters of the line."""

    done: str = "✓"
    here: str = "▸"
    cut: str = "…"
    spinner: str = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def signs_for(encoding: str) -> LineSigns:
    """Ticks and arrows where the output's encoding has them, else ASCII."""
    found = LineSigns()
    try:
        "".join(vars(found).values()).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return LineSigns("ok", ">", "~", "|/-\\")
    return found


@dataclass
class JobStory:
    """What the events of a job have said. Times are seconds since 1970.

    stage, progress   the newest events of these kinds of the present stage; {} before the first
    done              {stage: seconds, None where they are not known} of all stages that have ended
    """

    state: str = ""
    stage: Event = field(default_factory=dict)
    progress: Event = field(default_factory=dict)
    done: dict[str, float | None] = field(default_factory=dict)
    _since: float = field(default_factory=time.time)  # of the state
    _progress_time: float = 0.0  # time of `progress`

    def on_event(self, event: Event) -> None:
        """Take note of an event."""
        at = event.get("time", time.time())
        if event["event"] == "state":
            if event["state"] == "succeeded":
                self._end_stage(at)
            self.state, self.stage, self.progress, self._since = event["state"], {}, {}, at
        elif event["event"] == "stage":
            self._end_stage(at)
            self.stage = event | {"time": at}
        elif event["event"] == "progress" and not self.stage:  # a late watcher has not seen it begin
            self.stage = {name: event.get(name) for name in ("stage", "index", "of")} | {"time": at}
        if event["event"] in ("stage", "progress"):
            self.progress, self._progress_time = event, at

    def _end_stage(self, at: float) -> None:
        if self.stage:
            self.done[str(self.stage.get("stage"))] = max(0.0, at - self.stage["time"])

    def elapsed(self, now: float) -> float:
        """Seconds that the job has run, or has waited."""
        known = seconds(self.progress, "elapsed_seconds")
        return max(0.0, now - self._since, 0.0 if known is None else known + now - self._progress_time)

    def left(self, now: float) -> float | None:
        """Seconds until the job ends, an estimate; None where it is not known."""
        known = seconds(self.progress, "total_seconds_left")
        return None if known is None else max(0.0, known - max(0.0, now - self._progress_time))


def live_line(story: JobStory, width: int, now: float, signs: LineSigns) -> str:
    """The line while the job is watched, of at most `width` cells."""
    spinner = signs.spinner[int(now * FRAMES_PER_SECOND) % len(signs.spinner)]
    return _longest((f"{spinner} {text}" for text in _texts(story, now, signs)), width, signs)


def last_line(story: JobStory, width: int, now: float, signs: LineSigns) -> str:
    """The line that stays: all stages of a job that has succeeded, else where it was."""
    if story.state != "succeeded":
        return _longest(_texts(story, now, signs), width, signs)
    ended = _done(story, signs)
    return _longest(("  ".join(ended[number:]) for number in range(len(ended) + 1)), width, signs)


def _longest(texts: Iterator[str], width: int, signs: LineSigns) -> str:
    """The first text that fits, else the start of the last one."""
    text = ""
    for text in map(printable, texts):
        if cell_len(text) <= width:
            return text.rstrip()
    return set_cell_size(text, max(0, width - cell_len(signs.cut))) + signs.cut


def _texts(story: JobStory, now: float, signs: LineSigns) -> Iterator[str]:
    """What the line may say, the most telling first."""
    elapsed, left = duration(story.elapsed(now)), story.left(now)
    if not story.stage:
        yield f"{_WAITING.get(story.state) or story.state or 'starting'}  {elapsed}"
        return
    long = (f"{elapsed} elapsed" + ("" if left is None else f", about {show_roughly(left)} left")).ljust(_LONG)
    short = (elapsed + ("" if left is None else f", {show_roughly(left)} left")).ljust(_SHORT)
    kind, _, task = str(story.stage.get("stage")).partition(" ")
    place, of_task = describe_place(story.stage), f"{task}: " if task else ""
    of_short_task = f"{task[:_TASK]}{signs.cut}: " if len(task) > _TASK + 1 else of_task
    here = " ".join(filter(None, [kind, signs.here, describe_work(story.progress)]))
    with_loss = ", ".join(filter(None, [here, describe_loss(story.progress)]))
    later = _later(story, task)
    if not task and len(story.done) + 1 == story.stage.get("index"):  # all stages can be named
        yield "  ".join([*_done(story, signs), with_loss, *later, long])
        yield "  ".join([*_done(story, signs, with_seconds=False), here, *later, long])
    yield "  ".join([f"{place} {of_task}{with_loss}", *later, long])
    yield "  ".join([f"{place} {of_task}{here}", *later, short])
    yield f"{place} {of_task}{here}  {long}"
    yield f"{place} {of_task}{here}  {short}"
    yield f"{place} {of_short_task}{here}  {short}"
    yield f"{place} {here}  {short}"
    yield f"{here}  {short}"
    yield f"{here}  {elapsed if left is None else f'{show_roughly(left)} left'}"


def _done(story: JobStory, signs: LineSigns, with_seconds: bool = True) -> list[str]:
    """'bridge ✓ 4 min 58 s' of every stage that has ended."""
    times = {stage: duration(spent) if with_seconds and spent is not None else "" for stage, spent in story.done.items()}
    return [" ".join(filter(None, [stage, signs.done, spent])) for stage, spent in times.items()]


def _later(story: JobStory, task: str) -> list[str]:
    """The next stages of the same task."""
    found = []
    for stage in story.stage.get("next") or ():
        kind, _, other = str(stage).partition(" ")
        if other != task:
            break
        found.append(kind)
    return found
