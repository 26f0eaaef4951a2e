"""What release 4c070f4 left in Redis and on disk goes on, and what is asked for again has the ids that it had.

frozen/records.json is a dump of its server and state directory, taken when both its workers were killed with jobs half done. stored.json is
one of its server and storage, taken when its worker was killed, for a machine that has nothing but these. @STORE@ stands for the storage,
@JOBS@ for the folder of jobs, @STATE@ for the state directory, @ROOT@ for frozen/. The times in them are moved to ten minutes ago. The
address of the bridged model that was being made becomes the one that it has here, under other packages, another generator of programs and
another python-tiny; the ids of the batch's jobs become those that this python-tiny gives them.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from service_machine import Machine, wait_for
from test_frozen import FROZEN, SPECS, frozen_result, here

from extractor.data.programs import GENERATOR_VERSION
from extractor.files import digest, sha256
from extractor.models.reference import BUNDLED
from extractor.spec.schema import JobSpec

AGO = 600  # seconds
FIRST, NOW = (BUNDLED / name for name in ("python-tiny-1", "python-tiny"))


def with_ids_of_now(text: str) -> str:
    """A dump as if it had been made with the python-tiny of now: its digest, and the ids that the batch's jobs have by it."""
    batch, (before, after) = json.loads(text).get("batch"), (sha256(folder / "model.safetensors") for folder in (FIRST, NOW))
    for task in batch["tasks"] if batch else ():
        old, new = (child_id(batch["batch"], "python-tiny", digest, task) for digest in (before, after))
        text = text.replace(old, new)
    return text.replace(before, after)


def child_id(*parts: str) -> str:
    """The id of a batch's job: a hash of the batch's id, the model, the digest of its weights, and the task."""
    return "b-" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:14]


def frozen_dump(name: str) -> str:
    return with_ids_of_now((FROZEN / name).read_text())


DUMP = json.loads(frozen_dump("records.json"))
BRIDGED = json.loads((FROZEN / "twin.json").read_text())
COMMANDS = {name: [here(word) for word in words] for name, words in json.loads((FROZEN / "commands.json").read_text()).items()}
BATCH, SWEEP = DUMP["batch"], DUMP["sweep"]
EXPECTED = {"finished": "succeeded", "done": "succeeded", "failed": "failed", "cancelled": "cancelled", "running": "running"}
EXPECTED |= dict.fromkeys(["waiting", "queued-high", "queued-normal", "queued-low", "queued-large", "queued-tasks"], "queued")
CHILDREN = dict(zip(BATCH["queued"], ["succeeded", "failed", "failed", "running", *["queued"] * 8], strict=True))
POINTS = {point["job"]: "queued" for point in SWEEP["jobs"]}


@pytest.fixture
def left(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine on which that release ran; `python -m worker` is now this one."""
    monkeypatch.setenv("EXTRACT_NO_WORKER", "1")
    dump = restored(machine, "records.json", {"@JOBS@": machine.settings.root})
    write_files(machine.state, dump["files"])
    frozen_result(machine.settings.root / "finished" / "result")
    return machine


def restored(machine: Machine, name: str, places: dict[str, Path]) -> dict[str, Any]:
    """Put a dump's keys back into Redis: the dump with its placeholders filled and its times moved."""
    text = here(frozen_dump(name)).replace("@STATE@", str(machine.state)).replace(BRIDGED["address"], address_here())
    for placeholder, place in places.items():
        text = text.replace(placeholder, str(place))
    made = json.loads(text)["made"]
    moved = int(time.time()) - AGO - made
    dump = json.loads(re.sub(rf"\b{made // 10**6}\d{{6}}", lambda found: str(int(found[0]) + moved), text))
    for key, facts in dump["redis"].items():
        milliseconds = facts["expires_in_ms"]
        if milliseconds is None or milliseconds > 1000 * AGO:  # leases and the announcements of workers are gone by now
            write(machine.records.client, key, facts["type"], facts["value"])
            if milliseconds is not None:
                machine.records.client.pexpire(key, milliseconds - 1000 * AGO)
    return dump


def write_files(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def write(client: Any, key: str, kind: str, value: Any) -> None:
    """Put a key back as it was."""
    ways = {
        "hash": lambda: client.hset(key, mapping=value),
        "zset": lambda: client.zadd(key, dict(value)),
        "set": lambda: client.sadd(key, *value),
        "list": lambda: client.rpush(key, *value),
        "string": lambda: client.set(key, value),
        "stream": lambda: [client.xadd(key, {"json": event}, id=at) for at, event in value],
    }
    ways[kind]()


def address(facts: list) -> str:
    """The address of a bridged model is the hash of all that it depends on, in this order."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def address_here() -> str:
    """The address of the frozen bridged model under the packages, the Python, the generator and the bundled model of here."""
    facts = json.loads(json.dumps(BRIDGED["facts"]))
    facts[1] = [version(name) for name in BRIDGED["packages"]]
    assert facts[3] == digest(FIRST, "config.json", "*.safetensors", "tokenizer*")
    facts[3] = digest(NOW, "config.json", "*.safetensors", "tokenizer*")
    facts[7][1][1:3] = sys.version, GENERATOR_VERSION
    return address(facts)


# What the presets had in that release, as options: named, they still mean what they meant.
THEN = {"ce_coef": 1, "focus": 0, "focus_coef": 1, "focus_tokens": 0, "optim.batch": 24, "optim.context": 48, "optim.steps": 1200}
THEN |= {"optim.lr": 0.02, "optim.weight_decay": 0.1, "model.activation_frac": 0.5, "sparsity.anneal_end": 0.7}


THEN_PRUNED = {"standard": "paper", "confident": "false", "algorithm": "masks", "trial_pairs": "256", "targets": "0.05,0.3"}
PRUNED_NOW = {
    "algorithm": "race",
    "trial_pairs": 128,
    "targets": [0.05, 0.1, 0.2, 0.3],
}  # of these, what the presets have now; the others were not written then


def pruned_as_then(words: list[str]) -> list[str]:
    """Options with which a command line of that release searches as then, but for what it sets itself."""
    own = {name for name in THEN_PRUNED if f"prune.{name}=" in " ".join(words) or f"--{name}" in words}
    return [f"--set=prune.{name}={value}" for name, value in THEN_PRUNED.items() if name not in own]


def as_then(words: list[str], *further: str) -> list[str]:
    """A command line of that release with preset `tiny` of then, but for the fields that it sets itself."""
    if "--preset" in words:
        return [*words, *pruned_as_then(words)]
    missing = {f"bridge.{name}": value for name, value in THEN.items() if f"bridge.{name}=" not in " ".join(words)}
    return [*words, *(f"--set={name}={value}" for name, value in missing.items()), *pruned_as_then(words), *further]


def with_presets_of(text: str, wanted: str) -> str:
    """A spec with the fields of its bridging and its search that the presets have set otherwise since, as `wanted` has them."""
    found, old = json.loads(text), json.loads(wanted)
    for name in THEN_PRUNED if found["prune"] else ():
        if name not in PRUNED_NOW:
            found["prune"].pop(name, None)
        elif found["prune"][name] == PRUNED_NOW[name]:
            found["prune"][name] = old["prune"][name]
    for name in THEN if found["bridge"] else ():
        *path, last = name.split(".")
        ours, theirs = found["bridge"], old["bridge"]
        for part in path:
            ours, theirs = ours[part], theirs[part]
        ours.pop(last, None)
        ours |= {last: theirs[last]} if last in theirs else {}
    return json.dumps(found, indent=1, sort_keys=True) + "\n"


# A job that the last release queued, and that could only fail once it ran: now it reads contexts for which the model has positions.
SHORTENED = {"circuit_generated": {"context": 128, "batch": 256}}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_line_makes_the_spec_that_it_made(machine: Machine, name: str):
    said = machine.extract(*COMMANDS[name], "--print-spec")
    wanted = here(SPECS[name])
    if name in SHORTENED:
        facts = json.loads(wanted)
        facts["bridge"]["optim"] |= SHORTENED[name]
        wanted = json.dumps(facts, indent=1, sort_keys=True) + "\n"
    assert (said.code, with_presets_of(said.out, wanted)) == (0, wanted)


def test_everything_that_was_left_is_listed_and_asked_for_again_it_is_the_same(left: Machine):
    states = {job["job"]: job["state"] for job in left.extract("list", "--all", "--json").json}
    assert states == EXPECTED | CHILDREN | POINTS
    alone = {job["job"] for job in left.extract("list", "--json").json}
    assert alone == set(EXPECTED)
    whole = left.extract("status", "--json").json
    assert whole["jobs"] == {"queued": 16, "running": 2, "succeeded": 3, "failed": 3, "cancelled": 1}
    assert whole["queues"] == {"high": 1, "normal": 5, "low": 8}
    assert left.extract("status", "waiting", "--json").json["waits"] == "running"

    batch = left.extract("batch", "status", BATCH["batch"], "--json")
    assert batch.code == 1
    assert batch.json["counts"] == {"succeeded": 1, "not expressible": 1, "failed": 1, "running": 1, "queued": 8}
    again = left.extract(*as_then([here(word) for word in DUMP["commands"]["batch"]], "--no-strict"), "--json").json
    assert again == json.loads(here(json.dumps(BATCH))) | {"queued": [BATCH["queued"][2]]}, "only what failed is queued again"
    again = left.extract(*DUMP["commands"]["sweep"], *pruned_as_then(DUMP["commands"]["sweep"]), "--json").json
    assert again == {"sweep": SWEEP["sweep"], "jobs": [point | {"queued_now": False} for point in SWEEP["jobs"]]}
    same = left.extract(*as_then(COMMANDS["circuit_tasks"]), "--job-id", "queued-tasks", "--json")
    assert same.json == {"job": "queued-tasks", "state": "queued"}
    other = left.extract(*COMMANDS["circuit_dense"], "--job-id", "queued-tasks", "--json")
    assert (other.code, other.json["error"]["type"]) == (2, "UsageError")


@pytest.mark.slow
def test_a_worker_of_this_version_ends_all_that_was_left(left: Machine):
    left.plan(steps=8, seconds=0)
    before = {job: left.steps(job) for job in ("running", BATCH["queued"][3])}
    left.worker()
    open_jobs = [job for job, state in (EXPECTED | CHILDREN | POINTS).items() if state in ("queued", "running")]
    for job in sorted(set(open_jobs) - {"queued-large"}):  # this machine may be too small for that one
        left.wait_state(job, "succeeded", seconds=60)
    assert before["running"] == [1, 2, 3, 4, 5, 6]
    assert left.steps("running") == [*range(1, 17)], "its checkpoint was at step 6"
    assert [left.records.need(job)["attempt"] for job in ("running", "waiting", "queued-high", BATCH["queued"][3])] == ["2", "1", "1", "2"]
    assert left.states("running") == ["queued", "running", "queued", "running", "succeeded"]
    assert left.states("waiting")[:2] == ["queued", "running"]
    assert not [event for event in left.story("waiting") if event["event"] == "progress" and event["stage"] == "bridge"]
    for job, state in (EXPECTED | CHILDREN).items():
        if state in ("succeeded", "failed", "cancelled"):
            assert left.state_of(job) == state, "what had ended stays as it was"
    wait_for(lambda: not left.records.client.keys("ex:group:*"), "the groups to be worked off")
    assert left.records.client.keys("ex:twin:*") == []
    assert address_here() in {place.name for place in (left.settings.root / ".twins").iterdir()}
    for job in ("finished", "running", BATCH["queued"][0], BATCH["queued"][-1]):
        fetched = left.extract("result", job, "--out", str(left.home / "fetched" / job), "--json")
        assert fetched.code == 0, fetched
        assert (left.home / "fetched" / job / "manifest.json").is_file()


def test_a_machine_that_has_nothing_but_the_storage_goes_on_with_what_was_left_there(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    """The checkpoint, the result and the kept bridged model are found under the keys that they were written to."""
    monkeypatch.setenv("EXTRACT_NO_WORKER", "1")
    store = machine.home / "store"
    monkeypatch.setenv("EXTRACT_ROOT", f"file://{store}")
    write_files(store, restored(machine, "stored.json", {"@STORE@": store})["store"])
    machine.plan(steps=8, seconds=0)
    listed = {job["job"]: job["state"] for job in machine.extract("list", "--json").json}
    assert listed == {"done": "succeeded", "running": "running", "queued": "queued"}
    facts = json.loads(here(SPECS["circuit_generated"])) | {"tasks": ["with_as"]}
    machine.submit("another", JobSpec.model_validate(facts))
    machine.worker()
    for job in ("running", "queued", "another"):
        machine.wait_state(job, "succeeded", seconds=60)
    begun = [event["message"].split() for event in machine.story("running") if event.get("message", "").startswith("threads ")]
    assert [words[-1] for words in begun] == ["0", "3"], "its last checkpoint that counts is of step 3"
    assert not [event for event in machine.story("another") if event["event"] == "progress" and event["stage"] == "bridge"]
    for job, name in (("done", "circuits/for_while/result.json"), ("running", "result.json")):
        fetched = machine.extract("result", job, "--out", str(machine.home / "fetched" / job), "--json")
        assert fetched.code == 0, fetched
        assert {name, "model/config.json"} <= set(fetched.json["files"])


def test_the_address_of_a_bridged_model_is_the_hash_that_it_was():
    assert address(BRIDGED["facts"]) == BRIDGED["address"]
    assert f"ex:twin:{BRIDGED['address']}" in DUMP["redis"]


def paths(value: Any, place: str = "") -> set[str]:
    """Where values stand in JSON: 'a.b[].c'. Of the items of a list all together."""
    if isinstance(value, dict) and value:
        return {path for name, item in value.items() for path in paths(item, f"{place}.{name}" if place else name)}
    if isinstance(value, list) and value:
        return {path for item in value for path in paths(item, f"{place}[]")}
    return {place}


def told(machine: Machine, command: str) -> set[str]:
    """The paths of what a command tells with --json; '@RESULT@' stands for the folder of the finished result."""
    words = shlex.split(command.replace("@RESULT@", str(machine.settings.root / "finished" / "result")))
    lines = machine.extract(*words, "--json").lines
    return paths(lines[0]) if len(lines) == 1 else paths(lines)


def test_what_commands_tell_as_json_has_all_the_keys_that_it_had(left: Machine):
    """More keys may come; none goes. The values are those of the dump, so that the same ones are there to be told."""
    frozen = json.loads((FROZEN / "json_keys.json").read_text())
    missing = {command: sorted(set(keys) - told(left, command)) for command, keys in frozen.items()}
    assert {command: keys for command, keys in missing.items() if keys} == {}
