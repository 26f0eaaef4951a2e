"""Files that are whole or absent."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from extractor.errors import BrokenArtifact, ExtractorError, OutputError
from extractor.files import (
    new_folder,
    read_json,
    read_tensors,
    sha256,
    verify_manifest,
    write_json,
    write_manifest,
    write_tensors,
    write_text,
)
from extractor.jobs.output import check_output
from extractor.training.checkpoints import MetricsLog


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A small result with its manifest."""
    folder = tmp_path / "result"
    (folder / "model").mkdir(parents=True)
    (folder / ".work").mkdir()
    write_json(folder / "result.json", {"loss": 0.1})
    write_tensors(folder / "model" / "w.safetensors", {"w": torch.arange(4.0)})
    write_text(folder / ".work" / "scratch", "left over")
    write_manifest(folder)
    return folder


def broken(folder: Path) -> str:
    with pytest.raises(BrokenArtifact) as caught:
        verify_manifest(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite_manifest(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: {"sha256": sha256(folder / "result.json"), "bytes": 1}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_manifest_lists_every_file_but_itself_and_scratch(finished: Path):
    files = verify_manifest(finished)
    assert set(files) == {"result.json", "model/w.safetensors"}
    assert files["result.json"]["bytes"] == (finished / "result.json").stat().st_size


def test_sha256_by_a_known_digest(tmp_path: Path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_one_changed_byte_is_found(finished: Path):
    content = bytearray((finished / "model" / "w.safetensors").read_bytes())
    content[-1] ^= 1
    (finished / "model" / "w.safetensors").write_bytes(content)
    assert "w.safetensors was altered" in broken(finished)


def test_a_missing_file_is_found(finished: Path):
    (finished / "result.json").unlink()
    assert "result.json is missing" in broken(finished)


def test_a_manifest_may_not_lead_out_of_its_folder(finished: Path):
    (finished.parent / "secret").write_bytes((finished / "result.json").read_bytes())
    rewrite_manifest(finished, "../secret")
    assert "not a plain file inside the folder" in broken(finished)
    rewrite_manifest(finished, str(finished.parent / "secret"))
    assert "not a plain file inside the folder" in broken(finished)


def test_a_link_in_place_of_a_file_is_found(finished: Path):
    (finished.parent / "elsewhere").write_bytes((finished / "result.json").read_bytes())
    (finished / "result.json").unlink()
    (finished / "result.json").symlink_to(finished.parent / "elsewhere")
    assert "not a plain file inside the folder" in broken(finished)


def test_a_linked_folder_on_the_way_is_found(finished: Path):
    (finished / "model").rename(finished.parent / "moved")
    (finished / "model").symlink_to(finished.parent / "moved")
    assert "not a plain file inside the folder" in broken(finished)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 3}', "null", '{"files": {"result.json": null}}'])
def test_a_manifest_that_is_none_is_refused(finished: Path, text: str):
    (finished / "manifest.json").write_text(text)
    broken(finished)


def test_a_new_folder_appears_whole(tmp_path: Path):
    with new_folder(tmp_path / "model") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "model").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "a").read_text() == "1"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_new_folder_leaves_nothing(tmp_path: Path, error: type[BaseException]):
    def fill() -> None:
        with new_folder(tmp_path / "model") as folder:
            (folder / "a").write_text("1")
            raise error

    with pytest.raises(error):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_of_a_folder_is_thrown_away(tmp_path: Path):
    (tmp_path / "model.tmp").mkdir()
    (tmp_path / "model.tmp" / "old").write_text("half")
    with new_folder(tmp_path / "model") as folder:
        (folder / "new").write_text("whole")
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["new"]


def refused(folder: Path, text: str = "spec") -> str:
    with pytest.raises(OutputError) as caught:
        check_output(folder, text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_new_or_empty_output_folder_gets_the_spec(tmp_path: Path):
    check_output(tmp_path / "a" / "b", "spec")
    assert (tmp_path / "a" / "b" / "spec.json").read_text() == "spec"
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty", "spec")
    assert (tmp_path / "empty" / "spec.json").read_text() == "spec"


def test_the_same_spec_may_go_on_in_its_folder_and_another_may_not(tmp_path: Path):
    check_output(tmp_path / "out", "spec")
    check_output(tmp_path / "out", "spec")
    assert "another spec" in refused(tmp_path / "out", "other")


def test_a_file_is_no_output_folder(tmp_path: Path):
    (tmp_path / "file").write_text("precious")
    assert "is a file" in refused(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_foreign_folder_is_left_alone(tmp_path: Path):
    (tmp_path / "theirs").write_text("precious")
    assert "has no spec.json" in refused(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["theirs"]


def test_a_folder_below_a_file_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    assert "cannot be written" in refused(tmp_path / "file" / "out")


def test_a_read_only_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def read_only(self, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert "cannot be written (Read-only file system); name another" in refused(tmp_path / "out")


def test_a_job_killed_between_its_folder_and_its_spec_can_start_again(tmp_path: Path):
    (tmp_path / "out" / ".work").mkdir(parents=True)
    (tmp_path / "out" / "spec.json.tmp").write_text("half")
    check_output(tmp_path / "out", "spec")
    assert (tmp_path / "out" / "spec.json").read_text() == "spec"


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def no_space_in_rust(*_, **__):
    from safetensors import SafetensorError

    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def full_disk(write) -> None:
    with pytest.raises(ExtractorError, match="disk full while writing") as caught:
        write()
    assert "\n" not in str(caught.value)
    assert "it resumes" in str(caught.value)


def test_a_full_disk_is_one_line_and_keeps_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_text(tmp_path / "a.json", "old")
    monkeypatch.setattr(os, "fsync", no_space)
    full_disk(lambda: write_text(tmp_path / "a.json", "new"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


@pytest.mark.parametrize("fail", [no_space, no_space_in_rust])
def test_a_full_disk_is_one_line_and_leaves_no_half_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail):
    def half(_tensors, path, _metadata=None):
        Path(path).write_bytes(b"half")
        fail()

    monkeypatch.setattr("safetensors.torch.save_file", half)
    full_disk(lambda: write_tensors(tmp_path / "a.safetensors", {"w": torch.zeros(1)}))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_under_the_log_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(json, "dumps", no_space)
    full_disk(lambda: MetricsLog(tmp_path / "m.jsonl").write("train", 0, {"loss": 1.0}))


def test_other_write_errors_keep_their_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def denied(_fd):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "fsync", denied)
    with pytest.raises(PermissionError):
        write_text(tmp_path / "a", "x")
    assert list(tmp_path.iterdir()) == []


def test_tensors_survive_their_file(tmp_path: Path):
    tensors = {"strided": torch.arange(6.0).view(2, 3).T, "whole": torch.tensor([1, 2]), "none": torch.zeros(0)}
    write_tensors(tmp_path / "a", tensors)
    read = read_tensors(tmp_path / "a")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("content", [b"", b"garbage garbage garbage", None])
def test_a_file_that_is_no_tensor_file_is_broken(tmp_path: Path, content: bytes | None):
    write_tensors(tmp_path / "a", {"w": torch.zeros(100)})
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-40] if content is None else content)
    with pytest.raises(BrokenArtifact, match="not a readable safetensors file"):
        read_tensors(tmp_path / "a")
    with pytest.raises(BrokenArtifact):
        read_tensors(tmp_path / "nowhere")
    with pytest.raises(BrokenArtifact):
        read_json(tmp_path / "a")
