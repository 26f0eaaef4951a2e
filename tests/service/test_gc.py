"""`extract gc`: what nothing refers to goes, all else stays; in folders and in S3."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

import pytest
from s3 import TOKEN, finish
from service_machine import circuit_spec, train_spec

from extractor.spec.schema import to_json
from worker.client.service import Service
from worker.client.submit import submit_again
from worker.storage.layout import MARKER
from worker.sweeps import jobs

OTHER = "f" * 16
DAY = 86400


def age(folder: Path, days: float) -> None:
    """As if nothing in it had changed since."""
    when = time.time() - days * DAY
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (when, when), follow_symlinks=False)


def leave(machine, job: str, state: str, days: float = 60, spec=None) -> Path:
    """The folder of a job that came to that state so long ago; 'gone': its record has expired."""
    machine.submit(job, spec)
    folder = machine.settings.root / job
    machine.mark(folder)
    (folder / "result" / ".work").mkdir(parents=True)
    (folder / "job.json").write_text("{}")
    (folder / "result" / ".work" / "checkpoint.json").write_text("x" * 1000)
    if state in ("running", "failed"):
        machine.records.claim(job, "token", 60, "host", "worker", "")
    if state == "failed":
        machine.records.end(job, "token", "failed", error=("ExtractorError", "no luck"))
    if state == "cancelled":
        machine.records.cancel(job)
    if state == "gone":
        machine.records.cancel(job)
        machine.records.client.delete(f"ex:job:{job}")
    age(folder, days)
    return folder


def collect(machine, *options: str) -> dict[str, str]:
    """What went, or would: job -> kind."""
    answer = machine.extract("gc", *options, "--json")
    assert (answer.code, answer.err) == (0, "")
    return {item["job"]: item["kind"] for item in answer.json["items"]}


def test_failed_cancelled_and_forgotten_jobs_go_once_they_are_old_enough_and_no_others(machine):
    gone = {leave(machine, f"old-{state}", state) for state in ("failed", "cancelled", "gone")}
    kept = {leave(machine, f"new-{state}", state, days=1) for state in ("failed", "cancelled", "gone")}
    kept |= {leave(machine, "waiting", "queued"), leave(machine, "working", "running")}
    foreign = machine.settings.root / "photos"
    foreign.mkdir()
    (foreign / "me.jpg").write_text("x")
    age(foreign, 900)
    (machine.settings.root / "a-link").symlink_to(foreign)
    expected = {folder.name: "job" for folder in gone}
    dry = machine.extract("gc", "--dry-run", "--json").json
    assert {item["job"]: item["kind"] for item in dry["items"]} == expected
    assert dry["bytes"] >= 3000
    assert all(folder.is_dir() for folder in gone | kept)
    assert collect(machine) == expected
    assert not any(folder.exists() for folder in gone)
    assert all((folder / "job.json").is_file() for folder in kept)
    assert (foreign / "me.jpg").is_file()
    assert (machine.settings.root / "a-link").is_symlink()
    assert not list(machine.settings.root.glob(".gc-*"))
    assert collect(machine) == {}
    assert machine.extract("gc").out == "nothing to delete\n"


def test_a_finished_result_stays_without_its_record_unless_it_is_asked_for(machine):
    folder = machine.finish("done").parent
    machine.records.client.delete("ex:job:done")
    (folder / "result" / ".work").mkdir(exist_ok=True)
    (folder / "result" / ".work" / "left").write_text("x")
    age(folder, 60)
    assert collect(machine) == {"done": "checkpoints"}
    assert not (folder / "result" / ".work").exists()
    assert machine.extract("result", "done", "--json").code == 0
    age(folder, 60)
    assert collect(machine) == {}
    assert collect(machine, "--results", "--older-than", "90d") == {}
    assert collect(machine, "--results") == {"done": "result"}
    assert machine.extract("result", "done").code == 3


def test_what_an_open_job_names_stays(machine):
    for job in ("source", "stored", "other"):
        leave(machine, job, "failed")
    path = machine.settings.root / "source" / "result" / "model"
    machine.submit("a", circuit_spec().model_copy(update={"model": str(path)}))
    machine.submit("b", circuit_spec().model_copy(update={"model": f"job:stored/{TOKEN}"}))
    assert collect(machine) == {"other": "job"}
    machine.records.cancel("a")
    machine.records.cancel("b")
    assert collect(machine) == {"source": "job", "stored": "job"}


def test_the_jobs_of_a_sweep_stay(machine):
    machine.extract("sweep", "--grid", "width=64", "--no-worker", "--json")
    plan = next((machine.state / "sweeps").glob("*/plan.json"))
    job = json.loads(plan.read_text())["points"][0]["job"]
    sweep = jobs.open_plan(machine.settings, plan.parent.name)
    machine.records.cancel(job)
    leave(machine, "other", "failed")
    folder = machine.settings.root / job
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(to_json(sweep.points[0].spec))
    age(folder, 60)
    assert collect(machine) == {"other": "job"}
    assert folder.is_dir()
    plan.write_text("{")
    answer = machine.extract("gc")
    assert answer.code == 1, "when it cannot be told what a sweep refers to, nothing goes"
    assert answer.err.count("\n") == 1
    plan.unlink()
    assert collect(machine) == {job: "job"}


def test_a_folder_that_an_engine_works_in_stays_whatever_the_records_say(machine):
    folder = leave(machine, "busy", "gone")
    with open(folder / "engine.log", "a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        age(folder, 60)
        assert collect(machine) == {}
    age(folder, 60)
    assert collect(machine) == {"busy": "job"}


def test_a_job_that_is_queued_again_between_looking_and_removing_stays(machine, monkeypatch):
    from worker import garbage

    folder = leave(machine, "again", "failed")
    service = machine.service
    items = garbage.find(service, 30 * DAY, False)
    assert [item.job for item in items] == ["again"]
    without = Service(machine.settings, service.url, service.records)
    monkeypatch.setenv("EXTRACT_NO_WORKER", "1")
    submit_again(Service(machine.settings, without.url, without.records), train_spec(), "again")
    assert garbage.remove(service, items) == []
    assert (folder / "job.json").is_file()


@pytest.mark.parametrize("text", ["30", "d", "-1d", "1.5d", "30 d", "9999999d", "∞d"])
def test_a_time_that_is_none_is_refused(machine, text):
    answer = machine.extract("gc", "--older-than", text)
    assert answer.code == 2
    assert answer.err.count("\n") == 1


def test_in_storage_leftovers_go_and_results_stay(machine, bucket):
    prefix = finish(machine, bucket)
    bucket.put(f"done/{OTHER}/000001/files/result/x", b"a zombie's")
    bucket.put(f"done/{OTHER}/result/manifest.json", b"{}")
    for job, end in (("failed", True), ("waiting", False), ("forgotten", None)):
        machine.submit(job)
        bucket.put(f"{job}/{TOKEN}/000001/snapshot.json", b"{}")
        if end:
            machine.records.cancel(job)
        if end is None:
            machine.records.cancel(job)
            machine.records.client.delete(f"ex:job:{job}")
            bucket.put(f"{job}/{TOKEN}/{MARKER}", json.dumps({"server": machine.records.server_id()}).encode())
    for job, marker in (("foreign", b'{"server": "another"}'), ("unmarked", None), ("odd", b"[")):
        bucket.put(f"{job}/{TOKEN}/000001/snapshot.json", b"{}")
        if marker is not None:
            bucket.put(f"{job}/{TOKEN}/{MARKER}", marker)
    bucket.put("photos/me.jpg", b"x")
    result = {key for key in bucket.keys("done") if key.startswith(prefix)}
    assert collect(machine) == {}, "all of it is new"
    assert collect(machine, "--older-than", "0s", "--dry-run") == {"failed": "job", "forgotten": "job"}
    assert collect(machine, "--older-than", "0s") == {"failed": "job", "forgotten": "job"}
    assert bucket.keys("failed") == bucket.keys("forgotten") == []
    assert all(bucket.keys(job) for job in ("waiting", "foreign", "unmarked", "odd"))
    assert bucket.keys("photos")
    machine.records.client.delete("ex:job:done")
    assert result < set(bucket.keys("done"))
    assert collect(machine, "--older-than", "0s", "--results") == {"done": "result"}
    assert bucket.keys("done") == []


def test_what_attempts_left_that_lost_a_finished_job_goes_after_an_hour(machine, bucket, monkeypatch):
    from worker import garbage

    prefix = finish(machine, bucket)
    kept = set(bucket.keys("done"))
    bucket.put(f"done/{OTHER}/000001/files/result/x", b"a zombie's")
    bucket.put(f"done/{OTHER}/result/manifest.json", b"{}")
    monkeypatch.setattr(garbage, "SETTLED", -60)
    assert collect(machine) == {"done": "checkpoints"}
    assert set(bucket.keys("done")) == kept
    assert f"{prefix}/manifest.json" in kept


def test_scratch_and_fetched_results_of_this_machine_go(machine, bucket):
    finish(machine, bucket)
    assert machine.extract("result", "done").code == 0
    cache, root = machine.home / "cache" / "results" / "done" / TOKEN, machine.settings.root
    assert (cache / "manifest.json").is_file()
    for job, is_over in (("over", True), ("open", False)):
        machine.submit(job)
        (root / job).mkdir(parents=True)
        (root / job / "job.json").write_text("{}")
        if is_over:
            machine.records.cancel(job)
        age(root / job, 1)
    assert collect(machine) == {"over": "scratch"}
    assert (root / "open" / "job.json").is_file()
    age(cache, 60)
    machine.submit("next", circuit_spec().model_copy(update={"model": f"job:done/{TOKEN}"}))
    assert collect(machine) == {}
    machine.records.cancel("next")
    assert collect(machine) == {"done": "fetched"}
    assert not cache.exists()
    assert machine.extract("result", "done").code == 0, "it is fetched once more"


def test_storage_that_is_away_removes_nothing_and_says_so(machine, bucket):
    finish(machine, bucket)
    bucket.network.down()
    answer = machine.extract("gc", "--older-than", "0s", "--results")
    assert (answer.code, answer.out) == (4, "")
    assert answer.err.count("\n") == 1
    assert bucket.keys("done")


def test_the_jobs_of_a_batch_stay_as_long_as_its_plan(machine, models):
    submitted = machine.extract(
        "batch", "submit", "--models", str(models), "--limit", "1", "--task", "quote_close", "--no-worker", "--json"
    )
    assert submitted.code == 0, submitted.err
    batch, (job,) = submitted.json["batch"], submitted.json["queued"]
    machine.records.cancel(job)
    leave(machine, "other", "failed")
    folder = machine.settings.root / job
    folder.mkdir(parents=True)
    (folder / "job.json").write_text("{}")
    age(folder, 60)
    assert collect(machine) == {"other": "job"}
    machine.records.client.set("ex:batch:odd", "{")
    machine.records.client.zadd("ex:batches", {"odd": 0})
    answer = machine.extract("gc")
    assert answer.code == 1, "when it cannot be told what a batch refers to, nothing goes"
    assert answer.err.count("\n") == 1
    machine.records.client.delete(f"ex:batch:{batch}", "ex:batch:odd")
    assert collect(machine) == {job: "job"}


def test_a_kept_bridged_model_goes_when_no_job_asked_for_it_for_long(machine):
    machine.worker()
    machine.wait_state(machine.submit("first", circuit_spec("quote_close")), "succeeded")
    (kept,) = (machine.settings.root / ".twins").iterdir()
    half = kept.with_name(f"{kept.name}-123")
    half.mkdir()
    (half / "left").write_text("x")
    age(half, 1)
    assert collect(machine) == {None: "partial"}
    age(kept, 60)
    machine.wait_state(machine.submit("later", circuit_spec("with_as")), "succeeded")
    assert collect(machine) == {}, "a job has used it"
    age(kept, 60)
    assert collect(machine, "--dry-run") == {None: "twin"}
    assert kept.is_dir()
    assert collect(machine) == {None: "twin"}
    assert not list(kept.parent.iterdir())


def test_what_no_record_and_no_marker_of_this_server_names_stays(machine):
    """Another program's folder, another server's waiting job, and a job of both."""
    mine = machine.settings.root / "mytool"
    mine.mkdir(parents=True)
    (mine / "job.json").write_text("{}")
    for job, state in (("theirs", "gone"), ("both", "failed")):
        folder = leave(machine, job, state)
        (folder / MARKER).write_text('{"server": "another"}')
        age(folder, 60)
    age(mine, 60)
    assert collect(machine, "--older-than", "0s", "--results") == {}


def test_a_job_of_a_version_without_markers_goes_as_long_as_it_has_a_record(machine):
    folder = leave(machine, "old", "failed")
    (folder / MARKER).unlink()
    age(folder, 60)
    assert collect(machine) == {"old": "job"}
