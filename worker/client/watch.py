"""Follow the events of a job until it ends, through outages of Redis and deaths of local workers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import redis

from extractor.errors import ServiceUnavailable
from worker.broker import embedded_redis
from worker.client.service import Service, reopen
from worker.fleet import local
from worker.records.records import TERMINAL

OUTAGE_SECONDS = 60.0  # a watcher outlives an absence of Redis of this length
LOOK_SECONDS = 2.0  # a watcher looks this often whether somebody works
MAX_STARTS = 3  # local workers one watcher starts before it calls for help


def watch(service: Service, job: str, after: str = "0") -> Iterator[dict[str, Any]]:
    """Every event of a job after a stream id, as it happens, ending by itself with the job.

    Each event carries its stream id under 'id'. Nothing is lost or doubled when Redis goes away and comes back. On the embedded server, a
    job whose worker died gets a new one. Raises NotFound, or ServiceUnavailable when nothing answers for a minute.
    """
    service.records.need(job)
    starts, looked_at, away_since = 0, 0.0, None
    while True:
        try:
            events = service.records.events(job, after, block=1.0)
            if not events and service.records.need(job)["state"] in TERMINAL:
                # The last event may have come between the two questions.
                events = service.records.events(job, after, block=0.001)
                if not events:
                    return
            if time.monotonic() - looked_at > LOOK_SECONDS:
                looked_at = time.monotonic()
                starts += local.ensure_worker(service.records, service.settings)
            away_since = None
        except (redis.RedisError, OSError) as error:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > OUTAGE_SECONDS:
                raise ServiceUnavailable(f"Redis went away ({error}); the job is kept, watch it again with `extract watch {job}`") from None
            service = reopen(service)
            continue
        for after, event in events:
            yield event | {"id": after}
            if event["event"] == "state" and event["state"] in TERMINAL:
                return
            if event["event"] == "state" and event["state"] == "running":
                starts = 0
        if starts > MAX_STARTS:
            path = local.log_path(service.settings)
            raise ServiceUnavailable(f"the local worker does not stay up: {embedded_redis.last_line(path)}; see {path}")
