"""Follow a job, or all jobs of a batch or sweep, until they end. Survives outages of Redis and deaths of local workers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import redis

from extractor.errors import ServiceUnavailable
from worker.broker import embedded_redis
from worker.client.service import Service, reopen
from worker.fleet import local
from worker.records.records import TERMINAL
from worker.settings import Settings

OUTAGE_SECONDS = 60.0  # longest outage of Redis that a watcher survives
WORKER_CHECK_SECONDS = 2.0  # between two checks that a local worker runs, for one job
POLL_SECONDS = 1.0  # between two polls of a batch or sweep
MAX_STARTS = 3  # local workers started without progress before a watcher gives up

Facts = dict[str, Any]
T = TypeVar("T")


def while_redis_lives(service: Service, poll: Callable[[Service], T], advice: str) -> Iterator[T]:
    """Yield poll(service) again and again. When Redis does not answer, reconnect and poll again.

    advice: end of the error message. Raises ServiceUnavailable when nothing has answered for OUTAGE_SECONDS.
    """
    away_since: float | None = None
    while True:
        try:
            found = poll(service)
        except (redis.RedisError, OSError) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise  # an error of a file, not of the connection
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > OUTAGE_SECONDS:
                raise ServiceUnavailable(f"connection to Redis lost ({error}); {advice}") from None
            service = reopen(service)
            continue
        away_since = None
        yield found


class WorkerStarter:
    """Starts a local worker whenever jobs are open on the embedded server and none runs.

    more_starts: starts allowed without progress, beyond MAX_STARTS.
    """

    def __init__(self, settings: Settings, more_starts: int = 0) -> None:
        self._settings, self._more_starts = settings, more_starts
        self._starts = 0

    def ensure(self, service: Service) -> None:
        """Start a worker if one is needed. Raises redis.RedisError."""
        self._starts += local.ensure_worker(service.records, service.settings)

    def progressed(self) -> None:
        """Reset the count: a worker has done something."""
        self._starts = 0

    def check(self) -> None:
        """Raises ServiceUnavailable after too many starts."""
        if self._starts > MAX_STARTS + self._more_starts:
            path = local.log_path(self._settings)
            raise ServiceUnavailable(f"the local worker keeps exiting: {embedded_redis.last_line(path)}; see {path}")


def watch(service: Service, job: str, after: str = "0") -> Iterator[dict[str, Any]]:
    """Every event of a job after a stream id, as it happens. Ends with the job.

    Each event carries its stream id under 'id'. No event is lost or repeated by an outage of Redis. On the embedded server a new worker
    replaces one that died. Raises NotFound, or ServiceUnavailable when Redis does not answer for a minute or no worker stays up.
    """
    service.records.need(job)
    starter, checked_at = WorkerStarter(service.settings), -math.inf

    def poll(service: Service) -> list[tuple[str, dict[str, Any]]] | None:
        """New events; None when the job has ended and all its events were read."""
        nonlocal checked_at
        events = service.records.events(job, after, block=1.0)
        if not events and service.records.need(job)["state"] in TERMINAL:
            # The last event may have arrived between the two requests.
            events = service.records.events(job, after, block=0.001)
            if not events:
                return None
        if time.monotonic() - checked_at > WORKER_CHECK_SECONDS:
            checked_at = time.monotonic()
            starter.ensure(service)
        return events

    for events in while_redis_lives(service, poll, f"the job is kept; watch it again with `extract watch {job}`"):
        if events is None:
            return
        for after, event in events:
            yield event | {"id": after}
            if event["event"] == "state" and event["state"] in TERMINAL:
                return
            if event["event"] == "state" and event["state"] == "running":
                starter.progressed()
        starter.check()


def watch_group(
    service: Service, inspect: Callable[[Service, list[Facts]], list[Facts]], advice: str, more_starts: int = 0
) -> Iterator[list[Facts]]:
    """The facts of every job of a batch or sweep, about once a second, until all have ended.

    inspect      returns the present facts, each with 'state'; its second argument is the previous list, [] at first
    advice       end of the error message after an outage
    more_starts  starts of local workers allowed before one more job ends, beyond MAX_STARTS

    Raises ServiceUnavailable when Redis does not answer for a minute or no worker stays up.
    """
    starter, ended = WorkerStarter(service.settings, more_starts), -1
    facts: list[Facts] = []

    def poll(service: Service) -> list[Facts]:
        starter.ensure(service)
        return inspect(service, facts)

    for facts in while_redis_lives(service, poll, advice):
        yield facts
        done = sum(child["state"] not in ("queued", "running") for child in facts)
        if done == len(facts):
            return
        if done > ended:
            starter.progressed()
            ended = done
        starter.check()
        time.sleep(POLL_SECONDS)
