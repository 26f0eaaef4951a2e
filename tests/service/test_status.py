"""The page of the service: what it holds, that it fits, that it lives."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading

from service_machine import PROJECT, hear_interrupts, wait_for

from worker.records.records import Worker

MANY = 200


def fill(machine):
    """Jobs in every state, each tenth of them running on a worker of its own."""
    records = machine.records
    for number in range(MANY):
        job, worker = f"job-{number:03d}", f"worker-{number}@gpu-node-7.example"
        records.create(job, {"spec": "{}", "kind": "circuit", "model": "/models/python-tiny", "task": "quote_close", "max_attempts": 3})
        if number % 10 < 3:
            records.claim(job, "token", 600, "gpu-node-7", worker, "")
        if number % 10 == 0:
            facts = {"stage": "bridge", "index": 2, "of": 4, "step": 750, "total": 1500, "seconds_left": 4800.5}
            metrics = {"loss": 2.314567, "tokens_per_s": 12345}
            records.report(job, "token", {"event": "progress"}, facts | {"metrics": json.dumps(metrics)})
            records.announce(
                Worker(worker, "gpu-node-7", job, "", False, "1", "NVIDIA H200, 140 GiB", 2**31, 2**36, 2**37, 12345.0, 1.0), 60
            )
        elif number % 10 < 3:
            records.end(job, "token", ("succeeded", "failed")[number % 2])


def test_the_service_as_an_object(machine):
    fill(machine)
    facts = machine.extract("status", "--json", "--no-worker", "--limit", "30").json
    assert facts["jobs"] == {"queued": 140, "running": 20, "succeeded": 20, "failed": 20, "cancelled": 0}
    assert facts["queues"] == {"high": 0, "normal": 0, "low": 0}
    assert [job["state"] for job in facts["open"]] == ["running"] * 20 + ["queued"] * 10
    assert [facts["open"][0]["job"], facts["open"][20]["job"]] == ["job-190", "job-199"]
    assert len(facts["workers"]) == 20
    worker = facts["workers"][0]
    assert (worker["device"], worker["gpu_memory"], worker["tokens_per_s"]) == ("NVIDIA H200, 140 GiB", 2**36, 12345.0)
    machine.submit("late", priority="high")
    assert machine.extract("status", "--json", "--no-worker").json["queues"]["high"] == 1


def test_two_hundred_jobs_fit_eighty_columns_and_a_screen_or_two(machine, monkeypatch):
    fill(machine)
    monkeypatch.setenv("COLUMNS", "80")
    lines = machine.extract("status", "--no-worker", "--limit", "5").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 30
    (row,) = [line for line in lines if line.startswith("job-190")]
    assert row.split()[:4] == ["job-190", "worker-190", "2/4", "bridge"]
    assert "50 % 2.315 12,345   1 h 20 min 1" in row
    assert "and 15 more running" in lines
    assert "and 15 more workers" in lines
    lines = machine.extract("status", "--no-worker", "--limit", "30").out.splitlines()
    assert "and 130 more queued" in lines


def test_a_service_without_anything_says_what_to_do(machine):
    said = machine.extract("status", "--no-worker").out
    assert "0 queued" in said
    assert "start one with `extract worker`" in said
    assert "no open jobs" in said


def test_a_record_that_is_no_longer_there_or_odd_spoils_no_page(machine):
    fill(machine)
    machine.records.client.delete("ex:job:job-190", "ex:job:job-199")
    machine.records.client.hset("ex:job:job-180", mapping={"metrics": '{"loss": "much"}', "seconds_left": "None", "total": 0})
    facts = machine.extract("status", "--json", "--no-worker").json
    assert "job-190" not in [job["job"] for job in facts["open"]]
    assert "job-180" in machine.extract("status", "--no-worker").out


def test_on_a_terminal_the_page_lives_until_ctrl_c_though_the_server_is_killed_meanwhile(machine):
    machine.submit("first")
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", "status", "--no-worker"],
        cwd=PROJECT, env=os.environ | {"TERM": "xterm", "COLUMNS": "80"}, stdin=subprocess.DEVNULL, stdout=follower, stderr=follower,
        preexec_fn=hear_interrupts, start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    shown = bytearray()
    reader = threading.Thread(target=read_all, args=(leader, shown))
    reader.start()
    try:
        wait_for(lambda: b"first" in shown, "the page")
        machine.submit("second")
        wait_for(lambda: b"second" in shown, "what came later")
        os.kill(machine.server_pid(), signal.SIGKILL)
        machine.submit("third")
        wait_for(lambda: b"third" in shown, "the page after the server was gone", 30)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        reader.join()
        os.close(leader)
    assert b"Traceback" not in shown


def read_all(terminal, shown):
    with contextlib.suppress(OSError):  # the other end is closed
        while chunk := os.read(terminal, 4096):
            shown.extend(chunk)
