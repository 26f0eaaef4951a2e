"""`extract show`: the numbers and edges of a result as lines of text that fit the width, and as JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len
from worlds import ROOT, python

from extractor import files
from extractor.errors import BrokenArtifact, NotFound, UsageError
from tests.service.service_machine import Machine, circuit_spec, fresh_machine
from worker.cli import group
from worker.cli.views.circuit import most_effective, wrapped
from worker.cli.views.circuit_rows import Glyphs, RowColumns, glyphs_for

EARLIER = ROOT / "tests" / "frozen" / "result"  # of the last release, without a mechanism
EXAMPLE = ROOT / "tests" / "data" / "quote_close"  # an earlier result of the README's main job


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """A result folder with a circuit of quote_close in a bridged python-tiny."""
    place = tmp_path / "out" / "circuits" / "quote_close"
    place.mkdir(parents=True)
    for name in ("circuit.json", "result.json"):
        shutil.copy(EXAMPLE / name, place)
    files.write_json(tmp_path / "out" / files.MANIFEST, {})
    (tmp_path / "out" / "model").mkdir()
    files.write_json(tmp_path / "out" / "model" / "config.json", {"d_head": 16})
    return tmp_path / "out"


def show(*arguments: object, **environment: str) -> Result:
    env = {"COLUMNS": "80", "NO_COLOR": None, "FORCE_COLOR": None} | environment
    return CliRunner().invoke(group, ["show", *map(str, arguments)], env=env)


def change(folder: Path, name: str, edit: Callable[[Any], Any]) -> None:
    path = next(folder.glob(f"circuits/*/{name}"))
    found = json.loads(path.read_text(encoding="utf-8"))
    files.write_json(path, edit(found) or found)


def rows(output: str) -> dict[tuple[str, str, str], str]:
    """{(sublayer, place, channel): the rest of its row} of the nodes that are drawn."""
    found, sublayer, place = {}, "", ""
    for line in output.splitlines():
        if line.startswith("├─ "):
            sublayer = line[3:].partition(" (")[0]
        elif line.startswith("│ "):
            words = line[2:].split()
            at = next(number for number, word in enumerate(words) if word.isdigit() and (number == 0 or words[number - 1] != "head"))
            place = " ".join(words[:at]) or place
            found[sublayer, place, words[at]] = " ".join(words[at + 1 :])
    return found


def test_a_result_with_a_mechanism(example: Path):
    done = show(example)
    assert done.exit_code == 0, done.exception
    lines = done.output.splitlines()
    assert lines[0] == "quote_close in python-tiny"
    assert lines[1] == "circuit: 31 nodes, 43 edges; meets the target loss 0.15 on 512 held-out pairs"
    assert lines[2] == "loss: circuit 0.117 nats, 96% right; full model 0.016 nats, 100% right; without"
    assert lines[4].startswith("standard: paper; robust standard: ")
    drawn = rows(done.output)
    assert len(drawn) == 31
    assert drawn["layer 0, MLP", "neuron", "194"] == 'AUC 1.00 "\')" at difference 1.438 ← 87 -0.37, 78 +0.31, 2 more'
    assert drawn["layer 1, attention", "head 7 v", "115"] == "AUC 1.00 '\")' at difference 0.363 ← 74 +0.31"
    assert drawn["layer 1, attention", "read", "74"].endswith("1.154 ⇠ 0.mlp")
    assert "└ '\")' (first) or \"')\" (second)" in lines


@pytest.mark.parametrize("width", [72, 80, 120, 200])
@pytest.mark.parametrize("folder", ["example", "earlier"])
def test_lines_fit_and_hold_whole_words(folder: str, width: int, example: Path):
    place = example if folder == "example" else EARLIER
    lines, wide = (show(place, COLUMNS=str(columns)).output.splitlines() for columns in (width, 1000))
    assert not [line for line in lines if cell_len(line) > width]
    assert [line for line in lines if line != line.rstrip()] == []
    head = lambda found: " ".join(found[: found.index("┌ prompt") - 1]).split()  # noqa: E731
    assert head(lines) == head(wide)


def test_claims_are_told_with_their_numbers_and_whether_they_hold(example: Path):
    told = " ".join(show(example).output.split())
    claims = json.loads((EXAMPLE / "result.json").read_text(encoding="utf-8"))["validation"]["mechanism"]["claims"]
    assert told.count("This holds.") == len(claims) - 1  # the difference of the prompts is no claim that can fail
    assert "2. 1.attn.act_in.74 tells the two prompts apart at the token that differs" in told
    assert "No simple story" not in told

    def fails(numbers: dict) -> None:
        found = numbers["validation"]["mechanism"]
        found["holds"] = found["claims"][1]["holds"] = False

    change(example, "result.json", fails)
    told = " ".join(show(example).output.split())
    assert told.count("This holds.") == len(claims) - 2
    assert told.count("This does not hold on held-out prompts.") == 1
    assert "No simple story was found: the nodes named here move" in told


def test_an_earlier_result_is_drawn_with_tokens(example: Path):
    done = show(EARLIER)
    assert done.exit_code == 0, done.exception
    assert "how it works" not in done.output
    assert "without  " not in done.output
    assert "robust standard: not measured" in done.output
    drawn = rows(done.output)
    assert drawn["layer 0, attention", "read", "3"] == "reads 'ish'"
    assert drawn["layer 0, attention", "head 0 k", "4"] == "reads 'height' ← 8 +0.98, 12 +0.40, 3 +0.24"
    shutil.rmtree(example / "model")
    assert ("layer 1, attention", "v", "115") in rows(show(example).output)  # without its model no head is known


def test_of_many_nodes_those_with_the_largest_effect_are_drawn(example: Path):
    numbers = json.loads((EXAMPLE / "result.json").read_text(encoding="utf-8"))
    without = {node: one["without"] for node, one in numbers["validation"]["mechanism"]["nodes"].items()}
    best = sorted(without, key=lambda node: -without[node])[:5]
    done = show(example, "--limit", 5)
    assert {channel for _, _, channel in rows(done.output)} == {node.rpartition(".")[2] for node in best}
    assert "5 of 31 nodes, those with the largest loss without them; 26 are not shown," in done.output
    assert f"layer 1, attention ({sum(node.startswith('1.attn') for node in best)} of 12 nodes)" in done.output
    assert "not shown" not in show(example, "--all").output
    change(example, "result.json", lambda numbers: numbers["validation"].update(mechanism=None))
    done = show(example, "--limit", 1)
    edges = json.loads((EXAMPLE / "circuit.json").read_text(encoding="utf-8"))["edges"]
    weights: dict[str, float] = {}
    for edge in edges:
        for end in ("source", "target"):
            weights[edge[end]] = weights.get(edge[end], 0.0) + abs(edge["weight"])
    assert [channel for _, _, channel in rows(done.output)] == [max(weights, key=weights.__getitem__).rpartition(".")[2]]
    assert "those with the largest weights; 30 are not shown" in done.output


def test_answers_that_vary_and_a_circuit_without_nodes(example: Path):
    change(example, "circuit.json", lambda circuit: circuit.update(answers=[], answer_ids=[]))
    said = show(example).output
    assert "AUC 1.00 second at difference" in said
    assert "└ the two answers of each pair\n" in said
    change(example, "circuit.json", lambda circuit: circuit.update(nodes=[], edges=[]))
    done = show(example)
    assert done.exit_code == 0, done.exception
    assert done.output.endswith("circuit, from the prompt down to the answer\n┌ prompt\n└ the two answers of each pair\n")
    assert "circuit: 0 nodes, 0 edges; meets the target" in done.output


def test_a_number_that_is_not_one_is_the_least_effect():
    node = {"without": None, "in": [], "out": []}
    nodes = [{**node, "id": "a", "without": float("nan")}, {**node, "id": "b", "without": 0.1}, {**node, "id": "c", "out": [["a", -2.0]]}]
    assert most_effective(nodes, 1) == {"b"}
    assert most_effective(nodes, 2) == {"b", "c"}


def test_json_has_the_numbers_of_the_files(example: Path):
    facts = json.loads(show(example, "--json").output)
    numbers = json.loads((EXAMPLE / "result.json").read_text(encoding="utf-8"))
    circuit = json.loads((EXAMPLE / "circuit.json").read_text(encoding="utf-8"))
    assert (facts["job"], facts["folder"], facts["task"], facts["standard"]) == (None, str(example), "quote_close", "paper")
    assert (facts["loss"], facts["target_loss"], facts["answers"]) == (numbers["loss"], 0.15, circuit["answers"])
    assert facts["edges"] == [[edge["source"], edge["target"], edge["weight"]] for edge in circuit["edges"]]
    assert [node["id"] for node in facts["nodes"]] == [node["id"] for node in circuit["nodes"]]
    for node in facts["nodes"]:
        own = numbers["validation"]["mechanism"]["nodes"][node["id"]]
        assert own == {name: node[name] for name in own}
        assert sorted(node["in"]) == sorted([source, weight] for source, target, weight in facts["edges"] if target == node["id"])
        assert sorted(node["out"]) == sorted([target, weight] for source, target, weight in facts["edges"] if source == node["id"])
        assert [abs(weight) for _, weight in node["in"]] == sorted((abs(weight) for _, weight in node["in"]), reverse=True)
        assert node["head"] == (node["channel"] // 16 if node["site"][-2:] in (".q", ".k", ".v") else None)
    assert {node["id"]: node["stream"] for node in facts["nodes"] if node["stream"]} == {
        "1.attn.act_in.74": ["0.mlp.resid_delta.74"],
        "1.attn.act_in.101": ["0.mlp.resid_delta.101"],
    }
    assert facts["story"]["holds"] is True
    assert [claim["nodes"] for claim in facts["story"]["claims"]] == [one["nodes"] for one in numbers["validation"]["mechanism"]["claims"]]
    assert json.loads(show(EARLIER, "--json").output)["story"] is None


def test_text_of_tokens_is_shown_and_not_obeyed(example: Path):
    def hostile(circuit: dict) -> None:
        circuit["answers"] = ["\x1b[31m", "\u202e"]
        for node in circuit["nodes"]:
            node["reads"] = ["\x1b]0;x\x07"]

    change(example, "circuit.json", hostile)
    change(example, "result.json", lambda numbers: numbers["validation"]["mechanism"]["claims"][0].update(tokens=[["\x1b[2J", "\n", 1.0]]))
    for columns in ("80", "160"):
        said = show(example, COLUMNS=columns).output
        assert said.replace("\n", "").isprintable()
        assert r"'\x1b[2J' before the first answer" in " ".join(said.split())
        assert r"└ '\x1b[31m' (first) or '\u202e' (second)" in said
        assert "AUC 1.00 first at difference" in said  # too long for a row


def test_lines_are_ascii_where_the_output_is(example: Path):
    assert glyphs_for("utf-8") == Glyphs()
    assert glyphs_for("no-such-encoding").is_ascii
    code = "import sys; from worker.cli import main; main(sys.argv[1:])"
    said = python(code, "show", str(example), env={"PYTHONIOENCODING": "ascii", "COLUMNS": "80"})
    assert said.isascii()
    assert "+- layer 1, attention\n| read " in said
    assert "<- 74 +0.31\n" in said
    assert "\\u" not in said


def test_colours_are_for_terminals_that_want_them(example: Path):
    assert "\x1b" not in show(example).output
    coloured = show(example, FORCE_COLOR="1", TERM="xterm").output
    assert "\x1b[31m87 -0.37" in coloured
    assert "\x1b[34m74 +0.31" in coloured
    without = show(example, FORCE_COLOR="1", TERM="xterm", NO_COLOR="1").output
    assert "\x1b[3" not in without


def test_as_many_edges_as_fit_and_at_least_one():
    node = {"site": "0.mlp.post_act", "channel": 4095, "head": None, "position": False, "reads": [], "writes": [], "auc": {"end": 0.25}}
    node |= {"without": 1.5, "stream": [], "in": [[f"0.mlp.act_in.{1000 + i}", -0.004] for i in range(1200)]}
    for width, edges in (
        (20, "← 1000 -0.004, 1,199 more"),
        (76, "← 1000 -0.004, 1,199 more"),
        (86, "← 1000 -0.004, 1001 -0.004, 1,198 more"),
        (120, "← read 1000 -0.004, 1001 -0.004, 1002 -0.004, 1003 -0.004, 1,196 more"),
    ):
        line = RowColumns.of([node], (" in", " lambda"), width, Glyphs()).row(node, None).plain
        assert line == f"│ neuron 4095  AUC 0.75 second at end  1.500  {edges}"
        assert width == 20 or cell_len(line) <= width


def test_wrapping_counts_cells_and_keeps_joined_words():
    lines = [line.plain for line in wrapped("日本 日本 a\xa0b cd", 9, "  ")]
    assert lines == ["日本 日本", "  a b cd"]
    assert [line.plain for line in wrapped("a verylongwordindeed b", 5)] == ["a", "verylongwordindeed", "b"]


def test_of_several_tasks_one_must_be_named(example: Path):
    shutil.copytree(example / "circuits" / "quote_close", example / "circuits" / "another")
    error = show(example).exception
    assert isinstance(error, UsageError)
    assert f"has circuits of another, quote_close; name one, as {example}:another" in str(error)
    assert show(f"{example}:quote_close").output.startswith("quote_close in python-tiny\n")
    assert isinstance(show(f"{example}:nosuch").exception, UsageError)
    assert isinstance(show("/nosuch/place").exception, NotFound)
    assert "exclude each other" in str(show(example, "--all", "--limit", 3).exception)


@pytest.mark.parametrize("how", ["no json", "no nodes", "other node", "weight", "site", "place", "no loss", "claims", "kind", "aucs"])
def test_damaged_files_are_one_clear_line_and_nothing_is_drawn(how: str, example: Path):
    mechanism: Callable[[dict], dict] = lambda numbers: numbers["validation"]["mechanism"]  # noqa: E731
    circuit: dict[str, Callable[[dict], Any]] = {
        "no nodes": lambda circuit: circuit.pop("nodes") and circuit,
        "other node": lambda circuit: circuit["edges"][0].update(source="9.mlp.act_in.1"),
        "weight": lambda circuit: circuit["edges"][0].update(weight="much"),
        "site": lambda circuit: circuit["nodes"][0].update(site="0"),
        "place": lambda circuit: circuit["nodes"][0].update(site="0.mlp.nosuch"),
    }
    result: dict[str, Callable[[dict], Any]] = {
        "no loss": lambda numbers: numbers.update(loss=None),
        "claims": lambda numbers: mechanism(numbers).pop("claims") and numbers,
        "kind": lambda numbers: mechanism(numbers)["claims"][1].update(kind="nosuch"),
        "aucs": lambda numbers: mechanism(numbers)["nodes"]["0.mlp.act_in.87"].update(auc=3),
    }
    if how == "no json":
        (example / "circuits" / "quote_close" / "circuit.json").write_text("{")
    elif how in circuit:
        change(example, "circuit.json", circuit[how])
    else:
        change(example, "result.json", result[how])
    done = show(example)
    assert isinstance(done.exception, BrokenArtifact)
    assert str(example) in str(done.exception)
    assert done.output == ""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Machine]:
    with fresh_machine(monkeypatch, capsys) as made:
        yield made


def test_without_a_job_it_is_the_newest_that_has_finished(machine: Machine):
    answer = machine.extract("show")
    assert (answer.code, answer.out) == (3, "")
    assert "no job with a circuit has finished yet" in answer.err
    for job, spec in (("old", circuit_spec()), ("mine", circuit_spec()), ("training", None), ("waiting", circuit_spec())):
        machine.submit(job, spec)
        if job != "waiting":
            machine.records.claim(job, "token", 60, "host", "worker", "")
            machine.records.end(job, "token", "succeeded", str(EARLIER if job == "mine" else machine.home))
    answer = machine.extract("show")
    assert answer.code == 0
    assert answer.err == "job mine: the newest that has finished\n"
    assert answer.out == machine.extract("show", "mine").out
    assert machine.extract("result").err.startswith("job mine: the newest that has finished\n")
    answer = machine.extract("logs", "--json")  # of the newest, whatever its state
    assert answer.err.startswith("job waiting: the newest\n")
    facts = machine.extract("show", "mine:for_while", "--json").json
    assert (facts["job"], facts["folder"], facts["task"]) == ("mine", str(EARLIER), "for_while")


def test_there_may_be_no_job(machine: Machine):
    for command in ("logs", "watch"):
        answer = machine.extract(command)
        assert (answer.code, answer.out) == (3, "")
        assert "there is no job yet; queue one with `extract submit`" in answer.err
    for command in (("result",), ("view", "--no-open"), ("steer", "--toward", "x")):
        assert "no job with a circuit has finished yet" in machine.extract(*command).err


def test_a_result_folder_is_shown_and_copied_like_a_job(machine: Machine, tmp_path: Path):
    folder = machine.finish("mine", circuit_spec())
    of_job, of_folder = (machine.extract("result", name, "--json").json for name in ("mine", str(folder)))
    assert of_folder == of_job | {"job": None}
    answer = machine.extract("result", str(folder), "--out", str(tmp_path / "copy"), "--json")
    assert set(answer.json["files"]) == set(files.verify_manifest(tmp_path / "copy"))
    answer = machine.extract("result", str(tmp_path))
    assert answer.code != 0
    assert str(tmp_path) in answer.err
    assert answer.err.count("\n") == 1


def test_no_torch_is_loaded():
    code = "import sys; from worker.cli import main\ntry: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    assert python(code, "show", str(EARLIER)).endswith("False\n")
