"""Several workers on one machine, one for each GPU or as many as there should be, under one process that keeps them up.

A worker that dies is started again, after a pause that grows while it goes on dying. SIGTERM and Ctrl-C are passed on; we leave when all
have left. Each worker is a process of its own that could as well have been started by hand.
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
LOOK_SECONDS = 0.2
PAUSES = (1.0, 5.0, 30.0)  # seconds before a worker that died is started again; the last is repeated
STEADY_SECONDS = 60.0  # a worker that has lived so long did not die of how it was started


@dataclass
class _Post:
    """One worker's place: its environment, its process, when that was started, how often in a row it died at once."""

    name: str
    env: dict[str, str]
    process: subprocess.Popen | None = None
    started: float = 0.0
    deaths: int = 0
    not_before: float = 0.0


class Fleet:
    """envs: what each worker's environment has beside ours, by a name for logs. arguments: of `extract worker`."""

    def __init__(self, envs: Mapping[str, Mapping[str, str]], arguments: Sequence[str]) -> None:
        self._posts = [_Post(name, child_env() | dict(env)) for name, env in envs.items()]
        self._command = python_module("worker", "worker", *arguments)
        self._leaving = False

    def run(self) -> int:
        """Keep the workers up until told to leave, or until each has left by itself: how many exit codes were not 0."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._leave)
        failed = 0
        while self._posts:
            for post in list(self._posts):
                code = post.process.poll() if post.process is not None else None
                if post.process is None:
                    self._start(post)
                elif code == 0 or (code is not None and self._leaving):
                    failed += code != 0
                    self._posts.remove(post)
                elif code is not None:
                    self._mourn(post, code)
            time.sleep(LOOK_SECONDS)
        return failed

    def _start(self, post: _Post) -> None:
        if self._leaving:
            self._posts.remove(post)
        elif time.monotonic() >= post.not_before:
            # A session of its own: Ctrl-C at a terminal reaches it once, from us.
            post.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, env=post.env, start_new_session=True)
            post.started = time.monotonic()
            log.info("worker on %s: pid %d", post.name, post.process.pid)

    def _mourn(self, post: _Post, code: int) -> None:
        lived = time.monotonic() - post.started
        post.deaths = 0 if lived > STEADY_SECONDS else post.deaths + 1
        pause = PAUSES[min(post.deaths, len(PAUSES)) - 1] if post.deaths else 0.0
        log.warning("worker on %s left with code %d after %.0f s; started again in %.0f s", post.name, code, lived, pause)
        post.process, post.not_before = None, time.monotonic() + pause

    def _leave(self, _number: int, _frame: FrameType | None) -> None:
        self._leaving = True
        for post in self._posts:
            if post.process is not None and post.process.poll() is None:
                os.kill(post.process.pid, signal.SIGTERM)


def run(envs: Mapping[str, Mapping[str, str]], arguments: Sequence[str]) -> int:
    """Run workers until they have left; how many of them left with an error."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s: %(levelname)s] %(message)s", stream=sys.stderr)
    return Fleet(envs, arguments).run()
