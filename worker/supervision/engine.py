"""One engine process, from start to outcome; shared by `extract run` and the worker.

The engine runs in its own session, so a terminal's Ctrl-C does not reach it directly. It exits when its stdin closes, that is, when its
supervisor ends. SIGTERM asks it to stop; it then has `stop_grace` seconds to save a checkpoint. Success requires a valid manifest.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from extractor import errors, files
from extractor.errors import ExtractorError, OutputError
from worker import processes
from worker.broker.embedded_redis import last_line
from worker.settings import Settings, child_env, python_module

TICK = 0.1  # seconds between two checks for a stop request
STOPPED_CODE = 75  # exit code of an engine that stopped on request
STORAGE_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_MAX_LINE = 1 << 20  # bytes; a longer line is not an event

Event = dict[str, Any]
StopRequest = Literal["", "stop", "kill"]


@dataclass(frozen=True)
class Outcome:
    """How an engine ended.

    kind    'done' (valid manifest), 'stopped' (on request, checkpoint saved), 'error' (the engine reported one), 'crashed',
            'killed' (by this supervisor: on request, or because it did not stop in time)
    error   the error to show, None for 'done' and 'stopped'
    """

    kind: Literal["done", "stopped", "error", "crashed", "killed"]
    error: ExtractorError | None = None


def supervise(
    spec: Path,
    out: Path,
    log: Path,
    settings: Settings,
    on_event: Callable[[Event], None],
    stop_request: Callable[[], StopRequest],
    threads: int | None = None,
    bridged: Path | None = None,
) -> Outcome:
    """Run the engine on a spec file until it ends.

    out           result folder; the engine resumes an unfinished run of the same spec in it
    log           file for the engine's stderr; locked while the engine runs
    on_event      called with each event, in order, from this thread
    stop_request  called every 0.1 s: '' continue, 'stop' save a checkpoint and stop, 'kill' end at once
    threads       CPU threads of the engine, by default those of the settings
    bridged       folder where the engine finds or stores the bridged model (`extractor.jobs.bridged_cache`)

    Raises OutputError when another run holds the same log or the log cannot be written.
    """
    arguments = [str(spec), "--out", str(out), "--threads", str(threads or settings.threads), "--guard"]
    arguments += ["--bridged", str(bridged)] if bridged else []
    with _locked_log(log) as stderr:
        process = subprocess.Popen(
            python_module(settings.engine, *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
            env=_engine_env(),
        )
    try:
        processes.write_pid(_pid_file(log), processes.identify(process.pid))
        error, killed = _communicate(process, settings, on_event, stop_request, log)
    finally:
        _end(process)
    if killed and process.returncode < 0:
        kind: Literal["killed", "crashed"] = "crashed" if killed == _silent(settings.silence) else "killed"
        return Outcome(kind, ExtractorError(f"the engine was killed: {killed}"))
    return _outcome(process.returncode, error, out, log)


def end_stray_engine(log: Path, wait: float) -> bool:
    """Kill an engine that still holds this log, left by a supervisor that lost the job. Returns whether the log is free.

    An engine on another machine cannot be killed from here: then this waits up to `wait` seconds for it to end.
    """
    deadline = time.monotonic() + wait
    while not is_free(log):
        engine = processes.read_pid(_pid_file(log))
        if engine is not None:
            with suppress(OSError):
                _taken_file(log).touch()
            processes.send(engine, signal.SIGKILL, group=True)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _communicate(
    process: subprocess.Popen, settings: Settings, on_event: Callable[[Event], None], stop_request: Callable[[], StopRequest], log: Path
) -> tuple[ExtractorError | None, str]:
    """Pass events to `on_event` and stop requests to the engine, until it has ended.

    Returns the error it reported, if any, and the reason why this function killed it, '' if it did not.
    """
    lines: queue.Queue[bytes | None] = queue.Queue()
    threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True).start()
    error: ExtractorError | None = None
    kill_at: float | None = None
    killed, heard = "", time.monotonic()
    while True:
        request = stop_request()
        if request == "kill" or (kill_at is not None and time.monotonic() > kill_at):
            killed = killed or ("it was to end at once" if request == "kill" else f"it did not stop within {settings.stop_grace:g} s")
            _kill(process)
        elif request == "stop" and kill_at is None:
            process.send_signal(signal.SIGTERM)
            kill_at = time.monotonic() + settings.stop_grace
        try:
            line = lines.get(timeout=TICK)
        except queue.Empty:
            if process.poll() is not None:  # do not wait for end of file: a grandchild may hold the pipe open
                return error, killed
            if time.monotonic() > heard + settings.silence and not killed:
                killed = _silent(settings.silence)
                _kill(process)
            continue
        if line is None:
            process.wait()
            return error, killed
        heard = time.monotonic()
        event = _parse(line, log)
        if event is None:
            continue
        if event["event"] == "error":
            error = errors.by_name(str(event.get("type")), str(event.get("message")))
        on_event(event)


def _silent(seconds: float) -> str:
    return f"it reported nothing for {seconds:g} s (EXTRACT_SILENCE)"


def _outcome(code: int, error: ExtractorError | None, out: Path, log: Path) -> Outcome:
    if code == 0:
        try:
            files.verify_manifest(out)
        except ExtractorError as broken:
            return Outcome("error", errors.BrokenArtifact(f"the engine succeeded but its result is broken: {broken}"))
        return Outcome("done")
    if code == STOPPED_CODE:
        return Outcome("stopped")
    if error is not None and code > 0:
        return Outcome("error", error)
    if code == -signal.SIGKILL and _taken_file(log).exists():
        return Outcome("crashed", ExtractorError("the engine was killed by another worker, which took over its job"))
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", possibly out of memory" if -code == signal.SIGKILL else ""
        return Outcome("crashed", ExtractorError(f"the engine was killed by {name}{hint}; see {log}"))
    return Outcome("crashed", ExtractorError(f"the engine crashed (exit {code}): {last_line(log)}; see {log}"))


def _read_lines(stream: IO[bytes], lines: queue.Queue[bytes | None]) -> None:
    with stream:
        while line := stream.readline(_MAX_LINE):
            lines.put(line)
    lines.put(None)


def _parse(line: bytes, log: Path) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if isinstance(event, dict) and isinstance(event.get("event"), str):
        return event
    with open(log, "ab") as file:  # a line that a library printed on stdout
        file.write(line)
    return None


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        _kill(process)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _kill(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _engine_env() -> dict[str, str]:
    env = child_env()
    secrets = ("EXTRACT_REDIS_URL", "EXTRACT_REDIS_URL_FILE", *STORAGE_SECRETS)  # the engine does not need them
    return {name: value for name, value in env.items() if name not in secrets}


@contextmanager
def _locked_log(log: Path) -> Iterator[IO[bytes]]:
    """Open and lock the log. The engine inherits the open file, so the lock lasts as long as the engine and its children."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = open(log, "ab")  # noqa: SIM115 - closed below
    except OSError as error:
        raise OutputError(f"log file {log} cannot be written ({error.strerror}); name another output folder") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"another run is using this folder (it holds {log}); wait for it, or name another output folder") from None
        for path in (_pid_file(log), _taken_file(log)):  # those written under this lock belong to its holder
            path.unlink(missing_ok=True)
        yield file


def is_free(log: Path) -> bool:
    """Whether no engine holds this log."""
    try:
        with open(log, "r+b") as file:  # does not create or change the file
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True


def _taken_file(log: Path) -> Path:
    """Exists if another worker has killed the engine of this log."""
    return log.with_name(log.name + ".taken")


def _pid_file(log: Path) -> Path:
    return log.with_name(log.name + ".pid")
