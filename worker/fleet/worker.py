"""A worker: Celery's prefork pool with one child process, a caretaker thread, and a clean shutdown.

SIGTERM or Ctrl-C: the running job saves a checkpoint and goes back to the queue without losing an attempt; the worker exits with code 0.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

from celery import signals
from celery.exceptions import Reject
from celery.worker import state

from extractor.errors import ServiceUnavailable
from worker.broker import messages
from worker.broker.app import TASK, make_app
from worker.broker.redis_url import connect
from worker.fleet.caretaker import Caretaker, publisher
from worker.ids import check_id
from worker.records.records import Records
from worker.settings import Settings
from worker.supervision.attempt import WorkerContext, WorkerFlags, run_job


def serve(
    url: str,
    settings: Settings,
    max_jobs: int | None = None,
    idle_exit: float | None = None,
    is_local: bool = False,
    alive_file: Path | None = None,
    capacity: int = 0,
) -> int:
    """Run jobs until SIGTERM or Ctrl-C. Returns the number of attempts at jobs.

    max_jobs    exit after this many attempts
    idle_exit   exit after this many seconds without work
    alive_file  touched every few seconds while Redis answers the main process
    capacity    most bytes that a job may need; 0: any
    """
    messages.guard()
    app = make_app(url, settings, capacity)
    name = f"{'local' if is_local else 'worker'}-{os.getpid()}@{socket.gethostname()}"
    records = Records(connect(url))
    shared = WorkerFlags()

    publish_again = publisher(app, records)
    context = WorkerContext(name, url, settings, shared, publish_again)

    def run(job: str) -> str:
        if shared.leaving:
            raise Reject("the worker is shutting down", requeue=True)
        reached = run_job(check_id(job), context)
        if max_jobs is not None and shared.ended >= max_jobs:
            _shut_down(shared)
        return reached

    app.task(run, name=TASK, bind=False)
    caretaker = Caretaker(name, records, settings, publish_again, _current_job, idle_exit, is_local, alive_file, capacity)

    def on_ready(**_: Any) -> None:
        if not caretaker.is_alive():  # Celery sends this signal after each reconnection
            caretaker.start()

    def on_leaving(**_: Any) -> None:
        shared.leave()
        caretaker.stop()

    signals.worker_ready.connect(on_ready, weak=False)
    signals.worker_shutting_down.connect(on_leaving, weak=False)
    worker = app.Worker(
        hostname=name, loglevel="INFO", quiet=True, no_color=True, without_gossip=True, without_mingle=True, concurrency=1, pool="prefork"
    )
    worker.start()
    if worker.exitcode:
        raise ServiceUnavailable(f"worker {name} failed for the reason logged above; fix it and start the worker again")
    return shared.ended


def _shut_down(shared: WorkerFlags) -> None:
    """In the child: make the main process shut down before this task ends, so that it takes no further job."""
    os.kill(os.getppid(), signal.SIGTERM)
    deadline = time.monotonic() + 5
    while not shared.leaving and time.monotonic() < deadline:
        time.sleep(0.02)


def _current_job() -> str:
    for request in [*state.active_requests, *state.reserved_requests]:
        return str(request.id).rpartition(".")[0]
    return ""
