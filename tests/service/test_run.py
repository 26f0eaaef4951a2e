"""`extract run` and the supervision of one engine beneath it."""

from __future__ import annotations

import json
import signal
import threading

import pytest
from service_machine import circuit_spec, train_spec, wait_for

from extractor import files
from extractor.spec.schema import to_json
from worker.supervision import engine


@pytest.fixture
def spec(machine):
    path = machine.home / "spec.json"
    path.write_text(to_json(circuit_spec()))
    return path


def test_a_run_ends_with_a_verified_result_and_a_summary(machine, spec):
    answer = machine.extract("run", str(spec), "--out", str(machine.home / "out"))
    assert answer.code == 0
    assert "[1/2] bridge" in answer.out
    assert "12 nodes, 34 edges; meets the target loss 0.15" in answer.out
    assert str(machine.home / "out" / "circuits" / "quote_close" / "report.html") in answer.out
    assert "model/config.json" in files.verify_manifest(machine.home / "out")
    assert not machine.state.exists(), "a run needs no server"


def test_a_run_tells_its_events_and_its_result_as_json(machine, spec):
    answer = machine.extract("run", str(spec), "--out", str(machine.home / "out"), "--threads", "3", "--json")
    assert [event["stage"] for event in answer.lines if event.get("event") == "stage"] == ["bridge", "prune"]
    assert answer.lines[0]["message"].startswith("threads 3 ")
    assert answer.json["result"]["circuit"] == {"nodes": 12, "edges": 34}
    assert answer.json["path"] == str(machine.home / "out")


def test_ctrl_c_saves_a_checkpoint_and_the_same_command_goes_on_from_it(machine, spec):
    machine.plan(steps=10, seconds=0.1)
    out = machine.home / "out"
    process = machine.spawn("run", str(spec), "--out", str(out))
    log = out / ".work" / "steps.log"
    wait_for(lambda: log.exists() and len(log.read_text().split()) >= 3, "the run to begin")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 5
    assert err == f"error: stopped; the checkpoint is in {out}; the same command resumes the run\n"
    assert machine.extract("run", str(spec), "--out", str(out)).code == 0
    assert [int(step) for step in log.read_text().split()] == list(range(1, 21))


@pytest.mark.parametrize("how", ["second Ctrl-C", "grace over"])
def test_a_run_that_is_ended_at_once_says_so_and_blames_no_memory(machine, spec, how):
    machine.plan(steps=1000, seconds=0.05, deaf=True)
    out = machine.home / "out"
    process = machine.spawn("run", str(spec), "--out", str(out), EXTRACT_STOP_GRACE="60" if how == "second Ctrl-C" else "0.3")
    log = out / ".work" / "steps.log"
    wait_for(lambda: log.exists() and len(log.read_text().split()) >= 3, "the run to begin")
    process.send_signal(signal.SIGINT)
    if how == "second Ctrl-C":
        process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    why = "it was to end at once" if how == "second Ctrl-C" else "it did not stop within 0.3 s"
    end = f"without a new checkpoint; an earlier one may be in {out}; the same command resumes the run"
    assert (process.returncode, err) == (5, f"error: the engine was killed: {why}, {end}\n")
    assert engine.is_free(out / ".work" / "engine.log")


def test_the_engine_dies_with_a_killed_run(machine, spec):
    machine.plan(steps=1000, seconds=0.05)
    process = machine.spawn("run", str(spec), "--out", str(machine.home / "out"))
    log = machine.home / "out" / ".work" / "engine.log"
    wait_for(lambda: log.with_name("engine.log.pid").exists(), "the engine to start")
    assert engine.is_free(log) is False
    process.kill()
    wait_for(lambda: engine.is_free(log), "the engine to end", seconds=5)


@pytest.mark.parametrize(
    ("plan", "code", "said"),
    [
        ({"fail": ["UnsupportedModel", "a BERT", 2]}, 2, "error: a BERT"),
        ({"fail": ["NoSuchClass", "odd", 1]}, 1, "error: odd"),
        ({"crash": "oops"}, 1, "error: the engine crashed (exit 1): RuntimeError: oops; see "),
        ({"die_at": 1}, 1, "error: the engine was killed by SIGKILL, possibly out of memory; see "),
    ],
    ids=["named error", "unknown error", "crash", "kill"],
)
def test_a_run_that_fails_says_why_in_one_line(machine, spec, plan, code, said):
    machine.plan(**plan)
    answer = machine.extract("run", str(spec), "--out", str(machine.home / "out"), "--json")
    assert answer.code == code
    assert answer.err.startswith(said)
    assert answer.err.count("\n") == 1
    assert answer.json["error"]["exit_code"] == code


def test_an_engine_that_reports_nothing_is_killed_and_that_is_a_crash(machine, spec):
    machine.plan(seconds=1000)
    process = machine.spawn("run", str(spec), "--out", str(machine.home / "out"), EXTRACT_SILENCE="3")
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (1, "error: the engine was killed: it reported nothing for 3 s (EXTRACT_SILENCE)\n")


def test_an_engine_that_claims_success_without_a_manifest_is_not_believed(machine, spec, monkeypatch):
    (machine.home / "liar.py").write_text('print(\'{"event": "done"}\')\n')
    monkeypatch.setenv("PYTHONPATH", str(machine.home))
    monkeypatch.setenv("EXTRACT_ENGINE", "liar")
    answer = machine.extract("run", str(spec), "--out", str(machine.home / "out"), "--json")
    assert answer.code == 1
    assert answer.json["error"]["type"] == "BrokenArtifact"


def test_what_a_library_prints_lands_in_the_log_and_not_among_the_events(machine, spec, monkeypatch):
    chatty = (
        "import sys\nfrom tests.service import fake_engine\nprint('Loading weights: 100%')\nprint('[1, 2]')\nsys.exit(fake_engine.main())\n"
    )
    (machine.home / "chatty.py").write_text(chatty)
    monkeypatch.setenv("PYTHONPATH", str(machine.home))
    monkeypatch.setenv("EXTRACT_ENGINE", "chatty")
    answer = machine.extract("run", str(spec), "--out", str(machine.home / "out"), "--json")
    assert answer.code == 0
    assert all("event" in line or "result" in line for line in answer.lines)
    assert "Loading weights" in (machine.home / "out" / ".work" / "engine.log").read_text()


def test_a_second_run_in_the_same_place_is_refused_while_the_first_works(machine, spec):
    machine.plan(steps=1000, seconds=0.05)
    out = machine.home / "out"
    process = machine.spawn("run", str(spec), "--out", str(out))
    wait_for(lambda: (out / ".work" / "steps.log").exists(), "the run to begin")
    answer = machine.extract("run", str(spec), "--out", str(out))
    assert answer.code == 2
    assert "another run is using this folder" in answer.err
    process.kill()


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "JSON"), ('{"kind": "circuit"}', "needs model, tasks"), ('{"kind": "train", "x": 1}', "x")],
    ids=["json", "parts", "key"],
)
def test_a_spec_file_that_does_not_validate_is_refused_before_anything_starts(machine, text, said):
    path = machine.home / "bad.json"
    path.write_text(text)
    answer = machine.extract("run", str(path), "--out", str(machine.home / "out"))
    assert answer.code == 2
    assert answer.err.startswith(f"error: {path}: ")
    assert said in answer.err
    assert not (machine.home / "out").exists()


def test_a_place_that_cannot_be_written_is_explained(machine, spec):
    answer = machine.extract("run", str(spec), "--out", "/proc/nowhere/out")
    assert answer.code == 2
    assert answer.err.count("\n") == 1


def test_the_engine_is_not_told_the_password_of_redis(machine, monkeypatch):
    monkeypatch.setenv("EXTRACT_REDIS_URL", "redis://:hunter2-b7e1@localhost")
    assert not any("hunter2-b7e1" in value for value in engine._engine_env().values())


def test_the_engine_keeps_its_docstrings(monkeypatch):
    """transformers reads docstrings while it is loaded, and PYTHONOPTIMIZE=2 removes them."""
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    assert "PYTHONOPTIMIZE" not in engine._engine_env()


def test_a_current_folder_that_is_gone_is_one_line(machine, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    answer = machine.extract("submit", "--model", "python-tiny", "--task", "quote_close", "--dry-run")
    assert (answer.code, answer.err) == (2, "error: the current folder cannot be used (No such file or directory); change to another one\n")


def test_events_arrive_in_order_and_none_is_missing(machine):
    machine.plan(steps=3, seconds=0, chatter=2000)
    spec = machine.home / "train.json"
    spec.write_text(to_json(train_spec()))
    heard: list[dict] = []
    threads = set()

    def listen(event):
        heard.append(event)
        threads.add(threading.current_thread())

    outcome = engine.supervise(spec, machine.home / "out", machine.home / "log", machine.settings, listen, lambda: "")
    assert outcome.kind == "done"
    assert threads == {threading.current_thread()}
    progress = [(event["stage"], event["step"]) for event in heard if event["event"] == "progress"]
    assert progress == [(stage, step) for stage in ("bridge", "prune") for step in (1, 2, 3) for _ in range(2001)]
    assert json.dumps(heard[-1]) == '{"event": "done"}'
