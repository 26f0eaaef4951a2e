"""`extractor.load`: a stored result as Python objects, and what the circuit does on a prompt, against the compiled circuit."""

from __future__ import annotations

import html
import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from worlds import ROOT

import extractor
from extractor import files
from extractor.circuits.circuit import Circuit
from extractor.errors import BrokenArtifact, NotFound, UsageError
from extractor.results.bar import StageBars
from extractor.results.result import Result

FOLDER = ROOT / "tests" / "frozen" / "result"  # of the last release


@pytest.fixture(scope="module")
def result() -> Result:
    return extractor.load(FOLDER)


@pytest.fixture(scope="module")
def pair(result: Result) -> tuple[str, str]:
    return result.held_out[0].prompt, result.held_out[1].prompt


def test_a_result_is_what_its_files_say(result: Result):
    stored = json.loads((FOLDER / "circuits" / "for_while" / "result.json").read_text())
    assert result.tasks == ("for_while",)
    assert result.numbers == stored
    assert (result.loss, result.accuracy) == (stored["loss"], stored["accuracy"])
    assert (
        repr(result.circuit)
        == f"Circuit(for_while in {result.circuit.model}: {len(result.circuit.nodes)} nodes, {len(result.circuit.edges)} edges)"
    )
    assert f"{len(result.circuit.nodes)} nodes" in repr(result)
    assert result.report.is_file()
    assert result.paper_circuit == result["for_while"].circuit == result.circuit
    assert "data:image/svg+xml;base64," in result._repr_html_()
    assert [one.task for one in result] == ["for_while"]
    assert {prompt.answers for prompt in result.held_out} == {result.circuit.answers}
    assert [prompt.right for prompt in result.held_out[:4]] == [*result.circuit.answers] * 2


def test_on_a_prompt_it_answers_as_the_compiled_circuit_does(result: Result):
    kept = files.read_tensors(result.place / "held_out.safetensors")
    first, second = (torch.full((8,), answer) for answer in result.circuit.answer_ids)
    wanted = result.circuit.calibration.apply(result.compiled(kept["ids"][:8], kept["last"][:8], first, second))
    found = [result.run(each.prompt) for each in result.held_out[:8]]
    assert [run.margin for run in found] == pytest.approx(wanted.tolist(), abs=1e-3)
    for run in found:
        assert run.answer == result.circuit.answers[0 if run.margin > 0 else 1]
        assert sum(run.probability.values()) == pytest.approx(1.0)
        assert run.probability[run.answer] == pytest.approx(1 / (1 + torch.tensor(-abs(run.margin)).exp().item()))


def test_every_node_has_its_value_at_every_token_and_heads_their_patterns(result: Result, pair: tuple[str, str]):
    run = result.run(pair[0])
    assert list(run.activations) == [node.id for node in result.circuit.nodes]
    assert all(values.shape == (len(run.tokens),) for values in run.activations.values())
    assert "".join(run.tokens) == pair[0]
    heads = {
        (int(node.id[0]), node.channel // result.model.config.d_head)
        for node in result.circuit.nodes
        if node.site[-2:] in (".q", ".k", ".v")
    }
    assert set(run.attention) == heads
    for pattern in run.attention.values():
        assert torch.equal(pattern, pattern.tril())
        assert (pattern.sum(-1) <= 1 + 1e-5).all()
    table = run._repr_html_()
    assert table.count("<tr>") == len(run.activations) + 1
    assert all(html.escape(node) in table for node in run.activations)


def test_nodes_can_be_switched_off_patched_and_scaled(result: Result, pair: tuple[str, str]):
    here, there = (result.run(prompt) for prompt in pair)
    every = [node.id for node in result.circuit.nodes]
    off = result.run(pair[0], off=every)
    assert all(torch.allclose(off.activations[node], torch.tensor(here.means[node])) for node in every)
    assert off.margin == pytest.approx(result.run(pair[1], off=every).margin, abs=1e-4), "what is left knows nothing of the answer"
    assert result.run(pair[0], patch=dict.fromkeys(every, pair[0])).margin == pytest.approx(here.margin, abs=1e-4)
    assert result.run(pair[0], patch=dict.fromkeys(every, pair[1])).margin == pytest.approx(there.margin, abs=1e-3)
    one = every[0]
    assert result.run(pair[0], patch={one: 2.5}).activations[one].tolist() == pytest.approx([2.5] * len(here.tokens))
    assert torch.equal(result.run(pair[0], patch={one: there.activations[one]}).activations[one], there.activations[one])
    assert torch.allclose(result.run(pair[0], scale={one: 0.5}).activations[one], 0.5 * here.activations[one])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"off": ["0.mlp.nothing.1"]}, "node '0.mlp.nothing.1' is not in the circuit of 'for_while'"),
        ({"patch": {"": 1.0}}, "node '' is not in the circuit"),
        ({"answers": (" in", ":;")}, "after this prompt the answer ':;' is not one token"),
        ({"answers": (" in", " in")}, "are the same token"),
        ({"answers": " in"}, "answers are two texts"),
        ({"answers": (" in",)}, "answers are two texts"),
        ({"off": 3}, "nodes are given as ids or Nodes, not as int"),
        ({"off": [3]}, "a node is an id such as '0.mlp.post_act.12' or a Node, not int"),
        ({"patch": ["0.mlp.post_act.1"]}, "patch and scale are given as {node: value}, not as list"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_line(result: Result, pair: tuple[str, str], asked: dict, said: str):
    with pytest.raises(UsageError) as refused:
        result.run(pair[0], **asked)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_nodes_are_given_in_every_form_that_one_would_guess(result: Result, pair: tuple[str, str]):
    nodes = result.circuit.nodes[:2]
    wanted = result.run(pair[0], off=[node.id for node in nodes]).margin
    assert result.run(pair[0], off=nodes).margin == wanted
    assert result.run(pair[0], off=(node.id for node in nodes)).margin == wanted
    one = {result.run(pair[0], off=given).margin for given in (nodes[0], nodes[0].id, [nodes[0]])}
    assert len(one) == 1
    assert result.run(pair[0], patch={nodes[0]: 1.0}).margin == result.run(pair[0], patch={nodes[0].id: 1.0}).margin


def test_a_node_is_edited_once_and_with_numbers(result: Result, pair: tuple[str, str]):
    node = result.circuit.nodes[0].id
    for twice in ({"off": node, "scale": {node: 2.0}}, {"off": node, "patch": {node: 1.0}}, {"patch": {node: 1.0}, "scale": {node: 2.0}}):
        with pytest.raises(UsageError, match=f"node {node} is edited twice"):
            result.run(pair[0], **twice)
    for value in (math.nan, math.inf):
        with pytest.raises(UsageError, match="is not finite"):
            result.run(pair[0], patch={node: value})
        with pytest.raises(UsageError, match="is not finite"):
            result.run(pair[0], scale={node: value})
    with pytest.raises(UsageError, match="is a number, values for each token, or a prompt; not NoneType"):
        result.run(pair[0], patch={node: None})


def test_answers_in_the_other_order_turn_the_margin_round_and_foreign_ones_are_not_calibrated(result: Result, pair: tuple[str, str]):
    run, answers = result.run(pair[0]), result.circuit.answers
    assert result.run(pair[0], answers=answers).margin == run.margin
    turned = result.run(pair[0], answers=answers[::-1])
    assert turned.margin == pytest.approx(-run.margin, abs=1e-5)
    assert (turned.answer, turned.probability[run.answer]) == (run.answer, pytest.approx(run.probability[run.answer]))
    raw = (run.margin - result.circuit.calibration.shift) / result.circuit.calibration.scale
    other = result.run(pair[0], answers=(answers[0], "("))
    assert other.margin != run.margin
    assert abs(raw) < abs(run.margin)


def test_a_damaged_result_is_said_to_be_one(tmp_path: Path):
    shutil.copytree(FOLDER, tmp_path / "out")
    files.write_manifest(tmp_path / "out")  # of the files that are kept here
    found, place = extractor.load(tmp_path / "out"), tmp_path / "out" / "circuits" / "for_while"
    found.verify()
    (place / "circuit.json").write_text("{}")
    assert "damaged: " in repr(found)
    with pytest.raises(BrokenArtifact, match="is not a circuit"):
        _ = found.circuit
    (place / "result.json").write_text("{}")
    with pytest.raises(BrokenArtifact, match="is not the content of a result: it has no model"):
        _ = extractor.load(tmp_path / "out").loss  # what was read before is kept
    with pytest.raises(BrokenArtifact):
        found.verify()
    shutil.rmtree(tmp_path / "out" / "model")
    with pytest.raises(NotFound, match="lacks its folder model/"):
        _ = found.tokenizer


def test_what_a_result_says_of_itself_cannot_run_in_a_notebook(tmp_path: Path):
    shutil.copytree(FOLDER, tmp_path / "out")
    place = tmp_path / "out" / "circuits" / "for_while"
    numbers = json.loads((place / "result.json").read_text())
    (place / "result.json").write_text(json.dumps(numbers | {"model": "<script>alert(1)</script>"}))
    (place / "circuit.svg").write_text("<svg onload='alert(2)'></svg>")
    shown = extractor.load(tmp_path / "out")._repr_html_()
    assert "<script" not in shown
    assert "<svg" not in shown


def test_prompts_of_other_lengths_and_of_no_tokens_are_refused(result: Result, pair: tuple[str, str]):
    node = result.circuit.nodes[0].id
    with pytest.raises(UsageError, match="a node is patched token by token"):
        result.run(pair[0], patch={node: pair[0] + pair[0]})
    with pytest.raises(UsageError, match="give a number, or one for each of"):
        result.run(pair[0], patch={node: torch.zeros(99)})
    with pytest.raises(UsageError, match="the prompt has 0 tokens"):
        result.run("")


def test_folders_without_a_finished_result_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EXTRACT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("EXTRACT_REDIS_URL", raising=False)
    with pytest.raises(NotFound, match="there is neither a folder nor a finished job 'quote_close-1f2e'"):
        extractor.load("quote_close-1f2e")
    assert not (tmp_path / "state").exists()
    with pytest.raises(NotFound, match="there is no folder"):
        extractor.load(tmp_path / "nothing")
    with pytest.raises(NotFound, match=r"spec\.json is a file; name a result folder"):
        extractor.load(FOLDER / "spec.json")
    with pytest.raises(UsageError, match=r"a task is the second argument, as in load\('done', 'for_while'\)"):
        extractor.load("done:for_while")
    with pytest.raises(UsageError, match="is not a job id"):
        extractor.load("two words")
    with pytest.raises(UsageError, match="by the id of its job, not by int"):
        extractor.load(3)
    shutil.copytree(FOLDER, tmp_path / "job" / "result")
    with pytest.raises(NotFound, match=r"holds no finished result .* load .*/job/result"):
        extractor.load(tmp_path / "job")
    with pytest.raises(NotFound, match="holds no finished result"):
        extractor.load(tmp_path)
    files.write_manifest(tmp_path)
    with pytest.raises(NotFound, match="has no circuit"):
        extractor.load(tmp_path)
    with pytest.raises(UsageError, match="no circuit of 'quote_close'; it has for_while"):
        extractor.load(FOLDER, "quote_close")
    with pytest.raises(UsageError, match="is a part of a result; load"):
        extractor.load(FOLDER / "circuits" / "for_while")


def test_a_circuit_is_asked_for_nodes_and_edges(result: Result):
    circuit = result.circuit
    node = circuit.edges[0].target
    assert circuit[node].id == node
    assert {edge.target for edge in circuit.into(node)} == {node}
    assert len(circuit.into(node)) == sum(edge.target == node for edge in circuit.edges)
    weights = [abs(edge.weight) for edge in circuit.out_of(circuit.edges[0].source)]
    assert weights == sorted(weights, reverse=True)
    with pytest.raises(UsageError, match="is not in the circuit of 'for_while'"):
        circuit["0.mlp"]
    assert circuit[circuit.nodes[0]] is circuit.nodes[0]
    assert [*circuit] == [*circuit.nodes]
    assert len(circuit) == len(circuit.nodes)
    assert replace(circuit, nodes=()), "an empty circuit is true, as it was before circuits had a length"
    assert node in circuit
    assert "0.mlp" not in circuit
    assert circuit._repr_html_().count("<tr>") == len(circuit.nodes) + 1


def test_a_circuit_becomes_a_graph_and_a_frame(result: Result):
    circuit: Circuit = result.circuit
    graph = circuit.to_networkx()
    assert set(graph) == {node.id for node in circuit.nodes}
    assert {(a, b): facts["weight"] for a, b, facts in graph.edges(data=True)} == {(e.source, e.target): e.weight for e in circuit.edges}
    pandas = pytest.importorskip("pandas")
    frame = circuit.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.to_dict("records") == [{"source": e.source, "target": e.target, "weight": e.weight} for e in circuit.edges]
    assert circuit.to_frame("nodes").to_dict("records") == [asdict(node) for node in circuit.nodes]
    with pytest.raises(UsageError, match="a table of 'edges' or of 'nodes', not of 'heads'"):
        circuit.to_frame("heads")


def test_effects_are_those_of_the_report_the_largest_first(result: Result):
    found = result.effects()
    assert len(found) == len(result.numbers["validation"]["edge_effects"]["edges"])
    assert [one["rise"] for one in found] == sorted((one["rise"] for one in found), reverse=True)
    assert all(one["weight"] in [edge.weight for edge in result.circuit.into(one["target"])] for one in found)
    assert found._repr_html_().count("<tr>") == min(len(found), 100) + 1
    assert found[:2]._repr_html_().count("<tr>") == 3
    assert found[0] == found[:1][0]
    pandas = pytest.importorskip("pandas")
    frame = found.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.to_dict("records") == found


def test_extract_runs_a_job_with_a_bar_and_loads_its_result(tmp_path: Path, monkeypatch, capsys):
    def run_job(spec, out: Path, progress, threads):
        assert (spec.model, spec.tasks, spec.seed, threads) == ("python-tiny", ("for_while",), 3, 1)
        progress.stage("prune", 1, 1)
        progress.note("a note")
        progress.step(5, 5, loss=0.25)
        shutil.copytree(FOLDER, out)

    monkeypatch.setattr("extractor.jobs.run.run_job", run_job)
    found = extractor.extract("python-tiny", "for_while", tmp_path / "out", threads=1, seed=3)
    assert found.folder == tmp_path / "out"
    told = capsys.readouterr()
    assert "a note" in told.out + told.err
    assert "prune (1 of 1)" in told.err
    assert "5/5" in told.err


def test_a_stage_without_steps_leaves_its_name_alone(capsys):
    with StageBars() as progress:
        progress.stage("corpus", 1, 2)
        progress.stage("bridge", 2, 2)
    assert "bridge (2 of 2)" in capsys.readouterr().err
