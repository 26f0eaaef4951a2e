"""The local worker: a detached process that commands start when jobs are open on the embedded server and no worker runs."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from extractor import files
from extractor.errors import ServiceUnavailable
from extractor.files import file_lock
from worker import processes
from worker.settings import Settings, child_env, python_module

if TYPE_CHECKING:
    from worker.records.records import Records, Worker


def live_workers(records: Records, settings: Settings) -> list[Worker]:
    """The live workers, busy ones first. Excludes workers that were killed on this machine but whose announcement has not expired.

    Raises redis.RedisError.
    """
    announced = records.workers()
    alive = [w for w in announced if not processes.is_gone(processes.ProcessId.parse(w.process), same_machine=settings.embedded)]
    return sorted(alive, key=lambda worker: (not worker.job, worker.name))


def ensure_worker(records: Records, settings: Settings, only_again: bool = False) -> bool:
    """Start a local worker if jobs are open on the embedded server and no worker lives. Returns whether it started one.

    only_again: only in place of one that died or was stopped, for commands that neither queue jobs nor wait for them.
    """
    if not settings.embedded or not settings.start_worker or not records.any_open():
        return False
    with registration(settings):
        if is_registered(settings) or live_workers(records, settings):
            return False
        if only_again and not _pid_path(settings).exists():
            return False
        _start(settings)
        return True


def log_path(settings: Settings) -> Path:
    """The log file of the local worker."""
    return settings.state_dir / "worker.log"


def is_registered(settings: Settings) -> bool:
    """Whether the local worker started last still runs."""
    who = processes.read_pid(_pid_path(settings))
    return who is not None and not processes.is_gone(who, same_machine=True)


def stop(settings: Settings) -> bool:
    """Stop the local worker; its job saves a checkpoint and goes back to the queue. Returns whether a worker ran.

    Raises ServiceUnavailable if it does not exit in time.
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
    """Hold the lock for starting and ending a local worker. Without the embedded server there is no local worker and no lock."""
    if not settings.embedded:
        yield
        return
    with file_lock(settings.state_dir / "worker.lock"):
        yield


def forget_dead(settings: Settings) -> None:
    """Forget a local worker that died or was stopped, so that no command starts it again by itself."""
    if settings.embedded and _pid_path(settings).exists():
        with registration(settings):
            if not is_registered(settings):
                _pid_path(settings).unlink(missing_ok=True)


def unregister(settings: Settings, pid: int) -> None:
    """Remove the local worker with that pid; call it under `registration`."""
    who = processes.read_pid(_pid_path(settings))
    if who is not None and who.pid == pid:
        _pid_path(settings).unlink(missing_ok=True)


def _start(settings: Settings) -> None:
    with files.open_private(log_path(settings)) as output:
        process = subprocess.Popen(
            python_module("worker", "worker", "--local", "--idle-exit", str(settings.idle_exit)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd=settings.state_dir,  # not the user's folder, which may be deleted
            env=child_env(),
        )
    processes.write_pid(_pid_path(settings), processes.identify(process.pid))
    process.returncode = 0  # it outlives this process on purpose: avoids a ResourceWarning


def _pid_path(settings: Settings) -> Path:
    return settings.state_dir / "worker.json"
