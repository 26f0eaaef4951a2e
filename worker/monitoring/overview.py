"""Overview of the service: jobs by state, queues, live workers, running and queued jobs. Its cost does not grow with ended jobs."""

from __future__ import annotations

import dataclasses
from typing import Any

import redis

from worker.broker import redis_url, routing
from worker.broker.app import KEY_PREFIX
from worker.client.service import Service
from worker.fleet import local
from worker.records.counts import Counts
from worker.records.records import Records, Worker, describe


def overview(service: Service, limit: int) -> dict[str, Any]:
    """The object that `extract status --json` prints. limit: maximum number of open jobs; running jobs first, newest first.

    Raises redis.RedisError.
    """
    records, counts, lengths = service.records, Counts(service.records.client), queue_lengths(service.records.client)
    counts.prepare()
    running = _describe_all(records, counts.newest("running", 0))
    queued = _describe_all(records, counts.newest("queued", limit - len(running))) if len(running) < limit else []
    open_jobs = [job for job in running if job["state"] == "running"][:limit] + [job for job in queued if job["state"] == "queued"]
    workers = local.live_workers(records, service.settings)
    reached = {queue for worker in workers for queue in routing.queues_for(worker.capacity)}
    return {
        "server": redis_url.mask(service.url),
        "embedded": service.settings.embedded,
        "jobs": counts.by_state(),
        "queues": {priority: sum(lengths[queue] for queue in queues) for priority, queues in routing.all_queues().items()},
        "out_of_reach": sum(length for queue, length in lengths.items() if queue not in reached) if workers else 0,
        "longest_wait_seconds": round(counts.longest_wait(), 1),
        "workers": [_describe_worker(worker) for worker in workers],
        "open": open_jobs,
    }


def queue_lengths(client: redis.Redis) -> dict[str, int]:
    """Number of waiting messages per queue. Raises redis.RedisError."""
    with client.pipeline(transaction=False) as batch:
        for queues in routing.all_queues().values():
            for queue in queues:
                batch.llen(KEY_PREFIX + queue)
        lengths = iter(batch.execute())
    return {queue: next(lengths) for queues in routing.all_queues().values() for queue in queues}


def _describe_all(records: Records, jobs: list[str]) -> list[dict[str, Any]]:
    """The existing jobs, those started (or, if queued, created) last first."""
    found = [describe(job, record) for job, record in records.get_many(jobs).items()]
    return sorted(found, key=lambda job: job["started"] or job["created"] or 0, reverse=True)


def _describe_worker(worker: Worker) -> dict[str, Any]:
    facts = {key: value for key, value in dataclasses.asdict(worker).items() if key != "process"}
    return facts | {"job": worker.job or None}
