"""Whatever people and strangers give us, they get one clear line and the documented exit code, and the service goes on as if nothing were."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

import bad_inputs
import pytest
from service_machine import Answer, Machine, circuit_spec, fresh_machine, train_spec

from worker.records import describe

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
