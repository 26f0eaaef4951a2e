"""One delivery of one job, in the worker's child process: claim the job, supervise the engine, report events, end the job.

    claim -> kill an engine left by an earlier owner -> run the engine -> succeeded | failed | cancelled | back to the queue

An outage of Redis never ends a running engine: reports are buffered, and the lease is renewed when Redis is back. The engine is killed
only when Redis answers that the lease is lost, that is, another worker may own the job.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawValue
from typing import Any

import redis

from extractor import errors, files
from extractor.errors import DiskFull, ExtractorError, StorageUnavailable
from extractor.files import cache_root
from extractor.models.reference import JOB_MODEL
from extractor.spec.schema import JobSpec, parse_job
from worker import processes
from worker.broker.fair_share import Groups
from worker.broker.redis_url import connect
from worker.records.records import TERMINAL, Records
from worker.settings import Settings
from worker.storage.job_storage import InPlace, Storage, has_room, storage_of
from worker.supervision import engine
from worker.supervision.event_reporter import EventReporter
from worker.supervision.job_folder import claim_folder
from worker.supervision.job_log import JobLog, log_event
from worker.supervision.shared_bridging import SharedBridging

log = logging.getLogger("extract")
JOB_FILE = "job.json"  # the spec, in the job's folder
RETRY_SECONDS = 3.0  # between two looks for space on a full disk
GIVE_UP_SECONDS = 20.0  # longest time that a worker in shutdown tries to record the end of its job


class WorkerFlags:
    """State shared by the worker's main process and its child. Plain shared memory without a lock: a killed child blocks nobody."""

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
        """Number of attempts that have ended in this worker."""
        return int(self._ended.value)

    def count_end(self) -> None:
        self._ended.value += 1


@dataclass(frozen=True)
class WorkerContext:
    """The worker in which a job runs: its name, its Redis URL, its flags. publish: sends a job's message again."""

    name: str
    url: str
    settings: Settings
    shared: WorkerFlags
    publish: Callable[[str], None]


def run_job(job: str, context: WorkerContext) -> str:
    """Claim a job and, if that succeeds, make an attempt at it. Returns the state reached, for the log."""
    token = secrets.token_hex(8)
    records = Records(connect(context.url, timeout=3))
    try:
        claim = records.claim(job, token, context.settings.lease_ttl, socket.gethostname(), context.name, str(processes.identify()))
    except redis.ResponseError as error:
        log.warning("job %s: it cannot be claimed (%s)", job, error)
        return "damaged"
    if claim != "claimed":
        log.info("job %s: nothing to do (%s)", job, claim)
        return claim
    attempt = Attempt(job, token, records, context)
    try:
        return attempt.run()
    finally:
        context.shared.count_end()
        _publish_next(job, records, context)


def _publish_next(job: str, records: Records, context: WorkerContext) -> None:
    """Publish the next jobs of the ended job's group. If Redis does not answer, a caretaker does this later."""
    try:
        group: Any = records.client.hget(f"ex:job:{job}", "group")
        for other in Groups(records.client).draw(group) if group else ():
            context.publish(other)
    except redis.RedisError as error:
        log.warning("job %s: cannot publish the next job of its group yet (%s)", job, error)


class Lease:
    """Renews the lease in its own thread, so that slow work in the main thread cannot let it expire.

    lost       another owner may have the job        cancelled  a user cancelled the job
    """

    def __init__(self, job: str, token: str, context: WorkerContext) -> None:
        self.lost = False
        self.cancelled = False
        self._job, self._token, self._settings = job, token, context.settings
        self._records = Records(connect(context.url, timeout=3))
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
                log.warning("job %s: heartbeat failed (%s); the engine continues", self._job, error)
                continue
            if self._done.is_set():  # the job ended during the request
                return
            self.lost = wanted == "lost"
            self.cancelled = wanted == "cancel"
            if self.lost:
                return


class Attempt:
    """One claimed job, until it has ended, is back in the queue, or is lost to another owner."""

    def __init__(self, job: str, token: str, records: Records, context: WorkerContext) -> None:
        self.job, self.token, self.records, self.context = job, token, records, context
        self.lease = Lease(job, token, context)
        self.listeners: list[Callable[[engine.Event], None]] = [log_event]
        self.folder = context.settings.root / job
        self.result = self.folder / "result"
        self.storage: Storage = storage_of(context.settings, job, token, records)

    def run(self) -> str:
        with _sigterm_requests_exit(self.context.shared), self.lease:
            state = self._refuse_folder() or self._run()
        self.storage.close()
        return state

    def _refuse_folder(self) -> str:
        """End the job if its folder is not its own, before anything is written there, even the log. Returns the state, '' to go on."""
        server = self._retry(self.records.server_id)
        if server == "unreported":
            return server
        try:
            claim_folder(self.folder, server)
        except DiskFull as error:
            return self._wait_for_space(error)
        except ExtractorError as error:
            self.storage = InPlace(self.folder)  # nothing of a foreign folder is stored
            return self._end("failed", error=error)
        return ""

    def _run(self) -> str:
        with self._open_log() as job_log:
            log.info("job %s: started on %s", self.job, self.context.name)
            try:
                state = self._work(job_log)
            except StorageUnavailable as error:  # a later attempt, or one on another worker, may succeed
                state = "lost" if self.lease.lost else self._release(str(error), counts=not self.context.shared.leaving)
            except DiskFull as error:
                state = self._wait_for_space(error)
            except ExtractorError as error:
                state = self._end("failed", error=error)
            except Exception as error:  # a bug: counts as a crash, so the number of attempts bounds it
                log.exception("job %s", self.job)
                state = self._release(f"the worker failed: {type(error).__name__}: {error}", counts=True)
            log.info("job %s: %s", self.job, state)
        return state

    def stop_request(self) -> engine.StopRequest:
        """What the engine is asked to do now: '' continue, 'stop' save a checkpoint and stop, 'kill' end at once."""
        if self.lease.lost:
            return "kill"
        return "stop" if self.lease.cancelled or self.context.shared.leaving else ""

    def _notify(self, event: engine.Event) -> None:
        for listener in self.listeners:
            listener(event)

    def _open_log(self) -> JobLog:
        try:
            attempt = int((self.records.get(self.job) or {}).get("attempt", 0))
        except redis.RedisError:
            attempt = 0  # used in the log only
        return JobLog(self.job, self.folder, attempt, self.context.url)

    def _work(self, job_log: JobLog) -> str:
        record = self.records.need(self.job)
        spec = self._prepare(record)
        settings, engine_log = self.context.settings, self.folder / "engine.log"
        if not engine.end_stray_engine(engine_log, wait=settings.lease_ttl / 2):
            return self._release("an engine of an earlier attempt still runs on another machine", counts=False)
        if spec.model and JOB_MODEL.fullmatch(spec.model):
            self.storage.fetch_model(spec.model, self.stop_request)
        bridging = SharedBridging(self.job, self.token, self.records, self.context.publish, settings, spec)
        if maker := bridging.claim():
            return maker if maker == "lost" else f"queued, behind job {maker}"
        reporter = EventReporter(self.job, self.token, self.records)
        self.listeners += [reporter, bridging.on_event, self.storage.on_event]
        self.storage.restore(record, self.stop_request)
        self._discard_damaged()
        with self.storage.mirroring():
            outcome = engine.supervise(
                self.folder / JOB_FILE, self.result, engine_log, settings, self._notify, self.stop_request, bridged=bridging.path
            )
        reporter.flush()
        job_log.catch_up()
        state = self._conclude(outcome)
        if state in TERMINAL:
            bridging.release()
        return state

    def _prepare(self, record: dict[str, str]) -> JobSpec:
        """Check the spec again, since anyone with access to Redis can change it, and write it to the job's folder."""
        spec = parse_job(record.get("spec", ""), f"job {self.job}")
        try:
            files.write_json(self.folder / JOB_FILE, spec.model_dump(mode="json"))
        except OSError as error:
            raise errors.OutputError(
                f"job folder {self.folder} cannot be written ({error.strerror}); set EXTRACT_ROOT to a writable folder"
            ) from None
        return spec

    def _discard_damaged(self) -> None:
        """Delete a finished result that has lost or changed a file, so that the engine makes it again instead of refusing it."""
        try:
            if (self.result / files.MANIFEST).is_file():
                files.verify_manifest(self.result)
        except errors.BrokenArtifact as error:
            self._notify({"event": "note", "message": f"the finished result is damaged and made anew: {str(error).partition(';')[0]}"})
            shutil.rmtree(self.result)

    def _conclude(self, outcome: engine.Outcome) -> str:
        if self.lease.lost:
            return "lost"
        if outcome.kind == "done":
            state = self._end("succeeded", self.storage.store_result(self.stop_request))
            if state == "succeeded":
                self.storage.remove_checkpoints()
            return state
        self.storage.store_checkpoint(self.stop_request)
        if isinstance(outcome.error, DiskFull):
            raise outcome.error
        if outcome.kind == "error":
            return self._end("failed", error=outcome.error)
        # Releasing a job with a cancel request makes it cancelled.
        if self.context.shared.leaving:
            return self._release("its worker is shutting down", counts=False)
        stopped = "the engine was stopped by a cancel request" if self.lease.cancelled else "the engine was stopped by an unknown process"
        return self._release(str(outcome.error or stopped), counts=True)

    def _wait_for_space(self, error: DiskFull) -> str:
        """Requeue the job once the disk has space. Requeuing at once would make every queued job fail on the full disk."""
        log.warning("job %s: %s; waiting for space", self.job, error)
        deadline = time.monotonic() + self.context.settings.store_patience
        places = [self.context.settings.root, *([cache_root()] if cache_root().is_dir() else [])]  # an engine writes to both
        while not (self.stop_request() or all(map(has_room, places))):
            if time.monotonic() > deadline:
                return self._end("failed", error=error)
            time.sleep(RETRY_SECONDS)
        return "lost" if self.lease.lost else self._release(str(error), counts=not self.context.shared.leaving)

    def _end(self, state: str, artifact: str = "", error: ExtractorError | None = None) -> str:
        reason = (type(error).__name__, str(error)) if error is not None else ("", "")
        if error is not None:
            log.error("job %s: %s", self.job, error)
        return self._retry(lambda: self.records.end(self.job, self.token, state, artifact, reason))

    def _release(self, reason: str, counts: bool) -> str:
        log.warning("job %s: %s", self.job, reason)
        state = self._retry(lambda: self.records.release(self.job, self.token, reason, counts))
        if state == "queued":
            self.context.publish(self.job)
        return state

    def _retry(self, record: Callable[[], str]) -> str:
        """Record a transition, however long Redis is away. Gives up only in shutdown; the job is then recovered by a caretaker."""
        deadline: float | None = None
        while True:
            try:
                return record()
            except redis.RedisError as error:
                if self.context.shared.leaving:
                    deadline = deadline or time.monotonic() + GIVE_UP_SECONDS
                    if time.monotonic() > deadline:
                        return "unreported"
                log.warning("job %s: cannot record its end yet (%s)", self.job, error)
                time.sleep(1)


@contextmanager
def _sigterm_requests_exit(shared: WorkerFlags) -> Iterator[None]:
    """In the child, too, SIGTERM means that the worker shuts down: systemd and containers may send it to every process."""
    before = signal.signal(signal.SIGTERM, lambda *_: shared.leave())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
