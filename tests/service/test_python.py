"""`extractor.jobs()` and `extractor.load(JOB)`: what Python sees of the service, beside a real server; neither starts anything."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path

import pytest
from service_machine import Machine, circuit_spec, our_processes, train_spec
from worlds import ROOT

import extractor
from extractor.errors import NotFound, ServiceUnavailable, UsageError

RESULT = ROOT / "tests" / "frozen" / "result"  # of for_while


def finished(machine: Machine, job: str) -> Path:
    """A job that has succeeded with the stored circuit: its result folder."""
    folder = machine.settings.root / machine.submit(job, circuit_spec("for_while")) / "result"
    shutil.copytree(RESULT, folder)
    machine.records.claim(job, "token", 60, "host", "worker", "")
    machine.records.end(job, "token", "succeeded", str(folder))
    return folder


def ended(machine: Machine, job: str, state: str, error: tuple[str, str]) -> None:
    machine.submit(job, train_spec(7))
    machine.records.claim(job, "token", 60, "host", "worker", "")
    machine.records.end(job, "token", state, "", error)


def test_jobs_are_those_of_extract_list_newest_first(machine: Machine):
    finished(machine, "first")
    machine.submit("second", circuit_spec("quote_close", "for_while"))
    ended(machine, "third", "failed", ("TrainingDiverged", "the loss is \x1b[31mno number"))
    found = extractor.jobs()
    assert [job.facts for job in found] == machine.extract("list", "--json").json
    assert [(job.id, job.state, job.kind, job.tasks, job.model) for job in found] == [
        ("third", "failed", "train", (), None),
        ("second", "queued", "circuit", ("quote_close", "for_while"), "somewhere"),
        ("first", "succeeded", "circuit", ("for_while",), "somewhere"),
    ]
    assert all(abs((datetime.now().astimezone() - job.created).total_seconds()) < 60 for job in found)
    assert found["second"] is found[1]
    assert [job.id for job in found[:2]] == ["third", "second"]
    assert [job.id for job in extractor.jobs(1)] == ["third"]
    assert "first" in repr(found)
    assert "\x1b" not in repr(found) + repr(found[0]) + found._repr_html_()
    assert repr(found[:1]) != repr(found)
    assert "the loss is" in repr(found[0])
    with pytest.raises(NotFound, match="job 'fourth' is not among these 3"):
        found["fourth"]
    with pytest.raises(AttributeError, match=r"use jobs\(\)\[0\].load\(\)"):
        found.load  # noqa: B018 - the access is the test
    with pytest.raises(AttributeError, match=r"use \.state"):
        found[0].status  # noqa: B018 - the access is the test


def test_jobs_of_batches_are_listed_on_demand(machine: Machine):
    machine.submit("alone")
    machine.records.create("grouped", {"spec": "{}", "kind": "train", "max_attempts": 2, "group": "batch"})
    assert [job.id for job in extractor.jobs()] == ["alone"]
    assert [job.id for job in extractor.jobs(all=True)] == ["grouped", "alone"]


def test_a_job_id_opens_its_result(machine: Machine):
    folder = finished(machine, "done")
    machine.submit("later")
    for result in (extractor.load("done"), extractor.load(), extractor.jobs()["done"].result, extractor.load(extractor.jobs()["done"])):
        assert (result.folder, result.task) == (folder, "for_while")
    assert extractor.load("done", "for_while").circuit == extractor.load(RESULT).circuit
    with pytest.raises(UsageError, match="has no circuit of 'quote_close'"):
        extractor.jobs()["done"].load("quote_close")
    with pytest.raises(NotFound, match="job later has no result yet: it is queued"):
        extractor.load("later")
    with pytest.raises(NotFound, match="neither a folder nor a finished job 'nothing'"):
        extractor.load("nothing")


def test_a_folder_goes_before_a_job_of_its_name(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    finished(machine, "done")
    shutil.copytree(RESULT, tmp_path / "done")
    monkeypatch.chdir(tmp_path)
    assert extractor.load("done").folder == Path("done")


def test_nothing_is_started(machine: Machine):
    assert extractor.jobs() == []
    assert "extract submit" in repr(extractor.jobs())
    with pytest.raises(NotFound, match="no job with a circuit has finished yet"):
        extractor.load()
    assert our_processes(machine.home) == []
    folder = finished(machine, "done")
    machine.submit("waits")
    server = our_processes(machine.home)
    assert len(extractor.jobs()) == 2
    assert our_processes(machine.home) == server, "no worker, though a job waits"
    assert machine.extract("server", "stop").code == 0
    with pytest.raises(ServiceUnavailable, match="does not run: `extract list` starts it"):
        extractor.jobs()
    assert extractor.load("done").folder == folder, "its files are enough"
    with pytest.raises(NotFound, match="`extract list` starts it"):
        extractor.load("waits")
    assert our_processes(machine.home) == []


def test_a_server_that_does_not_answer_is_said_in_a_line(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EXTRACT_REDIS_URL", "redis://127.0.0.1:1")
    for ask in (extractor.jobs, lambda: extractor.load("done"), extractor.load):
        with pytest.raises(ServiceUnavailable, match=r"redis://127.0.0.1:1 cannot be reached") as refused:
            ask()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("limit", [0, -1, "k3v9x2mq", True])
def test_a_limit_is_a_number_of_jobs(limit: object):
    with pytest.raises(UsageError, match=r"limit is the largest number of jobs"):
        extractor.jobs(limit)


def test_a_list_of_jobs_becomes_a_frame(machine: Machine):
    pandas = pytest.importorskip("pandas")
    machine.submit("only")
    frame = extractor.jobs().to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame[["id", "state", "kind"]].to_numpy().tolist() == [["only", "queued", "train"]]


@pytest.mark.parametrize("created", [None, "1e30", "soon"])
def test_a_record_without_a_credible_time_is_listed(machine: Machine, created: str | None):
    machine.submit("old")
    machine.records.client.hdel("ex:job:old", "created")
    if created is not None:
        machine.records.client.hset("ex:job:old", "created", created)
    found = extractor.jobs()
    assert found[0].created is None
    assert "old" in repr(found)
    assert "old" in found._repr_html_()
