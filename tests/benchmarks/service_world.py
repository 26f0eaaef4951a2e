"""A service of its own for benchmarks: an empty state, a server, workers when asked for; all of it gone afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from extractor.spec.schema import BridgeSpec, JobSpec, PruneSpec, TrainSpec
from tests.benchmarks.measure import ROOT
from worker.broker import embedded_redis
from worker.client.service import Service, open_service
from worker.fleet import local
from worker.records.records import TERMINAL
from worker.settings import from_env

CIRCUIT = JobSpec(kind="circuit", model="somewhere", tasks=("quote_close",), bridge=BridgeSpec(), prune=PruneSpec())
TRAIN = JobSpec(kind="train", train=TrainSpec())


@contextlib.contextmanager
def service(**env: str) -> Iterator[Service]:
    """A fresh service whose commands start no workers. env: further settings; the engine is the simulated one unless they name another."""
    home = Path(tempfile.mkdtemp(prefix="ex-"))
    own = {name: value for name, value in os.environ.items() if not name.startswith("EXTRACT_")}
    own |= {"EXTRACT_STATE_DIR": str(home), "XDG_RUNTIME_DIR": str(home), "EXTRACT_CACHE_DIR": str(home / "cache"), "EXTRACT_THREADS": "1"}
    own |= {"EXTRACT_NO_WORKER": "1", "EXTRACT_ENGINE": "tests.service.fake_engine", "EXTRACT_FAKE_PLAN": str(home / "plan.json")}
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(own | env)
    plan()
    try:
        yield open_service(from_env())
    finally:
        embedded_redis.stop(from_env())
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(home, ignore_errors=True)


def plan(**steering: object) -> None:
    """Steer the simulated engine."""
    Path(os.environ["EXTRACT_FAKE_PLAN"]).write_text(json.dumps(steering))


@contextlib.contextmanager
def workers(service: Service, number: int) -> Iterator[None]:
    """That many workers, ready."""
    command = [sys.executable, "-m", "worker", "worker"]
    with open(service.settings.state_dir / "workers.log", "a") as log:
        processes = [subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) for _ in range(number)]
    try:
        while len(local.live_workers(service.records, service.settings)) < number:
            time.sleep(0.05)
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(60)


def wait_ended(service: Service, jobs: list[str], state: str = "succeeded") -> None:
    """Wait until all of them have ended, and see that it is in that state."""
    while True:
        states = [record["state"] for record in service.records.get_many(jobs).values()]
        if set(states) <= set(TERMINAL):
            assert set(states) == {state}, states
            return
        time.sleep(0.05)
