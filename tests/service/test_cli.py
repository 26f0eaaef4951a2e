"""The command line: what users type, what they read, what their scripts parse."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import simulated_hub
from service_machine import PROJECT, circuit_spec, wait_for

from extractor import files
from extractor.models.tokenizer import save_tokenizer, train_tokenizer
from worker import cli
from worker.cli.views.job import PlainView
from worker.cli.views.live_line import LineSigns
from worker.client import watch
from worker.fleet import local

HEAVY = ("torch", "celery", "redis", "rich", "pydantic", "kombu", "transformers", "numpy")
ALL_COMMANDS = sorted(cli.COMMANDS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder that passes for a GPT-2: its config, a tokenizer of single bytes, a file where the weights would be."""
    folder = tmp_path_factory.mktemp("model")
    save_tokenizer(train_tokenizer(["a"], 257), folder, 64)
    files.write_json(folder / "config.json", simulated_hub.GPT2)
    (folder / "model.safetensors").write_bytes(simulated_hub.weights("one"))
    return str(folder)


def test_help_imports_nothing_heavy():
    script = "import sys; from worker.cli import main\ntry: main(['--help'])\nfinally: print('HEAVY', *{*sys.argv[1:]} & {*sys.modules})"
    said = subprocess.run([sys.executable, "-c", script, *HEAVY], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1].strip() == "HEAVY"
    assert all(f"  {name} " in said for name in ALL_COMMANDS)


@pytest.mark.parametrize("name", ALL_COMMANDS)
def test_each_command_s_help_has_a_summary_line_and_an_example(machine, name):
    answer = machine.extract(name, "--help")
    assert answer.code == 0
    assert "Example: " in answer.out
    assert f"extract {name}" in answer.out
    assert "--json" in answer.out


def test_a_fresh_machine_goes_from_submit_to_a_circuit_in_one_command(machine, model):
    answer = machine.shell("submit", "--model", model, "--task", "quote_close", "--wait")
    assert answer.code == 0, answer.err
    assert "queued" in answer.out
    assert "[2/2] prune" in answer.out
    assert "12 nodes, 34 edges; meets the target loss 0.15" in answer.out
    assert "report.html" in answer.out
    assert local.is_registered(machine.settings), "the local worker waits for more"


def test_no_command_of_the_service_imports_torch(machine, model):
    script = "import sys; from worker.cli import main\ntry: main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules"
    for arguments in (["submit", "--model", model, "--task", "quote_close", "--no-worker"], ["list"], ["status"], ["tasks"]):
        done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=PROJECT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_spec_that_submit_prints_is_one_that_run_takes(machine, model):
    printed = machine.extract("submit", "--model", model, "--task", "single_double_quote", "--seed", "7", "--print-spec")
    assert not machine.state.exists(), "printing a spec starts no server"
    path = machine.home / "spec.json"
    path.write_text(printed.out)
    answer = machine.extract("run", str(path), "--out", str(machine.home / "out"), "--json")
    assert answer.code == 0
    assert (answer.json["result"]["task"], answer.json["result"]["model"]) == ("quote_close", model)


def test_the_model_of_a_finished_job_is_named_by_its_id(machine, model, monkeypatch):
    seen = []

    def to_spec(request, _on_note):
        seen.append(request.model)
        return circuit_spec()

    monkeypatch.setattr("extractor.jobs.request.CircuitRequest.to_spec", to_spec)
    machine.finish("mine")
    assert machine.extract("submit", "--model", "mine", "--task", "quote_close", "--no-worker").code == 0
    assert machine.extract("submit", "--model", "mine", "--task", "quote_close", "--print-spec").code == 0
    assert machine.extract("submit", "--model", "gpt2", "--task", "quote_close", "--no-worker").code == 0
    assert seen == [str(machine.settings.root / "mine" / "result" / "model")] * 2 + ["gpt2"]
    machine.submit("waiting")
    answer = machine.extract("submit", "--model", "waiting", "--task", "quote_close", "--no-worker")
    assert answer.code == 2
    assert "queued" in answer.err


def test_several_tasks_go_into_one_job_whose_result_is_a_table(machine):
    asked = ("submit", "--model", "python-tiny", "--task", "single_double_quote", "--task", "for_while", "--job-id", "mine", "--wait")
    answer = machine.shell(*asked)
    assert answer.code == 0, answer.err
    lines = {line.split()[0]: line.split() for line in answer.out.splitlines() if line}
    assert lines["task"] == "task nodes edges paper loss full accuracy without random target".split()
    assert lines["for_while"] == "for_while 12 34 0.14 0.01 0.96 4.5 2.1 met".split()
    assert lines["quote_close"][-1] == "met"
    assert "circuits: 2 of 2 meet the target loss" in answer.out
    result = machine.settings.root / "mine" / "result"
    assert f"reports: {result / 'circuits' / 'TASK' / 'report.html'}" in answer.out
    assert f"index: {result / 'index.html'}" in answer.out

    rows = json.loads((machine.settings.root / "mine" / "result" / "tasks.json").read_text())
    facts = machine.extract("result", "mine", "--json").json["result"]
    assert facts["tasks"] == rows
    assert {name for name in facts["paths"] if name.startswith("report")} == {"report", "report quote_close"}
    assert machine.extract("watch", "mine", "--json").json["result"] == facts
    assert "for_while" in machine.extract("result", "mine").out
    said = machine.extract("status", "mine").out
    assert "task:      quote_close, for_while" in said
    assert "circuits:  2 of 2 meet the target loss" in said
    status = machine.extract("status", "mine", "--json").json
    assert (status["task"], status["tasks"], status["circuits"]) == ("quote_close, for_while", ["quote_close", "for_while"], rows)


def test_of_many_tasks_lists_tell_the_number_and_the_table_says_what_was_not_made(machine):
    machine.finish("mine", circuit_spec("quote_close", "for_while", "lambda_func", "with_as"))
    assert machine.extract("list", "--json").json[0]["task"] == "4 tasks"
    assert "4 tasks" in machine.extract("list").out
    said = machine.extract("result", "mine").out
    assert "no circuit: its answers are two tokens" in " ".join(said.split())
    assert "circuits: 3 of 4 meet the target loss, 1 task is not expressible for this model" in said


def test_all_tasks_are_those_that_the_tokenizer_expresses_and_the_others_are_said_on_stderr(machine, model):
    answer = machine.extract("submit", "--model", model, "--task", "all", "--print-spec")
    made = json.loads(answer.out)["tasks"]
    assert answer.code == 0
    assert "quote_close" in made
    left_out = [line.partition(" is left out: ")[0] for line in answer.err.splitlines()]
    assert "for_while" in left_out
    assert sorted([*made, *left_out]) == [row["name"] for row in machine.extract("tasks", "--json").json]
    dry = machine.extract("submit", "--model", "python-tiny", "--task", "for_while", "--task", "quote_close", "--dry-run")
    assert "corpus -> bridge -> (prune -> validate -> report) for each of for_while, quote_close" in " ".join(dry.out.split())


def test_a_file_of_pairs_is_a_task_and_one_that_is_not_right_is_refused_in_a_line(machine):
    lines = [{"positive": f'print("{n}', "negative": f"print('{n}", "answers": ['")', "')"]} for n in ("name", "value", "item", "data")]
    path = machine.home / "mine.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    answer = machine.extract("submit", "--model", "python-tiny", "--task", str(path), "--json")
    assert (answer.code, answer.json["error"]["type"]) == (2, "SpecError")
    assert answer.err == f"error: task file {path} has 4 pairs, at least 32 are needed; write more\n"
    more = [
        line | {side: f"{line[side].replace('print', noun)}" for side in ("positive", "negative")}
        for line in lines
        for noun in ("print", "get", "find", "open", "len", "str", "add", "split", "join", "append", "ValueError", "KeyError")
    ]
    path.write_text("\n".join(json.dumps(line) for line in more))
    spec = json.loads(machine.extract("submit", "--model", "python-tiny", "--task", str(path), "--print-spec").out)
    assert (spec["tasks"], spec["task_files"][0]["path"]) == (["mine"], str(path))
    answer = machine.extract("submit", "--model", "python-tiny", "--task", str(machine.home / "no.jsonl"), "--json")
    assert (answer.code, answer.json["error"]["type"]) == (3, "NotFound")


def test_a_job_that_an_earlier_version_recorded_is_still_read(machine):
    spec = circuit_spec()
    machine.submit("mine", spec)
    before = json.loads(spec.model_dump_json())
    (before["task"],) = before["tasks"]
    before["tasks"] = []
    del before["task_files"]
    machine.records.client.hset("ex:job:mine", "spec", json.dumps(before))
    machine.records.client.hdel("ex:job:mine", "tasks")
    assert machine.submit("mine", spec) == "mine", "the same spec under the same id"
    described = machine.extract("status", "mine", "--no-worker", "--json").json
    assert (described["task"], described["tasks"]) == ("quote_close", ["quote_close"])
    machine.worker()
    machine.wait_state("mine", "succeeded")
    assert machine.extract("result", "mine", "--json").json["result"]["task"] == "quote_close"


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (("submit", "--model", "/nowhere", "--task", "quote_close"), 3, "ModelNotFound"),
        (("submit", "--model", "MODEL", "--task", "nonsense"), 2, "UnknownTask"),
        (("submit", "--model", "MODEL", "--task", "quote_close", "--corpus", "/nowhere"), None, None),
        (("submit", "--task", "quote_close"), 2, "MissingParameter"),
        (("submit", "--model", "MODEL", "--task", "quote_close", "--preset", "huge"), 2, "BadParameter"),
        (("submit", "--model", "MODEL", "--task", "quote_close", "--job-id", "../x"), 2, "UsageError"),
        (("submit", "--model", "MODEL", "--task", "quote_close", "--out", "x"), 2, "UsageError"),
        (("status", "nobody"), 3, "NotFound"),
        (("watch", "nobody"), 3, "NotFound"),
        (("watch", "nobody", "--from", "$"), 2, "UsageError"),
        (("cancel", "nobody"), 3, "NotFound"),
        (("result", "nobody"), 3, "NotFound"),
        (("status", "../../etc/passwd"), 2, "UsageError"),
        (("result", "a/b"), 2, "UsageError"),
        (("run", "/nowhere.json", "--out", "x"), 3, "NotFound"),
        (("submit", "--model", "MODEL", "--task", "quote_close", "--target-loss", "nan"), 2, "BadParameter"),
        (("nonsense",), 2, None),
        (("server", "restart"), 2, "BadParameter"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_mistake_is_one_line_on_stderr_and_an_object_with_json(machine, model, arguments, code, kind):
    answer = machine.extract(*(model if word == "MODEL" else word for word in arguments), "--json")
    report = answer.json["error"]
    assert answer.code == report["exit_code"]
    assert answer.code == code or (code is None and answer.code in (2, 3))
    assert kind is None or report["type"] == kind
    assert answer.err == f"error: {report['message']}\n"


def test_a_server_that_is_not_there_and_one_that_is_not_safe_are_explained(machine, monkeypatch):
    monkeypatch.setenv("EXTRACT_REDIS_URL", "redis://:hidden@127.0.0.1:1/0")
    answer = machine.extract("list", "--json")
    assert answer.json["error"]["exit_code"] == answer.code == 4
    assert "redis://:***@127.0.0.1:1/0 cannot be reached" in answer.err
    assert "hidden" not in answer.err + answer.out
    monkeypatch.setenv("EXTRACT_REDIS_URL", "redis://10.255.255.1:6379/0")
    assert "EXTRACT_ALLOW_INSECURE_REDIS" in machine.extract("list").err
    assert not machine.state.exists()


def test_on_a_remote_server_no_worker_is_started_and_its_absence_is_said(machine, monkeypatch):
    monkeypatch.setenv("EXTRACT_REDIS_URL", machine.service.url)
    answer = machine.extract("train", "--json")
    assert answer.json["state"] == "queued"
    assert answer.err == "warning: no live worker; the job waits until you start `extract worker`\n"
    assert not (machine.state / "worker.json").exists()


def test_the_same_job_id_and_spec_is_the_same_job_and_another_spec_is_refused(machine):
    for _ in range(2):
        assert machine.extract("train", "--job-id", "mine", "--no-worker").out == "mine\n"
    assert len(machine.records.open_ids()) == 1
    answer = machine.extract("train", "--job-id", "mine", "--seed", "1", "--no-worker")
    assert answer.code == 2
    assert "taken" in answer.err


def test_every_command_speaks_json(machine, model, monkeypatch):
    made = machine.extract("submit", "--model", model, "--task", "quote_close", "--wait", "--json", "--out", str(machine.home / "copy"))
    final = made.json
    job = final["job"]
    assert all("event" in line for line in made.lines[:-1])
    assert (final["state"], final["result"]["meets_target"], final["path"]) == ("succeeded", True, str(machine.home / "copy"))
    assert machine.extract("status", job, "--json").json["state"] == "succeeded"
    assert [row["job"] for row in machine.extract("list", "--json").json] == [job]
    assert machine.extract("status", "--json").json["workers"][0]["name"].startswith("local-")
    assert machine.extract("result", job, "--json").json["result"]["task"] == "quote_close"
    assert machine.extract("cancel", job, "--json").json == {"job": job, "state": "succeeded", "cancelling": False}
    assert machine.extract("watch", job, "--json").json["job"] == job
    assert "quote_close" in [row["name"] for row in machine.extract("tasks", "--json").json]
    monkeypatch.setattr("extractor.models.reference.BUNDLED", Path(model).parent)
    assert model in [row["path"] for row in machine.extract("models", "--json").json]
    assert machine.extract("server", "status", "--json").json["running"] is True
    assert machine.shell("worker", "--idle-exit", "0.1", "--json").json["jobs"] == 0


def test_people_read_tables_and_lines(machine):
    machine.finish("mine")
    listed = machine.extract("list").out
    assert "mine" in listed
    assert "succeeded" in listed
    machine.submit("next")
    assert "next" in machine.extract("status", "--no-worker").out
    assert "state:     succeeded" in machine.extract("status", "mine").out
    assert "quote_close" in machine.extract("tasks", "--example").out


def test_watch_ends_by_itself_and_loses_no_event_though_the_server_is_killed_meanwhile(machine):
    machine.plan(steps=10, seconds=0.1)
    job = machine.submit()
    watching = machine.spawn("watch", job, "--json", EXTRACT_NO_WORKER="1")
    machine.worker()
    machine.wait_step(job, 5)
    os.kill(machine.server_pid(), signal.SIGKILL)
    out, err = watching.communicate(timeout=30)
    assert watching.returncode == 0, err
    seen = out.splitlines()[:-1]
    everything = [event | {"id": key} for key, event in machine.records.events(job, "0", 0.001)]
    assert [json.loads(line) for line in seen] == everything


def test_watch_goes_on_from_an_event(machine):
    lines = machine.extract("train", "--wait", "--json").lines
    job, middle = lines[-1]["job"], lines[3]["id"]
    assert machine.extract("watch", job, "--json", "--from", middle).lines[:-1] == lines[4:-1]
    assert machine.extract("watch", job, "--json", "--from", lines[-2]["id"]).lines == [lines[-1]]


def test_watch_sees_a_dead_local_worker_replaced(machine):
    machine.plan(steps=10, seconds=0.1)
    watching = machine.spawn("train", "--job-id", "mine", "--wait", "--json")
    wait_for(lambda: (machine.settings.root / "mine" / "result" / ".work" / "steps.log").exists(), "the job to run")
    os.kill(local_pid(machine), signal.SIGKILL)
    _, err = watching.communicate(timeout=30)
    assert watching.returncode == 0, err
    assert machine.records.need("mine")["attempt"] == "2"


def test_a_local_worker_that_cannot_start_is_reported_by_whoever_waits(machine, monkeypatch):
    monkeypatch.setattr(local, "python_module", lambda *_: [sys.executable, "-c", "raise SystemExit('no luck')"])
    monkeypatch.setattr(watch, "WORKER_CHECK_SECONDS", 0.1)
    monkeypatch.setattr(watch, "MAX_STARTS", 1)
    answer = machine.extract("train", "--wait")
    assert answer.code == 4
    assert "no luck" in answer.err


def test_ctrl_c_leaves_the_job_running_and_says_how_to_go_on(machine):
    machine.plan(steps=1000, seconds=0.05)
    watching = machine.spawn("train", "--job-id", "mine", "--wait")
    wait_for(lambda: (machine.settings.root / "mine" / "result" / ".work" / "steps.log").exists(), "the job to run")
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert "extract watch mine" in err
    assert "Traceback" not in err
    assert machine.state_of("mine") == "running"


def test_a_terminal_shows_one_live_line(machine):
    machine.plan(steps=5, seconds=0.1)
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "worker", "train", "--wait"],
        cwd=PROJECT, env=os.environ | {"TERM": "xterm", "COLUMNS": "80"}, stdin=subprocess.DEVNULL, stdout=follower, stderr=follower,
    ) as process:  # fmt: skip
        os.close(follower)
        shown = b""
        while chunk := read_terminal(leader):
            shown += chunk
    os.close(leader)
    assert process.returncode == 0
    lines = re.split(r"[\r\n]+|\x1b\[[0-9;?]*[A-Za-z]", shown.decode())
    live = [line for line in lines if "elapsed" in line]
    assert live, "the line is drawn while the job runs"
    assert all(line[0] in LineSigns().spinner and len(line) <= 80 for line in live), "one line, with a sign of life"
    assert any(re.search(r"▸ [1-5]/5", line) for line in live)
    assert any(re.fullmatch(r"bridge ✓ \d s  prune ✓ \d s", line) for line in lines), "what is left of it when the job has ended"


def test_lines_without_a_terminal_are_sparse(capsys):
    view = PlainView("mine")
    view.show({"event": "stage", "stage": "bridge", "index": 1, "of": 2, "time": 100.0})
    for second in range(60):
        view.show(
            {
                "event": "progress",
                "stage": "bridge",
                "step": second,
                "total": 60,
                "metrics": {"loss": 2.5},
                "seconds_left": 75,
                "time": 100.0 + second,
            }
        )
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["[1/2] bridge", "[1/2] bridge, 10/60, loss 2.5, 1 min 15 s left in this stage"]
    assert len(lines) == 6


def test_a_result_is_copied_and_the_copy_verifies(machine):
    machine.finish("mine")
    out = machine.home / "new" / "copy"
    answer = machine.extract("result", "mine", "--out", str(out), "--json")
    assert answer.code == 0
    assert set(answer.json["files"]) == set(files.verify_manifest(out))
    assert not (out / ".work").exists()
    assert "not an empty folder" in machine.extract("result", "mine", "--out", str(out)).err
    assert os.listdir(out.parent) == ["copy"]


def test_open_shows_the_report_of_a_circuit_and_says_when_there_is_none(machine, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) is None)
    monkeypatch.setenv("DISPLAY", ":0")
    folder = machine.finish("mine", circuit_spec())
    report = folder / "circuits" / "quote_close" / "report.html"
    answer = machine.extract("result", "mine", "--open")
    assert (answer.code, answer.err) == (0, f"opened in the browser: {report}\n")
    assert opened == [report.as_uri()]
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    answer = machine.extract("result", "mine", "--open")
    assert answer.code == 1
    assert f"there is no browser here; the report is one file, copy it to where one is: {report}" in answer.err
    several = machine.finish("several", circuit_spec("quote_close", "for_while")) / "index.html"
    assert f"its folder has all reports, copy that to where one is: {several}" in machine.extract("result", "several", "--open").err
    machine.finish("model")
    assert "has no report" in machine.extract("result", "model", "--open").err


@pytest.mark.parametrize("damage", ["changed", "missing", "outside", "linked", "linked folder"])
def test_a_result_that_was_tampered_with_is_not_copied(machine, damage):
    folder = machine.finish("mine")
    secret = machine.home / "secret"
    secret.mkdir()
    (secret / "config.json").write_text("{}")
    manifest = files.read_json(folder / "manifest.json")
    if damage == "changed":
        (folder / "result.json").write_text("{}")
    elif damage == "missing":
        (folder / "result.json").unlink()
    elif damage == "outside":
        manifest["files"]["../../../../secret/config.json"] = manifest["files"]["model/config.json"]
        files.write_json(folder / "manifest.json", manifest)
    elif damage == "linked":
        (folder / "model" / "config.json").unlink()
        (folder / "model" / "config.json").symlink_to(secret / "config.json")
    else:
        (folder / "model" / "config.json").unlink()
        (folder / "model").rmdir()
        (folder / "model").symlink_to(secret)
    answer = machine.extract("result", "mine", "--out", str(machine.home / "copy"), "--json")
    assert answer.code == 1
    assert answer.json["error"]["type"] == "BrokenArtifact"
    assert not (machine.home / "copy").exists()


def test_a_result_outlives_its_record(machine):
    machine.finish("mine")
    machine.records.client.flushall()
    assert machine.extract("result", "mine", "--json").json["result"]["loss"] == 1.25
    assert machine.extract("status", "mine").code == 3


def test_there_is_no_result_before_the_end(machine):
    machine.submit("waiting")
    answer = machine.extract("result", "waiting")
    assert answer.code == 3
    assert "queued" in answer.err
    machine.extract("cancel", "waiting")
    assert machine.extract("result", "waiting").code == 5


def local_pid(machine):
    from worker import processes

    who = processes.read_pid(machine.state / "worker.json")
    assert who is not None
    return who.pid


def read_terminal(leader):
    try:
        return os.read(leader, 4096)
    except OSError:  # the other end is closed
        return b""
