"""A machine of one's own for each test: its state directory, its socket, its server, its workers; all of it gone afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3 import Bucket, s3_server
from service_machine import Machine, fresh_machine
from simulated_hub import gpt2_files

from extractor.models.tokenizer import save_tokenizer, train_tokenizer


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
    """A fresh machine."""
    with fresh_machine(monkeypatch, capsys) as made:
        yield made
