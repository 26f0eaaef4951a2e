"""What limits a hundred workers and a hundred thousand jobs on one server: its processor, its memory, and looks at long lists.

A hundred workers are not started: the commands of one real worker, idle and with a simulated engine, are counted, and what a caretaker's
round costs is measured beside a hundred running records. Values: shares of one processor core, of 8 GB, or of a limit in seconds.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator

from tests.benchmarks import service_world as world
from tests.benchmarks.measure import Row
from worker import processes
from worker.client import submit
from worker.client.service import Service
from worker.fleet.caretaker import Caretaker
from worker.monitoring.overview import overview

WORKERS, JOBS, SAMPLE = 100, 100_000, 5000
SECONDS = 20  # of each observation
MEMORY = 8e9
PROGRESS = {"event": "progress", "stage": "bridge", "step": 1, "total": 1500, "metrics": {"loss": 2.3, "tokens_per_s": 12345.0}}


def rows(threads: int) -> Iterator[Row]:
    with world.service() as service:
        yield from _workers(service)
    with world.service() as service:
        yield from _rounds(service)
    with world.service() as service:
        yield from _backlog(service)


def _workers(service: Service) -> Iterator[Row]:
    """Server time for one worker, scaled to all. The first observation has no worker: what it shows is the observer's own."""
    alone = _observed(service)
    with world.workers(service, 1):
        time.sleep(3)
        idle = _observed(service)
        world.plan(steps=10 * SECONDS, seconds=0.25)
        job = submit.submit(service, world.TRAIN)
        while service.records.need(job)["state"] != "running":
            time.sleep(0.1)
        busy = _observed(service)
        service.records.cancel(job)
        world.wait_ended(service, [job], "cancelled")
    for name, one in (("idle", idle), ("with a running job", busy)):
        commands, share = ((one[i] - alone[i]) * WORKERS for i in (0, 1))
        yield Row(f"{WORKERS} workers {name} ({commands:,.0f} commands/s), share of one core of the server", share, "<= 0.5")


def _rounds(service: Service) -> Iterator[Row]:
    """A caretaker's rounds beside as many running jobs as workers; every worker makes one each `EXTRACT_REAPER` seconds."""
    for number in range(WORKERS):
        job = f"job-{number}"
        service.records.create(job, {"spec": world.CIRCUIT.model_dump_json(), "kind": "circuit", "model": "m", "max_attempts": 3})
        service.records.claim(job, "token", 600, "host", "worker-1@host", str(processes.identify()))  # of a process that lives
    caretaker = Caretaker("", service.records, service.settings, lambda job: None, lambda: "")
    rounds, cpu = 200, _server_cpu(service)
    for _ in range(rounds):
        caretaker.reap()
    share = (_server_cpu(service) - cpu) / rounds * WORKERS / service.settings.reap_every
    assert service.records.need("job-0")["state"] == "running"
    yield Row(f"searches of {WORKERS} caretakers for lost jobs, share of one core of the server", share, "<= 0.5")


def _backlog(service: Service) -> Iterator[Row]:
    before, first = _memory(service), _seconds(lambda: [submit.submit(service, world.CIRCUIT) for _ in range(500)])
    while len(service.records.open_ids()) < SAMPLE:
        submit.submit(service, world.CIRCUIT)
    last = _seconds(lambda: [submit.submit(service, world.CIRCUIT) for _ in range(500)])
    yield Row(f"500 submits beside {SAMPLE:,} queued jobs, over 500 submits to an empty queue", last / first, "<= 1.5")
    jobs = service.records.open_ids()
    queued = (_memory(service) - before) / len(jobs)
    memory = queued * JOBS
    yield Row(f"{JOBS:,} queued jobs ({memory / 1e6:,.0f} MB), over 8 GB", memory / MEMORY, "<= 1.0")
    published: list[str] = []
    waited = dataclasses.replace(service.settings, republish_after=1e-3)  # as if all had waited for long: their messages are read, too
    caretaker = Caretaker("", service.records, waited, published.append, lambda: "")
    cpu, seconds = _server_cpu(service), _seconds(caretaker._republish)
    assert not published
    scaled = JOBS / len(jobs) / (service.settings.republish_after / 4)
    share = (_server_cpu(service) - cpu) * scaled
    yield Row(f"the search for lost messages among {JOBS:,} queued jobs, share of one core of the server", share, "<= 0.5")
    yield Row("... and of one core of the caretaker that makes it", seconds * scaled, "<= 0.5")
    for name, events, some in (("a minute", 60, jobs[200:]), ("hours", 2000, jobs[:200])):
        full = _memory(service)
        for job in some:
            service.records.claim(job, "token", 600, "host", "worker-1@host", "boot:space:1:1")
            for _ in range(events):
                service.records.report(job, "token", PROGRESS, {"stage": "bridge", "step": 1, "total": 1500})
            service.records.end(job, "token", "succeeded", f"/jobs/{job}/result")
        memory = ((_memory(service) - full) / len(some) + queued) * JOBS
        yield Row(f"{JOBS:,} ended jobs of {name} ({memory / 1e6:,.0f} MB), over 8 GB", memory / MEMORY, "<= 1.0")
    yield Row(
        f"the page of the service beside {len(jobs):,} records, over 50 ms", _seconds(lambda: overview(service, limit=20)) / 0.05, "<= 1.0"
    )


def _observed(service: Service) -> tuple[float, float]:
    """(commands, processor seconds of the server) per second."""
    commands, cpu, began = _commands(service), _server_cpu(service), time.monotonic()
    threading.Event().wait(SECONDS)
    seconds = time.monotonic() - began
    return (_commands(service) - commands) / seconds, (_server_cpu(service) - cpu) / seconds


def _commands(service: Service) -> int:
    return int(service.records.client.info("stats")["total_commands_processed"])  # type: ignore[index]


def _server_cpu(service: Service) -> float:
    facts = service.records.client.info("cpu")
    return float(facts["used_cpu_user"]) + float(facts["used_cpu_sys"])  # type: ignore[index]


def _memory(service: Service) -> int:
    return int(service.records.client.info("memory")["used_memory"])  # type: ignore[index]


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
