"""A job uses only folders of its own: nothing of another user, no link, nothing of another server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from service_machine import circuit_spec, wait_for

from extractor.errors import OutputError
from extractor.jobs import bridged_cache
from worker import processes
from worker.storage.layout import MARKER, read_marker
from worker.supervision import job_folder
from worker.supervision.attempt import WorkerContext, WorkerFlags, run_job
from worker.supervision.job_folder import check_own, claim_folder
from worker.supervision.shared_bridging import FOLDER

LINKS = (
    "job.json",
    "job.json.tmp",
    "engine.log",
    "engine.log.pid",
    "engine.log.read",
    "log.jsonl",
    "result/model",
    "result/circuits",
    "result/.work",
)


def attempt(machine, job: str) -> str:
    """One attempt at a job, in this process."""
    url = machine.service.url
    return run_job(job, WorkerContext("w@h", url, machine.settings, WorkerFlags(), lambda _: None))


@pytest.mark.parametrize("name", LINKS)
def test_a_link_in_a_job_s_folder_fails_the_job_and_nothing_is_written_through_it(machine, name):
    victim = machine.home / "victim"
    victim.mkdir() if name.startswith("result") else victim.write_text("mine")
    link = machine.settings.root / machine.submit("linked") / name
    link.parent.mkdir(parents=True)
    link.symlink_to(victim)
    assert attempt(machine, "linked") == "failed"
    assert f"{link} is a link" in machine.records.need("linked")["error_message"]
    assert list(victim.iterdir()) == [] if victim.is_dir() else victim.read_text() == "mine"
    assert [p.name for p in machine.settings.root.rglob("*") if p.is_symlink() or not p.is_dir()] == [link.name]


@pytest.mark.parametrize("what", ["", "engine.log", "result"])
def test_a_folder_of_another_user_is_not_used(machine, monkeypatch, what):
    folder = machine.settings.root / machine.submit("foreign")
    (folder / "result").mkdir(parents=True)
    (folder / "engine.log").touch()
    place, facts = folder / what, Path.lstat

    def lstat(path):
        found = facts(path)
        return os.stat_result((*found[:4], found.st_uid + 1, *found[5:])) if path == place else found

    monkeypatch.setattr(Path, "lstat", lstat)
    assert attempt(machine, "foreign") == "failed"
    assert f"{place} belongs to another user" in machine.records.need("foreign")["error_message"]
    assert not (folder / "log.jsonl").exists()


def test_a_disk_that_maps_all_users_to_one_is_no_other_user(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    monkeypatch.setattr(job_folder, "_owner_of_new_files", lambda _: os.getuid())
    check_own(tmp_path)
    monkeypatch.setattr(job_folder, "_owner_of_new_files", lambda _: os.getuid() + 1)
    with pytest.raises(OutputError, match="another user"):
        check_own(tmp_path)


def test_the_job_of_another_server_is_left_alone_with_its_engine(machine, tmp_path):
    folder = machine.settings.root / machine.submit("both")
    claim_folder(folder, "another server")
    before = sorted(folder.iterdir())
    assert attempt(machine, "both") == "failed"
    assert "is a job of another server" in machine.records.need("both")["error_message"]
    assert sorted(folder.iterdir()) == before
    assert read_marker(folder / MARKER) == "another server"


def test_a_folder_of_an_earlier_version_is_marked(machine):
    folder = machine.settings.root / machine.submit("old")
    (folder / "result" / ".work").mkdir(parents=True)
    machine.plan(steps=1)
    assert attempt(machine, "old") == "succeeded"
    assert read_marker(folder / MARKER) == machine.records.server_id()


@pytest.mark.parametrize("inside", [False, True])
def test_bridged_models_that_are_linked_in_are_not_used(machine, inside):
    spec = circuit_spec().model_copy(update={"model": "python-tiny"})
    address = bridged_cache.address(spec, machine.settings.threads)
    elsewhere = machine.home / "elsewhere"
    elsewhere.mkdir()
    path = machine.settings.root / FOLDER / address if inside else machine.settings.root / FOLDER
    path.parent.mkdir(parents=True)
    path.symlink_to(elsewhere)
    machine.submit("mine", spec)
    assert attempt(machine, "mine") == "failed"
    assert f"{path} is a link" in machine.records.need("mine")["error_message"]


def test_an_engine_that_another_worker_kills_does_not_blame_the_memory(machine):
    import threading

    from extractor.spec.schema import to_json
    from worker.supervision import engine

    machine.plan(steps=1000, seconds=0.05)
    spec, log, ended = machine.home / "spec.json", machine.home / "out" / "log", []
    spec.write_text(to_json(circuit_spec()))
    arguments = (spec, machine.home / "out", log, machine.settings, lambda _: None, lambda: "")
    runs = threading.Thread(target=lambda: ended.append(engine.supervise(*arguments)))
    runs.start()
    wait_for(lambda: processes.read_pid(log.with_name("log.pid")), "the engine to start")
    assert engine.end_stray_engine(log, wait=10)
    runs.join(10)
    assert str(ended[0].error) == "the engine was killed by another worker, which took over its job"
