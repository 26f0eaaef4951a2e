"""One bridging for all jobs that need the same bridged model: the first makes it, the others wait in the queue without a worker.

Where a bridged model is kept, and what it depends on: see `jobs.bridged_cache`. Redis says who makes it; if its maker fails, the next one
does. Where jobs are kept in storage, so are bridged models, as .twins/ADDRESS/TOKEN of the attempt that made it: what is here is fetched
from there.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis

from extractor import files
from extractor.errors import ExtractorError
from extractor.jobs import bridged_cache
from extractor.spec.schema import JobSpec
from worker.records.records import Records
from worker.settings import Settings
from worker.storage import results
from worker.storage.store import Store
from worker.storage.transfer import put_folder

log = logging.getLogger("extract")
FOLDER = ".twins"  # below the root; no job id begins with a dot
BEFORE = ("corpus", "bridge")  # stages up to the one that makes the bridged model


class SharedBridging:
    """The bridging that a job shares with others. publish: asks workers to try a job."""

    def __init__(self, job: str, token: str, records: Records, publish: Callable[[str], None], settings: Settings, spec: JobSpec) -> None:
        self._job, self._token, self._records, self._publish = job, token, records, publish
        self._address = bridged_cache.address(spec, settings.threads)
        self._makes = False
        self._store = Store(settings.store) if settings.store else None
        self._sharing: threading.Thread | None = None
        self.path: Path | None = None  # where the engine looks for it, and keeps it
        if self._address is not None:
            self.path = settings.root / FOLDER / self._address

    def claim(self) -> str:
        """'' when the engine may start: the bridged model is kept, or this job makes it. Else the job that makes it, or 'lost'."""
        if self._address is None or self._is_kept():
            return ""
        answer = self._records.claim_bridging(self._job, self._token, self._address)
        if answer != "mine":
            return answer
        self._makes = True
        if self._is_kept():  # since the first question
            self.release()
        return ""

    def on_event(self, event: dict[str, Any]) -> None:
        """An event of the engine: once a stage behind the bridging has begun, the bridged model is there for all."""
        if event["event"] == "stage" and event.get("stage") not in BEFORE and self._makes and self._sharing is None:
            self._sharing = threading.Thread(target=self._share, name="bridging", daemon=True)
            self._sharing.start()

    def release(self) -> None:
        """Let those that wait try. While Redis is away they wait on: once this job has ended, they are published by and by."""
        if self._sharing is not None:
            self._sharing.join()
        self._announce()

    def _is_kept(self) -> bool:
        """Whether it is here, perhaps only now, from storage."""
        assert self.path is not None
        if not self.path.is_dir() and self._store is not None:
            coming = self.path.with_name(f"{self.path.name}-{self._token}")
            try:
                stored = [key for key in self._store.entries(f"{FOLDER}/{self._address}") if key.endswith(f"/{files.MANIFEST}")]
                if stored:
                    results.fetch_folder(self._store, min(stored).rpartition("/")[0], coming)
                    coming.replace(self.path)
            except (ExtractorError, OSError) as error:  # somebody was faster; or else this job makes one
                log.warning("job %s: its bridged model is not fetched (%s)", self._job, error)
                shutil.rmtree(coming, ignore_errors=True)
        with suppress(OSError):
            os.utime(self.path)  # it is in use: `extract gc` looks at this
            return True
        return self.path.is_dir()  # on a disk that may only be read

    def _share(self) -> None:
        try:
            if self._store is not None and self.path is not None and self.path.is_dir():
                put_folder(self._store, f"{FOLDER}/{self._address}/{self._token}", self.path)
        except (ExtractorError, OSError) as error:  # others make their own
            log.warning("job %s: its bridged model is not kept in storage (%s)", self._job, error)
        self._announce()

    def _announce(self) -> None:
        if not self._makes or self._address is None:
            return
        self._makes = False
        try:
            for other in self._records.release_bridging(self._job, self._address):
                self._publish(other)
        except redis.RedisError as error:
            self._makes = True
            log.warning("job %s: its bridged model is not announced yet (%s)", self._job, error)
