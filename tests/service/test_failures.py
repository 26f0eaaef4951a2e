"""Failures of machines, servers and people that no other file here has: together they are the 25 that the service must survive."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import resource
import shutil
import signal
import time

from local_hub import LocalHub, Repository, serve
from service_machine import circuit_spec, settings_without_worker, train_spec, wait_for
from simulated_hub import SHA, gpt2_files

from worker import processes
from worker.broker import embedded_redis
from worker.broker.app import KEY_PREFIX, make_app, publish
from worker.client import service, submit

SLOW = {"steps": 10, "seconds": 0.1}  # two stages of a second


def overlapping(machine, job):
    """Whether a job was ever begun while it ran already, by its events."""
    return any(before == after == "running" for before, after in itertools.pairwise(machine.states(job)))


def test_twenty_queued_jobs_survive_a_killed_server_and_all_succeed(machine):
    machine.plan(steps=1, seconds=0)
    jobs = [machine.submit() for _ in range(20)]
    os.kill(machine.server_pid(), signal.SIGKILL)
    wait_for(lambda: embedded_redis.running(machine.settings) is None, "the server to die")
    listed = machine.extract("list", "--json", "--no-worker")
    assert {job["job"]: job["state"] for job in listed.json} == dict.fromkeys(jobs, "queued")
    machine.worker()
    machine.worker()
    for job in jobs:
        machine.wait_state(job, "succeeded", seconds=60)


def test_another_major_version_of_the_server_has_a_folder_of_its_own_and_the_old_jobs_come_back_with_the_old_one(machine, monkeypatch):
    job = machine.submit()
    machine.extract("server", "stop")
    found = embedded_redis.find_binary
    monkeypatch.setattr(embedded_redis, "find_binary", lambda settings: dataclasses.replace(found(settings), version=(8, 0, 0)))
    assert machine.records.open_ids() == []
    assert (machine.state / "valkey-8").is_dir()
    machine.extract("server", "stop")
    monkeypatch.setattr(embedded_redis, "find_binary", found)
    assert machine.records.open_ids() == [job]


def test_a_job_longer_than_the_visibility_timeout_runs_once_though_its_message_comes_back(machine):
    machine.plan(steps=20, seconds=0.2)
    for _ in range(2):
        machine.worker(EXTRACT_VISIBILITY_TIMEOUT="2")
    job = machine.submit()
    record = machine.wait_state(job, "succeeded", seconds=40)
    assert record["attempt"] == "1"
    assert machine.states(job) == ["queued", "running", "succeeded"]
    assert machine.steps(job) == list(range(1, 41))


def test_a_server_that_lost_the_last_seconds_ends_every_job_once_with_its_result_whole(machine):
    machine.plan(**SLOW)
    machine.worker()
    done, running = machine.submit(), machine.submit()
    machine.wait_state(done, "running")
    older = machine.home / "older"
    machine.records.client.execute_command("WAITAOF", "1", "0", "1000")
    shutil.copytree(machine.state / "valkey-9", older)
    machine.wait_state(done, "succeeded")
    machine.wait_step(running, 5)
    pid = machine.server_pid()
    os.kill(pid, signal.SIGSTOP)  # nobody may start it again before its disk has gone back in time
    shutil.rmtree(machine.state / "valkey-9")
    shutil.move(older, machine.state / "valkey-9")
    os.kill(pid, signal.SIGKILL)
    for job in (done, running):
        machine.wait_state(job, "succeeded", seconds=60)
        assert sum(state in ("succeeded", "failed", "cancelled") for state in machine.states(job)) == 1
        assert not overlapping(machine, job)
        assert machine.extract("result", job, "--json").code == 0


def test_a_cancel_reaches_a_job_in_a_checkpoint_and_beside_copies_of_its_message_and_twice(machine):
    machine.plan(steps=200, seconds=0.05, announce=True, bulk=1 << 20)
    machine.worker()
    machine.worker()
    job = machine.submit()
    machine.wait_step(job, 2)
    app = make_app(machine.service.url, machine.settings)
    for _ in range(3):
        publish(app, job, machine.records.next_message_id(job), "normal")
    assert machine.state_of(job) == "running"
    for _ in range(2):
        assert machine.extract("cancel", job, "--json").json["cancelling"] is True
    machine.wait_state(job, "cancelled")
    wait_for(lambda: machine.records.client.llen(KEY_PREFIX + "extract") == 0, "the copies to be dropped")
    assert machine.states(job) == ["queued", "running", "cancelled"]
    assert [event["event"] for event in machine.story(job)].count("cancelling") == 1
    assert machine.extract("cancel", job, "--json").json["state"] == "cancelled"


def test_no_job_waits_behind_a_busy_worker_while_another_is_idle(machine):
    machine.plan(steps=30, seconds=0.1)
    long = machine.submit()
    machine.worker()
    machine.wait_step(long, 1)
    machine.plan(steps=1, seconds=0)
    others = [machine.submit(), machine.submit()]
    second = machine.worker("--max-jobs", "2")
    for job in others:
        machine.wait_state(job, "succeeded")
    assert machine.state_of(long) == "running"
    assert second.wait(timeout=20) == 0
    machine.wait_state(long, "succeeded")


def test_a_result_folder_that_is_a_link_is_not_written_through(machine):
    outside = machine.home / "outside"
    outside.mkdir()
    machine.worker()
    (machine.settings.root / "linked").mkdir(parents=True)
    (machine.settings.root / "linked" / "result").symlink_to(outside)
    link = machine.submit("linked")
    good = machine.submit()
    record = machine.wait_state(link, "failed", "succeeded")
    assert (record["state"], record["error_type"]) == ("failed", "OutputError")
    machine.wait_state(good, "succeeded")
    assert list(outside.iterdir()) == []
    (machine.home / "there").symlink_to(outside)
    answer = machine.extract("result", good, "--out", str(machine.home / "there"))
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert list(outside.iterdir()) == []


def test_a_hub_model_of_pickles_or_with_code_fails_its_job_before_any_of_it_runs(machine, monkeypatch):
    files = gpt2_files("x")
    pickled = {name: content for name, content in files.items() if not name.endswith(".safetensors")} | {"pytorch_model.bin": b"\x80\x04"}
    ran = machine.home / "ran"
    code = files | {"modeling_x.py": f"open({str(ran)!r}, 'w')".encode()}
    code["config.json"] = b'{"model_type": "x", "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}'
    monkeypatch.setenv("EXTRACT_ENGINE", "extractor")
    with serve(LocalHub({"lab/pickled": Repository({SHA: pickled}), "lab/code": Repository({SHA: code})})) as hub:
        for name, value in hub.environment(machine.home / "hf").items():
            monkeypatch.setenv(name, value)
        jobs = {name: machine.submit(spec=circuit_spec().model_copy(update={"model": f"lab/{name}@{SHA}"})) for name in ("pickled", "code")}
        machine.worker()
        ended = {name: machine.wait_state(job, "failed", seconds=60) for name, job in jobs.items()}
    assert {name: record["error_type"] for name, record in ended.items()} == dict.fromkeys(jobs, "UnsupportedModel")
    assert "safetensors" in ended["pickled"]["error_message"]
    assert "code" in ended["code"]["error_message"]
    assert not ran.exists()


def test_a_worker_answers_within_moments_while_its_job_runs(machine):
    machine.plan(steps=200, seconds=0.05)
    machine.worker()
    job = machine.submit()
    machine.wait_step(job, 2)
    app = make_app(machine.service.url, machine.settings)
    answers = app.control.ping(timeout=2)
    assert [list(answer.values()) for answer in answers] == [[{"ok": "pong"}]]
    first = machine.records.workers()[0].seen
    wait_for(lambda: machine.records.workers()[0].seen > first, "its next announcement", 2)
    assert machine.records.workers()[0].job == job
    machine.records.cancel(job)
    machine.wait_state(job, "cancelled")


def test_a_worker_without_redis_for_long_takes_jobs_again_by_itself(machine):
    machine.plan(steps=1, seconds=0)
    url = machine.service.url
    worker = machine.worker(EXTRACT_REDIS_URL=url)  # not embedded: it cannot start the server
    log = machine.home / "worker-0.log"
    os.kill(machine.server_pid(), signal.SIGKILL)
    wait_for(lambda: embedded_redis.running(machine.settings) is None, "the server to die")
    wait_for(lambda: "cannot be reached" in log.read_text(), "the worker to notice")
    time.sleep(3 * machine.settings.lease_ttl)
    assert worker.poll() is None
    job = machine.submit()  # starts the server again
    machine.wait_state(job, "succeeded", seconds=60)
    assert worker.poll() is None
    assert not processes.is_gone(processes.identify(worker.pid))


def test_watching_can_be_killed_and_gone_on_with_event_by_event(machine):
    machine.plan(**SLOW)
    machine.worker()
    job = machine.submit()
    watcher = machine.spawn("watch", job, "--json")
    seen = [watcher.stdout.readline() for _ in range(4)]
    watcher.kill()
    rest = machine.shell("watch", job, "--json", "--from", machine_id(seen[-1]))
    assert rest.code == 0
    ids = [machine_id(line) for line in [*seen, *rest.out.splitlines()] if '"id"' in line]
    whole = [key for key, _ in machine.records.events(job, "0", 0.001)]
    assert ids == whole, "none is lost, none comes twice"


def machine_id(line: str) -> str:
    return json.loads(line)["id"]


def test_a_full_disk_holds_a_job_up_until_there_is_room_and_no_longer(machine):
    machine.plan(steps=40, seconds=0.05)
    worker = machine.worker()
    job = machine.submit()
    machine.wait_step(job, 2)
    engine = processes.identify(machine.engine_pid(job))
    limit_files(engine.pid, worker.pid, bytes_=0)
    assert processes.wait_gone(engine, 10)
    time.sleep(1)
    assert machine.states(job) == ["queued", "running"], "it waits for room"
    limit_files(worker.pid, bytes_=resource.RLIM_INFINITY)
    record = machine.wait_state(job, "succeeded")
    assert record["attempt"] == "2"
    reasons = [event["reason"] for event in machine.story(job) if "reason" in event]
    assert len(reasons) == 1
    assert reasons[0].startswith("disk full while writing ")
    assert worker.poll() is None


def test_a_disk_that_stays_full_fails_the_job_in_a_line_and_submitted_again_it_goes_on(machine):
    machine.plan(steps=40, seconds=0.05)
    worker = machine.worker(EXTRACT_STORE_PATIENCE="1")
    job = machine.submit()
    machine.wait_step(job, 5)
    limit_files(machine.engine_pid(job), worker.pid, bytes_=0)
    record = machine.wait_state(job, "failed")
    assert record["error_type"] == "DiskFull"
    assert "free some space and run the same command again" in record["error_message"]
    limit_files(worker.pid, bytes_=resource.RLIM_INFINITY)
    submit.submit_again(service.Service(settings_without_worker(), machine.service.url, machine.records), train_spec(), job)
    machine.wait_state(job, "succeeded")
    steps = machine.steps(job)
    assert steps[0] == 1
    assert len(steps) <= 81, "it began again where it was"


def limit_files(*pids: int, bytes_: int) -> None:
    """Let no file of these processes, and of those that they started, grow beyond so many bytes."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (bytes_, resource.RLIM_INFINITY))
            with open(f"/proc/{pid}/task/{pid}/children") as file:
                limit_files(*map(int, file.read().split()), bytes_=bytes_)
