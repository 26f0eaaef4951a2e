"""The files of one job during an attempt: in a folder on a shared disk, or in storage for machines without one.

A folder needs no work. With storage, the attempt works in a scratch folder: it starts from the checkpoint that the record names, uploads
changed files after every checkpoint, and at the end uploads the result, its manifest last. Each attempt writes under its own keys, and the
record accepts a checkpoint only from the owner of the job. An outage of storage never stops a running engine.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import redis

from extractor import files
from extractor.errors import BrokenArtifact, ExtractorError, NotFound, StorageRefused, StorageUnavailable
from worker.records.records import Records
from worker.settings import Settings
from worker.storage import layout, results
from worker.storage.checkpoints import PendingCheckpoint, Snapshots, pointers
from worker.storage.layout import MARKER, is_log, is_marker
from worker.storage.store import Store
from worker.storage.transfer import put_folder

log = logging.getLogger("extract")
MIRROR_SECONDS = 60.0  # longest time between two uploads of a running job, even if its engine reports no checkpoint
ROOM = 1 << 20  # bytes that must be free on a full disk before a job is tried again
RETRY_SECONDS = 2.0  # between two attempts at an upload or download
MARK = "stored"  # file in a scratch folder: the record it belongs to, and the checkpoint that the folder holds or continues
StopRequest = Callable[[], Literal["", "stop", "kill"]]
_T = TypeVar("_T")


def has_room(folder: Path) -> bool:
    """Whether the disk of a folder has ROOM bytes left."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(ROOM))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return False
    return True


class Storage(Protocol):
    """The operations that an attempt needs, in the order in which it calls them."""

    def fetch_model(self, model: str, stop_request: StopRequest) -> None:
        """Download the model of another job, 'job:ID/ATTEMPT', into the cache.

        Raises StorageUnavailable after a long outage, NotFound or BrokenArtifact for a missing or incomplete model, ExtractorError when the
        disk is full.
        """

    def restore(self, record: dict[str, str], stop_request: StopRequest) -> None:
        """Before the engine starts: restore the folder from the last checkpoint.

        Raises StorageUnavailable after a long outage, ExtractorError when the disk is full.
        """

    def mirroring(self) -> Any:
        """A context manager; the engine runs inside it."""

    def on_event(self, event: dict[str, Any]) -> None:
        """Handle an event of the engine."""

    def store_checkpoint(self, stop_request: StopRequest) -> None:
        """After an engine without a result: store its last checkpoint for the next attempt. Never raises."""

    def store_result(self, stop_request: StopRequest) -> str:
        """After an engine with a result: store it and return its place. Raises StorageUnavailable after a long outage."""

    def remove_checkpoints(self) -> None:
        """After the record says 'succeeded': delete everything but the result and the logs. Never raises."""

    def close(self) -> None:
        """The attempt has ended and its log is complete. Never raises."""


def storage_of(settings: Settings, job: str, token: str, records: Records) -> Storage:
    """The storage of a job whose working folder is `settings.root`/job."""
    folder = settings.root / job
    return Mirrored(Store(settings.store), settings, job, token, records) if settings.store else InPlace(folder)


class InPlace:
    """For a shared disk: the folder itself is the stored state."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fetch_model(self, model: str, stop_request: StopRequest) -> None:
        pass

    def restore(self, record: dict[str, str], stop_request: StopRequest) -> None:
        pass

    @contextmanager
    def mirroring(self) -> Iterator[None]:
        yield

    def on_event(self, event: dict[str, Any]) -> None:
        pass

    def store_checkpoint(self, stop_request: StopRequest) -> None:
        pass

    def store_result(self, stop_request: StopRequest) -> str:
        return str(self._folder / "result")

    def remove_checkpoints(self) -> None:
        pass

    def close(self) -> None:
        pass


class Mirrored:
    """For storage: the folder is scratch space, the stored state is a mirror of it."""

    def __init__(self, store: Store, settings: Settings, job: str, token: str, records: Records) -> None:
        self._store, self._settings, self._job, self._token, self._records = store, settings, job, token, records
        self._folder = settings.root / job
        self._snapshots = Snapshots(store, job, token, self._folder / "result", self._folder / f".upload-{token}")
        self._created = self._newest = ""  # from the record: its creation time, and the checkpoints that it names
        self._is_away = self._is_finished = False
        self._wake, self._done = threading.Event(), threading.Event()

    def fetch_model(self, model: str, stop_request: StopRequest) -> None:
        self._wait_for(partial(results.fetch_to_cache, results.model_of(self._store.url, model)), stop_request)

    def restore(self, record: dict[str, str], stop_request: StopRequest) -> None:
        self._created, self._newest = record.get("created", ""), record.get("snapshot", "")
        named, mark = pointers(self._newest), self._folder / MARK
        is_local = mark.is_file() and mark.read_text(encoding="utf-8") == self._format_mark(named[0] if named else "")
        for pointer in named:
            if not is_local:
                mark.unlink(missing_ok=True)
            try:
                self._wait_for(partial(self._snapshots.restore, pointer, is_local), stop_request)
                files.write_text(mark, self._format_mark(pointer))
                return
            except (BrokenArtifact, NotFound) as error:
                self._note(f"checkpoint {pointer} cannot be used: {error}")
                is_local = False  # the local folder can match the newest checkpoint only
        if named:
            self._note("no checkpoint can be used; the job starts anew")
        if not is_local:
            shutil.rmtree(self._folder / "result", ignore_errors=True)
        files.write_text(mark, self._format_mark(""))

    @contextmanager
    def mirroring(self) -> Iterator[None]:
        thread = threading.Thread(target=self._mirror, name="mirror", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            self._wake.set()
            thread.join()

    def on_event(self, event: dict[str, Any]) -> None:
        if event["event"] in ("checkpoint", "stage"):
            self._wake.set()

    def store_checkpoint(self, stop_request: StopRequest) -> None:
        try:
            self._retry(self._save, stop_request, self._settings.stop_grace)
        except (ExtractorError, OSError, redis.RedisError) as error:
            log.warning("job %s: its last checkpoint is not stored (%s)", self._job, error)

    def store_result(self, stop_request: StopRequest) -> str:
        place = f"{self._job}/{self._token}/result"
        self._retry(partial(put_folder, self._store, place, self._folder / "result"), stop_request, self._settings.store_patience)
        return f"{self._store.url}/{place}"

    def remove_checkpoints(self) -> None:
        self._is_finished = True
        own = f"{self._job}/{self._token}/result/"
        try:
            keys = [key for key in self._store.entries(self._job) if not (key.startswith(own) or is_log(key) or is_marker(key))]
            self._store.remove(keys)
            self._store.prune_folders(self._job)
        except ExtractorError as error:
            log.warning("job %s: its checkpoints stay in storage (%s); `extract gc` removes them", self._job, error)

    def close(self) -> None:
        self._store_log()
        if self._is_finished:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _mirror(self) -> None:
        """Upload after each checkpoint event, or once for several, until the engine has ended."""
        while not self._done.is_set():
            self._wake.wait(MIRROR_SECONDS)
            self._wake.clear()
            if self._done.is_set():
                return
            try:
                self._save()
                self._is_away = False
            except (ExtractorError, OSError, redis.RedisError) as error:
                log.warning("job %s: checkpoint not stored (%s); the engine continues", self._job, error)
                if isinstance(error, StorageUnavailable) and not self._is_away:
                    self._is_away = True
                    self._note(f"{error}; the job continues, checkpoints are stored once storage answers")
            except Exception:  # a bug here must not fail the job
                log.exception("job %s: checkpoint not stored", self._job)
            self._done.wait(self._settings.store_every)

    def _save(self) -> None:
        """Upload a checkpoint and write its name to the record, which refuses it if another attempt owns the job."""
        pending = self._snapshots.save()
        if pending is None or not self._publish(pending):
            return
        self._snapshots.commit(pending)
        self._store_log()
        files.write_text(self._folder / MARK, self._format_mark(pending.pointer))
        try:
            self._snapshots.drop_old()
        except StorageUnavailable as error:
            log.info("job %s: old checkpoints not deleted yet (%s)", self._job, error)

    def _publish(self, pending: PendingCheckpoint) -> bool:
        named = " ".join([pending.pointer, *pointers(self._newest)[:1]])
        event = {"event": "stored", "checkpoint": pending.pointer, "files": len(pending.parts), "bytes": pending.sent}
        if self._records.report(self._job, self._token, event, {"snapshot": named}) != "ok":
            return False
        self._newest = named
        return True

    def _format_mark(self, pointer: str) -> str:
        return f"{self._created} {pointer}\n"

    def _store_log(self) -> None:
        """Upload the job's log, and the marker that says whose job it is. These are the only stored files that are overwritten."""
        try:
            for path in [*layout.parts(self._folder), self._folder / MARKER]:
                if path.is_file():
                    self._store.put_file(f"{self._job}/{self._token}/{path.name}", path, path.stat().st_size)
        except (ExtractorError, OSError) as error:
            log.warning("job %s: its log is not stored (%s)", self._job, error)

    def _note(self, message: str) -> None:
        log.warning("job %s: %s", self._job, message)
        try:
            self._records.report(self._job, self._token, {"event": "note", "message": message}, {})
        except redis.RedisError:
            return  # the worker's log has the message

    def _wait_for(self, act: Callable[[], _T], stop_request: StopRequest) -> _T:
        """`_retry` for the time before the engine runs: any stop request ends it at once, since no work can be lost."""
        return self._retry(act, lambda: "kill" if stop_request() else "", self._settings.store_patience)

    def _retry(self, act: Callable[[], _T], stop_request: StopRequest, seconds: float) -> _T:
        """Repeat an action while storage does not answer, for at most `seconds`, or `stop_grace` after a stop request."""
        deadline, is_reported = time.monotonic() + seconds, False
        while True:
            try:
                return act()
            except StorageRefused:
                raise
            except StorageUnavailable as error:
                request = stop_request()
                if request == "stop":
                    deadline = min(deadline, time.monotonic() + self._settings.stop_grace)
                if request == "kill" or time.monotonic() > deadline:
                    raise
                if not is_reported:
                    is_reported = True
                    self._note(f"{error}; waiting for storage")
            time.sleep(RETRY_SECONDS)
