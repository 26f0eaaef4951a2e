"""Flower on our queues: behind a password, over TLS, as the user with few rights."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
import secured_server
from secured_server import Secured, make_secrets
from service_machine import PROJECT, wait_for


@pytest.fixture
def secured(machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Secured]:
    secrets = machine.home / "secrets"
    make_secrets(secrets, "localhost")
    (machine.home / "data").mkdir()
    with secured_server.run(machine.home / "data", secrets) as server:
        path = machine.home / "address"
        path.write_text(server.url() + "\n")
        monkeypatch.setenv("EXTRACT_REDIS_URL_FILE", str(path))
        yield server


@pytest.fixture
def flower(machine, secured: Secured) -> Iterator[str]:
    """The address of a Flower, as deploy/compose.yaml runs it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [
        "--app",
        "worker.celery_app",
        "flower",
        f"--conf={secured.secrets / 'flowerconfig.py'}",
        "--address=127.0.0.1",
        f"--port={port}",
    ]
    with open(machine.home / "flower.log", "w") as log:
        process = subprocess.Popen([sys.executable, "-m", "celery", *arguments], cwd=PROJECT, env=os.environ, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def ask(url: str, password: str | None) -> tuple[int, str]:
    """Status and body; 0 while nobody listens."""
    headers = {"Authorization": "Basic " + base64.b64encode(f"operator:{password}".encode()).decode()} if password else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""
    except OSError:
        return 0, ""


def test_flower_shows_workers_and_queues_to_who_has_the_password_and_to_nobody_else(machine, secured, flower):
    worker = machine.worker()
    password = secured.password("flower")
    wait_for(lambda: ask(f"{flower}/healthcheck", None)[0] == 200, "Flower")
    wait_for(lambda: f"worker-{worker.pid}@" in ask(f"{flower}/api/workers?refresh=1", password)[1], "Flower to see the worker", 40)
    machine.plan(steps=1000, seconds=0.05)
    for _ in range(3):  # one runs, two wait
        machine.submit()
    wait_for(lambda: machine.records.client.llen("ex:mq:extract") == 2, "the queue")
    status, body = ask(f"{flower}/api/queues/length", password)
    assert status == 200
    lengths = {queue["name"]: queue["messages"] for queue in json.loads(body)["active_queues"]}
    assert {"extract.high": 0, "extract": 2, "extract.low": 0}.items() <= lengths.items()
    for path in ("/", "/workers", "/api/workers", "/api/queues/length"):
        assert [ask(flower + path, wrong)[0] for wrong in (None, "guess")] == [401, 401]
    assert secured.client("operator").acl_log() == []
    assert secured.password("extract") not in (machine.home / "flower.log").read_text() + ask(f"{flower}/broker", password)[1]
