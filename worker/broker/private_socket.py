"""The socket of the embedded server, in a folder that no other user can enter: its place, and who listens on it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import stat
import struct
import tempfile
from pathlib import Path

from extractor.errors import ServiceUnavailable
from worker import processes
from worker.processes import ProcessId
from worker.settings import NO_HOME, Settings

CONNECT_SECONDS = 5.0
MAX_SOCKET_BYTES = 107  # sun_path has 108 bytes, with the terminating zero
_PLAIN = re.compile(r"[A-Za-z0-9/._+=@,-]+")  # such a path is the same in every spelling of a Redis URL
_ADVICE = "set EXTRACT_STATE_DIR to a short folder of your own, or TMPDIR"


def socket_places(settings: Settings) -> list[Path]:
    """The possible sockets of a state directory, best first: inside it, where no logout deletes it, and in the temporary folder."""
    name = hashlib.sha256(os.fsencode(os.path.realpath(settings.state_dir))).hexdigest()[:12]
    temporary = Path(tempfile.gettempdir()) / f"extract-{os.getuid()}" / name
    return [folder / "server.sock" for folder in (settings.state_dir / "run", temporary)]


def socket_path(settings: Settings) -> Path:
    """The first possible socket whose path is short and plain enough and whose file system has sockets; makes its private folder.

    Raises ServiceUnavailable.
    """
    inside, outside = socket_places(settings)
    if _fits(inside):
        make_private(inside.parent, "socket directory", f"remove it, or {_ADVICE}")
        if _holds_sockets(inside.parent):
            return inside
    if not _fits(outside):
        size = f"{len(os.fsencode(outside))} bytes (the maximum is {MAX_SOCKET_BYTES})"
        raise ServiceUnavailable(f"socket path {outside} has {size} or unusual characters; {_ADVICE}")
    for folder in (outside.parent.parent, outside.parent):
        make_private(folder, "socket directory", f"remove it, or {_ADVICE}")
    if not _holds_sockets(outside.parent):
        raise ServiceUnavailable(f"neither {inside.parent} nor {outside.parent} can hold a socket; {_ADVICE}")
    return outside


def make_private(folder: Path, what: str, advice: str, forbidden: int = 0o077) -> None:
    """Create a folder of mode 0700, or check that an existing one belongs to this user and has none of the `forbidden` mode bits.

    Raises ServiceUnavailable.
    """
    if folder.is_relative_to(NO_HOME):
        raise ServiceUnavailable(f"no home folder is known for user {os.getuid()}, so there is no {what}; {advice}")
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


def peer(path: Path, told: int | None = None) -> ProcessId | None:
    """The process that listens on a socket, None if it is unknown or in another pid namespace.

    told: its pid as it says itself, for systems without SO_PEERCRED.
    """
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return processes.identify(told) if told else None
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
            pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, option, 12))
        except OSError:
            return None
    return processes.identify(pid) if pid > 0 else None


def accepts(path: Path) -> bool:
    """Whether something listens on a socket. The socket of a dead server refuses connections; the next server replaces it."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(CONNECT_SECONDS)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return os.path.exists(path)
    return True


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= MAX_SOCKET_BYTES and _PLAIN.fullmatch(str(path)) is not None


def _holds_sockets(folder: Path) -> bool:
    """Whether a socket can be made in a folder; some network and container file systems have none."""
    path = folder / f".p{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.bind(str(path))
        except OSError:
            return False
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
    return True
