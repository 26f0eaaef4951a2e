"""Several workers on one machine, supervised by one process: one per GPU, or a given number.

A worker that dies is restarted after a pause, which grows with repeated deaths. SIGTERM and Ctrl-C are passed on to the workers; the
supervisor exits after them. Each worker is a separate process, the same as one started by hand.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

from worker.settings import child_env, python_module

log = logging.getLogger("extract")
POLL_SECONDS = 0.2
PAUSES = (1.0, 5.0, 30.0)  # seconds before a dead worker is restarted; the last is repeated
STEADY_SECONDS = 60.0  # the death of a worker older than this does not count as a failed start


@dataclass
class _Slot:
    """One worker: its environment, its process, the start time of that process, the number of failed starts in a row."""

    name: str
    env: dict[str, str]
    process: subprocess.Popen | None = None
    started: float = 0.0
    deaths: int = 0
    not_before: float = 0.0


class Fleet:
    """envs: name for logs -> additional environment variables of that worker. arguments: of `extract worker`."""

    def __init__(self, envs: Mapping[str, Mapping[str, str]], arguments: Sequence[str]) -> None:
        self._slots = [_Slot(name, child_env() | dict(env)) for name, env in envs.items()]
        self._command = python_module("worker", "worker", *arguments)
        self._leaving = False

    def run(self) -> int:
        """Run the workers until a signal arrives or all have exited by themselves. Returns the number of nonzero exit codes."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._leave)
        failed = 0
        while self._slots:
            for slot in list(self._slots):
                code = slot.process.poll() if slot.process is not None else None
                if slot.process is None:
                    self._start(slot)
                elif code == 0 or (code is not None and self._leaving):
                    failed += code != 0
                    self._slots.remove(slot)
                elif code is not None:
                    self._schedule_restart(slot, code)
            time.sleep(POLL_SECONDS)
        return failed

    def _start(self, slot: _Slot) -> None:
        if self._leaving:
            self._slots.remove(slot)
        elif time.monotonic() >= slot.not_before:
            # A new session, so that a terminal's Ctrl-C reaches the worker only once, through this process.
            slot.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, env=slot.env, start_new_session=True)
            slot.started = time.monotonic()
            log.info("worker on %s: pid %d", slot.name, slot.process.pid)

    def _schedule_restart(self, slot: _Slot, code: int) -> None:
        lived = time.monotonic() - slot.started
        slot.deaths = 0 if lived > STEADY_SECONDS else slot.deaths + 1
        pause = PAUSES[min(slot.deaths, len(PAUSES)) - 1] if slot.deaths else 0.0
        log.warning("worker on %s exited with code %d after %.0f s; restart in %.0f s", slot.name, code, lived, pause)
        slot.process, slot.not_before = None, time.monotonic() + pause

    def _leave(self, _number: int, _frame: FrameType | None) -> None:
        self._leaving = True
        for slot in self._slots:
            if slot.process is not None and slot.process.poll() is None:
                os.kill(slot.process.pid, signal.SIGTERM)


def run(envs: Mapping[str, Mapping[str, str]], arguments: Sequence[str]) -> int:
    """Run workers until all have exited. Returns how many of them exited with an error."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s: %(levelname)s] %(message)s", stream=sys.stderr)
    return Fleet(envs, arguments).run()
