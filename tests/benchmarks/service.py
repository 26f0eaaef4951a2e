"""The service under load: submits, looks, starts, two workers, memory, heartbeats. Values: share of the limit that is used, but for
workers: times faster. Run it on a quiet machine with two free CPUs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np

from extractor.spec.schema import BridgeSpec, CorpusSpec, JobSpec, OptimSpec, SparseModelSpec, SparsitySpec, to_json
from tests.benchmarks import service_world as world
from tests.benchmarks.measure import Row, in_fresh_process
from worker.client import submit, watch
from worker.client.service import Service
from worker.monitoring.overview import overview
from worker.records.counts import Counts
from worker.records.records import describe
from worker.supervision.attempt import EventReporter, Lease, WorkerContext, WorkerFlags

SUBMITS, SUBMIT_SECONDS = 1000, 10
RECORDS, LOOKS, LOOK_SECONDS = 10_000, 500, 0.050
FIRST_SECONDS = 3
JOBS, BURN = 6, 25_000  # equal jobs, and rounds of work in each of their ten steps: about 4 s of one CPU
EVENTS = 60  # of a job that ran for a minute
LEASES, LEASE_SECONDS = 50, 20
ALONE = "tests.benchmarks.first_progress"
METRICS = {"loss": 2.3, "tokens_per_s": 12345.0}
PROGRESS = {"event": "progress", "stage": "bridge", "step": 1, "total": 1500, "metrics": METRICS}
FIELDS = {
    "stage": "bridge",
    "index": 2,
    "of": 4,
    "step": 1,
    "total": 1500,
    "seconds_left": 80.5,
    "metrics": json.dumps(PROGRESS["metrics"]),
}


def rows(threads: int) -> Iterator[Row]:
    with world.service() as service:
        yield from _submits_and_memory(service)
    with world.service() as service:
        yield from _looks(service)
    yield from _first_progress()
    with world.service() as service:
        yield from _two_workers(service)
    with world.service() as service:
        yield _heartbeats(service)


def _submits_and_memory(service: Service) -> Iterator[Row]:
    before = _memory(service)
    began = time.perf_counter()
    jobs = [submit.submit(service, world.CIRCUIT) for _ in range(SUBMITS)]
    yield Row(f"{SUBMITS:,} submits by one client, over {SUBMIT_SECONDS} s", (time.perf_counter() - began) / SUBMIT_SECONDS, "<= 1.0")
    per_thousand = (_memory(service) - before) * 1000 / SUBMITS
    yield Row(f"Redis memory per 1,000 queued jobs ({per_thousand:,.0f} bytes), over 10 MB", per_thousand / 10e6, "<= 1.0")
    for job in jobs:
        _run_by_hand(service, job, EVENTS)
    per_thousand = (_memory(service) - before) * 1000 / SUBMITS
    yield Row(f"Redis memory per 1,000 ended jobs of {EVENTS} s ({per_thousand:,.0f} bytes), over 25 MB", per_thousand / 25e6, "<= 1.0")


def _looks(service: Service) -> Iterator[Row]:
    for number in range(RECORDS):
        job = f"job-{number}"
        service.records.create(
            job, {"spec": world.CIRCUIT.model_dump_json(), "kind": "circuit", "model": "m", "task": "t", "max_attempts": 3}
        )
        if number % 10 < 8:
            _run_by_hand(service, job, 1, ends=bool(number % 100))
    names = [f"job-{number}" for number in np.random.default_rng(0).integers(RECORDS, size=LOOKS)]
    looks: dict[str, Callable[[str], object]] = {
        "status of one job": lambda job: describe(job, service.records.need(job)),
        "the page of the service": lambda _: overview(service, limit=20),
    }
    for name, look in looks.items():
        seconds = [_seconds(look, job) for job in names]
        worst = float(np.percentile(seconds, 95))
        yield Row(f"{name} among {RECORDS:,} records, p95, over {LOOK_SECONDS * 1000:.0f} ms", worst / LOOK_SECONDS, "<= 1.0")


def _first_progress() -> Iterator[Row]:
    """With a worker that waits, as after the first job. 'By hand' is the same engine with nothing between it and us."""
    spec = JobSpec(
        kind="circuit",
        model="python-tiny",
        tasks=("quote_close",),
        corpus=CorpusSpec(sources=("generated",), generated_programs=300),
        bridge=BridgeSpec(
            model=SparseModelSpec(d_model=32, n_ctx=32),
            sparsity=SparsitySpec(weight_frac=0.3),
            optim=OptimSpec(steps=500, batch=6, context=24),
        ),
        prune=world.CIRCUIT.prune,
    )
    found = {"service": np.inf, "by hand": np.inf, "import": np.inf}
    for _ in range(3):
        with world.service(EXTRACT_ENGINE="extractor") as service, world.workers(service, 1):
            began = time.perf_counter()
            job = submit.submit(service, spec)
            _await_progress(service, job)
            found["service"] = min(found["service"], time.perf_counter() - began)
            service.records.cancel(job)
            world.wait_ended(service, [job], "cancelled")
            by_hand = in_fresh_process(ALONE, "by_hand", to_json(spec), str(service.settings.state_dir))
            found["by hand"] = min(found["by hand"], by_hand["seconds"])
            found["import"] = min(found["import"], in_fresh_process(ALONE, "import_all", by_hand["modules"])["seconds"])
    beyond = found["service"] - found["import"]
    yield Row(f"submit to first progress, beyond the engine's own import, over {FIRST_SECONDS} s", beyond / FIRST_SECONDS, "<= 1.0")
    beyond = found["service"] - found["by hand"]
    yield Row(f"the same, beyond the engine started by hand, over {FIRST_SECONDS} s", beyond / FIRST_SECONDS, "<= 1.0")


def _two_workers(service: Service) -> Iterator[Row]:
    world.plan(steps=5, seconds=0, burn=BURN)
    seconds = {}
    for number in (1, 2):
        with world.workers(service, number):
            began = time.perf_counter()
            world.wait_ended(service, [submit.submit(service, world.TRAIN) for _ in range(JOBS)])
            seconds[number] = time.perf_counter() - began
    yield Row(f"{JOBS} equal jobs of one CPU each, two workers, times faster than one", seconds[1] / seconds[2], ">= 1.8")


def _heartbeats(service: Service) -> Row:
    """In one process, the engines simulated by threads that report as often as engines do."""
    place = WorkerContext("worker", service.url, service.settings, WorkerFlags(), lambda _: None)
    stop, worst = threading.Event(), 0.0
    with ExitStack() as stack:
        for number in range(LEASES):
            job = f"job-{number}"
            service.records.create(job, {"spec": "{}", "kind": "train", "max_attempts": 3})
            service.records.claim(job, job, service.settings.lease_ttl, "host", "worker", "")
            stack.enter_context(Lease(job, job, place))
            thread = threading.Thread(target=_simulate, args=(EventReporter(job, job, service.records), stop))
            thread.start()
            stack.callback(thread.join)
        stack.callback(stop.set)
        counts, until = Counts(service.records.client), time.monotonic() + LEASE_SECONDS
        while time.monotonic() < until:
            worst = max(worst, counts.oldest_lease())
            time.sleep(0.05)
    due, ttl = service.settings.heartbeat, service.settings.lease_ttl
    return Row(f"the latest heartbeat of {LEASES} leases ({worst - due:.2f} s late), over their {ttl:.0f} s", worst / ttl, "<= 0.25")


def _simulate(relay: EventReporter, stop: threading.Event) -> None:
    while not stop.wait(0.5):
        relay(PROGRESS)


def _run_by_hand(service: Service, job: str, seconds: int, ends: bool = True) -> None:
    """What a worker would have recorded of a job that ran that long."""
    records = service.records
    records.claim(job, "token", 600, "host", "worker-1@host", "boot:space:1:1")
    for _ in range(seconds):
        records.report(job, "token", PROGRESS, FIELDS)
    if ends:
        records.end(job, "token", "succeeded", f"/jobs/{job}/result")


def _await_progress(service: Service, job: str) -> None:
    for event in watch.watch(service, job):
        if event["event"] == "progress":
            return


def _memory(service: Service) -> int:
    facts = service.records.client.info("memory")
    return int(facts["used_memory"])


def _seconds(call: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - began
