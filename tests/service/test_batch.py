"""`extract batch` on a real queue: models chosen, a job for each model and task, only what is missing done again, what it came to."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from html.parser import HTMLParser
from pathlib import Path

import pytest
from local_hub import serve
from service_machine import wait_for
from simulated_hub import SHA, expected, simulated_hub

from extractor import files
from worker.batches.batch import state_of
from worker.broker import embedded_redis
from worker.cli.connect import results_at
from worker.client import damaged

DIVERGED = ["TrainingDiverged", "the loss is not a number", 1]
NOT_EXPRESSIBLE = ["TaskNotExpressible", "its answers are two tokens", 2]


class Page(HTMLParser):
    """What a page says and where it leads; fails where tags do not match."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.links, self._open = "", [], []
        self.feed(path.read_text())
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self._open.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_of_five_models_one_fails_and_only_its_job_is_queued_again(machine, models: Path):
    machine.plan(steps=1, seconds=0, fail_for={"/m3": DIVERGED})
    request = ["batch", "submit", "--models", str(models), "--task", "quote_close"]
    first = machine.extract(*request, "--wait", "--json")
    assert first.code == 1
    assert "1 of 5 jobs failed" in first.err
    told = first.json
    assert told["counts"] == {"succeeded": 4, "failed": 1}
    cells = {Path(model["model"]).name: model["tasks"]["quote_close"] for model in told["models"]}
    assert [cells[name]["state"] for name in sorted(cells)] == ["succeeded"] * 3 + ["failed", "succeeded"]
    assert cells["m3"]["error"] == "TrainingDiverged: the loss is not a number"
    assert (cells["m0"]["nodes"], cells["m0"]["edges"], cells["m0"]["loss"], cells["m0"]["meets_target"]) == (12, 34, 0.14, True)
    attempts = {name: machine.records.need(cell["job"])["created"] for name, cell in cells.items()}

    machine.plan(steps=1, seconds=0)
    shutil.rmtree(machine.state / "batches")  # the batch does not live there
    again = machine.extract(*request, "--json", "--no-worker")
    assert again.code == 0
    assert (again.json["batch"], again.json["queued"]) == (told["batch"], [cells["m3"]["job"]])
    watched = machine.extract("batch", "watch", told["batch"], "--json")
    assert watched.code == 0
    assert watched.json["counts"] == {"succeeded": 5}
    now = {name: machine.records.need(cell["job"])["created"] for name, cell in cells.items()}
    assert {name for name in now if now[name] != attempts[name]} == {"m3"}

    out = machine.home / "all"
    result = machine.extract("batch", "result", told["batch"], "--out", str(out), "--json")
    assert (result.code, result.json["path"]) == (0, str(out))
    assert json.loads((out / "summary.json").read_text()) == {key: value for key, value in result.json.items() if key != "path"}
    page = Page(out / "index.html")
    assert "5 of 5 circuits in 5 models meet their target loss, with 34 to 34 edges." in page.text
    reports = [link for link in page.links if link.startswith("file://")]
    assert len(reports) == 5
    assert all(Path(link.removeprefix("file://")).is_file() for link in reports)
    viewed = results_at(told["batch"])  # as `extract view BATCH` serves them
    assert [Path(name).name for name, _ in viewed] == [f"m{i}" for i in range(5)]
    assert {folder for _, folder in viewed} == {Path(report.removeprefix("file://")).parents[2] for report in reports}
    assert machine.extract(*request, "--json").json["queued"] == []
    listed = machine.extract("batch", "list", "--json").json
    machine.records.client.hset(f"ex:job:{cells['m0']['job']}", "artifact", "/elsewhere/result")
    (machine.settings.root / cells["m1"]["job"] / "result" / "circuits" / "quote_close" / "result.json").write_text("{}")
    worse = machine.extract("batch", "result", told["batch"], "--json")
    found = {Path(model["model"]).name: model["tasks"]["quote_close"] for model in worse.json["models"]}
    assert (found["m0"]["state"], found["m0"]["edges"], found["m2"]["edges"]) == ("succeeded", None, 34)
    assert "not visible from here" in found["m0"]["why"]
    assert "lacks the numbers of a circuit" in found["m1"]["error"]
    assert [(batch["batch"], batch["state"], batch["models"]) for batch in listed] == [(told["batch"], "succeeded", 5)]


def test_results_that_were_damaged_or_removed_are_made_anew_on_request(machine, models: Path):
    machine.plan(steps=1, seconds=0)
    request = ["batch", "submit", "--models", str(models), "--task", "quote_close", "--wait", "--json"]
    jobs = [model["tasks"]["quote_close"]["job"] for model in machine.extract(*request).json["models"]]
    results = [machine.settings.root / job / "result" for job in jobs]
    before = [files.verify_manifest(result) for result in results]
    created = [machine.records.need(job)["created"] for job in jobs]
    cut = results[0] / "circuits" / "quote_close" / "result.json"
    cut.write_bytes(cut.read_bytes()[:20])
    (results[1] / "model" / "config.json").unlink()
    shutil.rmtree(results[2])
    (results[3] / "manifest.json").unlink()
    asked = machine.extract("batch", "result", machine.extract("batch", "list", "--json").json[0]["batch"], "--json")
    states = [model["tasks"]["quote_close"]["state"] for model in asked.json["models"]]
    assert (asked.code, states) == (1, ["failed", "succeeded", "failed", "succeeded", "succeeded"])
    assert "its result is gone" in asked.json["models"][2]["tasks"]["quote_close"]["error"]
    assert machine.extract("list", "--json").json == []
    assert "extract list --all" in machine.extract("list").out
    assert len(machine.extract("list", "--all", "--json").json) == 5

    again = machine.extract(*request)
    assert again.code == 0
    assert again.json["counts"] == {"succeeded": 5}
    assert [files.verify_manifest(result) for result in results] == before
    assert [machine.records.need(job)["created"] != at for job, at in zip(jobs, created, strict=True)] == [True] * 4 + [False]
    notes = [event["message"] for _, event in machine.records.events(jobs[0], "0", 0.01) if event["event"] == "note"]
    assert sum("result.json was altered" in note and "made anew" in note for note in notes) == 1


def test_a_result_is_gone_where_the_folder_of_its_job_is(machine):
    result = machine.finish("done")
    assert not damaged.is_damaged(machine.service, "done")
    shutil.rmtree(result)
    elsewhere = dataclasses.replace(machine.settings, redis_url="rediss://elsewhere")
    shared = dataclasses.replace(machine.service, settings=elsewhere)
    assert damaged.is_damaged(shared, "done")
    shutil.rmtree(result.parent)  # what a machine sees that does not share the disk
    assert not damaged.is_damaged(shared, "done")
    assert damaged.is_damaged(machine.service, "done")


def test_cancelling_a_batch_stops_every_job_and_the_same_submit_goes_on(machine, models: Path):
    machine.plan(steps=200, seconds=0.1)
    request = ["batch", "submit", "--models", str(models), "--task", "quote_close", "--task", "bracket_brace", "--json"]
    batch = machine.extract(*request).json["batch"]
    look = lambda: machine.extract("batch", "status", batch, "--no-worker", "--json")  # noqa: E731 - asked again and again
    wait_for(lambda: look().json["counts"].get("running"), "a running job")
    assert look().json["state"] == "running"
    told = machine.extract("batch", "cancel", batch, "--json").json
    assert told["cancelled"] + told["running"] == 10
    assert told["running"] >= 1
    wait_for(lambda: look().json["counts"] == {"cancelled": 10}, "all jobs to be cancelled")
    ended = look()
    assert (ended.code, ended.json["state"]) == (5, "cancelled")
    assert machine.extract("batch", "watch", batch).code == 5
    assert machine.extract("batch", "result", batch).code == 5
    assert machine.extract("batch", "cancel", batch, "--json").json == {"batch": batch, "cancelled": 0, "running": 0, "ended": 10}
    machine.plan(steps=1, seconds=0)
    again = machine.extract(*request, "--wait")
    assert again.code == 0
    assert again.json["counts"] == {"succeeded": 10}


def test_somebody_who_watches_a_batch_outlives_a_killed_server(machine, models: Path):
    machine.plan(steps=15, seconds=0.1)
    batch = machine.extract("batch", "submit", "--models", str(models), "--task", "quote_close", "--limit", "2", "--json").json
    watching = machine.spawn("batch", "watch", batch["batch"], "--json")
    assert watching.stdout is not None
    assert json.loads(watching.stdout.readline())["state"] in ("queued", "running")
    os.kill(machine.server_pid(), signal.SIGKILL)
    out, err = watching.communicate(timeout=60)
    assert watching.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["counts"] == {"succeeded": 2}


def test_a_task_that_a_model_turns_out_unable_to_express_is_no_failure(machine, models: Path):
    machine.plan(steps=1, seconds=0, fail_for={"/m1": NOT_EXPRESSIBLE, "/m2": NOT_EXPRESSIBLE})
    request = ["batch", "submit", "--models", str(models), "--task", "quote_close"]
    answer = machine.extract(*request, "--wait")
    assert answer.code == 0
    assert "3 succeeded, 2 not expressible" in answer.out
    assert "its answers are two tokens" in answer.err
    assert machine.extract(*request, "--json").json["queued"] == []


@pytest.mark.slow
def test_a_simulated_hub_of_200_models_is_worked_off_and_every_refusal_explained(machine):
    machine.plan(steps=1, seconds=0, fail_for={"lab/llama-": NOT_EXPRESSIBLE})
    (machine.home / "named.txt").write_text("\n".join(f"lab/hidden-{number}" for number in range(4)))
    request = ["batch", "submit", "--models", "hub:lab/", "--models", "named.txt", "--task", "quote_close", "--max-params", "200M"]
    with serve(simulated_hub()) as hub:
        environment = hub.environment(machine.home / "hub")
        dry = machine.shell(*request, "--dry-run", **environment)
        assert dry.code == 0
        assert "22 models accepted, 178 rejected, 22 jobs; nothing was queued" in dry.out
        assert embedded_redis.facts(machine.settings) is None  # not even a server was started
        queued = machine.shell(*request, "--json", "--no-worker", **environment)
    assert (queued.code, len(queued.json["queued"])) == (0, 22)
    assert {machine.records.need(job)["priority"] for job in queued.json["queued"]} == {"low"}
    machine.worker("--max-jobs", "11")
    done = machine.extract("batch", "watch", queued.json["batch"], "--json")
    assert done.code == 0
    told = done.json
    wanted = expected()
    assert told["counts"] == {"succeeded": 18, "not expressible": 4}
    assert {model["reference"] for model in told["models"]} == {f"{name}@{SHA}" for name, why in wanted.items() if not why}
    refused = {model["model"]: model["reason"] for model in told["refused"]}
    assert [name for name, why in wanted.items() if why and why not in refused.get(name, "")] == []
    assert len(refused) + len(told["models"]) == 200
    page = Page(Path(told["path"]) / "index.html").text
    assert [name for name, reason in refused.items() if name not in page or reason not in page] == []
    assert page.count("34 / 12 / 0.140") == 18


def test_a_batch_asks_each_local_model_what_its_tokenizer_can_express(machine, models: Path):
    own = machine.home / "own.jsonl"
    row = {"answers": ["one two", "three four"]}
    own.write_text("\n".join(json.dumps(row | {"positive": f"ab{n:02}", "negative": f"cd{n:02}"}) for n in range(40)))
    request = ["batch", "submit", "--models", str(models), "--task", "quote_close", "--task", str(own), "--dry-run"]
    answer = machine.extract(*request)
    assert "5 models accepted, 0 rejected, 5 jobs (5 omitted: not expressible)" in answer.out
    assert answer.err.count("own is omitted: ") == 5
    left_out = machine.extract(*request, "--json").json["models"][0]["left_out"]
    assert list(left_out) == ["own"]


def test_a_higher_limit_adds_to_a_batch(machine, models: Path):
    request = ["batch", "submit", "--models", str(models), "--task", "quote_close", "--json", "--no-worker"]
    few = machine.extract(*request, "--limit", "2").json
    assert (few["is_complete"], len(few["queued"])) == (False, 2)
    more = machine.extract(*request, "--limit", "4").json
    assert more["batch"] == few["batch"]
    assert len(more["queued"]) == 2
    assert not {*few["queued"]} & {*more["queued"]}
    other = machine.extract(*request, "--seed", "1").json
    assert other["batch"] != few["batch"]


def test_requests_that_are_wrong_queue_nothing(machine, models: Path):
    submit = ["batch", "submit", "--task", "quote_close", "--models"]
    (machine.home / "binary").write_bytes(b"\xff\xfe")
    (machine.home / "none").mkdir()
    wrong = {
        "not a file, folder or search": [*submit, "nowhere"],
        "matches every model": [*submit, "hub:"],
        "not UTF-8": [*submit, str(machine.home / "binary")],
        "no model found for": [*submit, str(machine.home / "none")],
        "all 5 models were rejected": [*submit, str(models), "--max-params", "1"],
        "is not a number of parameters": [*submit, str(models), "--max-params", "many"],
        "not in the range": [*submit, str(models), "--limit", "0"],
        "quote_clos": ["batch", "submit", "--models", str(models), "--task", "quote_clos"],
        "is not between 0 and 0.693": [*submit, str(models), "--target-loss", "3"],
        "no.such.field": [*submit, str(models), "--set", "no.such.field=1"],
        "Missing option '--models'": ["batch", "submit", "--task", "quote_close"],
        "Missing option '--task'": ["batch", "submit", "--models", str(models)],
        "is not a job id": ["batch", "status", "../x"],
    }
    for said, request in wrong.items():
        answer = machine.extract(*request, "--json")
        assert (answer.code, len(answer.err.splitlines())) == (2, 1), (request, answer)
        assert said in answer.err, (said, answer.err)
    assert machine.records.open_ids() == []
    assert machine.extract("batch", "list", "--json").json == []


@pytest.mark.parametrize("command", ["status", "watch", "cancel", "result"])
def test_a_batch_that_nobody_submitted_is_not_found(machine, command: str):
    answer = machine.extract("batch", command, "b000000000", "--json")
    assert (answer.code, answer.json["error"]["type"]) == (3, "NotFound")


@pytest.mark.parametrize("plan", ["", "{}", "[]", "null", '{"version": 1}', '{"selection": {"taken": [{"path": "/etc"}]}}'])
def test_a_plan_that_somebody_else_wrote_is_told_in_a_line(machine, plan: str):
    machine.records.client.set("ex:batch:b000000000", plan)
    answer = machine.extract("batch", "status", "b000000000")
    assert (answer.code, len(answer.err.splitlines())) == (1, 1)
    assert "the plan of batch b000000000 is not readable" in answer.err
    machine.records.client.zadd("ex:batches", {"b000000000": 1})
    listed = machine.extract("batch", "list", "--json")
    assert (listed.code, listed.json) == (0, [])
    assert "not listed: the plan of batch b000000000 is not readable" in listed.err


def test_a_folder_that_holds_something_else_takes_no_summary(machine, models: Path):
    batch = machine.extract("batch", "submit", "--models", str(models), "--task", "quote_close", "--json", "--no-worker").json["batch"]
    (machine.home / "mine").mkdir()
    (machine.home / "mine" / "thesis.tex").write_text("x")
    answer = machine.extract("batch", "result", batch, "--out", str(machine.home / "mine"))
    assert (answer.code, answer.out) == (2, "")
    assert "not an empty folder" in answer.err


def test_a_batch_whose_records_expired_is_told_from_its_results(machine, models: Path):
    request = ["batch", "submit", "--models", str(models), "--task", "quote_close", "--json", "--no-worker"]
    answer = machine.extract(*request).json
    kept, lost = answer["queued"][:2]
    folder = machine.settings.root / kept / "result"
    folder.mkdir(parents=True)
    files.write_manifest(folder)
    for job in (kept, lost):
        machine.records.client.delete(f"ex:job:{job}")
        machine.records.client.zrem("ex:open", job)
    assert machine.extract("batch", "status", answer["batch"], "--json").json["counts"] == {"succeeded": 1, "missing": 1, "queued": 3}
    assert machine.extract(*request).json["queued"] == [lost]


def test_the_state_of_a_batch_follows_from_its_jobs():
    assert state_of({"succeeded": 2, "queued": 1}) == "running"
    assert state_of({"queued": 3}) == "queued"
    assert state_of({"failed": 1, "cancelled": 1, "succeeded": 1}) == "failed"
    assert state_of({"missing": 1}) == "failed"
    assert state_of({"cancelled": 1, "succeeded": 1}) == "cancelled"
    assert state_of({"succeeded": 1, "not expressible": 1}) == "succeeded"
