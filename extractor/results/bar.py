"""A bar for each stage of a job that runs in this process: in a terminal, and in a notebook."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm

from extractor.jobs.cost.units import show_roughly
from extractor.progress import Progress

_SHOWN = ("loss", "tokens_per_s")  # of the metrics of a step


class StageBars:
    """A context that gives a `Progress`. A bar names the phase of a stage and counts its steps; notes are printed above it."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""

    def __enter__(self) -> Progress:
        return Progress(self._on_event)

    def __exit__(self, *_: object) -> None:
        self._close()

    def _on_event(self, event: dict) -> None:
        if event["event"] == "stage":
            self._close()
            self._stage = f"{event['stage']} ({event['index']} of {event['of']})"
            self._bar = tqdm(desc=self._stage, unit="step")
        elif event["event"] == "note":
            tqdm.write(event["message"])
        elif event["event"] == "progress" and self._bar is not None:
            self._bar.total, self._bar.n = event["total"], event["step"] or 0
            self._bar.set_description(", ".join(filter(None, [self._stage, event.get("phase")])), refresh=False)
            left = event.get("total_seconds_left")
            shown = {name: event["metrics"][name] for name in _SHOWN if name in event["metrics"]}
            self._bar.set_postfix(shown | ({} if left is None else {"job": f"about {show_roughly(left)} left"}))

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
