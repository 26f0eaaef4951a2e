"""A machine of one's own for each test: its state directory, its socket, its server, its workers; all of it gone afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3 import Bucket, s3_server
from service_machine import QUICK, Machine


@pytest.fixture(scope="session")
def s3() -> Iterator[tuple[str, int]]:
    """The address of an S3 server."""
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(machine: Machine, s3: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket that the machine keeps its jobs in."""
    return Bucket(machine, s3, machine.home.name.replace("_", "-").lower(), monkeypatch)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Machine]:
    """A fresh machine. Its folder has a short path: sockets need one."""
    home = Path(tempfile.mkdtemp(prefix="ex-"))
    for name in [name for name in os.environ if name.startswith("EXTRACT_")]:
        monkeypatch.delenv(name)
    here = {"EXTRACT_STATE_DIR": str(home / "state"), "XDG_RUNTIME_DIR": str(home), "EXTRACT_FAKE_PLAN": str(home / "plan.json")}
    for name, value in (QUICK | here).items():
        monkeypatch.setenv(name, value)
    machine = Machine(home, capsys)
    machine.plan()
    try:
        yield machine
    finally:
        machine.clean()
        shutil.rmtree(home, ignore_errors=True)
