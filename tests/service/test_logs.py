"""A job's log: what engine and workers said, over all attempts, and no secret; shown, followed, bounded."""

from __future__ import annotations

import json
import os
import re
import signal
import time

import pytest
from service_machine import train_spec, wait_for

from worker.monitoring.log_reader import Reader
from worker.storage import layout
from worker.supervision import job_log
from worker.supervision.job_log import JobLog


def messages(folder):
    return [line["message"] for line in Reader(folder).new_lines()]


def test_engine_and_worker_speak_in_one_log_over_all_attempts(machine):
    machine.plan(steps=4, seconds=0.01, complain="a warning: \x1b[31mred\nbar 1\rbar 2", die_at=2)
    machine.worker()
    job = machine.submit()
    answer = machine.extract("logs", job, "--json", "-f")
    assert machine.state_of(job) == "failed"
    assert {tuple(line) for line in answer.lines} == {("time", "level", "attempt", "source", "message")}
    told = [(line["attempt"], line["source"], line["level"], re.sub("^started on .*", "started", line["message"])) for line in answer.lines]
    for attempt in (1, 2, 3):
        assert (attempt, "worker", "info", "started") in told
        assert (attempt, "engine", "info", "stage 1 of 2: bridge") in told
        assert (attempt, "engine", "warning", "a warning: [31mred") in told
        assert (attempt, "engine", "info", "bar 2") in told
        assert any(said[:3] == (attempt, "worker", "warning") and "killed by SIGKILL" in said[3] for said in told)
    assert told[-1] == (3, "worker", "info", "failed")
    assert [line["time"] for line in answer.lines] == sorted(line["time"] for line in answer.lines)
    people = machine.extract("logs", job).out.splitlines()
    assert len(people) == len(told)
    assert people[0].endswith(f"1  worker  {answer.lines[0]['message']}")


def test_an_exception_in_the_engine_is_in_the_log(machine):
    machine.plan(crash="what nobody expected")
    machine.worker()
    job = machine.submit()
    lines = [line for line in machine.extract("logs", job, "--json", "-f").lines if line["attempt"] == 1 and line["source"] == "engine"]
    errors = {line["message"] for line in lines if line["level"] == "error"}
    assert {"Traceback (most recent call last):", "RuntimeError: what nobody expected"} <= errors


def test_following_ends_with_the_job_though_its_worker_and_the_server_are_killed_meanwhile(machine):
    machine.plan(steps=40, seconds=0.05, complain="begins")
    job = machine.submit()
    following = machine.spawn("logs", job, "-f", "--json", EXTRACT_NO_WORKER="1")
    first = machine.worker()
    machine.wait_step(job, 5)
    first.kill()
    os.kill(machine.server_pid(), signal.SIGKILL)
    machine.worker()
    out, err = following.communicate(timeout=40)
    assert (following.returncode, err) == (0, "")
    seen = [json.loads(line) for line in out.splitlines()]
    assert seen == list(Reader(machine.settings.root / job).new_lines())
    assert [line["attempt"] for line in seen if line["message"] == "begins"] == [1, 2]
    assert seen[-1]["message"] == "succeeded"


def test_secrets_stay_out(machine, monkeypatch):
    folder = machine.home / "job"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with JobLog("mine", folder, 1, "redis://user:pass%20word@h/0"):
        (folder / "engine.log").write_text("token hf_secret, password pass word or pass%20word\n")
    assert messages(folder) == ["token ***, password *** or ***"]


def test_what_a_lost_attempt_left_uncopied_is_told_as_its_own(machine):
    folder = machine.home / "job"
    raw = folder / "engine.log"
    with JobLog("mine", folder, 1, ""):
        raw.write_text("one\n")
    with open(raw, "a") as file:
        file.write("two\nhalf")
    with JobLog("mine", folder, 2, ""), open(raw, "a") as file:
        file.write("\nthree\n")
    told = [(line["attempt"], line["message"]) for line in Reader(folder).new_lines()]
    assert told == [(1, "one"), (1, "two"), (1, "half"), (2, "three")]


def test_both_files_have_a_bounded_size_and_a_follower_misses_nothing(machine, monkeypatch):
    monkeypatch.setattr(job_log, "MAX_BYTES", 20_000)
    monkeypatch.setattr(job_log, "RAW_BYTES", 10_000)
    monkeypatch.setattr(job_log, "COPY_SECONDS", 0.001)
    folder = machine.home / "job"
    reader, seen = Reader(folder), []
    with JobLog("mine", folder, 1, ""):
        for start in range(0, 3000, 100):
            with open(folder / "engine.log", "a") as file:
                file.writelines(f"line {number} of many\n" for number in range(start, start + 100))
            last = f"line {start + 99} of many"
            wait_for(lambda last=last: seen.extend(reader.new_lines()) or (seen and seen[-1]["message"] == last), last)
    assert [line["message"] for line in seen] == [f"line {number} of many" for number in range(3000)]
    assert sum(path.stat().st_size for path in folder.glob("log.jsonl*")) < 90_000
    assert (folder / "engine.log").stat().st_size < 15_000
    assert len(list(folder.glob("log.jsonl*"))) == 1 + layout.BACKUPS


def test_half_a_line_waits_and_rubbish_is_left_out(machine):
    folder = machine.home
    path, reader = folder / layout.NAME, Reader(folder)
    whole = json.dumps({"time": 1.0, "message": "whole"}) + "\n"
    path.write_text(whole + "rubbish\n[1]\n{}\n" + whole[:9])
    assert len(list(reader.new_lines())) == 1
    with open(path, "a") as file:
        file.write(whole[9:])
    assert len(list(reader.new_lines())) == 1
    assert list(reader.new_lines()) == []


def test_a_log_that_cannot_be_written_fails_no_job(machine):
    job = machine.submit()
    folder = machine.settings.root / job
    (folder / layout.NAME).mkdir(parents=True)
    (folder / "engine.log.read").mkdir()
    machine.worker()
    machine.wait_state(job, "succeeded")


def test_only_what_is_new_enough(machine):
    job = machine.submit()
    folder = machine.settings.root / job
    folder.mkdir(parents=True)
    now = time.time()
    lines = [{"time": now - age, "level": "info", "attempt": 1, "source": "worker", "message": str(age)} for age in (7200, 1200, 5)]
    (folder / layout.NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))

    def since(text):
        return [line["message"] for line in machine.extract("logs", job, "--json", "--since", text).lines]

    assert {text: since(text) for text in ("1h", "10m", "2d")} == {"1h": ["1200", "5"], "10m": ["5"], "2d": ["7200", "1200", "5"]}
    iso = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now - 3000))
    assert since(iso) == ["1200", "5"]


@pytest.mark.parametrize("since", ["soon", "10", "-5m", "1e999d", "2026-13-01", "9" * 30 + "s"])
def test_a_time_that_is_none_is_refused(machine, since):
    answer = machine.extract("logs", machine.submit(), f"--since={since}", "--json")
    assert (answer.code, answer.json["error"]["type"]) == (2, "UsageError")


def test_a_job_without_a_log_is_one_line(machine):
    answer = machine.extract("logs", "nobody")
    assert (answer.code, answer.err) == (3, "error: job 'nobody' not found; `extract list` shows all jobs\n")
    assert machine.extract("logs", "../x").code == 2
    machine.submit("waits")
    assert machine.extract("logs", "waits", "--no-worker").err == "error: job waits has no log: it is queued and has not started\n"
    machine.records.claim("waits", "token", 60, "elsewhere", "worker", "")
    assert "it ran on elsewhere" in machine.extract("logs", "waits", "--no-worker").err


def test_a_log_outlives_its_record(machine):
    machine.worker()
    job = machine.submit("mine", train_spec())
    machine.wait_state(job, "succeeded")
    machine.records.client.delete("ex:job:mine")
    for arguments in ((), ("-f",)):
        assert "stage 2 of 2: prune" in machine.extract("logs", "mine", *arguments).out
