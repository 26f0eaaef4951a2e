"""An S3 server (moto, a process of its own), a network in front of it that can fail, and machines that share nothing else."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service_machine import Machine, wait_for

from worker.storage.job_storage import Storage, storage_of
from worker.storage.store import Store
from worker.supervision import engine

TOKEN = "0123456789abcdef"


@contextlib.contextmanager
def s3_server() -> Iterator[tuple[str, int]]:
    """A server on a free port, ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host, port = free.getsockname()
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: _answers(f"http://{host}:{port}/moto-api/"), "the S3 server", 60)
        yield host, port
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except OSError:
        return False


class Network:
    """A port that leads to another, until it does not. Counts the bytes that pass."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._cut: tuple[str, int] | None = None
        self.passed = {"up": 0, "down": 0}
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def up(self) -> None:
        """Lead there again."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def down(self) -> None:
        """Cut every connection and refuse new ones."""
        self._cut = None
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def fail_after(self, way: str, size: int) -> None:
        """Go down in the midst of things, once that many more bytes have gone 'up' or 'down'."""
        self._cut = (way, self.passed[way] + size)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._open |= {client, server}
            for way, source, target in (("up", client, server), ("down", server, client)):
                threading.Thread(target=self._pass, args=(way, source, target), daemon=True).start()

    def _pass(self, way: str, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.passed[way] += len(data)
                if self._cut is not None and self._cut[0] == way and self.passed[way] >= self._cut[1]:
                    self.down()
                    return
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open -= {source, target}


class Bucket:
    """A bucket of one's own behind a network of one's own, and machines that know nothing but it and the queue."""

    def __init__(self, machine: Machine, server: tuple[str, int], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine, self.url = machine, f"s3://{name}/jobs"
        self.network = Network(server)
        here = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.network.port}",
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "not-much-of-a-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "EXTRACT_ROOT": self.url,
            "EXTRACT_CACHE_DIR": str(machine.home / "cache"),
            "EXTRACT_STORE_EVERY": "0.1",
        }
        for key, value in here.items():
            monkeypatch.setenv(key, value)
        self.store = Store(self.url)  # the test's own, past the network that fails
        with monkeypatch.context() as direct:
            direct.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server))
            self.store._fs.mkdir(name)

    def elsewhere(self, name: str) -> dict[str, str]:
        """The environment of another machine, which shares the queue and the bucket, and no disk."""
        home = self.machine.home / name
        folders = {"EXTRACT_STATE_DIR": str(home / "state"), "EXTRACT_CACHE_DIR": str(home / "cache")}
        return folders | {"EXTRACT_REDIS_URL": self.machine.service.url}

    def put(self, key: str, data: bytes) -> None:
        self.store.put(key, data)

    def keys(self, job: str) -> list[str]:
        return sorted(self.store.entries(job))

    def result(self, job: str) -> str:
        """The prefix of a succeeded job's result."""
        return self.machine.records.need(job)["artifact"].removeprefix(f"{self.url}/")

    def stored(self, job: str) -> list[dict[str, Any]]:
        """The checkpoints that a job's record took."""
        return [event for event in self.machine.story(job) if event["event"] == "stored"]

    def wait_stored(self, job: str, count: int = 1) -> None:
        wait_for(lambda: len(self.stored(job)) >= count, f"checkpoint {count} of {job} in storage", 30)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def engine_done(machine: Machine, job: str = "done", **plan: Any) -> Storage:
    """A job whose engine has just left a result in scratch, without the time that a worker takes to start: its storage."""
    machine.plan(steps=1, **plan)
    machine.submit(job)
    machine.records.claim(job, TOKEN, 60, "host", "worker", "")
    folder = machine.settings.root / job
    machine.mark(folder)
    record = machine.records.need(job)
    (folder / "job.json").write_text(record["spec"])
    storage = storage_of(machine.settings, job, TOKEN, machine.records)
    storage.restore(record, lambda: "")
    arguments = (folder / "job.json", folder / "result", folder / "engine.log", machine.settings)
    assert engine.supervise(*arguments, storage.on_event, lambda: "").kind == "done"
    return storage


def finish(machine: Machine, bucket: Bucket, job: str = "done", **plan: Any) -> str:
    """A job that has succeeded in storage: the prefix of its result."""
    storage = engine_done(machine, job, **plan)
    machine.records.end(job, TOKEN, "succeeded", storage.store_result(lambda: ""))
    storage.remove_checkpoints()
    storage.close()
    return bucket.result(job)
