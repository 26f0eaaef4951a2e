"""The local worker: a detached process that commands start when jobs wait on the embedded server and nobody is there to run them."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from extractor.errors import ServiceUnavailable
from extractor.files import file_lock
from worker import processes
from worker.settings import Settings, child_env, python_module

if TYPE_CHECKING:
    from worker.records.records import Records


def live_workers(records: Records, settings: Settings) -> list[str]:
    """Names of the workers that are there. One that was killed on this machine does not count, though its announcement still stands."""
    workers = records.workers()
    return [w.name for w in workers if not processes.is_gone(processes.ProcessId.parse(w.process), same_machine=settings.embedded)]


def ensure_worker(records: Records, settings: Settings) -> bool:
    """Start a local worker if jobs are open on the embedded server and no worker lives; whether one was started."""
    if not settings.embedded or not settings.start_worker or not records.any_open():
        return False
    with registration(settings):
        if is_registered(settings) or live_workers(records, settings):
            return False
        _start(settings)
        return True


def log_path(settings: Settings) -> Path:
    """Where the local worker writes what it does."""
    return settings.state_dir / "worker.log"


def is_registered(settings: Settings) -> bool:
    """Whether the local worker that was started last still runs."""
    who = processes.read_pid(_pid_path(settings))
    return who is not None and not processes.is_gone(who, same_machine=True)


def stop(settings: Settings) -> bool:
    """Ask the local worker to leave (a running job goes back to the queue from its checkpoint); whether there was one.

    Raises ServiceUnavailable if it does not leave in time.
    """
    who = processes.read_pid(_pid_path(settings))
    if who is None or processes.is_gone(who, same_machine=True):
        return False
    processes.send(who, signal.SIGTERM)
    if not processes.wait_gone(who, settings.stop_grace + 20):
        raise ServiceUnavailable(f"the local worker (pid {who.pid}) did not stop; see {log_path(settings)}")
    return True


@contextmanager
def registration(settings: Settings) -> Iterator[None]:
    """Hold the lock under which a local worker comes and goes. On a remote server there is none, and nothing to lock."""
    if not settings.embedded:
        yield
        return
    with file_lock(settings.state_dir / "worker.lock"):
        yield


def forget(settings: Settings, pid: int) -> None:
    """The local worker of that pid leaves; call under `registration`."""
    who = processes.read_pid(_pid_path(settings))
    if who is not None and who.pid == pid:
        _pid_path(settings).unlink(missing_ok=True)


def _start(settings: Settings) -> None:
    with open(log_path(settings), "ab") as output:
        process = subprocess.Popen(
            python_module("worker", "worker", "--local", "--idle-exit", str(settings.idle_exit)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd=settings.state_dir,  # not the user's folder, which may go away
            env=child_env(),
        )
    processes.write_pid(_pid_path(settings), processes.identify(process.pid))
    process.returncode = 0  # it outlives us on purpose: no ResourceWarning when this handle goes


def _pid_path(settings: Settings) -> Path:
    return settings.state_dir / "worker.json"
