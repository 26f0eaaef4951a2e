"""A bar for each stage of a job that runs in this process: in a terminal, and in a notebook."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm

from extractor.progress import Progress

_SHOWN = ("loss", "tokens_per_s")  # of the metrics of a step


class StageBars:
    """A context that gives a `Progress`. A bar counts the steps of a stage; notes are printed above it."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> Progress:
        return Progress(self._told)

    def __exit__(self, *_: object) -> None:
        self._close()

    def _told(self, event: dict) -> None:
        if event["event"] == "stage":
            self._close()
            self._bar = tqdm(desc=f"{event['stage']} ({event['index']} of {event['of']})", unit="step")
        elif event["event"] == "note":
            tqdm.write(event["message"])
        elif event["event"] == "progress" and self._bar is not None:
            self._bar.total, self._bar.n = event["total"], event["step"]
            self._bar.set_postfix({name: event["metrics"][name] for name in _SHOWN if name in event["metrics"]})

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
