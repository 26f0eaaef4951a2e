"""Two circuits side by side: of one model by names, of any two by what their nodes do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from worlds import ROOT

import extractor
from extractor import files
from extractor.circuits.observed import observe
from extractor.results.compare import compare
from worker.cli import group

FOLDER = ROOT / "tests" / "frozen" / "result"  # of the last release


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The frozen result without the last third of its circuit's nodes."""
    place = tmp_path_factory.mktemp("compare") / "smaller"
    shutil.copytree(FOLDER, place)
    path = place / "circuits" / "for_while" / "circuit.json"
    circuit = json.loads(path.read_text(encoding="utf-8"))
    kept = circuit["nodes"][: 2 * len(circuit["nodes"]) // 3]
    names = {node["id"] for node in kept}
    edges = [edge for edge in circuit["edges"] if {edge["source"], edge["target"]} <= names]
    files.write_json(path, circuit | {"nodes": kept, "edges": edges})
    return place


def test_a_circuit_is_itself():
    found = compare(extractor.load(FOLDER), extractor.load(FOLDER))
    assert found["same_model"]
    for one in found["by_name"].values():
        assert (one["overlap"], one["only"]) == (1.0, [[], []])
    assert found["circuits"][0] == found["circuits"][1]
    result = extractor.load(FOLDER)
    assert found["circuits"][0]["nodes"] == len(result.circuit.nodes)
    assert found["circuits"][0]["loss"]["circuit"] == result.loss["circuit"]
    assert all(first == second and correlation == pytest.approx(1) for first, second, correlation in found["by_role"]["matched"])
    assert found["by_role"]["matched"]


def test_nodes_of_one_circuit_only_are_named(smaller: Path):
    whole, part = extractor.load(FOLDER), extractor.load(smaller)
    found = compare(whole, part)["by_name"]["nodes"]
    left = [node.id for node in whole.circuit.nodes][len(part.circuit.nodes) :]
    assert found["only"] == [left, []]
    assert found["overlap"] == pytest.approx(len(part.circuit.nodes) / len(whole.circuit.nodes))
    assert compare(part, whole)["by_name"]["nodes"]["only"] == [[], left]


def test_roles_are_correlations_of_values_on_the_same_prompts(smaller: Path):
    first, second = extractor.load(FOLDER), extractor.load(smaller)
    roles = compare(first, second)["by_role"]
    kept = files.read_tensors(first.place / "held_out.safetensors")
    batch = extractor.results.compare._prompts(first, 10**6)
    assert torch.equal(batch.ids, kept["ids"][: 2 * batch.pairs])
    real = torch.arange(batch.ids.shape[1]) <= batch.last[:, None]
    values = [observe(one.graph, one.means, batch).values for one in (first, second)]
    for node, other, correlation in roles["matched"]:
        wanted = torch.corrcoef(torch.stack([values[0][node][real], values[1][other][real]]).double())[0, 1]
        assert correlation == pytest.approx(wanted.item(), abs=2e-4)
        assert abs(correlation) >= 0.9
        assert node.split(".", 1)[1].rpartition(".")[0] == other.split(".", 1)[1].rpartition(".")[0]
    assert len({row[0] for row in roles["matched"]}) == len({row[1] for row in roles["matched"]}) == len(roles["matched"])


def test_other_weights_are_another_model(smaller: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(smaller, other)
    path = other / "model" / "model.safetensors"
    tensors = files.read_tensors(path)
    name = next(name for name in tensors if "wte" in name)
    files.write_tensors(path, tensors | {name: tensors[name] + 1e-3}, {"format": "pt"})
    found = compare(extractor.load(FOLDER), extractor.load(other))
    assert not found["same_model"]
    assert found["by_name"] is None
    assert found["by_role"] is not None


def test_the_command_prints_it_and_names_what_is_not_there(smaller: Path):
    run = lambda *arguments: CliRunner().invoke(group, ["compare", *map(str, arguments)])  # noqa: E731
    told = run(FOLDER, f"{smaller}:for_while")
    assert told.exit_code == 0
    assert "nodes: " in told.output
    assert " in the first only" in told.output
    facts = json.loads(run(FOLDER, smaller, "--json").output)
    assert facts["circuits"][1]["folder"] == str(smaller)
    assert isinstance(run(f"{FOLDER}:nosuch", smaller).exception, extractor.errors.UsageError)
