"""The interface between a running stage and its caller: progress events, requests to stop, times for checkpoints.

`python -m extractor` writes the events as JSON lines.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

CHECKPOINT_SHARE = 0.05  # of the time, at most, goes into checkpoints


class Stopped(Exception):
    """A stop was requested; the checkpoint is on disk."""


def _silent(event: dict) -> None:
    pass


@dataclass
class Progress:
    """on_event receives flat dicts; should_stop is called once per step.

    A checkpoint is due every `checkpoint_seconds`, or later where writing the last one took more than CHECKPOINT_SHARE of that time;
    0: after every step.
    """

    on_event: Callable[[dict], None] = _silent
    should_stop: Callable[[], bool] = lambda: False
    checkpoint_seconds: float = 20.0
    report_seconds: float = 0.5
    _last_report: float = field(default=-math.inf, repr=False)  # the clock starts at 0 when the machine boots
    _last_checkpoint: float = field(default_factory=time.monotonic, repr=False)
    _writing: float = field(default=0.0, repr=False)  # seconds that the last checkpoint took
    _stage: str = field(default="", repr=False)
    _phase: str = field(default="", repr=False)
    _start: tuple[float, int, int] | None = field(default=None, repr=False)  # of the present count: time, first step, total steps

    def stage(self, name: str, index: int, of: int) -> None:
        """Report the start of a stage: its name, its index from 1, the number of stages."""
        self.resume_stage(name)
        self.on_event({"event": "stage", "stage": name, "index": index, "of": of})

    def resume_stage(self, name: str) -> None:
        """Continue a stage that another process has reported."""
        self._stage, self._writing = name, 0.0  # its checkpoints may be smaller
        self._begin("")

    def phase(self, name: str) -> None:
        """Report the start of a phase of the present stage, such as 'robust edges' of 'prune'."""
        self._begin(name)
        self.on_event(self._progress(None, None, {}, None))

    def _begin(self, phase: str) -> None:
        self._phase, self._start, self._last_report = phase, None, -math.inf

    def step(self, step: int, total: int, tokens: int = 0, **metrics: float) -> None:
        """Report that step `step` of `total` is done; `tokens`: tokens per step. At most one event per `report_seconds`, one at the end.

        A stage may have several counts: a new total, or a step before the first one, starts a new count.
        """
        now = time.monotonic()
        if self._start is None or total != self._start[2] or step < self._start[1]:
            self._start = (now, step, total)
        if step < total and now - self._last_report < self.report_seconds:
            return
        self._last_report = now
        started, first, _ = self._start
        left = (now - started) / (step - first) * (total - step) if step > first else None
        if tokens and step > first:
            metrics["tokens_per_s"] = round(tokens * (step - first) / (now - started))
        self.on_event(self._progress(step, total, metrics, None if left is None else round(left, 1)))

    def _progress(self, step: int | None, total: int | None, metrics: dict[str, float], left: float | None) -> dict:
        """A progress event; left: seconds until the present count ends. step and total are None where a phase has no count yet."""
        event: dict = {"event": "progress", "stage": self._stage} | ({"phase": self._phase} if self._phase else {})
        return event | {"step": step, "total": total, "metrics": metrics, "seconds_left": left}

    def note(self, message: str) -> None:
        """Report one line for the user."""
        self.on_event({"event": "note", "stage": self._stage, "message": message})

    def checkpoint_due(self) -> bool:
        """Whether to save now: enough time has passed, or a stop is requested."""
        least = self.checkpoint_seconds and max(self.checkpoint_seconds, self._writing / CHECKPOINT_SHARE)
        return self.should_stop() or time.monotonic() - self._last_checkpoint >= least

    def checkpointed(self, step: int, seconds: float = 0.0) -> None:
        """Report that a checkpoint is on disk, which took `seconds` to write."""
        self._last_checkpoint, self._writing = time.monotonic(), seconds
        self.on_event({"event": "checkpoint", "stage": self._stage, "step": step})


def emit(event: dict) -> None:
    """Write one event as a line to standard output. A closed pipe does not stop the work."""
    try:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - must outlive this function
