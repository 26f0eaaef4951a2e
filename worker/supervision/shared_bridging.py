"""One bridging for all jobs that need the same bridged model: the first job trains it, the others wait in the queue without a worker.

`jobs.bridged_cache` says where bridged models are stored and which parts of a spec identify one. Redis records the job that trains a
model; if that job fails, the next one takes over. With EXTRACT_ROOT in storage, models are stored there as .twins/ADDRESS/TOKEN, where
TOKEN is the attempt's, and are downloaded when needed.
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
from extractor.errors import ExtractorError, OutputError
from extractor.jobs import bridged_cache
from extractor.spec.schema import JobSpec
from worker.records.records import Records
from worker.settings import Settings
from worker.storage import results
from worker.storage.store import Store
from worker.storage.transfer import put_folder
from worker.supervision.job_folder import check_own

log = logging.getLogger("extract")
FOLDER = ".twins"  # below the root; no job id starts with a dot
BEFORE = ("corpus", "bridge")  # the stages until the bridged model exists


def is_kept(spec: JobSpec, settings: Settings) -> bool:
    """Whether a job of this spec finds its bridged model on this machine's disk. Raises what `bridged_cache.address` raises."""
    address = bridged_cache.address(spec, settings.threads)
    return address is not None and (settings.root / FOLDER / address / files.MANIFEST).is_file()


class SharedBridging:
    """The bridging that a job shares with others. publish: sends a job's message to the queue."""

    def __init__(self, job: str, token: str, records: Records, publish: Callable[[str], None], settings: Settings, spec: JobSpec) -> None:
        self._job, self._token, self._records, self._publish = job, token, records, publish
        self._address = bridged_cache.address(spec, settings.threads)
        self._makes = False
        self._store = Store(settings.store) if settings.store else None
        self._sharing: threading.Thread | None = None
        self.path: Path | None = None  # where the engine finds or stores the bridged model
        if self._address is not None:
            self.path = settings.root / FOLDER / self._address

    def claim(self) -> str:
        """'' when the engine may start: the bridged model exists, or this job trains it. Else the id of the job that does, or 'lost'."""
        if self._address is None:
            return ""
        self._check_own()
        if self._is_available():
            return ""
        answer = self._records.claim_bridging(self._job, self._token, self._address)
        if answer != "mine":
            return answer
        self._makes = True
        if self._is_available():  # stored between the first check and the claim
            self.release()
        return ""

    def on_event(self, event: dict[str, Any]) -> None:
        """Handle an event of the engine: share the bridged model when the first stage after the bridging starts."""
        if event["event"] == "stage" and event.get("stage") not in BEFORE and self._makes and self._sharing is None:
            self._sharing = threading.Thread(target=self._share, name="bridging", daemon=True)
            self._sharing.start()

    def release(self) -> None:
        """Publish the jobs that wait for this bridging. If Redis does not answer, a caretaker publishes them after this job's end."""
        if self._sharing is not None:
            self._sharing.join()
        self._announce()

    def _check_own(self) -> None:
        """Refuse bridged models that another user of a shared disk may have planted. Raises OutputError."""
        assert self.path is not None
        try:
            check_own(self.path.parent, inside=False)
            check_own(self.path)
        except OSError as error:
            raise OutputError(f"bridged models in {self.path.parent} cannot be read ({error.strerror}); remove that folder") from None

    def _is_available(self) -> bool:
        """Whether the bridged model is on this machine; downloads it from storage if it is there."""
        assert self.path is not None
        if not self.path.is_dir() and self._store is not None:
            partial = self.path.with_name(f"{self.path.name}-{self._token}")
            try:
                stored = [key for key in self._store.entries(f"{FOLDER}/{self._address}") if key.endswith(f"/{files.MANIFEST}")]
                if stored:
                    results.fetch_folder(self._store, min(stored).rpartition("/")[0], partial)
                    partial.replace(self.path)
            except (ExtractorError, OSError) as error:  # another job was faster, or this job trains the model
                log.warning("job %s: bridged model not fetched (%s)", self._job, error)
                shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            os.utime(self.path)  # marks it as used, for `extract gc`
            return True
        return self.path.is_dir()  # exists on a read-only disk

    def _share(self) -> None:
        try:
            if self._store is not None and self.path is not None and self.path.is_dir():
                put_folder(self._store, f"{FOLDER}/{self._address}/{self._token}", self.path)
        except (ExtractorError, OSError) as error:  # other machines then train their own
            log.warning("job %s: bridged model not stored (%s)", self._job, error)
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
            log.warning("job %s: bridged model not announced yet (%s)", self._job, error)
