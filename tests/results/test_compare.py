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
from extractor.errors import BrokenArtifact
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
    assert all(first == second and correlation == pytest.approx(1) for first, second, correlation, _ in found["by_values"]["matched"])
    assert found["by_values"]["matched"]


def test_nodes_of_one_circuit_only_are_named(smaller: Path):
    whole, part = extractor.load(FOLDER), extractor.load(smaller)
    found = compare(whole, part)["by_name"]["nodes"]
    left = [node.id for node in whole.circuit.nodes][len(part.circuit.nodes) :]
    assert found["only"] == [left, []]
    assert found["overlap"] == pytest.approx(len(part.circuit.nodes) / len(whole.circuit.nodes))
    assert compare(part, whole)["by_name"]["nodes"]["only"] == [[], left]


def test_similar_values_are_correlations_of_values_on_the_same_prompts(smaller: Path):
    first, second = extractor.load(FOLDER), extractor.load(smaller)
    roles = compare(first, second)["by_values"]
    kept = files.read_tensors(first.place / "held_out.safetensors")
    batch = extractor.results.compare._prompts(first, 10**6)
    assert torch.equal(batch.ids, kept["ids"][: 2 * batch.pairs])
    real = torch.arange(batch.ids.shape[1]) <= batch.last[:, None]
    values = [observe(one.graph, one.means, batch).values for one in (first, second)]
    end = torch.arange(batch.ids.shape[1]) == batch.last[:, None]
    for node, other, correlation, at_end in roles["matched"]:
        last = torch.stack([values[0][node][end], values[1][other][end]]).double()
        assert at_end == pytest.approx(torch.corrcoef(last)[0, 1].item() if last.std(1).min() > 1e-6 else 0.0, abs=2e-4)
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
    assert found["by_values"] is not None


def test_the_command_prints_it_and_names_what_is_not_there(smaller: Path):
    run = lambda *arguments: CliRunner().invoke(group, ["compare", *map(str, arguments)])  # noqa: E731
    told = run(FOLDER, f"{smaller}:for_while")
    assert told.exit_code == 0
    assert "nodes: " in told.output
    assert " in the first only" in told.output
    facts = json.loads(run(FOLDER, smaller, "--json").output)
    assert facts["circuits"][1]["folder"] == str(smaller)
    for names, kind, words in (
        ((f"{FOLDER}:nosuch", smaller), "UsageError", "no circuit of 'nosuch'"),
        (("", smaller), "UsageError", "empty text"),
        (("/nosuch/place", smaller), "NotFound", "there is no folder /nosuch/place"),
    ):
        error = run(*names).exception
        assert type(error).__name__ == kind
        assert words in str(error)


def test_of_several_tasks_one_must_be_named_and_holds_for_both(smaller: Path, tmp_path: Path):
    several = tmp_path / "several"
    shutil.copytree(smaller, several)
    shutil.copytree(several / "circuits" / "for_while", several / "circuits" / "another")
    run = lambda *arguments: CliRunner().invoke(group, ["compare", *map(str, arguments)])  # noqa: E731
    error = run(several, FOLDER).exception
    assert "has circuits of another, for_while; name one, as" in str(error)
    facts = json.loads(run(several, f"{FOLDER}:for_while", "--json").output)
    assert [one["task"] for one in facts["circuits"]] == ["for_while", "for_while"]


@pytest.mark.parametrize("how", ["no sign", "odd rows", "no rows", "unknown token", "no site", "no loss"])
def test_files_that_do_not_fit_together_are_one_clear_line(how: str, smaller: Path, tmp_path: Path):
    damaged = tmp_path / "damaged"
    shutil.copytree(smaller, damaged)
    place = damaged / "circuits" / "for_while"
    held, means = (files.read_tensors(place / f"{name}.safetensors") for name in ("held_out", "means"))
    if how == "no sign":
        del held["sign"]
    elif how in ("odd rows", "no rows"):
        held = {name: tensor[: 5 if how == "odd rows" else 0] for name, tensor in held.items()}
    elif how == "unknown token":
        held["ids"] = torch.full_like(held["ids"], 99_999)
    elif how == "no site":
        means.pop(next(iter(means)))
    else:
        numbers = json.loads((place / "result.json").read_text(encoding="utf-8"))
        files.write_json(place / "result.json", numbers | {"loss": None})
    files.write_tensors(place / "held_out.safetensors", held)
    files.write_tensors(place / "means.safetensors", means)
    with pytest.raises(BrokenArtifact, match="do not fit together"):
        compare(extractor.load(damaged), extractor.load(FOLDER))
