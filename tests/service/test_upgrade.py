"""What an earlier version left in Redis and on disk, worked off by this one.

earlier_records.json is a dump: every key of its Redis and the files under its state directory, in the moment when its only worker was
killed with a job half done. It stands ROOT for the folder of jobs. The times in it are moved to ten minutes ago.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from service_machine import Machine, wait_for

from worker import processes
from worker.broker.app import KEY_PREFIX
from worker.records.counts import Counts

DUMP = Path(__file__).with_name("earlier_records.json")
AGO = 600  # seconds
SWEEP = {"s324bdc441": ["pbc456ce27fb", "pd83e81c7e2a"]}
QUEUED = ["queued-high", "queued", "queued-low", "unheard", *SWEEP["s324bdc441"]]
ENDED = {"done": "succeeded", "failed": "failed", "cancelled": "cancelled"}


@pytest.fixture
def left(machine: Machine) -> Machine:
    """A machine on which the earlier version ran; `python -m worker` is now this one."""
    text = DUMP.read_text().replace("ROOT", str(machine.settings.root))
    moved = int(time.time()) - AGO - json.loads(text)["made"]
    dump = json.loads(re.sub(r"\b1795\d{6}", lambda found: str(int(found[0]) + moved), text))
    for name, content in dump["files"].items():
        (machine.state / name).parent.mkdir(parents=True, exist_ok=True)
        (machine.state / name).write_text(content)
    for key, facts in dump["redis"].items():
        milliseconds = facts["expires_in_ms"]
        if milliseconds is None or milliseconds > 1000 * AGO:  # a lease and the announcement of a worker are gone by now
            write(machine, key, facts["type"], facts["value"])
            if milliseconds is not None:
                machine.records.client.pexpire(key, milliseconds - 1000 * AGO)
    return machine


def write(machine: Machine, key: str, kind: str, value: Any) -> None:
    client = machine.records.client
    if kind == "hash":
        client.hset(key, mapping=value)
    elif kind == "zset":
        client.zadd(key, dict(value))
    elif kind == "set":
        client.sadd(key, *value)
    elif kind == "list":
        client.rpush(key, *value)
    else:
        assert kind == "stream"
        for at, event in value:
            client.xadd(key, {"json": event}, id=at)


def test_what_an_earlier_version_left_is_listed_before_any_worker_has_seen_it(left):
    listed = left.extract("list", "--no-worker", "--json").json
    assert {job["job"]: job["state"] for job in listed} == ENDED | {"running": "running"} | dict.fromkeys(QUEUED, "queued")
    whole = left.extract("status", "--no-worker", "--json").json
    assert whole["jobs"] == {"queued": 6, "running": 1, "succeeded": 1, "failed": 1, "cancelled": 1}
    assert whole["queues"] == {"high": 1, "normal": 3, "low": 1}
    assert whole["workers"] == []
    assert AGO - 5 < whole["longest_wait_seconds"] < AGO + 30
    failed = left.extract("status", "failed", "--no-worker", "--json").json
    assert failed["error"] == {"type": "ModelNotFound", "message": "model /nowhere is not there; name another"}
    assert (failed["tasks"], failed["priority"], failed["attempt"]) == (["quote_close"], "normal", 1)
    told = left.extract("watch", "done", "--json").lines
    assert [event["state"] for event in told if event.get("event") == "state"] == ["queued", "running", "succeeded"]
    assert left.extract("watch", "cancelled", "--json").code == 5


def test_one_worker_of_this_version_ends_all_that_an_earlier_one_left(left):
    left.plan(steps=4)
    left.worker()
    for job in [*QUEUED, "running"]:
        left.wait_state(job, "succeeded")
    assert left.records.need("running")["attempt"] == "2"
    assert left.states("running") == ["queued", "running", "queued", "running", "succeeded"]
    assert left.steps("running") == [*range(1, 9)], "its checkpoint was at step 6"
    assert {left.records.need(job)["attempt"] for job in QUEUED} == {"1"}
    assert started(left, "queued-high") < started(left, "queued") < started(left, "queued-low")
    assert {job: left.state_of(job) for job in ENDED} == ENDED, "what had ended stays as it was"
    for job in ("done", "running", *QUEUED):
        fetched = left.extract("result", job, "--out", str(left.home / "fetched" / job), "--json")
        assert fetched.code == 0, fetched
        assert (left.home / "fetched" / job / "manifest.json").is_file()
    wait_for(lambda: not left.records.client.llen(KEY_PREFIX + "extract"), "the queue to be empty")
    assert left.records.open_ids() == []
    assert Counts(left.records.client).by_state() == {"queued": 0, "running": 0, "succeeded": 8, "failed": 1, "cancelled": 1}


def test_a_sweep_of_the_earlier_version_is_found_and_asked_for_again_is_the_same(left):
    [(sweep, points)] = SWEEP.items()
    before = left.extract("sweep", "--status", sweep, "--no-worker", "--json").json
    assert [(point["job"], point["state"]) for point in before["points"]] == [(job, "queued") for job in points]
    then = {
        "standard": "paper",
        "confident": "false",
        "algorithm": "masks",
        "trial_pairs": 256,
        "targets": "0.05,0.3",
    }  # what the presets had
    as_then = [f"--set=prune.{name}={value}" for name, value in then.items()]
    again = ("sweep", "--grid", "width=16,32", "--task", "for_while", *as_then, "--no-worker", "--json")
    assert left.extract(*again).json == {
        "sweep": sweep,
        "jobs": [
            {"job": job, "label": f"width {width}", "state": "queued", "queued_now": False}
            for job, width in zip(points, (16, 32), strict=True)
        ],
    }


def test_a_job_whose_worker_of_the_earlier_version_lives_is_left_to_it(left):
    """It renews its lease and knows nothing of the counts, in which this version looks for lost owners."""
    owner = left.records.need("running")
    owner["process"] = str(processes.identify())
    left.records.client.hset("ex:job:running", "process", owner["process"])
    left.records.client.set("ex:lease:running", owner["token"], ex=60)
    left.worker()
    left.wait_state("queued-low", "succeeded")
    assert left.state_of("running") == "running"
    assert left.records.beat("running", owner["token"], 60) == ""
    assert left.extract("cancel", "running").code == 0
    assert left.records.beat("running", owner["token"], 60) == "cancel", "the word that the earlier version obeys"
    assert left.records.release("running", owner["token"], "saved", counts=False) == "cancelled"


def test_a_failed_job_of_the_earlier_version_is_tried_again_under_its_id(left):
    from extractor.spec.schema import parse_job
    from worker.client import submit

    left.plan(steps=5)
    spec = parse_job(left.records.need("failed")["spec"])
    assert submit.submit_again(left.service, spec, "failed") == "failed"
    left.worker()
    left.wait_state("failed", "succeeded")
    assert left.steps("failed") == [*range(1, 11)], "all its steps were done before"


def started(machine: Machine, job: str) -> float:
    return float(machine.records.need(job)["started"])
