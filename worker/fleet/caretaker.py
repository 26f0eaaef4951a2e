"""Periodic work of every live worker, in a thread of its main process.

announce   write to Redis that this worker lives
reap       requeue running jobs whose owner has died on this machine or whose lease has expired
republish  send the message of queued jobs again if no queue has it
idle       exit after a time without work, if configured
"""

from __future__ import annotations

import json
import logging
import math
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
    """The thread.

    name         of the worker; '' for a caretaker without a worker, which is not announced
    publish      sends a job's message
    current_job  returns the job that this worker runs now, or ''
    idle_exit    seconds without work after which the worker exits, None for never
    is_local     whether a command has started this worker
    alive_file   touched after each answer of Redis, as a liveness probe
    capacity     most bytes that a job of this worker may need; 0: any
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
        self._socket: str | None = records.client.connection_pool.connection_kwargs.get("path")
        self._stopping = threading.Event()
        self._busy_at = time.monotonic()
        self._reconnected_at: float | None = None  # None until a connection was lost
        self._looked_at = -math.inf
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
            except Exception:  # one error must not end the caretaker
                log.exception("caretaker")
            self._stopping.wait(self._settings.reap_every)

    def stop(self) -> None:
        """The worker exits: remove its announcement."""
        self._stopping.set()
        try:
            self._records.withdraw(self.worker_name)
        except redis.RedisError:
            return  # the announcement expires by itself

    def _tick(self) -> None:
        if self._settings.embedded and self._socket is not None and not os.path.exists(self._socket):
            raise redis.ConnectionError(f"its socket {self._socket} was deleted")  # open connections last, but nobody can make another
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
        """Write to Redis that this worker lives and what it does."""
        self._records.announce(self._vitals.current(self._current_job()), ttl=max(3 * self._settings.reap_every, 5))

    def connection_returned(self) -> None:
        """Redis answers again after an outage."""
        self._cut_off, self._reconnected_at = False, time.monotonic()

    def reap(self) -> None:
        """Requeue the jobs whose owner is lost."""
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
        """Whether an expired lease means that its owner is lost.

        After an outage of Redis, live owners need time to renew their leases; one lease time is enough, since they try at every heartbeat.
        A dead owner on this machine is recognised by its process, so a restart of the embedded server delays no recovery.
        """
        facts: Any = self._records.client.info("server")
        if facts["uptime_in_seconds"] < self._settings.lease_ttl:
            return False
        return self._reconnected_at is None or time.monotonic() - self._reconnected_at >= self._settings.lease_ttl

    def _republish(self) -> None:
        """Publish old queued jobs whose message is in no queue.

        Age alone would multiply the messages of a long backlog, so this reads the queues. It does so seldom and in one worker for all,
        since reading ten thousand jobs in a hundred workers would keep Redis busy.
        """
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
        # A job that waits for another open job is published when that job has stored the bridged model.
        queued = {job: record for job, record in open_jobs.items() if record["state"] == "queued" and not record["in_line"]}
        free = {job: record for job, record in queued.items() if record["waits"] not in open_jobs}
        old = [job for job, record in free.items() if float(record["updated"]) < before]
        waiting = self._waiting_jobs() if old else set()
        for job in old:
            if job not in waiting:
                log.warning("job %s: queued, but its message was lost; published again", job)
                self._publish(job)
        self._counts.prepare()
        self._counts.repair(open_jobs, self._settings.lease_ttl)

    def _waiting_jobs(self) -> set[str]:
        jobs = set()
        for queue in chain.from_iterable(routing.all_queues().values()):
            messages: Any = self._records.client.lrange(KEY_PREFIX + queue, 0, -1)
            for message in messages:
                try:
                    jobs.add(json.loads(message)["headers"]["id"].rpartition(".")[0])
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue  # malformed: a worker will drop it
        return jobs

    def _leave_if_idle(self) -> None:
        if self._idle_exit is None:
            return
        if self._current_job() or self._has_queued():
            self._busy_at = time.monotonic()
        elif time.monotonic() - self._busy_at >= self._idle_exit:
            with local.registration(self._settings):
                # A client records its job first and then looks for a worker under the same lock, so one of the two sees the other.
                if self._has_queued():
                    return
                self.stop()
                local.unregister(self._settings, os.getpid())
            log.info("no work for %.0f s: exiting", self._idle_exit)
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
        socket = embedded_redis.running(self._settings)
        if socket is not None and self._socket is not None and str(socket) != self._socket:
            log.warning("the server has moved from %s to %s: exiting; the next command starts another worker", self._socket, socket)
            os.kill(os.getpid(), signal.SIGTERM)


def publisher(app: Celery, records: Records) -> Callable[[str], None]:
    """A function that publishes a job again with its priority; while Redis does not answer it only logs a warning."""

    def publish_again(job: str) -> None:
        try:
            record = records.get_many([job]).get(job, {})
            publish(app, job, records.next_message_id(job), record.get("priority", "normal"), memory_of(record))
        except (OperationalError, redis.RedisError, OSError) as error:
            log.warning("job %s: not published (%s); a caretaker publishes it when Redis is back", job, error)

    return publish_again


def run_caretaker(url: str, settings: Settings, alive_file: Path | None = None) -> None:
    """Recover lost jobs and lost messages until SIGTERM or Ctrl-C. alive_file: touched every few seconds while Redis answers."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s: %(levelname)s] %(message)s")
    records = Records(connect(url))
    caretaker = Caretaker("", records, settings, publisher(make_app(url, settings), records), lambda: "", alive_file=alive_file)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: caretaker.stop())
    log.info("caretaker ready")
    caretaker.run()
