"""A spec file is read only where it is a regular file of a sensible size; each refusal is one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from extractor.errors import BrokenArtifact, NotFound, SpecError
from extractor.files import read_json
from extractor.models.checks import FolderFiles
from extractor.spec.schema import OptimSpec, read_job


def refused(path: Path) -> str:
    with pytest.raises(SpecError) as caught:
        read_job(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_pipe_and_a_device_are_not_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        assert f"spec file {path} cannot be read: it is a pipe, a socket or a device" in refused(path)


def test_a_file_of_ten_gigabytes_takes_no_memory(tmp_path: Path):
    with open(tmp_path / "spec.json", "wb") as file:
        file.truncate(10**10)
    assert "has 10,000,000,000 bytes, more than 67,108,864; that is no spec" in refused(tmp_path / "spec.json")
    with pytest.raises(BrokenArtifact, match=r"spec\.json is not readable JSON: it has 10,000,000,000 bytes, more than the 1,073,741,824"):
        read_json(tmp_path / "spec.json")
    (tmp_path / "spec.json").rename(tmp_path / "config.json")
    with pytest.raises(BrokenArtifact, match="more than the 67,108,864 that are read"):
        FolderFiles(tmp_path).json("config.json")


def test_missing_folders_and_empty_files_are_one_line(tmp_path: Path):
    (tmp_path / "empty").touch()
    with pytest.raises(NotFound, match="there is no such file"):
        read_job(tmp_path / "nothing")
    assert "Is a directory" in refused(tmp_path)
    assert "EOF" in refused(tmp_path / "empty")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc")
def test_files_of_proc_which_may_block_are_taken_as_empty():
    assert "EOF" in refused(Path("/proc/self/environ"))


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_a_config_that_is_a_pipe_is_not_opened(tmp_path: Path, name: str):
    os.mkfifo(tmp_path / name)
    with pytest.raises(BrokenArtifact, match="a pipe, a socket or a device"):
        FolderFiles(tmp_path).json(name)


@pytest.mark.parametrize(("place", "value"), [("steps", True), ("batch", False), ("lr", True)])
def test_truth_is_no_number(place: str, value: bool):
    """pydantic alone takes true as 1."""
    with pytest.raises(ValidationError, match=f"{place} is {str(value).lower()}, neither true nor false may stand there"):
        OptimSpec.model_validate({place: value})
    assert OptimSpec.model_validate({"sharkfin": False}).sharkfin is False
