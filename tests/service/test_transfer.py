"""Files to and from storage: what counts as one, what a folder at work looks like at one moment, what is sent again."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractor import files
from extractor.errors import BrokenArtifact, DiskFull
from worker.storage import checkpoints, results, transfer
from worker.storage.checkpoints import Snapshots, Unstable, freeze
from worker.storage.store import Store

SHA = "0" * 64
TOKEN = "a" * 16


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store((tmp_path / "store").as_uri())


def snapshots_of(store: Store, home: Path, token: str = TOKEN) -> Snapshots:
    (home / "result").mkdir(parents=True, exist_ok=True)
    return Snapshots(store, "job", token, home / "result", home / ".upload")


@given(st.text(max_size=40))
def test_a_plain_name_never_leads_out_of_its_folder(name: str):
    if transfer.is_plain(name):
        root = Path("/root/of/it")
        assert (root / name).is_relative_to(root)
        assert ".." not in Path(name).parts
        assert (root / name).as_posix() == f"{root}/{name}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"files": []}',
        '{"files": {"a": 1}}',
        '{"files": {"a": {}}}',
        json.dumps({"files": {"a": {"sha256": "0" * 63, "bytes": 1}}}),
        json.dumps({"files": {"a": {"sha256": SHA, "bytes": -1}}}),
        json.dumps({"files": {"a": {"sha256": SHA, "bytes": True}}}),
        json.dumps({"files": {"a": {"sha256": SHA, "bytes": "1"}}}),
        json.dumps({"files": {name: {"sha256": SHA, "bytes": 1} for name in ("a", "a/b")}}),
        "[" * 100_000,
    ],
)
def test_a_list_of_files_that_is_none_is_refused_in_one_line(text: str):
    with pytest.raises(BrokenArtifact, match="the list") as caught:
        transfer.parse_listing(text.encode(), "the list")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_sends_only_what_changed_and_restores_exactly(store: Store, tmp_path: Path):
    here = snapshots_of(store, tmp_path / "a")
    folder = tmp_path / "a" / "result"
    (folder / "model").mkdir()
    (folder / "model" / "w").write_bytes(b"x" * 1000)
    (folder / "log").write_text("1\n")
    (folder / "half.tmp").write_text("no")
    first = here.save()
    assert first is not None
    assert first.sent == 1002
    here.commit(first)
    assert here.save() is None
    with open(folder / "log", "a") as file:
        file.write("2\n")
    second = here.save()
    assert second is not None
    assert second.sent == 4
    there = snapshots_of(store, tmp_path / "b", "b" * 16)
    other = tmp_path / "b" / "result"
    (other / "stale").write_text("from an earlier attempt")
    there.restore(second.pointer, is_local=False)
    assert {p.name: p.read_text() for p in other.rglob("*") if p.is_file()} == {"w": "x" * 1000, "log": "1\n2\n"}
    assert there.save() is None, "what was restored is not sent back"


def test_old_checkpoints_go_but_for_the_last_two_and_what_they_share(store: Store, tmp_path: Path):
    here, folder = snapshots_of(store, tmp_path / "a"), tmp_path / "a" / "result"
    (folder / "same").write_text("same")
    pointers = []
    for number in range(4):
        (folder / f"step-{number}").write_text(str(number))
        (folder / f"step-{number - 2}").unlink(missing_ok=True)
        draft = here.save()
        assert draft is not None
        here.commit(draft)
        here.drop_old()
        pointers.append(draft.pointer)
    kept = {key.partition("/")[2] for key in store.entries("job")}
    assert {key.rpartition("/")[0] for key in kept if key.endswith("snapshot.json")} == set(pointers[-2:])
    assert {Path(key).name for key in kept} == {"snapshot.json", "same", "step-1", "step-2", "step-3"}
    for pointer in pointers[-2:]:
        snapshots_of(store, tmp_path / pointer.replace("/", "-")).restore(pointer, is_local=False)


def test_a_checkpoint_that_was_never_published_is_sent_again_under_a_new_name(store: Store, tmp_path: Path):
    here, folder = snapshots_of(store, tmp_path / "a"), tmp_path / "a" / "result"
    (folder / "x").write_text("x")
    lost = here.save()
    again = here.save()
    assert lost is not None
    assert again is not None
    assert again.pointer != lost.pointer
    assert again.sent == 0


@pytest.mark.parametrize("pointer", ["../../x/000001", "a" * 16, f"{'a' * 16}/1", "", f"{'A' * 16}/000001"])
def test_a_pointer_that_is_none_reads_nothing(store: Store, tmp_path: Path, pointer: str):
    with pytest.raises(BrokenArtifact):
        snapshots_of(store, tmp_path).restore(pointer, is_local=False)


def test_a_checkpoint_names_files_of_its_own_job_alone(store: Store, tmp_path: Path):
    store.put("other/secret", b"s")
    facts = {"sha256": SHA, "bytes": 1, "key": "other/secret"}
    store.put(f"job/{TOKEN}/000001/snapshot.json", json.dumps({"files": {"secret": facts}}).encode())
    with pytest.raises(BrokenArtifact, match="does not belong to this job"):
        snapshots_of(store, tmp_path).restore(f"{TOKEN}/000001", is_local=False)


def test_a_folder_is_frozen_as_it_was_at_one_moment(tmp_path: Path):
    """A writer moves one name along; every picture must show exactly one, whole."""
    folder, done = tmp_path / "result", threading.Event()
    folder.mkdir()
    (folder / "000").write_text("000")

    def write() -> None:
        number = 0
        while not done.is_set():
            (folder / f"{number + 1:03d}.tmp").write_text(f"{number + 1:03d}")
            (folder / f"{number + 1:03d}.tmp").rename(folder / f"{number + 1:03d}")
            (folder / f"{number:03d}").unlink()
            number = (number + 1) % 900
            time.sleep(0.002)

    writer = threading.Thread(target=write)
    writer.start()
    pictures = 0
    try:
        for _ in range(100):
            try:
                seen = freeze(folder, tmp_path / "frozen")
            except Unstable:
                continue
            pictures += 1
            assert 1 <= len(seen) <= 2, "between two steps there are two"
            assert all((tmp_path / "frozen" / name).read_text() == name for name in seen)
    finally:
        done.set()
        writer.join()
    assert pictures


def test_a_listing_that_misses_a_name_while_others_move_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file system may leave out a name that is there all the time when names beside it come and go."""
    folder = tmp_path / "result"
    folder.mkdir()
    (folder / "stays").write_text("stays")
    walk, calls = os.walk, []

    def missing(top: Path):
        calls.append(top)
        for path, folders, names in walk(top):
            yield path, folders, [] if len(calls) <= 2 else names
        (folder / "moved.tmp").touch()
        (folder / "moved.tmp").unlink()

    monkeypatch.setattr(checkpoints.os, "walk", missing)
    with pytest.raises(Unstable):
        freeze(folder, tmp_path / "frozen")
    calls[:] = []
    monkeypatch.setattr(checkpoints.os, "walk", lambda top: missing(top) if len(calls) < 2 else walk(top))
    assert set(freeze(folder, tmp_path / "frozen")) == {"stays"}


def test_a_disk_without_hard_links_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(checkpoints.os, "link", refuse)
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "x").write_text("x")
    assert set(freeze(tmp_path / "result", tmp_path / "frozen")) == {"x"}
    assert (tmp_path / "frozen" / "x").read_text() == "x"


def test_memory_is_storage_too_within_a_process():
    store = Store("memory://here")
    store.check()
    store.put("a/b", b"12345")
    assert store.read("a/b", 1, 3) == b"23"
    assert {key: entry.size for key, entry in store.entries("a").items()} == {"a/b": 5}
    store.remove(["a/b"])
    assert store.entries() == {}


def test_a_disk_that_is_full_under_a_copied_result_is_no_wrong_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "result.json").write_text("{}")
    files.write_manifest(tmp_path / "result")

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(results.shutil, "copyfile", full)
    with pytest.raises(DiskFull, match=r"disk full while writing .*out"):
        results.copy(tmp_path / "result", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["result"], "nothing is half-written"
