"""A campaign of random faults against a real server, real workers and simulated engines.

    python -m tests.service.campaign --jobs 30 --injections 100 --seed 0 [--json]

Proves, from the events of every job and from what its engines wrote: each job ends in one terminal state, succeeded; each result holds the
bytes of the undisturbed one; no job was ever worked at by two engines at once.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import redis

from extractor.errors import ExtractorError
from extractor.files import MANIFEST, WORK, verify_manifest
from extractor.spec.schema import JobSpec, TrainSpec
from worker.broker import embedded_redis
from worker.client.service import Service, open_service
from worker.client.submit import submit
from worker.records.records import TERMINAL
from worker.settings import Settings, from_env
from worker.supervision import engine

PROJECT = Path(__file__).resolve().parents[2]
WORKERS = 2
FAULTS = (
    "kill worker",
    "kill its child",
    "kill engine",
    "kill server",
    "cut connections",
    "stop worker",
    "stop engine",
    "terminate worker",
    "full disk",
)
ENVIRONMENT = {
    "EXTRACT_LEASE_TTL": "2",
    "EXTRACT_HEARTBEAT": "0.2",
    "EXTRACT_REAPER": "0.3",
    "EXTRACT_REPUBLISH": "4",
    "EXTRACT_STOP_GRACE": "5",
    "EXTRACT_THREADS": "1",
    "EXTRACT_MAX_ATTEMPTS": "1000",
    "EXTRACT_NO_WORKER": "1",
    "EXTRACT_ENGINE": "tests.service.fake_engine",
}
PLAN = {"steps": 12, "seconds": 0.1, "tells_steps": False}


@dataclass
class Campaign:
    """One campaign below a folder of its own, whose path must be short: sockets need that."""

    home: Path
    jobs: int
    injections: int
    random: random.Random
    workers: list[subprocess.Popen] = field(default_factory=list)
    injected: collections.Counter = field(default_factory=collections.Counter)
    started_workers: int = 0

    @property
    def settings(self) -> Settings:
        return from_env()

    @property
    def service(self) -> Service:
        """Connected anew each time: the server may be another one by now."""
        return open_service(self.settings)

    def run(self) -> dict[str, object]:
        """Submit, disturb until all has been injected and all has ended, check: what was counted. AssertionError for a broken promise."""
        ids = [f"job-{number:03}" for number in range(self.jobs)]
        calm = self._undisturbed()
        began, queued = time.monotonic(), 0
        while queued < self.jobs or self.injected.total() < self.injections or not self._all_ended(ids[:queued]):
            self._staff()
            # New work comes as long as there are faults to come, so that no fault hits an idle machine.
            while queued < self.jobs and queued < WORKERS + 1 + self.jobs * self.injected.total() / max(1, self.injections):
                self._submit(ids[queued], queued)
                queued += 1
            if self.injected.total() < self.injections:
                self._inject()
            time.sleep(self.random.uniform(0.1, 0.6))
            assert time.monotonic() - began < 60 + 20 * self.injections, "the campaign does not end"
        return self._verdict(ids, calm) | {"seconds": round(time.monotonic() - began, 1)}

    def clean(self) -> None:
        for worker in self.workers:
            for pid in (worker.pid, *_descendants(worker.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            worker.wait()
        facts = embedded_redis.facts(self.settings)
        if facts is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(facts["pid"]), signal.SIGKILL)

    def _undisturbed(self) -> dict[str, str]:
        """The files of a job that nothing happens to, by sha256."""
        spec = self.home / "calm.json"
        spec.write_text(_spec().model_dump_json())
        outcome = engine.supervise(spec, self.home / "calm", self.home / "calm.log", self.settings, lambda _: None, lambda: "")
        assert outcome.kind == "done", outcome
        return _files(self.home / "calm")

    def _staff(self) -> None:
        """Two workers, whatever became of the last ones."""
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < WORKERS:
            with open(self.home / f"worker-{self.started_workers}.log", "w") as log:
                arguments = [sys.executable, "-m", "worker", "worker"]
                self.workers.append(subprocess.Popen(arguments, cwd=PROJECT, stdout=log, stderr=log, start_new_session=True))
            self.started_workers += 1

    def _submit(self, job: str, number: int) -> None:
        with _patience():
            submit(self.service, _spec(), job, ("high", "normal", "low")[number % 3])

    def _all_ended(self, ids: list[str]) -> bool:
        try:
            records = self.service.records
            return all((records.get(job) or {}).get("state") in TERMINAL for job in ids)
        except (redis.RedisError, ExtractorError):
            return False

    def _inject(self) -> None:
        busy = [worker for worker in self.workers if any("fake_engine" in _command(pid) for pid in _descendants(worker.pid))]
        if not busy and self.random.random() < 0.9:  # few faults are wasted on workers that only start
            return
        fault = self.random.choice(FAULTS)
        worker = self.random.choice(busy or self.workers)
        below = _descendants(worker.pid)
        engines = [pid for pid in below if "fake_engine" in _command(pid)]
        if fault == "kill worker":
            worker.kill()
        elif fault == "kill its child" and below:
            os.kill(below[0], signal.SIGKILL)
        elif fault == "kill engine" and engines:
            os.kill(engines[0], signal.SIGKILL)
        elif fault == "kill server" and (facts := embedded_redis.facts(self.settings)):
            os.kill(int(facts["pid"]), signal.SIGKILL)
        elif fault == "cut connections":
            with contextlib.suppress(redis.RedisError, ExtractorError):
                self.service.records.client.client_kill_filter(_type="normal")
        elif fault == "stop worker":
            _stopped([worker.pid, *(pid for pid in below if pid not in engines)], self.settings.lease_ttl * 1.5)
        elif fault == "stop engine" and engines:
            _stopped(engines[:1], 1.0)
        elif fault == "terminate worker":
            worker.terminate()
        elif fault == "full disk" and engines:
            _without_room([worker.pid, *below], 0.5)
        else:
            return
        self.injected[fault] += 1

    def _verdict(self, ids: list[str], calm: dict[str, str]) -> dict[str, object]:
        records, attempts, engines = self.service.records, 0, 0
        for job in ids:
            record = records.need(job)
            assert record["state"] == "succeeded", f"{job}: {record['state']}, {record.get('error_message')}"
            states = [event["state"] for _, event in records.events(job, "0", 0.001) if event["event"] == "state"]
            assert states.count("succeeded") == 1, f"{job}: {states}"
            assert states[-1] == "succeeded", f"{job}: {states}"
            result = self.settings.root / job / "result"
            verify_manifest(result)
            assert _files(result) == calm, f"{job}: another result"
            owners = [line.split()[1] for line in (result / WORK / "owners.log").read_text().splitlines()]
            changes = [pid for before, pid in zip(["", *owners], owners, strict=False) if pid != before]
            assert len(changes) == len(set(changes)), f"{job}: two engines in turns, {changes}"
            attempts, engines = attempts + states.count("running"), engines + len(changes)
        counts = {"jobs": len(ids), "succeeded": len(ids), "injections": self.injected.total(), "faults": dict(self.injected)}
        return counts | {"runs": attempts, "engines that worked": engines, "workers": self.started_workers}


def _spec() -> JobSpec:
    return JobSpec(kind="train", train=TrainSpec())


def _files(folder: Path) -> dict[str, str]:
    files = json.loads((folder / MANIFEST).read_text())["files"]
    return {name: facts["sha256"] for name, facts in files.items()}


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Commands may fail while the server is away; a user would type them again, and so does the campaign in its next round."""
    with contextlib.suppress(redis.RedisError, ExtractorError, OSError):
        yield


def _stopped(pids: list[int], seconds: float) -> None:
    """Stop processes for some seconds."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _without_room(pids: list[int], seconds: float) -> None:
    """No file of these processes can grow for some seconds: to them the disk is full, and it is as full for what they start meanwhile."""
    limits = {pid: _limit(pid) for pid in pids}
    for pid, limit in limits.items():
        _limit(pid, limit and (0, limit[1]))
    time.sleep(seconds)
    for pid, limit in limits.items():
        for below in (pid, *_descendants(pid)):
            _limit(below, limit)


def _limit(pid: int, limit: tuple[int, int] | None = None) -> tuple[int, int] | None:
    """The most bytes that a file of a process may have, before it is set to `limit`; None of a process that is gone."""
    with contextlib.suppress(ProcessLookupError):
        return resource.prlimit(pid, resource.RLIMIT_FSIZE, limit) if limit else resource.prlimit(pid, resource.RLIMIT_FSIZE)
    return None


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@contextlib.contextmanager
def campaign(jobs: int, injections: int, seed: int) -> Iterator[Campaign]:
    """A campaign in a folder and an environment of its own, gone afterwards."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="ex-", ignore_cleanup_errors=True) as home:
        for name in [name for name in os.environ if name.startswith("EXTRACT_")]:
            del os.environ[name]
        here = {"EXTRACT_STATE_DIR": f"{home}/state", "XDG_RUNTIME_DIR": home, "EXTRACT_FAKE_PLAN": f"{home}/plan.json"}
        os.environ.update(ENVIRONMENT | here)
        Path(home, "plan.json").write_text(json.dumps(PLAN))
        whole = Campaign(Path(home), jobs, injections, random.Random(seed))
        try:
            yield whole
        finally:
            whole.clean()
            os.environ.clear()
            os.environ.update(before)


def main() -> None:
    parser = argparse.ArgumentParser(description="A campaign of random faults; the counts, or the promise that was broken.")
    parser.add_argument("--jobs", type=int, default=30)
    parser.add_argument("--injections", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with campaign(options.jobs, options.injections, options.seed) as whole:
        found = whole.run()
    print(json.dumps(found) if options.json else "\n".join(f"{name:<22} {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
