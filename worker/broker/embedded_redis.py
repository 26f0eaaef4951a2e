"""The embedded server: a private Valkey (or Redis) on a unix socket, shared by all commands with the same state directory.

The first command that needs it starts it under a file lock. It outlives that command, writes every change to an append-only file and opens
no network port. `server.json` names its socket and process; while that file exists, a server that died is restarted. A server that answers
and works in our state directory is ours, whatever the file says. One that holds our data but can no longer be reached is ended first.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from extractor import files
from extractor.errors import ServiceUnavailable
from extractor.files import file_lock
from worker import processes
from worker.broker.private_socket import accepts, make_private, peer, socket_path, socket_places
from worker.broker.server_program import Binary, find_binary
from worker.processes import ProcessId
from worker.settings import Settings

ANSWER_SECONDS = 5.0
CLAIM_SECONDS = 5.0
START_SECONDS = 60.0  # a long append-only file takes a while to load
STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Server:
    """A server that answers. process: None if it runs where we cannot signal it; is_loading: it still reads its append-only file."""

    socket: Path
    data: Path
    binary: str
    version: str
    process: ProcessId | None
    is_loading: bool


def url(socket: Path) -> str:
    """The redis-py address of a socket."""
    return f"unix://{socket}?db=0"


def ensure(settings: Settings) -> str:
    """The redis-py URL of the running embedded server, started if necessary. Raises ServiceUnavailable."""
    if socket := running(settings):
        return url(socket)
    make_private(settings.state_dir, "state directory", "set EXTRACT_STATE_DIR to a writable folder", forbidden=0o002)
    with file_lock(settings.state_dir / "server.lock"):
        server = find(settings)  # another command has started it meanwhile, or left it without a record
        if server is not None:
            _write_record(settings, server)
        else:
            server = _start(settings)
        _await_data(settings, server)
        return url(server.socket)


def revive(settings: Settings) -> None:
    """Restart the server if it has died; do nothing after `stop`."""
    if os.path.exists(_record_path(settings)) and running(settings) is None:
        ensure(settings)


def running(settings: Settings) -> Path | None:
    """The socket of the running embedded server, or None."""
    server = find(settings)
    return None if server is None or server.is_loading else server.socket


def find(settings: Settings) -> Server | None:
    """The server that answers on the recorded socket, or on one of our own, and works in our state directory; None without one."""
    return next(filter(None, (_ask(socket, settings.state_dir) for socket in _sockets(settings))), None)


def stop(settings: Settings) -> bool:
    """Stop the embedded server; it saves its data first. Returns whether it ran.

    Raises ServiceUnavailable if a server lives on; its record is then kept.
    """
    if not os.path.isdir(settings.state_dir):
        return False
    with file_lock(settings.state_dir / "server.lock"):
        server, ours = find(settings), _processes(settings)
        if server is not None and server.process is None:
            raise ServiceUnavailable(f"the server on {server.socket} runs in another container or on another machine; stop it there")
        for process in ours | ({server.process} if server and server.process else set()):
            _end(process, settings)
        for data in _data_folders(settings):
            with open(data / "lock", "a") as file:
                if not _locks_in_time(file):
                    raise ServiceUnavailable(f"a server on another machine or in another container works in {data}; stop it there")
        _record_path(settings).unlink(missing_ok=True)
        return server is not None or bool(ours)


def facts(settings: Settings) -> dict[str, Any] | None:
    """Facts about the running server (pid, socket, data folder, binary, version), or None."""
    server = find(settings)
    if server is None:
        return None
    named = {"socket": str(server.socket), "data": str(server.data), "binary": server.binary, "version": server.version}
    return named | {"pid": server.process.pid if server.process else None}


def _start(settings: Settings) -> Server:
    binary = find_binary(settings)
    data = settings.state_dir / f"{binary.engine}-{binary.version[0]}"  # other major versions may be unable to read the data
    make_private(data, "data directory", "set EXTRACT_STATE_DIR to a writable folder")
    claim = _claim(settings, data)
    if isinstance(claim, Server):
        _write_record(settings, claim)
        return claim
    socket, log, process = socket_path(settings), settings.state_dir / "server.log", None
    try:
        with claim, files.open_private(log) as output:
            _refuse_foreign(socket)
            process = subprocess.Popen(
                _command(binary, socket, data),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=data,
                pass_fds=[claim.fileno()],
            )
        server = _await(process, socket, settings, log)
        _write_record(settings, server)
    except BaseException:  # also Ctrl-C: nothing else knows this process
        if process is not None:
            _abandon(process)
        raise
    process.returncode = 0  # it outlives this process on purpose: avoids a ResourceWarning
    return server


def _command(binary: Binary, socket: Path, data: Path) -> list[str]:
    flags = {
        "--port": "0",
        "--unixsocket": str(socket),
        "--unixsocketperm": "700",
        "--appendonly": "yes",
        "--appendfsync": "everysec",
        "--save": "",
        "--maxmemory-policy": "noeviction",
        "--dir": str(data),
        "--daemonize": "no",
    }
    return [str(binary.path), *(word for flag in flags.items() for word in flag)]


def _claim(settings: Settings, data: Path) -> IO[str] | Server:
    """The locked file of a data directory. The server inherits it, so that no second server writes there while it lives.

    This covers a server that hangs, and a home directory shared by several machines. Returns the server that holds the lock if it answers
    in time, and ends one whose socket is gone. Raises ServiceUnavailable.
    """
    file = open(data / "lock", "a")  # noqa: SIM115 - the caller closes it
    deadline = time.monotonic() + CLAIM_SECONDS  # a child of a killed server may hold the lock until it has rewritten its file
    while not _try_lock(file):
        if server := find(settings):
            file.close()
            return server
        is_late = time.monotonic() > deadline
        if _has_lost_its_socket(settings) or (is_late and not any(map(accepts, _sockets(settings)))):
            for process in _processes(settings):
                _end(process, settings)
                deadline = time.monotonic() + CLAIM_SECONDS
        if is_late and time.monotonic() > deadline:
            file.close()
            raise ServiceUnavailable(
                f"data directory {data} is locked by a server that does not answer here, possibly on another machine; "
                "end it with `extract server stop`, there if need be, or set EXTRACT_STATE_DIR to a folder of this machine"
            )
        time.sleep(0.1)
    return file


def _locks_in_time(file: IO[str]) -> bool:
    """Whether a file can be locked within CLAIM_SECONDS: a child of a server that has ended may hold the lock until it has ended too."""
    deadline = time.monotonic() + CLAIM_SECONDS
    while not _try_lock(file):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _has_lost_its_socket(settings: Settings) -> bool:
    """Whether the recorded server lives, but its socket was deleted, as at a logout: nobody can reach it any more."""
    record = _read_record(settings)
    return record is not None and not os.path.lexists(record["socket"]) and _lives(ProcessId.parse(record["process"]))


def _processes(settings: Settings) -> set[ProcessId]:
    """The living processes that hold the lock of one of our data directories, and the recorded one."""
    found = {process for data in _data_folders(settings) for process in processes.holders(data / "lock")}
    recorded = ProcessId.parse((_read_record(settings) or {}).get("process", ""))
    return found | ({recorded} if recorded is not None and _lives(recorded) else set())


def _lives(process: ProcessId | None) -> bool:
    return process is not None and processes.is_visible(process) and not processes.is_gone(process)


def _data_folders(settings: Settings) -> list[Path]:
    return [path.parent for engine in ("valkey", "redis") for path in settings.state_dir.glob(f"{engine}-*/lock")]


def _end(process: ProcessId, settings: Settings) -> None:
    """End a server: it saves its data first. Raises ServiceUnavailable."""
    processes.send(process, signal.SIGTERM)
    if not processes.wait_gone(process, STOP_SECONDS):
        raise ServiceUnavailable(
            f"the server (pid {process.pid}) did not stop within {STOP_SECONDS:g} s and lives on; see {settings.state_dir / 'server.log'}"
        )


def _abandon(process: subprocess.Popen) -> None:
    """End a server, and the script that starts it, before it was recorded."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=5)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.poll()


def _await(process: subprocess.Popen, socket: Path, settings: Settings, log: Path) -> Server:
    deadline = time.monotonic() + START_SECONDS
    while (server := _ask(socket, settings.state_dir)) is None:
        if process.poll() is not None:
            raise ServiceUnavailable(f"the embedded server ended at once: {last_line(log)}; see {log}")
        if time.monotonic() > deadline:
            raise ServiceUnavailable(f"the embedded server did not answer on {socket} within {START_SECONDS:.0f} s; see {log}")
        time.sleep(0.02)
    return server


def _await_data(settings: Settings, server: Server) -> None:
    """Wait until a server has loaded its append-only file. Raises ServiceUnavailable if that takes long; the server goes on."""
    deadline = time.monotonic() + START_SECONDS
    while server.is_loading:
        if time.monotonic() > deadline:
            raise ServiceUnavailable(f"the embedded server still loads {server.data}; run the same command again in a minute")
        time.sleep(0.1)
        server = _ask(server.socket, settings.state_dir) or server


def _ask(socket: Path, state_dir: Path) -> Server | None:
    """The server that answers on a socket and works in a data directory of this state directory, else None."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    if not os.path.exists(socket):
        return None
    once = Retry(NoBackoff(), 0)
    options: dict[str, Any] = {"socket_timeout": ANSWER_SECONDS, "retry": once, "encoding_errors": "surrogateescape"}
    client = redis.Redis(unix_socket_path=str(socket), decode_responses=True, **options)
    try:
        told: Any = client.info()
        data = Path(client.config_get("dir").get("dir") or "/")
    except (redis.RedisError, OSError):
        return None
    finally:
        client.close()
    if str(data.parent) != os.path.realpath(state_dir):
        return None
    version = str(told.get("valkey_version") or told.get("redis_version"))
    return Server(socket, data, str(told.get("executable")), version, peer(socket, told.get("process_id")), bool(told.get("loading")))


def _refuse_foreign(path: Path) -> None:
    """Refuse a socket path in use. Raises ServiceUnavailable."""
    if os.path.lexists(path) and not path.is_socket():
        raise ServiceUnavailable(f"socket path {path} exists and is not a socket; move it away and try again")
    if accepts(path):
        other = peer(path)
        who = f" (pid {other.pid})" if other else ""
        raise ServiceUnavailable(f"socket {path} is in use by another server{who}; stop that server, or set EXTRACT_STATE_DIR")


def _sockets(settings: Settings) -> list[Path]:
    record = _read_record(settings)
    return list(dict.fromkeys([*([Path(record["socket"])] if record else []), *socket_places(settings)]))


def _record_path(settings: Settings) -> Path:
    return settings.state_dir / "server.json"


def _write_record(settings: Settings, server: Server) -> None:
    named = {"socket": str(server.socket), "data": str(server.data), "binary": server.binary, "version": server.version}
    files.write_json(_record_path(settings), named | {"process": str(server.process or "")})


def _read_record(settings: Settings) -> dict[str, str] | None:
    if not os.path.isfile(_record_path(settings)):
        return None
    try:
        record = files.read_json(_record_path(settings))
        return {key: str(record[key]) for key in ("socket", "data", "binary", "version", "process")}
    except (files.BrokenArtifact, KeyError, TypeError):
        return None


def last_line(path: Path, limit: int = 300) -> str:
    """The last non-empty line of a log, for an error message."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16384))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return "no log was written"
    return next((line.strip()[:limit] for line in reversed(lines) if line.strip()), "the log is empty")
