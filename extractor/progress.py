"""What a stage knows about the outside: whom to tell, when to stop, when to save.

The engine never learns who listens. `python -m extractor` turns these calls into JSON lines; tests pass nothing at all.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field


class Stopped(Exception):
    """The run was asked to stop; its checkpoint is on disk."""


def _silent(event: dict) -> None:
    pass


@dataclass
class Progress:
    """on_event receives flat dicts; should_stop is asked once a step; a checkpoint is due every `checkpoint_seconds`."""

    on_event: Callable[[dict], None] = _silent
    should_stop: Callable[[], bool] = lambda: False
    checkpoint_seconds: float = 20.0
    report_seconds: float = 0.5
    _last_report: float = field(default=0.0, repr=False)
    _last_checkpoint: float = field(default_factory=time.monotonic, repr=False)
    _stage: str = field(default="", repr=False)
    _began: tuple[float, int, int] | None = field(default=None, repr=False)  # when, at which step and of how many a counting began

    def stage(self, name: str, index: int, of: int) -> None:
        """A stage begins: its name, its place (from 1) and the number of stages."""
        self.resume_stage(name)
        self.on_event({"event": "stage", "stage": name, "index": index, "of": of})

    def resume_stage(self, name: str) -> None:
        """Go on with a stage that another process has announced."""
        self._stage, self._began, self._last_report = name, None, 0.0

    def step(self, step: int, total: int, tokens: int = 0, **metrics: float) -> None:
        """Step `step` of `total` is done, each of which takes `tokens`. At most one report each `report_seconds`, and one at the end.

        A stage may count several times: another total, or a step before the first, begins anew.
        """
        now = time.monotonic()
        if self._began is None or total != self._began[2] or step < self._began[1]:
            self._began = (now, step, total)
        if step < total and now - self._last_report < self.report_seconds:
            return
        self._last_report = now
        began, first, _ = self._began
        left = (now - began) / (step - first) * (total - step) if step > first else None
        if tokens and step > first:
            metrics["tokens_per_s"] = round(tokens * (step - first) / (now - began))
        event: dict = {"event": "progress", "stage": self._stage, "step": step, "total": total, "metrics": metrics}
        self.on_event(event | {"seconds_left": None if left is None else round(left, 1)})

    def note(self, message: str) -> None:
        """One line a person should read."""
        self.on_event({"event": "note", "stage": self._stage, "message": message})

    def checkpoint_due(self) -> bool:
        """Whether to save now: time has passed, or a stop is asked for."""
        return self.should_stop() or time.monotonic() - self._last_checkpoint >= self.checkpoint_seconds

    def checkpointed(self, step: int) -> None:
        """A checkpoint is on disk."""
        self._last_checkpoint = time.monotonic()
        self.on_event({"event": "checkpoint", "stage": self._stage, "step": step})


def emit(event: dict) -> None:
    """One event as a line. A listener that went away does not stop the work."""
    try:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - must outlive this function
