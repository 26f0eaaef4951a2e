"""The engine as a process: events on standard output, exit codes, signals, and the guard."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from worlds import CORPUS, ROOT

from extractor import files
from extractor.__main__ import main
from extractor.jobs.run import run_job
from extractor.progress import Progress
from extractor.spec.schema import JobSpec, OptimSpec, SparseModelSpec, TrainSpec, to_json

SHAPE = SparseModelSpec(n_layer=1, d_model=16, d_head=8, mlp_ratio=2, n_ctx=16)


def train_spec(steps: int) -> JobSpec:
    optim = OptimSpec(steps=steps, batch=4, context=16, lr=0.05)
    return JobSpec(kind="train", corpus=CORPUS, train=TrainSpec(vocab_size=400, model=SHAPE, optim=optim))


@pytest.fixture
def home(tmp_path: Path, cache: Path) -> Path:
    return tmp_path


def command(home: Path, spec: JobSpec | str, *options: str) -> list[str]:
    path = home / "spec.json"
    path.write_text(spec if isinstance(spec, str) else to_json(spec))
    return [sys.executable, "-m", "extractor", str(path), "--out", str(home / "out"), "--threads", "1", *options]


def environment(**extra: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | extra


def run(home: Path, spec: JobSpec | str, **extra: str) -> tuple[int, list[dict], str]:
    """Exit code, events, standard error. Standard input is closed, which without --guard does not matter."""
    streams = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    done = subprocess.run(command(home, spec), cwd=ROOT, env=environment(**extra), timeout=120, **streams)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def start(home: Path, spec: JobSpec, *options: str, **extra: str) -> subprocess.Popen:
    return subprocess.Popen(
        command(home, spec, *options),
        cwd=ROOT,
        env=environment(**extra),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def wait_for(process: subprocess.Popen, kind: str) -> list[dict]:
    """Events up to the first of a kind."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(json.loads(line))
        if seen[-1]["event"] == kind:
            return seen
    raise AssertionError(f"no {kind} event: {seen}")


def test_a_job_tells_its_events_as_json_lines_and_leaves_its_manifest(home: Path):
    code, events, _ = run(home, train_spec(30), EXTRACT_CHECKPOINT_SECONDS="0")
    assert code == 0
    assert events[0] == {
        "event": "stage", "stage": "corpus", "index": 1, "of": 2,
        "elapsed_seconds": pytest.approx(0, abs=10), "total_seconds_left": None, "next": ["train"],
    }  # fmt: skip
    assert events[-1] == {"event": "done"}
    assert {e["event"] for e in events} == {"stage", "progress", "checkpoint", "done"}
    last = [e for e in events if e["event"] == "progress" and e["step"] is not None][-1]
    assert (last["stage"], last["step"], last["total"]) == ("train", 30, 30)
    assert "loss" in last["metrics"]
    assert last["elapsed_seconds"] > 0
    assert last["total_seconds_left"] is None or last["total_seconds_left"] < 60
    assert [e["phase"] for e in events if "phase" in e] == ["numbers"]
    files.verify_manifest(home / "out")
    assert not (home / "out" / ".work").exists()


def stopped_by(number: signal.Signals, home: Path, spec: JobSpec) -> int:
    """Start a job, signal it, and check what it leaves; returns the step it was stopped at."""
    process = start(home, spec)
    wait_for(process, "progress")
    process.send_signal(number)
    rest = [json.loads(line) for line in process.communicate(timeout=60)[0].splitlines()]
    assert process.returncode == 75
    assert rest[-1]["event"] == "checkpoint"
    assert not (home / "out" / "manifest.json").exists()
    assert list((home / "out" / ".work").glob("train-*.safetensors"))
    return rest[-1]["step"]


@pytest.mark.slow
def test_an_interrupt_asks_for_a_checkpoint_too(home: Path):
    assert stopped_by(signal.SIGINT, home, train_spec(100_000)) >= 1


@pytest.mark.slow
def test_a_termination_asks_for_a_checkpoint_and_the_same_command_resumes(home: Path):
    spec = train_spec(250)
    stopped_at = stopped_by(signal.SIGTERM, home, spec)
    code, events, _ = run(home, spec)
    assert code == 0
    assert {"event": "note", "stage": "train", "message": f"resumed train at step {stopped_at}"} in events
    files.verify_manifest(home / "out")
    steps = [json.loads(line)["step"] for line in (home / "out" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_a_killed_job_resumes_from_its_checkpoint(home: Path):
    spec = train_spec(250)
    process = start(home, spec, EXTRACT_CHECKPOINT_SECONDS="0.05")
    wait_for(process, "checkpoint")
    process.kill()
    process.communicate()
    events: list[dict] = []
    run_job(spec, home / "out", Progress(events.append), threads=1)
    assert any(e["event"] == "note" and e["message"].startswith("resumed train at step") for e in events)
    files.verify_manifest(home / "out")


@pytest.mark.slow
def test_a_guarded_engine_ends_with_its_supervisor(home: Path):
    process = start(home, train_spec(100_000), "--guard")
    wait_for(process, "progress")
    assert process.stdin is not None
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=20) == 75
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.slow
def test_a_listener_that_goes_away_does_not_stop_the_work(home: Path):
    process = start(home, train_spec(300))
    wait_for(process, "stage")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert process.stdin is not None
    process.stdin.close()
    files.verify_manifest(home / "out")


def circuit(**changes: object) -> str:
    facts = {"kind": "circuit", "model": "python-tiny", "tasks": ["quote_close"], "bridge": {}, "prune": {}}
    return json.dumps(facts | changes)


@pytest.mark.parametrize(
    ("spec", "code", "kind"),
    [
        ("{", 2, "SpecError"),
        ("{}", 2, "SpecError"),
        (circuit(version=2), 2, "SpecError"),
        (circuit(surprise=1), 2, "SpecError"),
        (circuit(bridge=None), 2, "SpecError"),
        (circuit(tasks=["quote_clsoe"]), 2, "UnknownTask"),
        (circuit(model="/nowhere/at/all"), 3, "ModelNotFound"),
        (circuit(corpus={"sources": ["/nowhere/at/all"]}), 2, "SpecError"),
    ],
    ids=["no json", "empty", "future", "unknown key", "half a job", "unknown task", "unknown model", "no corpus"],
)
def test_an_error_is_one_event_and_its_exit_code(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], spec: str, code: int, kind: str
):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    found = main(command(home, spec)[3:])
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found == code
    assert [e["type"] for e in events if e["event"] == "error"] == [kind]
    assert events[-1]["event"] == "error"
    assert "\n" not in events[-1]["message"]
    assert not (home / "out").exists()


def test_an_unknown_model_leaves_nothing_half_written_and_no_traceback(home: Path):
    code, events, stderr = run(home, circuit(model="/nowhere/at/all"))
    assert code == 3
    assert [(e["event"], e["type"]) for e in events] == [("error", "ModelNotFound")]
    assert "Traceback" not in stderr
    assert not (home / "out").exists()


def test_a_spec_that_is_not_there_is_one_event(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main([str(home / "nowhere.json"), "--out", str(home / "out")]) == 3
    event = json.loads(capsys.readouterr().out)
    assert (event["event"], event["type"]) == ("error", "NotFound")
    assert "cannot be read" in event["message"]
    assert not (home / "out").exists()
    for wrong in ("soon", "-1", "nan"):
        monkeypatch.setenv("EXTRACT_CHECKPOINT_SECONDS", wrong)
        assert main([str(home / "nowhere.json"), "--out", str(home / "out")]) == 2
        assert f"EXTRACT_CHECKPOINT_SECONDS='{wrong}' is not a number of seconds" in capsys.readouterr().out


def test_an_output_that_is_a_file_is_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (home / "out").write_text("precious")
    assert main(command(home, train_spec(5))[3:]) == 2
    assert json.loads(capsys.readouterr().out)["type"] == "OutputError"
    assert (home / "out").read_text() == "precious"


@pytest.mark.parametrize("chosen", [None, "ACTIVE"])
def test_threads_that_wait_give_way_unless_the_user_says_otherwise(chosen: str | None, home: Path, monkeypatch: pytest.MonkeyPatch):
    """Beside another busy process, threads that spin while they wait take the time of those they wait for."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("OMP_WAIT_POLICY", chosen or "")  # put back as it was afterwards
    if chosen is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    assert main([str(home / "no-such.json"), "--out", str(home / "out")]) != 0
    assert os.environ["OMP_WAIT_POLICY"] == (chosen or "PASSIVE")
