"""One delivery of one job, in the worker's child process: claim it, supervise the engine, report, and bring it to its end.

    claim -> end any engine that an earlier owner left -> run the engine -> succeeded | failed | cancelled | back to the queue

Redis being away never ends a running engine: reports wait their turn, the lease is renewed when Redis is back, and only an owner that is
told that the job is no longer its own kills its engine.
"""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawValue
from typing import Any

import redis

from extractor import errors, files
from extractor.errors import DiskFull, ExtractorError, StorageUnavailable
from extractor.models.reference import JOB_MODEL
from extractor.spec.schema import JobSpec, parse_job
from worker import processes
from worker.broker.fair_share import Groups
from worker.broker.redis_url import connect
from worker.records.records import TERMINAL, Records
from worker.settings import Settings
from worker.storage.job_storage import has_room, storage_of
from worker.supervision import engine
from worker.supervision.job_log import JobLog, hear
from worker.supervision.shared_bridging import SharedBridging

log = logging.getLogger("extract")
JOB_FILE = "job.json"  # the spec, in the job's folder
REPORT_SECONDS = 1.0  # between two progress events of a job
RETRY_SECONDS = 3.0  # before Redis is tried again after a failed report
GIVE_UP_SECONDS = 20.0  # a worker that shuts down waits this long to tell Redis how its job ended


class WorkerFlags:
    """What the worker's main process and its child tell each other. Plain shared bytes: a child killed while writing can block nobody."""

    def __init__(self) -> None:
        self._leaving = RawValue("b", 0)
        self._ended = RawValue("l", 0)

    @property
    def leaving(self) -> bool:
        """Whether the worker is shutting down."""
        return bool(self._leaving.value)

    def leave(self) -> None:
        self._leaving.value = 1

    @property
    def ended(self) -> int:
        """How many attempts at a job have ended here."""
        return int(self._ended.value)

    def count_end(self) -> None:
        self._ended.value += 1


@dataclass(frozen=True)
class WorkerContext:
    """Where a job runs: the worker's name, its Redis, how to publish a job again, and what main process and child share."""

    name: str
    url: str
    settings: Settings
    shared: WorkerFlags
    publish: Callable[[str], None]


def run_job(job: str, place: WorkerContext) -> str:
    """Try a job: 'claim' says whether this delivery means work at all. Returns the state reached, for the log."""
    token = secrets.token_hex(8)
    records = Records(connect(place.url, timeout=3))
    try:
        claim = records.claim(job, token, place.settings.lease_ttl, socket.gethostname(), place.name, str(processes.identify()))
    except redis.ResponseError as error:
        log.warning("job %s: its record cannot be read (%s)", job, error)
        return "damaged"
    if claim != "claimed":
        log.info("job %s: nothing to do (%s)", job, claim)
        return claim
    attempt = Attempt(job, token, records, place)
    try:
        return attempt.run()
    finally:
        place.shared.count_end()
        _publish_next(job, records, place)


def _publish_next(job: str, records: Records, place: WorkerContext) -> None:
    """The job leaves room in its group; while Redis is away, that waits for a caretaker."""
    try:
        group: Any = records.client.hget(f"ex:job:{job}", "group")
        for other in Groups(records.client).draw(group) if group else ():
            place.publish(other)
    except redis.RedisError as error:
        log.warning("job %s: the next of its group is not published yet (%s)", job, error)


class Lease:
    """Renews the lease from a thread of its own, so that neither hashing a large result nor a slow report lets it run out."""

    def __init__(self, job: str, token: str, place: WorkerContext) -> None:
        self.lost = False
        self.cancelled = False
        self._job, self._token, self._settings = job, token, place.settings
        self._records = Records(connect(place.url, timeout=3))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._done.wait(self._settings.heartbeat):
            try:
                wanted = self._records.beat(self._job, self._token, self._settings.lease_ttl)
            except redis.RedisError as error:
                log.warning("job %s: heartbeat not delivered (%s); the engine goes on", self._job, error)
                continue
            if self._done.is_set():  # the job ended while we asked
                return
            self.lost = wanted == "lost"
            self.cancelled = wanted == "cancel"
            if self.lost:
                return


class EventReporter:
    """Passes engine events on to the record: progress at most once a second, everything else in order, nothing ever raised.

    How the engine ended is left out: the record says it, once it is decided.
    """

    def __init__(self, job: str, token: str, records: Records) -> None:
        self._job, self._token, self._records = job, token, records
        self._waiting: deque[dict[str, Any]] = deque(maxlen=1000)
        self._not_before = 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] in ("done", "error"):
            return
        hear(event)
        is_progress = event["event"] == "progress"
        if is_progress and self._waiting and self._waiting[-1]["event"] == "progress":
            self._waiting[-1] = event
        else:
            self._waiting.append(event)
        if time.monotonic() >= self._not_before:
            self.flush()
            if is_progress and not self._waiting:
                self._not_before = time.monotonic() + REPORT_SECONDS

    def flush(self) -> None:
        """Deliver what waits, as far as Redis takes it."""
        try:
            while self._waiting:
                self._records.report(self._job, self._token, self._waiting[0], _fields(self._waiting[0]))
                self._waiting.popleft()
        except redis.RedisError as error:
            log.warning("job %s: progress not delivered (%s)", self._job, error)
            self._not_before = time.monotonic() + RETRY_SECONDS


class Attempt:
    """One claimed job, until it is ended, given back or lost."""

    def __init__(self, job: str, token: str, records: Records, place: WorkerContext) -> None:
        self.job, self.token, self.records, self.place = job, token, records, place
        self.folder = place.settings.root / job
        self.result = self.folder / "result"
        self.storage = storage_of(place.settings, job, token, records)

    def run(self) -> str:
        with _sigterm_means_leave(self.place.shared), Lease(self.job, self.token, self.place) as lease, self._open_log() as job_log:
            log.info("job %s: begun by %s", self.job, self.place.name)
            try:
                state = self._work(lease, job_log)
            except StorageUnavailable as error:  # another worker, or a later moment, may do better
                state = "lost" if lease.lost else self._release(str(error), counts=not self.place.shared.leaving)
            except DiskFull as error:
                state = self._put_off(error, lease)
            except ExtractorError as error:
                state = self._end("failed", error=error)
            except Exception as error:  # a mistake of ours: bounded by the number of attempts like any crash
                log.exception("job %s", self.job)
                state = self._release(f"the worker failed: {type(error).__name__}: {error}", counts=True)
            log.info("job %s: %s", self.job, state)
        self.storage.leave()
        return state

    def _open_log(self) -> JobLog:
        try:
            attempt = int((self.records.get(self.job) or {}).get("attempt", 0))
        except redis.RedisError:
            attempt = 0  # only the log is the poorer for it
        return JobLog(self.job, self.folder, attempt, self.place.url)

    def _work(self, lease: Lease, job_log: JobLog) -> str:
        record = self.records.need(self.job)
        spec = self._prepare(record)
        engine_log = self.folder / "engine.log"
        if not engine.end_stray_engine(engine_log, wait=self.place.settings.lease_ttl / 2):
            return self._release("an engine of an earlier attempt is still at work on another machine", counts=False)

        def wish() -> engine.Wish:
            if lease.lost:
                return "kill"
            return "stop" if lease.cancelled or self.place.shared.leaving else ""

        if spec.model and JOB_MODEL.fullmatch(spec.model):
            self.storage.bring(spec.model, wish)
        bridging = SharedBridging(self.job, self.token, self.records, self.place.publish, self.place.settings, spec)
        if maker := bridging.claim():
            return maker if maker == "lost" else f"queued, behind job {maker}"
        relay = EventReporter(self.job, self.token, self.records)

        def pass_on(event: engine.Event) -> None:
            relay(event)
            bridging.on_event(event)
            self.storage.hear(event)

        self.storage.restore(record, wish)
        self._discard_damaged(relay)
        with self.storage.mirroring():
            outcome = engine.supervise(
                self.folder / JOB_FILE, self.result, engine_log, self.place.settings, pass_on, wish, bridged=bridging.path
            )
        relay.flush()
        job_log.catch_up()
        state = self._conclude(outcome, lease, wish)
        if state in TERMINAL:
            bridging.release()
        return state

    def _prepare(self, record: dict[str, str]) -> JobSpec:
        """The spec, checked again, as a file in the job's folder: whoever can write to Redis could have written anything."""
        spec = parse_job(record.get("spec", ""), f"job {self.job}")
        if link := next((path for path in (self.folder, self.result) if path.is_symlink()), None):
            raise errors.OutputError(f"{link} is a link; a job writes into its own folder only: remove it")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.write_json(self.folder / JOB_FILE, spec.model_dump(mode="json"))
        except OSError as error:
            raise errors.OutputError(
                f"job folder {self.folder} cannot be written ({error.strerror}); set EXTRACT_ROOT to another"
            ) from None
        return spec

    def _discard_damaged(self, relay: EventReporter) -> None:
        """A finished result that is no longer whole is made anew: the engine would refuse it each time."""
        try:
            if (self.result / files.MANIFEST).is_file():
                files.verify_manifest(self.result)
        except errors.BrokenArtifact as error:
            relay({"event": "note", "message": f"the finished result is damaged and made anew: {str(error).partition(';')[0]}"})
            shutil.rmtree(self.result)

    def _conclude(self, outcome: engine.Outcome, lease: Lease, wish: Callable[[], engine.Wish]) -> str:
        if lease.lost:
            return "lost"
        if outcome.kind == "done":
            state = self._end("succeeded", self.storage.keep_result(wish))
            if state == "succeeded":
                self.storage.tidy()
            return state
        self.storage.keep_work(wish)
        if isinstance(outcome.error, DiskFull):
            raise outcome.error
        if outcome.kind == "error":
            return self._end("failed", error=outcome.error)
        # Released, a job that is to be cancelled becomes cancelled.
        if self.place.shared.leaving:
            return self._release("its worker is shutting down", counts=False)
        return self._release(str(outcome.error or "the engine was stopped by somebody else"), counts=True)

    def _put_off(self, error: DiskFull, lease: Lease) -> str:
        """Give the job back once there is room again: on a full disk every job would fail, one after the other."""
        log.warning("job %s: %s; waiting for room", self.job, error)
        deadline = time.monotonic() + self.place.settings.store_patience
        while not (lease.lost or lease.cancelled or self.place.shared.leaving or has_room(self.place.settings.root)):
            if time.monotonic() > deadline:
                return self._end("failed", error=error)
            time.sleep(RETRY_SECONDS)
        return "lost" if lease.lost else self._release(str(error), counts=not self.place.shared.leaving)

    def _end(self, state: str, artifact: str = "", error: ExtractorError | None = None) -> str:
        reason = (type(error).__name__, str(error)) if error is not None else ("", "")
        if error is not None:
            log.error("job %s: %s", self.job, error)
        return self._insist(lambda: self.records.end(self.job, self.token, state, artifact, reason))

    def _release(self, reason: str, counts: bool) -> str:
        log.warning("job %s: %s", self.job, reason)
        state = self._insist(lambda: self.records.release(self.job, self.token, reason, counts))
        if state == "queued":
            self.place.publish(self.job)
        return state

    def _insist(self, tell: Callable[[], str]) -> str:
        """Tell Redis, however long it is away; give up only when the worker must leave (the reaper then takes over)."""
        deadline: float | None = None
        while True:
            try:
                return tell()
            except redis.RedisError as error:
                if self.place.shared.leaving:
                    deadline = deadline or time.monotonic() + GIVE_UP_SECONDS
                    if time.monotonic() > deadline:
                        return "untold"
                log.warning("job %s: its end is not delivered yet (%s)", self.job, error)
                time.sleep(1)


@contextmanager
def _sigterm_means_leave(shared: WorkerFlags) -> Iterator[None]:
    """systemd and containers may send SIGTERM to the child as well: it then means what it means to the worker."""
    before = signal.signal(signal.SIGTERM, lambda *_: shared.leave())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fields(event: dict[str, Any]) -> dict[str, Any]:
    """What an event changes in the record."""
    if event["event"] == "stage":
        return {key: event.get(key, "") for key in ("stage", "index", "of")} | {"step": "", "total": "", "seconds_left": ""}
    if event["event"] == "progress":
        numbers = {key: "" if event.get(key) is None else event[key] for key in ("step", "total", "seconds_left")}
        return numbers | {"metrics": json.dumps(event.get("metrics") or {})}
    return {"checkpoint": event.get("step", "")} if event["event"] == "checkpoint" else {"last": event["event"]}
