"""Jobs on real workers, and everything that can happen to them."""

from __future__ import annotations

import os
import signal
import time

import pytest
from kombu import Connection
from service_machine import our_processes, train_spec, wait_for

from extractor.spec.schema import to_json
from worker import processes
from worker.broker import embedded_redis, redis_url
from worker.broker.app import KEY_PREFIX, make_app, publish
from worker.fleet import local

SLOW = {"steps": 10, "seconds": 0.1}  # two stages of a second


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def without_repeats(steps):
    return sorted(set(steps)) == list(range(1, max(steps) + 1))


def test_a_killed_worker_s_job_is_resumed_by_another_from_its_checkpoint(machine):
    machine.plan(**SLOW)
    first = machine.worker()
    job = machine.submit()
    machine.wait_step(job, 5)
    engine = machine.engine_pid(job)
    os.kill(first.pid, signal.SIGKILL)
    wait_for(lambda: processes.is_gone(processes.identify(first.pid)) or first.poll() is not None, "the worker to die")
    machine.worker()
    record = machine.wait_state(job, "succeeded")
    assert record["attempt"] == "2"
    assert machine.states(job) == ["queued", "running", "queued", "running", "succeeded"]
    assert machine.engine_pid(job) != engine
    steps = machine.steps(job)
    assert without_repeats(steps)
    assert len(steps) <= 21, "more than the step in progress was done twice"


def test_a_worker_whose_child_is_killed_resumes_the_job_itself(machine):
    machine.plan(**SLOW)
    worker = machine.worker()
    job = machine.submit()
    machine.wait_step(job, 5)
    os.kill(children(worker.pid)[0], signal.SIGKILL)
    assert machine.wait_state(job, "succeeded")["attempt"] == "2"
    assert without_repeats(machine.steps(job))
    assert worker.poll() is None


def test_a_job_whose_lease_ran_out_on_an_unknown_machine_is_brought_back(machine):
    job = machine.submit()
    machine.records.claim(job, "gone", 0.5, "elsewhere", "worker-1@elsewhere", "otherboot:0:17:4")
    machine.worker("--max-jobs", "1", EXTRACT_REDIS_URL=machine.service.url)  # not embedded: the other machine may well be alive
    record = machine.wait_state(job, "succeeded")
    assert record["attempt"] == "2"
    queued = [event for event in machine.story(job) if event.get("state") == "queued"]
    assert "worker-1@elsewhere was lost" in queued[1]["reason"]


def test_an_engine_that_is_killed_each_time_fails_its_job_after_three_attempts(machine):
    machine.plan(die_at=2)
    machine.worker()
    job = machine.submit()
    record = machine.wait_state(job, "failed")
    assert record["attempt"] == "3"
    assert "killed by SIGKILL, possibly out of memory" in record["error_message"]
    assert "(3 of 3 attempts)" in record["error_message"]
    assert machine.extract("watch", job).code == 1


def test_an_engine_that_raises_leaves_its_traceback_in_the_log_and_one_line_in_the_record(machine):
    machine.plan(crash="nobody expected this")
    machine.worker()
    job = machine.submit()
    record = machine.wait_state(job, "failed")
    assert "RuntimeError: nobody expected this" in record["error_message"]
    assert "Traceback" in (machine.settings.root / job / "engine.log").read_text()


def test_an_error_that_the_engine_names_fails_the_job_at_once(machine):
    machine.plan(fail=["ModelNotFound", "no such model", 3])
    machine.worker()
    job = machine.submit()
    record = machine.wait_state(job, "failed")
    assert (record["attempt"], record["error_type"], record["error_message"]) == ("1", "ModelNotFound", "no such model")
    answer = machine.extract("watch", job)
    assert answer.code == 1
    assert answer.err == f"error: job {job} failed: ModelNotFound: no such model\n"


def test_sigterm_gives_the_job_back_without_counting_an_attempt_and_it_resumes(machine):
    machine.plan(**SLOW)
    first = machine.worker()
    job = machine.submit()
    machine.wait_step(job, 5)
    first.terminate()
    assert first.wait(timeout=10) == 0
    assert machine.records.workers() == []
    record = machine.records.need(job)
    assert (record["state"], record["attempt"], record["checkpoint"] != "") == ("queued", "0", True)
    machine.worker()
    assert machine.wait_state(job, "succeeded")["attempt"] == "1"
    assert machine.steps(job) == list(range(1, 21))


def test_sigterm_to_every_process_of_a_worker_is_as_polite(machine):
    machine.plan(**SLOW)
    first = machine.worker()
    job = machine.submit()
    machine.wait_step(job, 3)
    for pid in [*children(first.pid), first.pid, machine.engine_pid(job)]:
        os.kill(pid, signal.SIGTERM)
    assert first.wait(timeout=10) == 0
    record = machine.records.need(job)
    assert (record["state"], record["attempt"]) == ("queued", "0")


def test_a_queued_job_is_cancelled_without_any_worker(machine):
    job = machine.submit()
    assert machine.extract("cancel", job, "--json").json == {"job": job, "state": "cancelled", "cancelling": False}
    machine.worker("--max-jobs", "1")
    other = machine.submit()
    machine.wait_state(other, "succeeded")
    assert machine.states(job) == ["queued", "cancelled"]


def test_a_running_job_is_cancelled_within_moments_and_a_finished_one_stays_as_it_is(machine):
    machine.plan(steps=1000, seconds=0.05)
    machine.worker()
    job = machine.submit()
    machine.wait_step(job, 2)
    assert machine.extract("cancel", job, "--json").json["cancelling"] is True
    machine.wait_state(job, "cancelled")
    assert machine.extract("watch", job).code == 5
    machine.plan()
    done = machine.submit()
    machine.wait_state(done, "succeeded")
    assert machine.extract("cancel", done, "--json").json["state"] == "succeeded"
    assert machine.state_of(done) == "succeeded"


def test_an_engine_that_ignores_a_cancel_is_killed_after_the_grace(machine):
    machine.plan(steps=1000, seconds=0.05, deaf=True)
    machine.worker(EXTRACT_STOP_GRACE="0.5")
    job = machine.submit()
    machine.wait_step(job, 2)
    machine.records.cancel(job)
    machine.wait_state(job, "cancelled")
    assert machine.states(job) == ["queued", "running", "cancelled"]


def test_a_zombie_that_wakes_can_neither_write_nor_end_its_former_job(machine):
    machine.plan(steps=30, seconds=0.1)
    zombie = machine.worker()
    job = machine.submit()
    machine.wait_step(job, 3)
    frozen = [zombie.pid, *children(zombie.pid)]
    engine = machine.engine_pid(job)
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    machine.worker()
    wait_for(lambda: machine.states(job).count("running") == 2, "another worker to take over")
    wait_for(lambda: machine.engine_pid(job) != engine, "its engine to start")
    assert processes.is_gone(processes.identify(engine)), "the former engine still writes"
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    record = machine.wait_state(job, "succeeded")
    assert record["attempt"] == "2"
    assert machine.states(job) == ["queued", "running", "queued", "running", "succeeded"]
    assert record["worker"] != next(event["worker"] for event in machine.story(job) if event.get("state") == "running")
    assert without_repeats(machine.steps(job))
    assert zombie.poll() is None, "the former owner should live on and take other jobs"


def test_an_owner_that_is_told_its_job_belongs_to_another_kills_its_engine(machine):
    machine.plan(steps=1000, seconds=0.05)
    worker = machine.worker()
    job = machine.submit()
    machine.wait_step(job, 2)
    engine = processes.identify(machine.engine_pid(job))
    machine.records.client.hset(f"ex:job:{job}", mapping={"token": "another's", "process": str(processes.identify())})
    machine.records.client.set(f"ex:lease:{job}", "another's", ex=60)
    assert processes.wait_gone(engine, 5)
    assert machine.state_of(job) == "running"
    assert worker.poll() is None


def test_a_job_goes_on_through_an_absence_of_redis_longer_than_its_lease(machine):
    machine.plan(steps=18, seconds=0.1)
    machine.worker()
    machine.worker()
    job = machine.submit()
    machine.wait_step(job, 3)
    pid = machine.server_pid()
    os.kill(pid, signal.SIGSTOP)
    time.sleep(2.6)
    os.kill(pid, signal.SIGCONT)
    record = machine.wait_state(job, "succeeded")
    assert record["attempt"] == "1"
    assert machine.steps(job) == list(range(1, 37))


def test_a_worker_revives_its_killed_server_and_its_job_goes_on(machine):
    machine.plan(**SLOW)
    machine.worker()
    job = machine.submit()
    machine.wait_step(job, 3)
    os.kill(machine.server_pid(), signal.SIGKILL)
    wait_for(lambda: embedded_redis.running(machine.settings), "the worker to start the server again")
    record = machine.wait_state(job, "succeeded")
    assert record["attempt"] == "1"
    assert machine.steps(job) == list(range(1, 21))


def test_a_second_delivery_starts_no_second_run(machine):
    machine.plan(**SLOW)
    machine.worker()
    machine.worker()
    job = machine.submit()
    machine.wait_step(job, 2)
    app = make_app(machine.service.url, machine.settings)
    for _ in range(3):
        publish(app, job, machine.records.next_message_id(job), "high")
    machine.records.client.client_kill_filter(_type="normal", skipme=True)  # dropped connections make the broker deliver again
    machine.wait_state(job, "succeeded")
    wait_for(lambda: machine.records.client.llen(KEY_PREFIX + "extract.high") == 0, "the copies to be dropped")
    assert machine.states(job) == ["queued", "running", "succeeded"]
    assert machine.steps(job) == list(range(1, 21))


def test_a_job_that_was_recorded_but_never_published_is_found(machine):
    machine.records.create("orphan", {"spec": to_json(train_spec()), "kind": "train", "max_attempts": 3, "priority": "low"})
    machine.worker(EXTRACT_REPUBLISH="0.5")
    machine.wait_state("orphan", "succeeded")


def test_a_job_that_waits_its_turn_is_not_published_again(machine):
    machine.plan(steps=40, seconds=0.1)
    machine.worker(EXTRACT_REPUBLISH="1")
    first, second = machine.submit(), machine.submit()
    machine.wait_step(first, 30)  # the other has waited for three seconds
    assert machine.records.need(second)["published"] == "1"


def test_a_worker_with_a_number_of_jobs_leaves_the_rest_in_the_queue(machine):
    jobs = [machine.submit() for _ in range(3)]
    worker = machine.worker("--max-jobs", "2")
    assert worker.wait(timeout=20) == 0
    assert [machine.state_of(job) for job in jobs] == ["succeeded", "succeeded", "queued"]


def test_higher_priorities_go_first(machine):
    for priority in ("low", "normal", "high"):
        machine.submit(priority, priority=priority)
    machine.worker()
    for job in ("low", "normal", "high"):
        machine.wait_state(job, "succeeded")
    started = {job: float(machine.records.need(job)["started"]) for job in ("high", "normal", "low")}
    assert sorted(started, key=started.__getitem__) == ["high", "normal", "low"]


def test_a_result_that_was_finished_but_not_reported_is_not_computed_again(machine):
    machine.worker(EXTRACT_REPUBLISH="0.1")
    job = machine.submit()
    machine.wait_state(job, "succeeded")
    log = machine.work(job) / "steps.log"
    before = log.read_text()
    fields = {"state": "queued", "attempt": 0, "artifact": ""}
    machine.records.client.hset(f"ex:job:{job}", mapping=fields)
    machine.records.client.zadd("ex:open", {job: 1})
    machine.wait_state(job, "succeeded")
    assert log.read_text() == before


def test_a_spec_that_was_tampered_with_in_redis_fails_its_job_and_runs_nothing(machine):
    odd = {
        "empty": ("{}", "kind"),
        "prose": ("not json", "JSON"),
        "outside": ('{"kind": "train", "train": {}, "out": "../../etc"}', "out"),
        "nothing": ("", "JSON"),
    }
    for job, (spec, _) in odd.items():
        machine.records.create(job, {"spec": spec, "kind": "train", "max_attempts": 3})
    machine.worker(EXTRACT_REPUBLISH="0.1")
    for job, (_, said) in odd.items():
        record = machine.wait_state(job, "failed")
        assert record["error_type"] == "SpecError"
        assert said in record["error_message"]
        assert not (machine.settings.root / job / "result").exists()


def test_a_pickled_message_and_strange_ids_are_refused_and_the_worker_stays_up(machine):
    worker = machine.worker()
    app = make_app(machine.service.url, machine.settings)
    with Connection(redis_url.to_celery(machine.service.url), transport_options={"global_keyprefix": KEY_PREFIX}) as connection:
        producer = connection.Producer(serializer="pickle")
        producer.publish([["x"], {}, {}], routing_key="extract", headers={"task": "extract.run", "id": "x.1", "lang": "py"})
    app.send_task("extract.run", args=["../../etc/passwd"], task_id="evil.1")
    app.send_task("extract.run", args=[["list"]], task_id="evil.2")
    app.send_task("extract.other", args=[], task_id="evil.3")
    job = machine.submit()
    machine.wait_state(job, "succeeded")
    assert worker.poll() is None
    log = (machine.home / "worker-0.log").read_text()
    assert log.count("dropped a message not written by this service") == 4
    assert not list(machine.settings.root.glob("*passwd*"))


def test_a_local_worker_leaves_when_idle_and_the_next_command_starts_another(machine, monkeypatch):
    monkeypatch.setenv("EXTRACT_IDLE_EXIT", "0.5")
    assert machine.extract("train", "--wait", "--json").code == 0
    wait_for(lambda: not local.is_registered(machine.settings), "the local worker to leave")
    assert local.live_workers(machine.records, machine.settings) == []
    wait_for(lambda: not [p for p in our_processes(machine.home) if p != machine.server_pid()], "its processes to end")
    assert machine.extract("train", "--wait", "--json").code == 0


def test_any_command_starts_a_worker_for_jobs_whose_local_worker_was_killed(machine):
    machine.plan(**SLOW)
    job = machine.extract("train", "--json").json["job"]
    machine.wait_step(job, 3)
    who = processes.read_pid(machine.state / "worker.json")
    os.kill(who.pid, signal.SIGKILL)
    wait_for(lambda: processes.is_gone(who), "the local worker to die")
    assert machine.extract("list").code == 0
    wait_for(lambda: machine.states(job).count("running") == 2, "the job to be resumed")
    assert machine.wait_state(job, "succeeded")["attempt"] == "2"


@pytest.mark.parametrize("command", [("list",), ("status",), ("status", "mine"), ("logs", "mine"), ("batch", "list")])
def test_a_command_that_only_looks_starts_no_worker_for_a_job_that_was_queued_without(machine, command):
    assert machine.extract("train", "--no-worker", "--job-id", "mine").code == 0
    assert machine.extract(*command).code in (0, 3)
    assert not (machine.state / "worker.json").exists()
    assert len(our_processes(machine.home)) == 1, "the server"


def test_no_worker_holds_though_an_earlier_worker_was_stopped(machine):
    assert machine.extract("train", "--wait", "--json").code == 0
    machine.extract("server", "stop")
    assert machine.extract("train", "--no-worker", "--job-id", "mine").code == 0
    machine.extract("list")
    assert len(our_processes(machine.home)) == 1, "the server"


def test_stopping_the_server_gives_the_running_job_back_and_the_next_command_resumes_it(machine):
    machine.plan(**SLOW)
    job = machine.extract("train", "--json").json["job"]
    machine.wait_step(job, 5)
    assert machine.extract("server", "stop", "--json").json == {"running": False}
    assert our_processes(machine.home) == []
    assert machine.extract("watch", job, "--json").code == 0
    assert machine.records.need(job)["attempt"] == "1"
    assert machine.steps(job) == list(range(1, 21))


def test_commands_at_once_start_one_local_worker(machine):
    machine.plan(**SLOW)
    machine.submit()
    commands = [machine.spawn("train", "--seed", str(seed)) for seed in range(4)]
    for command in commands:
        assert command.wait(timeout=20) == 0
    wait_for(lambda: machine.records.workers(), "the worker")
    time.sleep(0.5)
    assert len(machine.records.workers()) == 1


def test_a_worker_and_its_children_never_import_torch(machine):
    machine.plan(**SLOW)
    worker = machine.worker()
    job = machine.submit()
    machine.wait_step(job, 2)
    for pid in [worker.pid, *children(worker.pid)]:
        with open(f"/proc/{pid}/maps") as file:
            assert "libtorch" not in file.read()
