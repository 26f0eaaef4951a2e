"""Jobs kept in S3 by machines that share no disk: handed over, fetched, and whole or absent whatever fails."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys

import pytest
from s3 import engine_done, files_of, finish
from service_machine import PROJECT, circuit_spec, wait_for

from extractor.errors import StorageUnavailable
from extractor.spec.schema import parse_job
from worker.client import damaged, submit
from worker.settings import from_env
from worker.storage.layout import MARKER, is_log, is_marker

SLOW = {"steps": 10, "seconds": 0.2, "announce": True}  # two stages of two seconds
MB = 1 << 20


def one_line(answer, *parts):
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1, answer.err
    for part in parts:
        assert part in answer.err


def engine_started_from(machine, job):
    """The step at which each engine began."""
    notes = [event["message"].split() for event in machine.story(job) if event["event"] == "note"]
    return [int(words[-1]) for words in notes if words[0] == "threads"]


def test_a_job_whose_machine_dies_is_finished_by_another_from_its_checkpoint_and_fetched_by_a_third(machine, bucket):
    machine.plan(**SLOW)
    first = machine.worker()
    job = machine.submit()
    bucket.wait_stored(job, 3)
    first.kill()
    machine.worker(**bucket.elsewhere("b"))
    record = machine.wait_state(job, "succeeded")
    assert record["attempt"] == "2"
    begun = engine_started_from(machine, job)
    assert begun[0] == 0 < begun[1]
    assert record["artifact"].startswith(f"{bucket.url}/{job}/")

    attempt = record["artifact"].split("/")[-2]
    wait_for(lambda: not (machine.home / "b" / "state" / "scratch" / job).exists(), "scratch to be removed")
    names = ("log.jsonl", "result/manifest.json", "result/model/config.json", "result/result.json", "result/.work/checkpoint.json")
    kept = {key.removeprefix(f"{job}/{attempt}/") for key in bucket.keys(job) if attempt in key or not (is_log(key) or is_marker(key))}
    assert kept == {*names, MARKER} - {"result/.work/checkpoint.json"}, "only the result, the logs and the markers stay"

    out = machine.home / "c" / "out"
    answer = machine.shell("result", job, "--out", str(out), "--json", **bucket.elsewhere("c"))
    assert (answer.code, answer.err) == (0, "")
    assert sorted(answer.json["files"]) == ["model/config.json", "result.json"]
    done = [int(step) for step in json.loads((out / "result.json").read_text())["steps"]]
    assert done == list(range(1, 21)), "no step is missing and, to the files, none was done twice"
    assert set(files_of(out)) == {"manifest.json", "model/config.json", "result.json"}


def test_a_worker_that_leaves_hands_its_last_step_over(machine, bucket):
    machine.plan(steps=10, seconds=0.1)  # announces nothing before it is stopped
    first = machine.worker()
    job = machine.submit()
    machine.wait_step(job, 5)
    first.terminate()
    assert first.wait(timeout=20) == 0
    record = machine.records.need(job)
    assert (record["state"], record["attempt"]) == ("queued", "0")
    machine.worker(**bucket.elsewhere("b"))
    assert machine.wait_state(job, "succeeded")["attempt"] == "1"
    assert engine_started_from(machine, job)[1] >= 5
    steps = json.loads(bucket.store.get(f"{bucket.result(job)}/result.json"))["steps"]
    assert [int(step) for step in steps] == list(range(1, 21))


def test_the_machine_that_has_the_checkpoint_goes_on_where_its_engine_died(machine, bucket):
    machine.plan(**SLOW)
    worker = machine.worker()
    job = machine.submit()
    bucket.wait_stored(job, 2)
    done = len(machine.steps(job))
    os.kill(machine.engine_pid(job), signal.SIGKILL)
    machine.wait_state(job, "succeeded")
    assert engine_started_from(machine, job)[1] >= done
    assert worker.poll() is None


@pytest.mark.slow
def test_a_zombie_s_uploads_change_nothing_for_the_new_owner(machine, bucket):
    machine.plan(steps=20, seconds=0.15, announce=True)
    zombie = machine.worker()
    job = machine.submit()
    bucket.wait_stored(job, 2)
    with open(f"/proc/{zombie.pid}/task/{zombie.pid}/children") as file:
        frozen = [zombie.pid, *map(int, file.read().split())]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    machine.worker(**bucket.elsewhere("b"))
    wait_for(lambda: len(engine_started_from(machine, job)) == 2, "another machine to take over", 30)
    took = len(bucket.stored(job))
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    record = machine.wait_state(job, "succeeded", seconds=30)
    attempt = record["artifact"].split("/")[-2]
    assert {event["checkpoint"].split("/")[0] for event in bucket.stored(job)[took:]} == {attempt}
    assert machine.extract("result", job, "--out", str(machine.home / "out")).code == 0
    steps = json.loads((machine.home / "out" / "result.json").read_text())["steps"]
    assert [int(step) for step in steps] == list(range(1, 41))
    assert zombie.poll() is None


@pytest.mark.slow
def test_storage_that_goes_away_does_not_stop_the_engine_and_has_everything_once_it_is_back(machine, bucket):
    machine.plan(steps=15, seconds=0.2, announce=True)
    machine.worker()
    job = machine.submit()
    bucket.wait_stored(job, 1)
    bucket.network.down()
    before = len(machine.steps(job))
    wait_for(lambda: any("cannot" in event.get("message", "") for event in machine.story(job)), "the note", 30)
    assert len(machine.steps(job)) > before + 3, "the engine waited"
    bucket.network.up()
    record = machine.wait_state(job, "succeeded", seconds=40)
    assert record["attempt"] == "1"
    notes = [event["message"] for event in machine.story(job) if event["event"] == "note" and "storage" in event["message"]]
    assert len(notes) <= 2, notes
    assert bucket.url in notes[0]
    assert machine.extract("result", job, "--out", str(machine.home / "out")).code == 0


@pytest.mark.slow
def test_an_upload_that_breaks_off_publishes_nothing_and_is_made_good(machine, bucket):
    machine.plan(steps=1, seconds=0.1, bulk=24 * MB)
    worker = machine.worker()
    bucket.network.fail_after("up", 6 * MB)
    job = machine.submit()
    wait_for(lambda: any("waiting for storage" in event.get("message", "") for event in machine.story(job)), "storage to be missed", 30)
    assert not [key for key in bucket.keys(job) if key.endswith(("manifest.json", "bulk.txt"))]
    assert machine.state_of(job) == "running"
    bucket.network.up()
    record = machine.wait_state(job, "succeeded", seconds=30)
    assert record["attempt"] == "1"
    assert worker.poll() is None
    assert machine.extract("result", job, "--out", str(machine.home / "out")).code == 0


def test_a_result_has_its_manifest_last_of_all(machine, bucket, monkeypatch):
    monkeypatch.setenv("EXTRACT_STORE_PATIENCE", "0.1")
    storage = engine_done(machine, bulk=24 * MB)
    bucket.network.fail_after("up", 6 * MB)
    with pytest.raises(StorageUnavailable, match="cannot write") as caught:
        storage.store_result(lambda: "")
    assert "\n" not in str(caught.value)
    assert not [key for key in bucket.keys("done") if key.endswith(("manifest.json", "bulk.txt"))]
    assert (machine.settings.root / "done" / "result" / "manifest.json").is_file(), "scratch is kept for another try"
    bucket.network.up()
    place = storage.store_result(lambda: "").removeprefix(f"{bucket.url}/")
    assert f"{place}/manifest.json" in bucket.keys("done")


@pytest.mark.slow
def test_storage_that_stays_away_ends_in_one_line(machine, bucket):
    machine.plan(steps=1, seconds=0.1)
    machine.worker(EXTRACT_STORE_PATIENCE="0.5")
    bucket.network.down()
    job = machine.submit()
    record = machine.wait_state(job, "failed", seconds=60)
    assert record["attempt"] == "3"
    assert bucket.url in record["error_message"]
    assert "cannot write" in record["error_message"]
    assert bucket.keys(job) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "says"),
    [
        pytest.param(lambda data: data[:-1] + b"!", "was altered in storage", id="altered"),
        pytest.param(lambda data: data[: len(data) // 2], "cut short or altered", id="truncated"),
        pytest.param(lambda data: None, "is missing in storage", id="missing"),
    ],
)
def test_a_damaged_object_is_named_and_nothing_looks_like_a_result(machine, bucket, harm, says):
    prefix = finish(machine, bucket, bulk=MB)
    key = f"{prefix}/model/bulk.txt"
    right = bucket.store.get(key)
    wrong = harm(right)
    if wrong is None:
        bucket.store.remove([key])
    else:
        bucket.put(key, wrong)
    out = machine.home / "out"
    answer = machine.shell("result", "done", "--out", str(out))
    assert answer.code == 1
    one_line(answer, "model/bulk.txt", says, bucket.url, "run the job again")
    assert not (out / "manifest.json").exists()
    assert not (out / "model" / "bulk.txt").exists()
    bucket.put(key, right)
    assert machine.extract("result", "done", "--out", str(out)).code == 0
    assert (out / "model" / "bulk.txt").read_bytes() == right


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["cut", "no manifest"])
def test_a_result_damaged_in_storage_is_made_anew_when_its_job_is_asked_for_again(machine, bucket, harm):

    prefix = finish(machine, bucket, bulk=MB)
    key = f"{prefix}/manifest.json" if harm == "no manifest" else f"{prefix}/model/bulk.txt"
    assert not damaged.is_damaged(machine.service, "done")
    right = bucket.store.get(key)
    bucket.put(key, right[:-1]) if harm == "cut" else bucket.store.remove([key])
    assert damaged.find_damaged(machine.service, ["done"]) == {"done"}
    spec = parse_job(machine.records.need("done")["spec"])
    submit.submit_again(machine.service, spec, "done")
    assert machine.state_of("done") == "succeeded"
    submit.submit_again(machine.service, spec, "done", damaged=True)
    machine.worker()
    machine.wait_state("done", "succeeded")
    assert not damaged.is_damaged(machine.service, "done")
    assert prefix not in machine.records.need("done")["artifact"]
    out = machine.home / "out"
    assert machine.extract("result", "done", "--out", str(out)).code == 0


@pytest.mark.slow
def test_a_fetch_that_breaks_off_goes_on_where_it_stopped(machine, bucket):
    finish(machine, bucket, bulk=32 * MB)
    out = machine.home / "out"
    bucket.network.fail_after("down", 20 * MB)
    answer = machine.shell("result", "done", "--out", str(out))
    assert answer.code == 4
    one_line(answer, "cannot read", bucket.url)
    assert not (out / "manifest.json").exists()
    have = (out / "model" / "bulk.txt.part").stat().st_size
    assert have >= 8 * MB
    bucket.network.up()
    before = bucket.network.passed["down"]
    assert machine.extract("result", "done", "--out", str(out)).code == 0
    assert bucket.network.passed["down"] - before < 32 * MB - have + MB, "what was there was fetched again"
    assert not list(out.rglob("*.part"))
    before = bucket.network.passed["down"]
    assert machine.extract("result", "done", "--out", str(out)).code == 0
    assert bucket.network.passed["down"] - before < MB, "a folder that is whole is only verified"


def test_a_partial_file_that_is_wrong_is_fetched_anew(machine, bucket):
    finish(machine, bucket, bulk=MB)
    out = machine.home / "out"
    assert machine.extract("result", "done", "--out", str(out)).code == 0
    right = (out / "model" / "bulk.txt").read_bytes()
    (out / "model" / "bulk.txt").unlink()
    (out / "model" / "bulk.txt.part").write_bytes(b"x" * 1000)
    (out / "result.json").write_text("tampered")
    assert machine.extract("result", "done", "--out", str(out)).code == 0
    assert (out / "model" / "bulk.txt").read_bytes() == right
    assert "tampered" not in (out / "result.json").read_text()


def limited(size, *arguments, **environment):
    """A command that may write no file longer than that."""
    process = subprocess.run(
        [sys.executable, "-m", "worker", *arguments],
        env=os.environ | {"PYTHONPATH": str(PROJECT)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    return process


@pytest.mark.slow
def test_a_full_disk_leaves_a_fetch_that_goes_on(machine, bucket):
    finish(machine, bucket, bulk=20 * MB)
    out = machine.home / "out"
    process = limited(12 * MB, "result", "done", "--out", str(out))
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr.count("\n") == 1
    assert "disk full while writing" in process.stderr
    assert not (out / "manifest.json").exists()
    assert machine.extract("result", "done", "--out", str(out)).code == 0


@pytest.mark.slow
def test_a_worker_whose_disk_is_full_says_so_and_leaves_the_job_to_others(machine, bucket):
    machine.plan(**SLOW, bulk=6 * MB)
    first = machine.worker()
    job = machine.submit()
    bucket.wait_stored(job, 2)
    first.terminate()
    first.wait(timeout=20)
    limited(2 * MB, "worker", "--max-jobs", "1", **bucket.elsewhere("b"))
    wait_for(lambda: "disk full while writing" in machine.story(job)[-1].get("reason", ""), "the worker to give it back")
    machine.worker(**bucket.elsewhere("c"))
    assert machine.wait_state(job, "succeeded")["attempt"] == "2"
    assert engine_started_from(machine, job)[-1] > 0


def test_a_broken_checkpoint_is_skipped_for_the_one_before_and_then_for_none(machine, bucket):
    machine.plan(**SLOW)
    first = machine.worker()
    job = machine.submit()
    bucket.wait_stored(job, 3)
    first.terminate()
    first.wait(timeout=20)
    newest, before = machine.records.need(job)["snapshot"].split()
    bucket.store.remove([f"{job}/{newest}/snapshot.json"])
    machine.worker("--max-jobs", "1", **bucket.elsewhere("b"))
    machine.wait_state(job, "succeeded")
    notes = [event["message"] for event in machine.story(job) if event["event"] == "note"]
    assert any(newest in note and "cannot be used" in note for note in notes)
    assert not any(before in note for note in notes)
    assert engine_started_from(machine, job)[1] > 0


def test_no_readable_checkpoint_at_all_means_from_the_start(machine, bucket):
    machine.plan(**SLOW)
    first = machine.worker()
    job = machine.submit()
    bucket.wait_stored(job, 3)
    first.terminate()
    first.wait(timeout=20)
    machine.records.client.hset(f"ex:job:{job}", "snapshot", f"../../{job}/000001 {'0' * 16}/000009")
    machine.worker("--max-jobs", "1", **bucket.elsewhere("b"))
    machine.wait_state(job, "succeeded", seconds=30)
    assert engine_started_from(machine, job)[1] == 0
    assert any("starts anew" in event.get("message", "") for event in machine.story(job))


def test_a_result_outlives_its_record(machine, bucket):
    finish(machine, bucket)
    machine.records.client.delete("ex:job:done", "ex:ev:done")
    out = machine.home / "out"
    assert machine.extract("result", "done", "--out", str(out)).code == 0
    assert machine.extract("result", "done", "--json").json["path"] == str(machine.home / "cache" / "results" / "done" / attempt_of(bucket))
    answer = machine.extract("result", "nobody")
    assert (answer.code, answer.out) == (3, "")
    assert "neither its record nor a result" not in answer.err


def attempt_of(bucket):
    return bucket.keys("done")[0].split("/")[1]


def test_a_folder_that_holds_something_else_takes_no_result(machine, bucket):
    finish(machine, bucket)
    out = machine.home / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    answer = machine.extract("result", "done", "--out", str(out))
    assert answer.code == 2
    one_line(answer, "is not an empty folder")
    (out / "thesis.tex").unlink()
    (out / "model").symlink_to(machine.home)
    (out / "manifest.json.part").write_bytes(bucket.store.get(f"{bucket.result('done')}/manifest.json"))
    answer = machine.extract("result", "done", "--out", str(out))
    assert answer.code == 2
    one_line(answer, "is a link")
    assert not (machine.home / "config.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["../outside", "/etc/outside", "a/../../outside", "a//b", "", ".", "a\\b", "a\nb", "manifest.json", "x.part"]
)
def test_a_manifest_that_leads_elsewhere_is_refused(machine, bucket, name):
    facts = {"sha256": "0" * 64, "bytes": 1}
    prefix = f"evil/{'0' * 16}/result"
    bucket.put(f"{prefix}/manifest.json", json.dumps({"version": 1, "files": {name: facts}}).encode())
    answer = machine.extract("result", "evil", "--out", str(machine.home / "out"))
    assert answer.code == 1
    one_line(answer, "manifest.json")
    assert not (machine.home / "outside").exists()


def test_a_client_without_the_storage_s_address_is_told_it(machine, bucket, monkeypatch):
    finish(machine, bucket)
    monkeypatch.delenv("EXTRACT_ROOT")
    answer = machine.extract("result", "done")
    assert answer.code == 3
    one_line(answer, "EXTRACT_ROOT", bucket.url)
    monkeypatch.setenv("EXTRACT_ROOT", "s3://elsewhere/jobs")
    answer = machine.extract("result", "done")
    assert answer.code == 3
    one_line(answer, "EXTRACT_ROOT", bucket.url)


def test_a_worker_does_not_start_on_storage_that_refuses_it(machine, bucket, monkeypatch):
    for place, part in (("s3://no-such-bucket/jobs", "does not exist"), ("s3x://a/b", "unknown scheme")):
        answer = machine.shell("worker", "--max-jobs", "1", EXTRACT_ROOT=place)
        assert answer.code in (2, 4)
        one_line(answer, place, part)
    bucket.network.down()
    answer = machine.shell("worker", "--max-jobs", "1")
    assert answer.code == 4
    one_line(answer, "cannot write", bucket.url)


def test_the_model_of_a_job_in_storage_reaches_a_worker_elsewhere(machine, bucket, models):
    prefix = finish(machine, bucket, model=str(models / "m0"))
    attempt = prefix.split("/")[1]
    reference = submit.resolve_model("done", machine.settings, machine.records)
    assert reference == f"job:done/{attempt}"
    assert submit.resolve_model("gpt2", machine.settings, machine.records) == "gpt2"
    spec = circuit_spec().model_copy(update={"model": reference})
    job = machine.submit("next", spec)
    machine.worker("--max-jobs", "1", **bucket.elsewhere("b"))
    machine.wait_state(job, "succeeded")
    assert (machine.home / "b" / "cache" / "results" / "done" / attempt / "model" / "config.json").is_file()
    lost = machine.submit("lost", spec.model_copy(update={"model": f"job:done/{'0' * 16}"}))
    machine.worker("--max-jobs", "1")
    record = machine.wait_state(lost, "failed")
    assert record["error_type"] == "NotFound"


def test_a_bare_model_name_needs_no_storage(machine, bucket):
    bucket.network.down()
    assert submit.resolve_model("gpt2", machine.settings, machine.records) == "gpt2"


@pytest.mark.parametrize("place", ["s3://", "s3://user:secret@bucket/x", "memory://jobs", "s3://bucket/x?versionId=3", "file://"])
def test_a_place_that_is_none_is_refused_without_its_secret(machine, monkeypatch, place):
    monkeypatch.setenv("EXTRACT_ROOT", place)
    answer = machine.extract("status")
    assert answer.code == 2
    one_line(answer, "EXTRACT_ROOT")
    assert "secret" not in answer.err


def test_a_folder_given_as_a_url_is_mirrored_too(machine, monkeypatch):
    shared = machine.home / "shared"
    monkeypatch.setenv("EXTRACT_ROOT", shared.as_uri())
    monkeypatch.setenv("EXTRACT_CACHE_DIR", str(machine.home / "cache"))
    assert from_env().store == shared.as_uri()
    machine.plan(**SLOW)
    first = machine.worker(EXTRACT_STORE_EVERY="0.1")
    job = machine.submit()
    wait_for(lambda: machine.records.need(job).get("snapshot"), "a checkpoint")
    first.kill()
    machine.worker(EXTRACT_STATE_DIR=str(machine.home / "b"), EXTRACT_REDIS_URL=machine.service.url)
    machine.wait_state(job, "succeeded")
    assert engine_started_from(machine, job)[1] > 0
    assert machine.extract("result", job, "--out", str(machine.home / "out")).code == 0
    left = {"log.jsonl", MARKER, "result"}
    wait_for(lambda: {path.name for path in (shared / job).glob("*/*")} == left, "the first attempt's checkpoints to go")


@pytest.mark.slow
def test_a_bridging_made_on_one_machine_serves_another_and_an_altered_one_is_made_again(machine, bucket):
    first = machine.worker()
    machine.wait_state(machine.submit("first", circuit_spec("quote_close")), "succeeded")
    first.terminate()
    first.wait(timeout=20)
    kept = [key for key in bucket.keys(".twins") if key.endswith("/manifest.json")]
    assert len(kept) == 1
    other = machine.worker(**bucket.elsewhere("b"))
    machine.wait_state(machine.submit("second", circuit_spec("for_while")), "succeeded")
    assert stages_worked_at(machine, "first") == {"bridge", "prune"}
    assert stages_worked_at(machine, "second") == {"prune"}
    other.terminate()
    other.wait(timeout=20)
    bucket.put(kept[0].replace("manifest.json", "steps.log"), b"1\n")
    machine.worker(**bucket.elsewhere("c"))
    machine.wait_state(machine.submit("third", circuit_spec("with_as")), "succeeded")
    assert stages_worked_at(machine, "third") == {"bridge", "prune"}


def stages_worked_at(machine, job):
    return {event["stage"] for event in machine.story(job) if event["event"] == "progress"}


def test_the_log_of_all_attempts_is_read_where_none_of_them_ran(machine, bucket):
    machine.plan(steps=10, seconds=2, announce=True)  # never done before the machine is killed
    first = machine.worker()
    job = machine.submit()
    bucket.wait_stored(job, 1)
    running = machine.shell("logs", job, "--json", **bucket.elsewhere("c"))
    assert running.code == 0, running.err
    assert "started on" in running.out
    first.kill()
    machine.plan()
    machine.worker(**bucket.elsewhere("b"))
    machine.wait_state(job, "succeeded")
    wait_for(lambda: not (machine.home / "b" / "state" / "scratch" / job).exists(), "the attempt to be over")
    answer = machine.shell("logs", job, "--json", **bucket.elsewhere("c"))
    lines = [json.loads(line) for line in answer.out.splitlines()]
    assert {line["attempt"] for line in lines} == {1, 2}
    assert lines == sorted(lines, key=lambda line: line["time"])
    assert lines[-1]["message"] == "succeeded"
    assert len({(line["time"], line["message"]) for line in lines}) == len(lines)


@pytest.mark.slow
def test_a_batch_is_summed_up_from_storage_without_fetching_its_models(machine, bucket, models):
    machine.plan(bulk=MB)
    submitted = machine.extract(
        "batch", "submit", "--models", str(models), "--limit", "1", "--task", "quote_close", "--no-worker", "--json"
    ).json
    machine.worker(**bucket.elsewhere("b"))
    machine.wait_state(submitted["queued"][0], "succeeded")
    machine.records.client.delete(f"ex:job:{submitted['queued'][0]}")
    status = machine.extract("batch", "status", submitted["batch"], "--json")
    assert status.json["counts"] == {"succeeded": 1}, "known from storage, though its record has expired"
    result = machine.extract("batch", "result", submitted["batch"], "--json")
    assert result.code == 0, result.err
    fetched = {path.name for path in (machine.home / "cache").rglob("*") if path.is_file()}
    assert "result.json" in fetched
    assert not fetched & {"bulk.txt", "manifest.json"}
