"""Prometheus metrics of the service, read from Redis at each scrape. One exporter serves a cluster.

While Redis does not answer, the only metric is `extract_up 0`, so that alerts name the actual problem.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from wsgiref.simple_server import WSGIServer

import redis
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from extractor.errors import UsageError
from worker.client.service import Service
from worker.fleet.local import live_workers
from worker.monitoring.overview import queue_lengths
from worker.records.counts import Counts
from worker.records.records import Worker

log = logging.getLogger("extract")


def serve(service: Service, host: str, port: int) -> WSGIServer:
    """Serve http://HOST:PORT/metrics in background threads. Raises UsageError for an address that is not available."""
    registry = CollectorRegistry()
    registry.register(ServiceCollector(service))
    try:
        server, _ = start_http_server(port, host, registry)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"metrics cannot be served at {host}:{port} ({reason}); choose another --host or --port") from None
    return server


class ServiceCollector(Collector):
    """Collects every metric at each scrape."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> list[Metric]:
        """No metrics in advance: registering must not contact Redis."""
        return []

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("extract_up", "Whether Redis answers.")
        try:
            found = [*self._jobs(), *self._queues(), *_workers(live_workers(self._service.records, self._service.settings))]
            up.add_metric([], 1)
        except redis.RedisError as error:
            log.warning("scrape failed: Redis does not answer (%s)", error)
            found = []
            up.add_metric([], 0)
        yield up
        yield from found

    def _jobs(self) -> Iterator[Metric]:
        counts = Counts(self._service.records.client)
        counts.prepare()
        totals = counts.totals()
        states = GaugeMetricFamily("extract_jobs", "Jobs on record, by state.", labels=["state"])
        ended = CounterMetricFamily("extract_jobs_ended", "Jobs that reached an end.", labels=["state"])
        for state, number in counts.by_state().items():
            states.add_metric([state], number)
            if state in totals:
                ended.add_metric([state], totals[state])
        yield states
        yield ended
        yield CounterMetricFamily("extract_jobs_submitted", "Jobs that were submitted.", totals["submitted"])
        yield CounterMetricFamily("extract_job_attempts", "Attempts at jobs that were started.", totals["attempts"])
        yield GaugeMetricFamily("extract_queue_oldest_seconds", "Waiting time of the oldest queued job.", counts.longest_wait())
        lease_age = "Longest time since the last heartbeat of a running job."
        yield GaugeMetricFamily("extract_lease_age_seconds_max", lease_age, counts.oldest_lease())

    def _queues(self) -> Iterator[Metric]:
        lengths = GaugeMetricFamily("extract_queue_length", "Messages that wait in each Celery queue.", labels=["queue"])
        for queue, length in queue_lengths(self._service.records.client).items():
            lengths.add_metric([queue], length)
        yield lengths


def _workers(workers: list[Worker]) -> Iterator[Metric]:
    busy = sum(bool(worker.job) for worker in workers)
    states = GaugeMetricFamily("extract_workers", "Live workers.", labels=["state"])
    states.add_metric(["busy"], busy)
    states.add_metric(["idle"], len(workers) - busy)
    info = GaugeMetricFamily("extract_worker_info", "Each live worker, always 1.", labels=["worker", "host", "device", "version"])
    memory = GaugeMetricFamily("extract_worker_memory_bytes", "Memory of the worker's engine.", labels=["worker"])
    gpu = GaugeMetricFamily("extract_worker_gpu_memory_bytes", "Memory in use on the worker's GPUs.", labels=["worker"])
    speed = GaugeMetricFamily("extract_tokens_per_second", "Speed of the running training.", labels=["worker", "job"])
    for worker in workers:
        info.add_metric([worker.name, worker.host, worker.device, worker.version], 1)
        memory.add_metric([worker.name], worker.memory)
        if worker.gpu_total:
            gpu.add_metric([worker.name], worker.gpu_memory)
        if worker.tokens_per_s:
            speed.add_metric([worker.name, worker.job], worker.tokens_per_s)
    yield from (states, info, memory, gpu, speed)
