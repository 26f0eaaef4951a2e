"""Files that are whole or absent."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest
import torch

from extractor.errors import BrokenArtifact, ExtractorError, OutputError
from extractor.files import (
    cache_root,
    explain_cache,
    new_folder,
    open_private,
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


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable that names a cache."""
    monkeypatch.delenv("EXTRACT_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


def test_without_a_home_folder_the_cache_is_to_be_named(homeless, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda text: text)
    with pytest.raises(OutputError, match=r"no home folder .*set EXTRACT_CACHE_DIR"):
        cache_root()


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null"])
def test_a_home_that_cannot_hold_a_cache_is_one_line(homeless, monkeypatch, home):
    monkeypatch.setenv("HOME", home)
    with pytest.raises(OutputError, match=rf"cache folder {home}/.cache/extract cannot be used .*set EXTRACT_CACHE_DIR"), explain_cache():
        (cache_root() / "corpus").mkdir(parents=True)


def test_a_cache_that_is_read_only_is_one_line_and_other_errors_stay_what_they_are(monkeypatch, tmp_path):
    monkeypatch.setenv("EXTRACT_CACHE_DIR", str(tmp_path))
    for number in (errno.EROFS, errno.EACCES):
        with pytest.raises(OutputError, match="EXTRACT_CACHE_DIR"), explain_cache():
            raise OSError(number, os.strerror(number), str(tmp_path / "corpus" / "x"))
    for number, place in ((errno.ENOENT, tmp_path / "gone"), (errno.EACCES, Path("/elsewhere")), (errno.EIO, tmp_path)):
        with pytest.raises(OSError, match=os.strerror(number)), explain_cache():
            raise OSError(number, os.strerror(number), str(place))
    with pytest.raises(ConnectionError), explain_cache():
        raise ConnectionError("no file at all")


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_all_files_of_a_result_have_the_mode_that_the_umask_gives(tmp_path, mask):
    before = os.umask(mask)
    try:
        folder = tmp_path / "result"
        (folder / "model").mkdir(parents=True)
        write_tensors(folder / "model" / "w.safetensors", {"w": torch.arange(4.0)})
        (folder / "private").touch(mode=0o600)
        (folder / "program").touch(mode=0o777)
        write_manifest(folder)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("w.safetensors", "private", "program", "manifest.json"), 0o666 & ~mask)
    assert verify_manifest(folder).keys() == {"model/w.safetensors", "private", "program"}


def test_private_state_is_readable_by_its_owner_alone(tmp_path):
    with open_private(tmp_path / "log") as file:
        file.write(b"x")
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600
