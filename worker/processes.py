"""Identities of processes, and whether they still run: safe across pid reuse, reboots and containers with the same host name."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from extractor import files


@dataclass(frozen=True)
class ProcessId:
    """boot: one boot of one machine; space: a pid namespace in it; started: start time, which distinguishes reused pids."""

    boot: str
    space: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"{self.boot}:{self.space}:{self.pid}:{self.started}"

    @classmethod
    def parse(cls, text: str) -> ProcessId | None:
        """The identity written by `str`, or None for anything else."""
        parts = text.split(":")
        if len(parts) != 4 or not parts[2].isdecimal():
            return None
        return cls(parts[0], parts[1], int(parts[2]), parts[3])


def identify(pid: int | None = None) -> ProcessId:
    """The identity of a process on this machine, by default of this process."""
    pid = os.getpid() if pid is None else pid
    boot, space = _here()
    return ProcessId(boot, space, pid, _started(pid) or "")


def is_gone(who: ProcessId | None, same_machine: bool = False) -> bool:
    """Whether a process has certainly ended; False if that is unknown.

    same_machine: the process ran on this machine, so a different boot means that it has ended.
    """
    if who is None:
        return False
    boot, space = _here()
    if who.boot != boot:
        return same_machine
    return who.space == space and _started(who.pid) != who.started


def write_pid(path: Path, who: ProcessId) -> None:
    """Write an identity to a file."""
    files.write_json(path, {"process": str(who)})


def read_pid(path: Path) -> ProcessId | None:
    """The identity in a file, or None."""
    try:
        return ProcessId.parse(files.read_json(path)["process"])
    except (files.BrokenArtifact, KeyError, TypeError, AttributeError):
        return None


def is_visible(who: ProcessId) -> bool:
    """Whether a process ran since the last boot of this machine and in our pid namespace, so that it can be signalled from here."""
    return (who.boot, who.space) == _here()


def holders(path: Path) -> list[ProcessId]:
    """The other processes that have a file open, as far as this user may see; none without /proc."""
    name, found = str(path.resolve()), []
    for entry in Path("/proc").glob("[0-9]*"):
        if int(entry.name) != os.getpid() and name in _open_files(entry / "fd"):
            found.append(identify(int(entry.name)))
    return found


def _open_files(folder: Path) -> Iterator[str]:
    with suppress(OSError):  # the process has ended, or belongs to another user
        for entry in folder.iterdir():
            with suppress(OSError):
                yield os.readlink(entry)


def send(who: ProcessId, number: signal.Signals, group: bool = False) -> None:
    """Send a signal to a process, or to its process group, if it still runs and is in our pid namespace."""
    if not is_visible(who) or is_gone(who):
        return
    try:
        (os.killpg if group else os.kill)(who.pid, number)
    except ProcessLookupError:
        return


def wait_gone(who: ProcessId, timeout: float) -> bool:
    """Wait at most `timeout` seconds for a process to end. Returns whether it has ended."""
    deadline = time.monotonic() + timeout
    while not is_gone(who):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@cache
def _here() -> tuple[str, str]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot, str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:  # without /proc: the machine's name, and no start times
        return platform.node().replace(":", "-"), "0"


def _started(pid: int) -> str | None:
    """Start time of a live process in clock ticks since boot, '' if it cannot be read, None without such a process."""
    try:
        # The command name, in parentheses, may contain spaces and parentheses. A zombie counts as ended.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return ""
    return ""
