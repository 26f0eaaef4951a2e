"""A user's machine for tests: its commands, its server, its workers, and what can go wrong with them."""

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from extractor.spec.schema import BridgeSpec, JobSpec, PruneSpec, TrainSpec
from worker import cli
from worker.broker import embedded_redis
from worker.client import service as client_service
from worker.client import submit as client_submit
from worker.fleet import local
from worker.records.records import Records
from worker.settings import Settings, from_env
from worker.supervision import engine
from worker.supervision.job_folder import claim_folder

PROJECT = Path(__file__).resolve().parents[2]
QUICK = {
    "EXTRACT_LEASE_TTL": "2",
    "EXTRACT_HEARTBEAT": "0.2",
    "EXTRACT_REAPER": "0.3",
    "EXTRACT_STOP_GRACE": "5",
    "EXTRACT_IDLE_EXIT": "60",
    "EXTRACT_THREADS": "1",
    "EXTRACT_ENGINE": "tests.service.fake_engine",
}


@dataclass(frozen=True)
class Answer:
    """What a command said: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of stdout, decoded."""
        return json.loads(self.out.splitlines()[-1])

    @property
    def lines(self) -> list[Any]:
        """All lines of stdout, decoded."""
        return [json.loads(line) for line in self.out.splitlines()]


def hear_interrupts() -> None:
    """SIGINT is ignored, and inherited so, by what a shell runs in its background; these tests send it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Machine:
    """A user's machine: commands, workers, faults."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str] | None = None) -> None:
        self.home = home
        self.capsys = capsys
        self._processes: list[subprocess.Popen] = []

    @property
    def settings(self) -> Settings:
        return from_env()

    @property
    def state(self) -> Path:
        return self.home / "state"

    @property
    def service(self) -> client_service.Service:
        return client_service.open_service(self.settings)

    @property
    def records(self) -> Records:
        return self.service.records

    def plan(self, **steering: Any) -> None:
        """Steer the fake engine from its next start on."""
        (self.home / "plan.json").write_text(json.dumps(steering))

    def extract(self, *arguments: str) -> Answer:
        """A command, in this process."""
        assert self.capsys is not None
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            cli.main(arguments)
        said = self.capsys.readouterr()
        return Answer(int(exit_info.value.code or 0), said.out, said.err)

    def shell(self, *arguments: str, **environment: str) -> Answer:
        """A command, as a process of its own."""
        process = self.spawn(*arguments, **environment)
        out, err = process.communicate(timeout=60)
        return Answer(process.returncode, out, err)

    def spawn(self, *arguments: str, **environment: str) -> subprocess.Popen:
        """A command that goes on while the test does."""
        process = subprocess.Popen(
            [sys.executable, "-m", "worker", *arguments],
            cwd=self.home,
            env=os.environ | {"PYTHONPATH": str(PROJECT)} | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=hear_interrupts,
        )
        self._processes.append(process)
        return process

    def worker(self, *arguments: str, **environment: str) -> subprocess.Popen:
        """A worker that is ready, its log in a file."""
        before = self._worker_names()
        log = open(self.home / f"worker-{len(self._processes)}.log", "w")  # noqa: SIM115 - the process writes to it
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", "worker", "worker", *arguments],
                cwd=self.home,
                env=os.environ | {"PYTHONPATH": str(PROJECT)} | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        wait_for(lambda: self._worker_names() - before, "a worker")
        return process

    def _worker_names(self) -> set[str]:
        return {worker.name for worker in local.live_workers(self.records, self.settings)}

    def submit(self, job: str | None = None, spec: JobSpec | None = None, priority: str = "normal") -> str:
        """Queue a job, starting no worker."""
        service = self.service
        without = client_service.Service(settings_without_worker(), service.url, service.records)
        return client_submit.submit(without, spec or train_spec(), job, priority)

    def finish(self, job: str, spec: JobSpec | None = None) -> Path:
        """A job that has succeeded, without the time that a worker takes to start: its result folder."""
        folder = self.settings.root / self.submit(job, spec)
        self.mark(folder)
        (folder / "job.json").write_text(self.records.need(job)["spec"])
        outcome = engine.supervise(folder / "job.json", folder / "result", folder / "log", self.settings, lambda _: None, lambda: "")
        assert outcome.kind == "done"
        self.records.claim(job, "token", 60, "host", "worker", "")
        self.records.end(job, "token", "succeeded", str(folder / "result"))
        return folder / "result"

    def mark(self, folder: Path) -> None:
        """Make a job's folder as an attempt makes it."""
        claim_folder(folder, self.records.server_id())

    def state_of(self, job: str) -> str:
        return self.records.need(job)["state"]

    def wait_state(self, job: str, *states: str, seconds: float = 20) -> dict[str, str]:
        """Wait until a job is in one of these states: its record."""
        wait_for(lambda: self.state_of(job) in states, f"job {job} to be {' or '.join(states)}", seconds, lambda: self.story(job))
        return self.records.need(job)

    def wait_step(self, job: str, step: int) -> None:
        """Wait until the engine has done that many steps in all."""
        path = self.work(job) / "steps.log"
        wait_for(lambda: path.exists() and len(path.read_text().split()) >= step, f"step {step} of {job}")

    def work(self, job: str) -> Path:
        return self.settings.root / job / "result" / ".work"

    def steps(self, job: str) -> list[int]:
        """The steps that were done for a job, in order, over all its attempts."""
        return [int(line) for line in (self.work(job) / "steps.log").read_text().split()]

    def story(self, job: str) -> list[dict[str, Any]]:
        """All events of a job so far."""
        return [event for _, event in self.records.events(job, "0", 0.001)]

    def states(self, job: str) -> list[str]:
        """The states a job went through."""
        return [event["state"] for event in self.story(job) if event["event"] == "state"]

    def engine_pid(self, job: str) -> int:
        """Process id of the engine that started last for a job."""
        notes = [event["message"].split() for event in self.story(job) if event["event"] == "note"]
        return int(notes[-1][3])

    def server_pid(self) -> int:
        facts = embedded_redis.facts(self.settings)
        assert facts is not None
        return int(facts["pid"])

    def clean(self) -> None:
        """End everything that works in this machine's folder, however it was started."""
        for pid in our_processes(self.home):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._processes:
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


@contextlib.contextmanager
def fresh_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str] | None = None) -> Iterator[Machine]:
    """A machine, gone afterwards. Its folder has a short path: sockets need one."""
    home = Path(tempfile.mkdtemp(prefix="ex-"))
    for name in [name for name in os.environ if name.startswith("EXTRACT_")]:
        monkeypatch.delenv(name)
    here = {"EXTRACT_STATE_DIR": str(home / "state"), "XDG_RUNTIME_DIR": str(home), "EXTRACT_FAKE_PLAN": str(home / "plan.json")}
    for name, value in (QUICK | here).items():
        monkeypatch.setenv(name, value)
    machine = Machine(home, capsys)
    machine.plan()
    try:
        yield machine
    finally:
        machine.clean()
        shutil.rmtree(home, ignore_errors=True)


def our_processes(home: Path) -> list[int]:
    """Processes whose environment names this machine's state directory, or that work in its folder, ourselves excepted."""
    mark = f"EXTRACT_STATE_DIR={home / 'state'}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                # The server writes its title over its environment.
                at_home = os.readlink(entry / "cwd").startswith(f"{home}/")
                if at_home or mark in (entry / "environ").read_bytes() + b"\0":
                    found.append(int(entry.name))
    return found


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 20, detail: Callable[[], Any] = lambda: "") -> None:
    """Poll until something is so; fail saying what never came."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds} s in vain for {what}; {detail()}")
        time.sleep(0.05)


def settings_without_worker() -> Settings:
    return from_env(os.environ | {"EXTRACT_NO_WORKER": "1"})


def train_spec(seed: int = 0) -> JobSpec:
    return JobSpec(kind="train", seed=seed, train=TrainSpec())


def circuit_spec(*tasks: str) -> JobSpec:
    return JobSpec(kind="circuit", model="somewhere", tasks=tasks or ("quote_close",), bridge=BridgeSpec(), prune=PruneSpec())
