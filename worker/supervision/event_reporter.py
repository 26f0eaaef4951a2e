"""Events of the engine, written to the job's record."""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from typing import Any

import redis

from worker.records.records import Records

log = logging.getLogger("extract")
REPORT_SECONDS = 1.0  # between two progress events of a job
RETRY_SECONDS = 3.0  # before the next report after a failed one
_OF_PROGRESS = ("phase", "step", "total", "seconds_left")
_TIMES = ("elapsed_seconds", "total_seconds_left")


class EventReporter:
    """Writes engine events to the job's record: counts at most once a second, all other events at once and in order. Never raises.

    Skips 'done' and 'error': the end of the job is recorded separately.
    """

    def __init__(self, job: str, token: str, records: Records) -> None:
        self._job, self._token, self._records = job, token, records
        self._waiting: deque[dict[str, Any]] = deque(maxlen=1000)
        self._not_before = self._retry_at = 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] in ("done", "error"):
            return
        is_progress = event["event"] == "progress"
        if is_progress and self._waiting and self._waiting[-1]["event"] == "progress":
            self._waiting[-1] = event
        else:
            self._waiting.append(event)
        is_count = is_progress and event.get("step") is not None
        if time.monotonic() >= (self._not_before if is_count else self._retry_at):
            self.flush()
            if is_count and not self._waiting:
                self._not_before = time.monotonic() + REPORT_SECONDS

    def flush(self) -> None:
        """Send the buffered events; keep those that Redis does not accept."""
        try:
            while self._waiting:
                self._records.report(self._job, self._token, self._waiting[0], _fields(self._waiting[0]))
                self._waiting.popleft()
        except redis.RedisError as error:
            log.warning("job %s: progress report failed (%s)", self._job, error)
            self._not_before = self._retry_at = time.monotonic() + RETRY_SECONDS


def _fields(event: dict[str, Any]) -> dict[str, Any]:
    """The fields of the record that an event sets."""
    if event["event"] == "stage":
        return {key: event.get(key, "") for key in ("stage", "index", "of")} | dict.fromkeys(_OF_PROGRESS, "") | _known(event, _TIMES)
    if event["event"] == "progress":
        return _known(event, (*_OF_PROGRESS, *_TIMES)) | {"metrics": json.dumps(event.get("metrics") or {})}
    return {"checkpoint": event.get("step", "")} if event["event"] == "checkpoint" else {"last": event["event"]}


def _known(event: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """These fields of an event; '' for None and for a field that it lacks."""
    return {name: "" if event.get(name) is None else event[name] for name in names}
