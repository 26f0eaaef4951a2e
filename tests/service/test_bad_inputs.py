"""Whatever people and strangers give us, they get one clear line and the documented exit code, and the service goes on as if nothing were."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

import bad_inputs
import pytest
from service_machine import Answer, Machine, circuit_spec, fresh_machine, train_spec, wait_for

from worker.app import KEY_PREFIX, make_app, publish
from worker.metrics import ServiceCollector

NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def whole() -> Iterator[Machine]:
    """A machine that works all the while, with jobs in every state."""
    with pytest.MonkeyPatch.context() as patch, fresh_machine(patch) as made:
        patch.chdir(made.home)
        for name, value in NO_HUB.items():
            patch.setenv(name, value)
        (made.home / "good.json").write_text(train_spec().model_dump_json())
        (made.home / "bytes").write_bytes(b"\xff\xfe\xff")
        made.process = made.worker()
        for job, spec in (("canary", train_spec()), ("circuit", circuit_spec())):
            made.submit(job, spec)
            made.wait_state(job, "succeeded")
        for job in ("waiting", "broken", "ended"):
            made.records.create(job, {"spec": train_spec(seed=1).model_dump_json(), "kind": "train", "max_attempts": 3})
        made.records.claim("broken", "token", 60, "host", "worker", "")
        made.records.end("broken", "token", "failed", error=("SpecError", "it was bad"))
        made.records.cancel("ended")
        yield made


@pytest.fixture
def machine(whole: Machine, capsys: pytest.CaptureFixture[str]) -> Machine:
    whole.capsys = capsys
    return whole


def wrong(answer: Answer, code: int) -> str:
    """What is wrong with the answer to a bad input, '' for nothing."""
    if answer.code != code:
        return f"exit {answer.code}, not {code}: {answer.err[:300]}"
    if not answer.err.startswith("error: ") or answer.err.count("\n") != 1 or not answer.err.endswith("\n"):
        return f"not one line: {answer.err[:500]!r}"
    if len(answer.err) > 1000 or "Traceback" in answer.err or "internal error" in answer.err:
        return f"not a clear line: {answer.err[:500]!r}"
    return f"stdout: {answer.out[:300]!r}" if answer.out else ""


def command_lines() -> Iterator[tuple[list[str], int]]:
    for code, lines in bad_inputs.COMMANDS.items():
        for line in lines.strip().splitlines():
            yield shlex.split(line), code


def test_commands(machine: Machine):
    found = []
    for words, code in command_lines():
        answer = machine.extract(*(word.replace("HOME", str(machine.home)) for word in words))
        if what := wrong(answer, code):
            found.append(f"{' '.join(words)[:200]}: {what}")
    assert not found, "\n".join(found)


def test_settings(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    found = []
    for text, code in bad_inputs.SETTINGS.items():
        with monkeypatch.context() as patch:
            name, _, value = text.replace("HOME", str(machine.home)).partition("=")
            patch.setenv(name, value)
            for command in ("list", "status"):
                answer = machine.extract(command)
                if what := wrong(answer, code):
                    found.append(f"{text} {command}: {what}")
                if "secret" in answer.err:
                    found.append(f"{text}: {answer.err}")
    assert not found, "\n".join(found)


def test_specs(machine: Machine):
    found = []
    for number, (what, text) in enumerate(bad_inputs.SPECS.items()):
        content = text.encode() if isinstance(text, str) else text
        (machine.home / "bad.json").write_bytes(content)
        if said := wrong(machine.extract("run", str(machine.home / "bad.json"), "--out", str(machine.home / "new")), 2):
            found.append(f"{what}: {said}")
        machine.records.create(f"spec{number}", {"spec": text, "kind": "train", "max_attempts": 3})  # type: ignore[dict-item]
        publish(make_app(machine.service.url, machine.settings), f"spec{number}", f"spec{number}.1", "normal")
    for number, what in enumerate(bad_inputs.SPECS):
        record = machine.wait_state(f"spec{number}", "failed")
        if record["error_type"] != "SpecError" or "\n" in record["error_message"] or not 0 < len(record["error_message"]) < 1000:
            found.append(f"{what}: {record['error_type']} {record['error_message'][:300]!r}")
        if (machine.settings.root / f"spec{number}" / "result").exists():
            found.append(f"{what}: was begun")
    assert not (machine.home / "new").exists()
    assert not found, "\n".join(found)


def test_messages(machine: Machine):
    before = log_of(machine).count("a message that is none of ours was dropped")
    for text in bad_inputs.MESSAGES.values():
        machine.records.client.lpush(f"{KEY_PREFIX}extract", text)
    wait_for(
        lambda: log_of(machine).count("a message that is none of ours was dropped") == before + len(bad_inputs.MESSAGES),
        "every message to be dropped",
    )
    assert machine.state_of("waiting") == "queued"


def test_records(machine: Machine):
    found = []
    for number, changes in enumerate(bad_inputs.RECORDS):
        job = f"odd{number}"
        record = {name: value for name, value in (bad_inputs.SOUND | changes).items() if value is not None}
        machine.records.client.hset(f"ex:job:{job}", mapping=record)  # type: ignore[arg-type]
        machine.records.client.zadd("ex:jobs", {job: 10.0 + number})
        machine.records.client.xadd(f"ex:ev:{job}", {"json": '{"event": "state", "state": "succeeded", "time": 1}'})
        for command in ("status", "logs", "result", "cancel", "watch"):
            for answer in (machine.extract(command, job), machine.extract(command, job, "--json")):
                if said := unclear(answer):
                    found.append(f"{str(changes)[:100]}: {command}: {said}")
        if said := "; ".join(views(machine)):
            found.append(f"{str(changes)[:100]}: {said}")
            machine.records.client.zrem("ex:jobs", job)
    assert not found, "\n".join(found)


def test_keys(machine: Machine):
    machine.submit("canary2")
    machine.wait_state("canary2", "succeeded")
    found = []
    for command in bad_inputs.PLANTED:
        machine.records.client.execute_command(*command)
        if said := "; ".join(views(machine)):
            found.append(f"{str(command)[:100]}: {said}")
    for job in ("alist", "atext", "astream", "canary2"):
        for command in ("status", "logs", "result", "cancel", "watch"):
            for answer in (machine.extract(command, job), machine.extract(command, job, "--json")):
                if said := unclear(answer):
                    found.append(f"{job}: {command}: {said}")
    for batch in ("text", "list", "null", "deep", "bytes", "empty", "parts", "models", "kind"):
        for command in ("status", "watch", "cancel", "result"):
            if said := wrong(machine.extract("batch", command, batch), 1):
                found.append(f"{batch}: batch {command}: {said}")
    assert not found, "\n".join(found)


def views(machine: Machine) -> Iterator[str]:
    """What is wrong with the commands that look at everything."""
    for words in (("list",), ("list", "--json"), ("status", "--once"), ("status", "--json"), ("batch", "list")):
        answer = machine.extract(*words)
        if answer.code or unclear(answer):
            yield f"{' '.join(words)}: exit {answer.code} {unclear(answer) or answer.err[:300]}"
    numbers = {metric.name for metric in ServiceCollector(machine.service).collect()}
    if "extract_jobs" not in numbers:
        yield "no metrics"


def unclear(answer: Answer) -> str:
    """What is wrong with an answer that may well be one, '' for nothing."""
    if "Traceback" in answer.err + answer.out or "internal error" in answer.err or len(answer.err) > 1000:
        return f"not a clear line: {answer.err[:300]!r}"
    if answer.code not in range(6) or answer.err.count("\n") != int(answer.code > 0):
        return f"exit {answer.code} with {answer.err[:300]!r}"
    return ""


def log_of(machine: Machine) -> str:
    return (machine.home / "worker-0.log").read_text()
