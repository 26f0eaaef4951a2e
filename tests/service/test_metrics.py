"""What Prometheus is told, scraped over HTTP from the command itself."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families
from service_machine import wait_for

from worker.records.records import Worker

LOOK_UPS = ("hgetall", "hmget", "hget")


@pytest.fixture
def exporter(machine):
    """The command at work: what it says when it is scraped, as {(name, values of its labels by their names): value}."""
    process = machine.spawn("metrics", "--port", "0", "--json")
    url = json.loads(process.stdout.readline())["url"]

    def scrape():
        text = urllib.request.urlopen(url, timeout=30).read().decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {(sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value for sample in samples}

    scrape.process, scrape.url = process, url
    return scrape


def test_jobs_queues_leases_and_workers_are_told(machine, exporter):
    assert exporter()["extract_up",] == 1
    records = machine.records
    for job in ("first", "second", "third"):
        machine.submit(job, priority="high" if job == "first" else "normal")
    records.claim("first", "token", 60, "h", "w@h", "")
    records.claim("second", "token", 60, "h", "w@h", "")
    records.end("second", "token", "failed")
    records.announce(Worker("w@h", "h", "first", "", False, "1", "GPU, 1 GiB", 5, 6, 7, 8.5), 60)
    records.announce(Worker("idle@h", "h", "", "", False, "1", "cpu, 1 thread"), 60)
    records.client.zincrby("ex:state:queued", -1000, "third")
    records.client.zincrby("ex:state:running", -500, "first")
    found = exporter()
    states = {"queued": 1, "running": 1, "succeeded": 0, "failed": 1, "cancelled": 0}
    assert {state: found["extract_jobs", state] for state in states} == states
    assert found["extract_jobs_ended_total", "failed"] == 1
    assert (found["extract_jobs_submitted_total",], found["extract_job_attempts_total",]) == (3, 2)
    assert [found["extract_queue_length", queue] for queue in ("extract.high", "extract", "extract.low")] == [1, 2, 0]
    assert 1000 <= found["extract_queue_oldest_seconds",] < 1030
    assert 500 <= found["extract_lease_age_seconds_max",] < 530
    assert (found["extract_workers", "busy"], found["extract_workers", "idle"]) == (1, 1)
    assert found["extract_worker_info", "GPU, 1 GiB", "h", "1", "w@h"] == 1
    assert (found["extract_worker_memory_bytes", "w@h"], found["extract_worker_gpu_memory_bytes", "w@h"]) == (5, 6)
    assert ("extract_worker_gpu_memory_bytes", "idle@h") not in found
    assert found["extract_tokens_per_second", "first", "w@h"] == 8.5


def test_while_redis_is_away_it_is_not_up_and_says_so_in_a_line(machine, exporter):
    assert exporter()["extract_up",] == 1
    os.kill(machine.server_pid(), signal.SIGKILL)
    wait_for(lambda: exporter() == {("extract_up",): 0}, "extract_up 0")
    machine.submit("next")
    found = exporter()
    assert (found["extract_up",], found["extract_jobs", "queued"]) == (1, 1)
    exporter.process.send_signal(signal.SIGTERM)
    _, err = exporter.process.communicate(timeout=20)
    assert exporter.process.returncode == 0
    assert "scrape failed: Redis does not answer" in err
    assert "Traceback" not in err


def test_it_starts_before_redis_does(machine, monkeypatch):
    process = machine.spawn("metrics", "--port", "0", "--json", EXTRACT_REDIS_URL="redis://:hidden@127.0.0.1:1/0")
    url = json.loads(process.stdout.readline())["url"]
    assert b"extract_up 0.0" in urllib.request.urlopen(url, timeout=30).read()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "hidden" not in err


def test_a_scrape_reads_no_record_however_many_there_are(machine, exporter):
    with machine.records.client.pipeline(transaction=False) as batch:
        for number in range(3000):
            batch.hset(f"ex:job:job-{number}", mapping={"state": "succeeded", "attempt": 1, "ended": 2e9, "updated": 2e9})
            batch.zadd("ex:jobs", {f"job-{number}": number})
        batch.execute()
    assert exporter()["extract_jobs", "succeeded"] == 3000, "records of an earlier version, counted once"
    machine.records.client.config_resetstat()
    assert exporter()["extract_jobs", "succeeded"] == 3000
    calls = machine.records.client.info("commandstats")
    assert sum(calls.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in LOOK_UPS) <= 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--host", "nowhere.invalid"), "nowhere.invalid:9464"),
        (("--host", "203.0.113.9"), "203.0.113.9:9464"),
        (("--port", "70000"), "70000"),
    ],
)
def test_an_address_that_cannot_be_had_is_one_line(machine, arguments, said):
    answer = machine.extract("metrics", *arguments, "--json")
    assert (answer.code, answer.json["error"]["exit_code"]) == (2, 2)
    assert said in answer.err
    assert answer.err.count("\n") == 1


def test_a_port_that_is_taken_is_one_line(machine, exporter):
    answer = machine.extract("metrics", "--port", str(urlsplit(exporter.url).port))
    assert answer.code == 2
    assert "Address already in use" in answer.err


@pytest.mark.parametrize("number", ["9" * 400, "1e999", "-1", "NaN", "\u00b2"])
def test_a_sum_that_the_service_did_not_write_breaks_no_scrape(machine, exporter, number):
    machine.submit("mine")
    machine.records.client.hset("ex:totals", "submitted", number)
    machine.records.client.hset("ex:totals", number, number)
    found = exporter()
    assert found["extract_up",] == 1
    assert found["extract_jobs_submitted_total",] == 0
    assert found["extract_jobs", "queued"] == 1


@pytest.mark.parametrize("score", ["-inf", "inf", "1e300"])
def test_a_time_that_the_service_did_not_write_breaks_no_scrape_and_no_page(machine, exporter, score):
    machine.submit("mine")
    machine.records.client.zadd("ex:state:queued", {"mine": score})
    machine.records.client.zadd("ex:state:running", {"other": score})
    assert exporter()["extract_up",] == 1
    assert machine.extract("status", "--no-worker").code == 0
    assert machine.extract("status", "--no-worker", "--json").code == 0
