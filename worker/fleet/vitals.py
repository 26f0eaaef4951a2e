"""What a live worker announces: its identity, its device, memory and speed of its engine."""

from __future__ import annotations

import socket
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import psutil

from worker import processes
from worker.fleet import devices
from worker.records.records import Records, Worker, describe
from worker.settings import Settings

DEVICE_SECONDS = 15.0  # between two calls of nvidia-smi, which takes up to a second of CPU time


class Vitals:
    """The vitals of the worker whose main process this is. is_local: started by a command."""

    def __init__(self, name: str, records: Records, settings: Settings, is_local: bool, capacity: int) -> None:
        self._name, self._records, self._settings, self._is_local, self._capacity = name, records, settings, is_local, capacity
        self._started = time.time()
        self._detected_at = -DEVICE_SECONDS
        self._device = devices.Device("")

    def current(self, job: str) -> Worker:
        """The present announcement. job: the job that the worker runs, or ''. Raises redis.RedisError."""
        if time.monotonic() - self._detected_at >= DEVICE_SECONDS:
            self._detected_at = time.monotonic()
            self._device = devices.detect(self._settings.threads)
        return Worker(
            name=self._name,
            host=socket.gethostname(),
            job=job,
            process=str(processes.identify()),
            local=self._is_local,
            version=own_version(),
            device=self._device.name,
            gpu_memory=self._device.used,
            gpu_total=self._device.total,
            memory=engine_memory() if job else 0,
            tokens_per_s=self._tokens_per_s(job) if job else 0.0,
            started=round(self._started, 3),
            capacity=self._capacity,
        )

    def _tokens_per_s(self, job: str) -> float:
        record = self._records.get_many([job]).get(job, {})
        if record.get("worker") != self._name or record.get("state") != "running":
            return 0.0
        rate = describe(job, record)["metrics"].get("tokens_per_s")
        return float(rate) if isinstance(rate, (int, float)) else 0.0


@cache
def own_version() -> str:
    """The installed version, '' in a checkout that is not installed."""
    try:
        return version("extractor")
    except PackageNotFoundError:
        return ""


def engine_memory() -> int:
    """Bytes of memory used by the engine and its children. The engine is a child of the pool's child process."""
    found = 0
    try:
        for child in psutil.Process().children():
            for process in child.children(recursive=True):
                found += process.memory_info().rss
    except psutil.Error:  # a process ended meanwhile
        return found
    return found
