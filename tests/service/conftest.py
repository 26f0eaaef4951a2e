"""A machine of one's own for each test: its state directory, its socket, its server, its workers; all of it gone afterwards."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3 import Bucket, s3_server
from service_machine import QUICK, Machine

from extractor.data.tokenizer import save_tokenizer, train_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))  # what the other tests share

from simulated_hub import gpt2_files


@pytest.fixture(scope="session")
def s3() -> Iterator[tuple[str, int]]:
    """The address of an S3 server."""
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(machine: Machine, s3: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket that the machine keeps its jobs in."""
    return Bucket(machine, s3, machine.home.name.replace("_", "-").lower(), monkeypatch)


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of single bytes."""
    made = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(["a"], 257), made, 64)
    return made


@pytest.fixture
def models(machine: Machine, byte_tokenizer: Path) -> Path:
    """A folder of five models, m0 to m4, as far as a look at their files can tell."""
    for number in range(5):
        place = machine.home / "models" / f"m{number}"
        shutil.copytree(byte_tokenizer, place)
        for name in ("config.json", "model.safetensors"):
            (place / name).write_bytes(gpt2_files(f"weights {number}")[name])
    return machine.home / "models"


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
