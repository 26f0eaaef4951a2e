"""One bridging for all jobs that need the same twin: the first makes it, the others wait in the queue, and no worker waits with them.

Where a twin is kept, and what it depends on, says `extractor.twins`. Who makes it says Redis; if its maker ends without it, the next does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from extractor import twins
from extractor.specs import JobSpec
from worker.records import Records
from worker.settings import Settings

log = logging.getLogger("extract")
FOLDER = ".twins"  # below the root; no job id begins with a dot
BEFORE = ("corpus", "bridge")  # stages up to the one that makes the twin


class Twin:
    """A job's twin. publish: asks workers to try a job."""

    def __init__(self, job: str, token: str, records: Records, publish: Callable[[str], None], settings: Settings, spec: JobSpec) -> None:
        self._job, self._token, self._records, self._publish = job, token, records, publish
        self._address = twins.address(spec, settings.threads)
        self._makes = False
        self.path: Path | None = None  # where the engine looks for it, and keeps it
        if self._address is not None:
            self.path = settings.root / FOLDER / self._address

    def claim(self) -> str:
        """'' when the engine may start: the twin is kept, or this job makes it. Else the job that makes it, or 'lost'."""
        if self._address is None or self.path is None or self.path.is_dir():
            return ""
        answer = self._records.make_twin(self._job, self._token, self._address)
        if answer != "mine":
            return answer
        self._makes = True
        if self.path.is_dir():  # it was kept between the two questions
            self.leave()
        return ""

    def heard(self, event: dict[str, Any]) -> None:
        """An event of the engine: once a stage behind the bridging has begun, the twin is there for all."""
        if event["event"] == "stage" and event.get("stage") not in BEFORE:
            self.leave()

    def leave(self) -> None:
        """Let those that wait try. While Redis is away they wait on: once this job has ended, they are published by and by."""
        if not self._makes or self._address is None:
            return
        self._makes = False
        try:
            for other in self._records.leave_twin(self._job, self._address):
                self._publish(other)
        except redis.RedisError as error:
            self._makes = True
            log.warning("job %s: its twin is not announced yet (%s)", self._job, error)
