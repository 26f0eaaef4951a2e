"""What every live worker does beside its job, from a thread of its main process.

announce   say that this worker lives
reap       bring back running jobs whose owner is gone: known dead on this machine, or its lease has run out
republish  bring back queued jobs whose message is nowhere
idle       leave after a while without work, if asked to
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from extractor.errors import ExtractorError
from worker import processes
from worker.broker import embedded_redis, routing
from worker.broker.app import KEY_PREFIX, make_app, publish
from worker.broker.fair_share import Groups
from worker.broker.redis_url import connect
from worker.fleet import local
from worker.fleet.vitals import Vitals
from worker.records.counts import Counts
from worker.records.records import Records, memory_of
from worker.settings import Settings

log = logging.getLogger("extract")


class Caretaker(threading.Thread):
    """name: the worker's, '' for a caretaker without one, which is not announced. publish: asks workers to try a job.
    current_job: the job this worker runs now, or ''.

    idle_exit: seconds without work after which the worker is asked to leave, None for never. is_local: started by a command.
    alive_file: touched each time that Redis has answered, for those who watch over this process. capacity: bytes that a job may need, to be
    taken here; 0: any.
    """

    def __init__(
        self,
        name: str,
        records: Records,
        settings: Settings,
        publish: Callable[[str], None],
        current_job: Callable[[], str],
        idle_exit: float | None = None,
        is_local: bool = False,
        alive_file: Path | None = None,
        capacity: int = 0,
    ) -> None:
        super().__init__(name="caretaker", daemon=True)
        self.worker_name = name
        self._records, self._settings, self._publish, self._current_job = records, settings, publish, current_job
        self._idle_exit, self._alive_file = idle_exit, alive_file
        self._counts, self._groups = Counts(records.client), Groups(records.client)
        self._vitals = Vitals(name, records, settings, is_local, capacity)
        self._stopping = threading.Event()
        self._busy_at = time.monotonic()
        self._reconnected_at: float | None = None  # None until a connection was lost
        self._looked_at = 0.0
        self._cut_off = False

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._tick()
                if self._cut_off:
                    self.connection_returned()
            except redis.RedisError as error:
                log.warning("Redis cannot be reached (%s)", error)
                self._cut_off = True
                self._revive()
            except Exception:  # the caretaker must outlive any one mishap
                log.exception("caretaker")
            self._stopping.wait(self._settings.reap_every)

    def stop(self) -> None:
        """The worker leaves: no longer announce it."""
        self._stopping.set()
        try:
            self._records.withdraw(self.worker_name)
        except redis.RedisError:
            return  # the announcement runs out by itself

    def _tick(self) -> None:
        if self.worker_name:
            self.announce()
        else:
            self._records.client.ping()
        if self._alive_file is not None:
            self._alive_file.touch()
        if not self._cut_off:
            self.reap()
            self._republish()
        self._leave_if_idle()

    def announce(self) -> None:
        """Tell Redis that this worker lives and what it does."""
        self._records.announce(self._vitals.look(self._current_job()), ttl=max(3 * self._settings.reap_every, 5))

    def connection_returned(self) -> None:
        """Redis answers again after an absence."""
        self._cut_off, self._reconnected_at = False, time.monotonic()

    def reap(self) -> None:
        """Bring back the jobs whose owner is lost."""
        leases_count = self._leases_count()
        for job, record in self._records.outline(self._counts.newest("running", 0)).items():
            if record["state"] != "running":
                continue
            gone = processes.is_gone(processes.ProcessId.parse(record["process"]), same_machine=self._settings.embedded)
            if not gone and not leases_count:
                continue
            state = self._records.reap(job, record["token"], f"its worker {record['worker']} was lost", gone)
            if state != "kept":
                log.warning("job %s: worker %s was lost; now %s", job, record["worker"], state)
            if state == "queued":
                self._publish(job)

    def _leases_count(self) -> bool:
        """Whether an expired lease tells anything.

        After Redis was away, live owners need a moment to renew theirs; they try every heartbeat, so one lease time is plenty. A dead
        owner on this machine is recognised by its process at once, so a restarted embedded server delays no recovery.
        """
        facts: Any = self._records.client.info("server")
        if facts["uptime_in_seconds"] < self._settings.lease_ttl:
            return False
        return self._reconnected_at is None or time.monotonic() - self._reconnected_at >= self._settings.lease_ttl

    def _republish(self) -> None:
        """An age rule alone would multiply the messages of a long backlog, so this looks into the queues, though seldom, and one worker
        for all: a hundred that read ten thousand jobs each would keep Redis busy with nothing else."""
        every = self._settings.republish_after / 4
        if time.monotonic() - self._looked_at < every:
            return
        self._looked_at = time.monotonic()
        if not self._records.client.set("ex:look", self.worker_name, nx=True, px=max(1, int(1000 * every))):
            return
        before = time.time() - self._settings.republish_after
        open_jobs = self._records.open_jobs()
        for job in self._groups.draw_all():
            self._publish(job)
        # Those that wait for another open job are published when that one has made their bridged model.
        queued = {job: record for job, record in open_jobs.items() if record["state"] == "queued" and not record["in_line"]}
        free = {job: record for job, record in queued.items() if record["waits"] not in open_jobs}
        old = [job for job, record in free.items() if float(record["updated"]) < before]
        waiting = self._waiting_jobs() if old else set()
        for job in old:
            if job not in waiting:
                log.warning("job %s: queued, but its message is nowhere; published again", job)
                self._publish(job)
        self._counts.prepare()
        self._counts.mend(open_jobs, self._settings.lease_ttl)

    def _waiting_jobs(self) -> set[str]:
        jobs = set()
        for queue in chain.from_iterable(routing.all_queues().values()):
            messages: Any = self._records.client.lrange(KEY_PREFIX + queue, 0, -1)
            for message in messages:
                try:
                    jobs.add(json.loads(message)["headers"]["id"].rpartition(".")[0])
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue  # not one of ours: the worker will discard it
        return jobs

    def _leave_if_idle(self) -> None:
        if self._idle_exit is None:
            return
        if self._current_job() or self._has_queued():
            self._busy_at = time.monotonic()
        elif time.monotonic() - self._busy_at >= self._idle_exit:
            with local.registration(self._settings):
                # A client records its job before it looks, under the same lock, for a worker: one of us two sees the other.
                if self._has_queued():
                    return
                self.stop()
                local.forget(self._settings, os.getpid())
            log.info("nothing to do for %.0f s: leaving", self._idle_exit)
            os.kill(os.getpid(), signal.SIGTERM)

    def _has_queued(self) -> bool:
        return any(record["state"] == "queued" for record in self._records.open_jobs().values())

    def _revive(self) -> None:
        if not self._settings.embedded:
            return
        try:
            embedded_redis.revive(self._settings)
        except ExtractorError as error:
            log.warning("%s", error)


log = logging.getLogger("extract")


def publisher(app: Celery, records: Records) -> Callable[[str], None]:
    """What publishes a job again, under its own priority; while Redis is away it only says so."""

    def publish_again(job: str) -> None:
        try:
            record = records.get_many([job]).get(job, {})
            publish(app, job, records.next_message_id(job), record.get("priority", "normal"), memory_of(record))
        except (OperationalError, redis.RedisError, OSError) as error:
            log.warning("job %s: not published (%s); it will be, once Redis is back", job, error)

    return publish_again


def keep_up(url: str, settings: Settings, alive_file: Path | None = None) -> None:
    """Bring back lost jobs and lost messages until SIGTERM or Ctrl-C. alive_file: touched every few seconds while Redis answers."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s: %(levelname)s] %(message)s")
    records = Records(connect(url))
    caretaker = Caretaker("", records, settings, publisher(make_app(url, settings), records), lambda: "", alive_file=alive_file)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: caretaker.stop())
    log.info("caretaker ready")
    caretaker.run()
