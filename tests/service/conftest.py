"""A machine of one's own for each test: its state directory, its socket, its server, its workers; all of it gone afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from service_machine import QUICK, Machine


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
