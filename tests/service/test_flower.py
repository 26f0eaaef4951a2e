"""Flower on our application: it finds our queues under their prefix, and our workers answer it."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import urllib.request

from service_machine import PROJECT, wait_for

from worker.broker import routing


def test_flower_shows_our_queues_and_workers(machine):
    machine.submit("waits", priority="high")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "celery", "--app", "worker.celery_app", "flower", "--address=127.0.0.1", f"--port={port}"]
    log = machine.home / "flower.log"
    with open(log, "w") as output, subprocess.Popen(command, cwd=PROJECT, env=os.environ.copy(), stdout=output, stderr=output) as flower:
        try:
            lengths = dict.fromkeys(routing.queues_for(0), 0) | {"extract.high": 1}
            wait_for(lambda: rows(page(port, "broker")) == lengths, "the queues", 30, log.read_text)
            machine.worker()
            worker = machine.records.workers()[0].name
            wait_for(lambda: worker in page(port, "workers"), "the worker", 30, log.read_text)
        finally:
            flower.kill()
    assert "Traceback" not in log.read_text()


def page(port, name):
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/{name}", timeout=20).read().decode()
    return ""


def rows(text):
    found = re.findall(r'<tr id="([\w.]+)">\s*<td>[\w.]+</td>\s*<td[^>]*>(\d+)</td>', text)
    return {queue: int(length) for queue, length in found}
