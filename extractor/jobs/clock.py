"""The clock of one job: how long it has run, and how long it will, in its progress events."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from extractor import files
from extractor.errors import ExtractorError
from extractor.jobs.cost.time_left import JobPart, TimeLeft
from extractor.progress import Progress

CLOCK_JSON = "clock.json"  # in .work
NEXT_STAGES = 4  # that an event names

Event = dict[str, Any]


class JobClock:
    """Adds to events of kind 'stage' and 'progress':

    elapsed_seconds      of all attempts at the job, from the start of its work
    total_seconds_left   until its end, an estimate (`cost.time_left`); None where it is not known
    next                 names of the stages that follow; of kind 'stage' only
    index, of            of the present stage; of kind 'progress', whose stage a late watcher has not seen

    work   the folder in which a later attempt finds what is measured; nothing else is read from it
    now    a clock, seconds
    """

    def __init__(self, stages: Sequence[str], work: Path, now: Callable[[], float] = time.monotonic):
        self._path, self._now, self._stages = work / CLOCK_JSON, now, tuple(stages)
        kept = self._kept()
        self._before, self._began = kept.get("elapsed", 0.0), now()
        self._estimate = TimeLeft(stages, kept)
        self._place: Event = {}  # index and of, of the present stage

    def expect(self, parts: Sequence[JobPart]) -> None:
        """Say what the parts of the job are; before, the time left is not known."""
        self._estimate.expect(parts)

    def watching(self, progress: Progress) -> Progress:
        """The same progress, whose events have the times."""
        return replace(progress, on_event=lambda event: progress.on_event(event | self._times(event)))

    def _times(self, event: Event) -> Event:
        now = self._now()
        self._estimate.on_event(event, now)
        if event["event"] == "checkpoint" or (event["event"] == "stage" and self._estimate.finished):
            self._keep(now)
        if event["event"] not in ("stage", "progress"):
            return {}
        left = self._estimate.left(now)
        times: Event = {"elapsed_seconds": round(self._elapsed(now), 1), "total_seconds_left": None if left is None else round(left, 1)}
        if event["event"] == "progress":
            return times | self._place
        self._place = {"index": event["index"], "of": event["of"]}
        return times | {"next": list(self._stages[event["index"] :][:NEXT_STAGES])}

    def _elapsed(self, now: float) -> float:
        return self._before + now - self._began

    def _kept(self) -> dict[str, Any]:
        """What an earlier attempt measured; {} where there is nothing, or nothing that can be read."""
        try:
            kept = files.read_json(self._path)
            looped, finished = (float(kept["looped"][0]), float(kept["looped"][1])), kept["finished"]
            known = {stage: float(finished[stage]) for stage in self._stages if stage in finished}
            return {"elapsed": float(kept["elapsed"]), "finished": known, "looped": looped}
        except (ExtractorError, OSError, ValueError, TypeError, LookupError):
            return {}

    def _keep(self, now: float) -> None:
        try:
            files.write_json(self._path, {"elapsed": round(self._elapsed(now), 1)} | files.rounded(self._estimate.keep()))
        except (ExtractorError, OSError):
            return  # the job itself ends where it cannot write
