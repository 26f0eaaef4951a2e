"""Whatever people and strangers give us, they get one clear line and the documented exit code, and the service goes on as before."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import bad_files
import bad_hub
import bad_inputs
import bad_keys
import bad_specs
import pytest
from local_hub import hub_environment, running
from service_machine import Answer, Machine, circuit_spec, fresh_machine, train_spec, wait_for
from worlds import python

from extractor.errors import BrokenArtifact
from extractor.files import read_tensors, write_manifest
from worker.broker.app import KEY_PREFIX, make_app, publish
from worker.monitoring.metrics import ServiceCollector
from worker.records.counts import Counts

OWN = {"plan.json", "good.json", "bytes", "bad.json", "own.jsonl", "model", "state", "extract", "worker-0.log"}
NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}


class Witness:
    """What must not change, whatever comes: the worker, the jobs there were, their events and files."""

    def __init__(self, machine: Machine, worker: subprocess.Popen) -> None:
        self.machine, self._worker = machine, worker
        self._before = self._look()

    def _look(self) -> dict[str, Any]:
        records, root = self.machine.records, self.machine.settings.root
        jobs = ("canary", "circuit", "waiting", "broken", "ended")
        files = {path: path.read_bytes() for job in jobs for path in sorted((root / job).rglob("*")) if path.is_file()}
        return {"records": [records.need(job) for job in jobs], "events": [self.machine.story(job) for job in jobs], "files": files}

    def renew(self) -> None:
        """What is so now is right."""
        self._before = self._look()

    def check(self) -> None:
        """Also: a good job still succeeds, the worker has met nothing it did not expect, and nothing lies where nothing should."""
        job = self.machine.submit()
        self.machine.wait_state(job, "succeeded")
        assert self._worker.poll() is None
        assert "Traceback" not in log_of(self.machine)
        assert "cannot be reached" not in log_of(self.machine)
        assert self._look() == self._before
        assert {path.name for path in self.machine.home.iterdir()} <= OWN
        assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}|\.twins", path.name) for path in self.machine.settings.root.iterdir())


@pytest.fixture(scope="module")
def witness() -> Iterator[Witness]:
    """A machine that works all the while, with jobs in every state."""
    with pytest.MonkeyPatch.context() as patch, fresh_machine(patch) as made:
        patch.chdir(made.home)
        for name, value in NO_HUB.items():
            patch.setenv(name, value)
        (made.home / "good.json").write_text(train_spec().model_dump_json())
        (made.home / "bytes").write_bytes(b"\xff\xfe\xff")
        worker = made.worker(EXTRACT_REPUBLISH="2")
        for job, spec in (("canary", train_spec()), ("circuit", circuit_spec())):
            made.submit(job, spec)
            made.wait_state(job, "succeeded")
        for job in ("waiting", "other", "broken", "ended"):
            made.records.create(job, {"spec": train_spec(seed=1).model_dump_json(), "kind": "train", "max_attempts": 3})
        for job, waits in (("waiting", "other"), ("other", "waiting")):  # so nobody publishes them
            made.records.client.hset(f"ex:job:{job}", "waits", waits)
        made.records.claim("broken", "token", 60, "host", "worker", "")
        made.records.end("broken", "token", "failed", error=("SpecError", "it was bad"))
        made.records.cancel("ended")
        yield Witness(made, worker)


@pytest.fixture
def machine(witness: Witness, capsys: pytest.CaptureFixture[str]) -> Iterator[Machine]:
    """That machine; after each test it must be as it was."""
    witness.machine.capsys = capsys
    yield witness.machine
    witness.check()


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
    for number, (what, text) in enumerate(bad_specs.SPECS.items()):
        content = text.encode() if isinstance(text, str) else text
        (machine.home / "bad.json").write_bytes(content)
        if said := wrong(machine.extract("run", str(machine.home / "bad.json"), "--out", str(machine.home / "new")), 2):
            found.append(f"{what}: {said}")
        machine.records.create(f"spec{number}", {"spec": text, "kind": "train", "max_attempts": 3})  # type: ignore[dict-item]
        publish(make_app(machine.service.url, machine.settings), f"spec{number}", f"spec{number}.1", "normal")
    for number, what in enumerate(bad_specs.SPECS):
        record = machine.wait_state(f"spec{number}", "failed")
        if record["error_type"] != "SpecError" or "\n" in record["error_message"] or not 0 < len(record["error_message"]) < 1000:
            found.append(f"{what}: {record['error_type']} {record['error_message'][:300]!r}")
        if (machine.settings.root / f"spec{number}" / "result").exists():
            found.append(f"{what}: was begun")
    assert not (machine.home / "new").exists()
    assert not found, "\n".join(found)


def test_messages(machine: Machine):
    before = log_of(machine).count("dropped a message not written by this service")
    for text in bad_keys.MESSAGES.values():
        machine.records.client.lpush(f"{KEY_PREFIX}extract", text)
    wait_for(
        lambda: log_of(machine).count("dropped a message not written by this service") == before + len(bad_keys.MESSAGES),
        "every message to be dropped",
    )
    assert machine.state_of("waiting") == "queued"


def test_records(machine: Machine):
    found = []
    for number, changes in enumerate(bad_keys.RECORDS):
        job = f"odd{number}"
        record = {name: value for name, value in (bad_keys.SOUND | changes).items() if value is not None}
        machine.records.client.hset(f"ex:job:{job}", mapping=record)  # type: ignore[arg-type]
        machine.records.client.zadd("ex:jobs", {job: 10.0 + number})
        machine.records.client.xadd(f"ex:ev:{job}", {"json": '{"event": "state", "state": "succeeded", "time": 1}'})
        for command in ("status", "logs", "result", "cancel", "watch"):
            for answer in (machine.extract(command, job), machine.extract(command, job, "--json")):
                if said := unclear(answer):
                    found.append(f"{str(changes)[:100]}: {command}: {said}")
    found += views(machine)
    assert not found, "\n".join(found)


def test_keys(machine: Machine):
    machine.submit("canary2")
    machine.wait_state("canary2", "succeeded")
    found = []
    for number, command in enumerate(bad_keys.PLANTED):
        machine.records.client.execute_command(*command)
        if number % 10 == 0:  # looking takes half a second
            found += [f"before {str(command)[:100]}: {said}" for said in views(machine)]
    found += views(machine)
    for job in ("half1", "half2", "half3"):
        wait_for(lambda job=job: machine.records.client.hget(f"ex:job:{job}", "state") == "failed", f"{job} to fail")
        assert machine.records.need(job)["error_type"] == "SpecError"
    Counts(machine.records.client).repair(machine.records.open_jobs(), 30)
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
    all_ = ("--limit", "10000")
    for words in (("list", *all_), ("list", *all_, "--json"), ("status", "--once", *all_), ("status", "--json"), ("batch", "list")):
        answer = machine.extract(*words)
        rest = "".join(line for line in answer.err.splitlines(True) if not line.startswith("not listed: "))  # one for each bad plan
        answer = dataclasses.replace(answer, err=rest)
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


def plant(folder: Path, tree: Mapping[str, bytes | None]) -> Path:
    """A folder with those files and no others."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in tree.items():
        if content is not None:
            (folder / name).write_bytes(content)
    return folder


def test_files(machine: Machine, byte_tokenizer: Path):
    found = []
    ask = ("submit", "--task", "quote_close", "--no-worker")

    def expect(what: str, code: int, *words: str) -> None:
        if said := wrong(machine.extract(*words), code):
            found.append(f"{what}: {said}")

    for what, content in bad_files.TASKS.items():
        (machine.home / "own.jsonl").write_bytes(content)
        expect(f"task {what}", 2, "submit", "--model", "python-tiny", "--task", str(machine.home / "own.jsonl"))
    good = bad_files.good_model() | {path.name: path.read_bytes() for path in byte_tokenizer.iterdir()}
    place = machine.home / "model"
    for what, (tree, code) in bad_files.MODELS.items():
        plant(place, good | dict(tree))
        expect(f"model {what}", code, *ask, "--model", str(place))
        expect(f"tokens {what}", 2, "batch", "submit", "--models", str(place), "--task", "quote_close")
    for what, (tree, code) in bad_files.ADAPTERS.items():
        expect(f"adapter {what}", code, *ask, "--model", "python-tiny", "--adapter", str(plant(place, tree)))
    for what, (tree, code) in bad_files.CHECKPOINTS.items():
        expect(f"checkpoint {what}", code, "import", str(plant(place, tree)), "--out", str(machine.home / "new"))
    for what, content in bad_files.PLANS.items():
        folder = machine.state / "sweeps" / "splan"
        folder.parent.mkdir(exist_ok=True)
        plant(folder, {"plan.json": content})
        expect(f"sweep {what}", 1, "sweep", "--status", "splan")
    shutil.rmtree(machine.state / "sweeps")
    assert not (machine.home / "new").exists()
    assert not found, "\n".join(found)


def test_weights(machine: Machine):
    found = []
    for what, content in bad_files.WEIGHTS.items():
        place = plant(machine.home / "model", {"beeg_config.json": b"{}", "model.safetensors": content})
        try:
            read_tensors(place / "model.safetensors")
            found.append(f"{what}: taken")
        except BrokenArtifact as error:
            if "\n" in str(error):
                found.append(f"{what}: {error}")
    assert not found, "\n".join(found)


def test_results(machine: Machine):
    machine.submit("altered", circuit_spec())
    machine.wait_state("altered", "succeeded")
    folder = machine.settings.root / "altered" / "result"
    manifest = (folder / "manifest.json").read_bytes()
    found = []
    for what, value in bad_files.MANIFESTS.items():
        (folder / "manifest.json").write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
        for words in (("result", "altered"), ("result", "altered", "--out", str(machine.home / "new"))):
            if said := wrong(machine.extract(*words), 1):
                found.append(f"{what}: {' '.join(words)}: {said}")
        assert not (machine.home / "new").exists()
    for what, content in bad_files.RESULTS.items():
        for name in ("result.json", "tasks.json"):
            (folder / "manifest.json").write_bytes(manifest)
            before = (folder / name).read_bytes() if (folder / name).exists() else None
            (folder / name).write_bytes(content)
            write_manifest(folder)
            for words in (("result", "altered"), ("result", "altered", "--json"), ("status", "altered"), ("status", "altered", "--json")):
                if said := unclear(machine.extract(*words)):
                    found.append(f"{name} {what}: {' '.join(words)}: {said}")
            (folder / name).write_bytes(before) if before is not None else (folder / name).unlink()
    assert not found, "\n".join(found)


ASK_HUB = """
import contextlib, io, json, sys
from worker import cli
found = []
for model in sys.argv[1:]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(["submit", "--model", model, "--task", "quote_close", "--no-worker"])
        except SystemExit as end:
            found.append([int(end.code or 0), out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


def test_hubs(machine: Machine, tmp_path: Path):
    kinds, hub = bad_hub.TOLD | bad_hub.GIVEN, bad_hub.BadHub()
    models = [f"bad/{kind}" for kind in kinds]
    before = machine.records.open_ids()
    with running(hub, bad_hub.BadHandler):
        found = json.loads(python(ASK_HUB, *models, env=dict(os.environ) | hub_environment(hub.endpoint, tmp_path)))
    said = {kind: wrong(Answer(*answer), code) for (kind, (_, code)), answer in zip(kinds.items(), found, strict=True)}
    assert not any(said.values()), "\n".join(f"{kind}: {what}" for kind, what in said.items() if what)
    assert machine.records.open_ids() == before


def test_the_job_that_waited_all_the_while_is_done_when_it_is_asked_for(machine: Machine, witness: Witness):
    publish(make_app(machine.service.url, machine.settings), "waiting", "waiting.1", "normal")
    machine.wait_state("waiting", "succeeded")
    witness.renew()


def test_there_are_more_than_150_of_them():
    lines = {line for lines in bad_inputs.COMMANDS.values() for line in lines.split("\n") if line}
    tables = (bad_inputs.SETTINGS, bad_specs.SPECS, bad_keys.MESSAGES, bad_keys.RECORDS, bad_keys.PLANTED)
    folders = (bad_files.TASKS, bad_files.MODELS, bad_files.ADAPTERS, bad_files.WEIGHTS, bad_files.CHECKPOINTS, bad_files.MANIFESTS)
    rest = (bad_files.RESULTS, bad_files.PLANS, bad_hub.TOLD, bad_hub.GIVEN)
    distinct = lines | {
        repr(item) for table in (*tables, *folders, *rest) for item in (table.items() if isinstance(table, dict) else table)
    }
    assert len(lines) == sum(1 for _ in command_lines())
    assert len(distinct) > 500
