"""Circuits that are known by construction (planted.py): they are what they claim to be, and pruning finds them, whole and alone."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import planted
import pytest
import torch
from worlds import environment

from extractor.circuits.calibration import calibrate_all
from extractor.circuits.graph import CircuitMask, NodeIndex, edges_between, live_nodes
from extractor.circuits.reference import masked_logit_diff
from extractor.circuits.standard import Name
from extractor.data.prompts import task_loss
from extractor.models.reference import open_model
from extractor.models.tokenizer import load_tokenizer
from extractor.pruning.problem import PruningProblem
from extractor.pruning.prune import find_circuits
from extractor.spec.schema import PruneSpec

QUOTE, BRACKET = "quote_close", "bracket_counting"
PLANTS = [
    (QUOTE, {}),
    (QUOTE, {"activation_frac": 0.5, "sinks": False}),
    (BRACKET, {}),
    (BRACKET, {"activation_frac": 0.5, "d_pos_emb": 4}),
    (BRACKET, {"sinks": False, "activation": "relu"}),
]
SEARCH = {"trials": 2, "population": 2, "steps": 60, "pairs": 16, "edge_steps": 30, "edge_k_coefs": (1e-2,)}
SEARCH |= {"trial_pairs": 32, "targets": ()}

every_plant = pytest.mark.parametrize(("task", "variant"), PLANTS, ids=lambda value: value if isinstance(value, str) else str(value))


def plant_of(task: str, variant: dict, seed: int = 0) -> planted.Planted:
    return _plant(task, seed, tuple(variant.items()))


@lru_cache
def _plant(task: str, seed: int, variant: tuple) -> planted.Planted:
    return planted.planted(task, load_tokenizer(open_model("python-tiny").path), seed, **dict(variant))


def loss(plant: planted.Planted, circuit: CircuitMask | None = None) -> float:
    """Calibrated loss of a circuit, or of the full model, by the plain definition: nats on 64 held-out pairs."""
    batch = plant.batch("held_out", 64)
    if circuit is None:
        diff = masked_logit_diff(plant.model, batch, {}, plant.means)
    else:
        masks = {site: on.float() for site, on in NodeIndex.of(plant.model).split(circuit.nodes).items()}
        edges = None if circuit.edges is None else {link: on.float() for link, on in circuit.edges.items()}
        diff = masked_logit_diff(plant.model, batch, masks, plant.means, edges)
    return calibrate_all(diff[None], batch.sign)[0].item()


def everything(plant: planted.Planted) -> dict[str, torch.Tensor]:
    return {site: torch.arange(width) for site, width in NodeIndex.of(plant.model).widths.items()}


def noise(plant: planted.Planted, values: dict[str, torch.Tensor]) -> torch.Tensor:
    """Values (B, N') of the live noise nodes, from {site: (B, width)}."""
    live = live_nodes(plant.model, everything(plant))
    return torch.stack([values[site][:, c] for site, some in live.items() for c in sorted(some) if f"{site}.{c}" not in plant.nodes], dim=1)


@every_plant
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_model_does_the_task_and_the_plant_alone_does(task, variant, seed):
    plant = plant_of(task, variant, seed)
    batch = plant.batch("held_out", 64)
    assert task_loss(masked_logit_diff(plant.model, batch, {}, plant.means), batch.sign).item() < 0.03
    assert loss(plant) < 0.03
    assert loss(plant, planted.graph_of(plant)) < 0.05


@every_plant
def test_every_planted_edge_is_needed(task, variant):
    plant = plant_of(task, variant)
    for edge in sorted(plant.edges):
        without = loss(plant, planted.graph(plant.model, plant.nodes, plant.edges - {edge}))
        assert without > 0.3, f"without {edge} the plant still has {without:.3f} nats"


@every_plant
def test_every_planted_node_is_missed_by_the_whole_model(task, variant):
    plant = plant_of(task, variant)
    for node in sorted(plant.nodes):
        without = loss(plant, CircuitMask(plant.model, ~planted.graph(plant.model, {node}, ()).nodes))
        assert without > 0.3, f"without {node} the model still has {without:.3f} nats"


@every_plant
def test_the_noise_does_not_do_the_task(task, variant):
    plant = plant_of(task, variant)
    assert loss(plant, CircuitMask(plant.model, ~planted.graph_of(plant).nodes)) > 0.68


@every_plant
def test_the_noise_is_much_and_alive(task, variant):
    plant = plant_of(task, variant)
    assert len(NodeIndex.of(plant.model)) > 20 * len(plant.nodes)
    assert len(list(edges_between(plant.model, everything(plant)))) > 50 * len(plant.edges)
    batch = plant.batch("held_out", 64)
    with plant.model.record() as values:
        plant.model(input_ids=batch.ids)
    rows = torch.arange(len(batch.ids))
    last = noise(plant, {site: x[rows, batch.last] for site, x in values.items()})
    assert last.shape[1] > 20 * len(plant.nodes)  # on live paths from the tokens to the logits
    assert (last.std(0) > 0.05).float().mean() > 0.9  # varying from prompt to prompt
    of_pairs = (last[::2] - last[1::2]).abs()
    assert (of_pairs.mean(0) > 0.05).float().mean() > 0.05  # some know the answer


def test_the_seed_changes_the_noise_and_the_places_and_nothing_else_does():
    one, same, other = planted.planted(QUOTE, _plant(QUOTE, 0, ()).tokenizer), plant_of(QUOTE, {}), plant_of(QUOTE, {}, 1)
    assert one.nodes == same.nodes
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), same.model.parameters(), strict=True))
    assert one.nodes != other.nodes
    assert len(one.edges) == len(other.edges)


def find(plant: planted.Planted, folder: Path, standard: Name = "paper", **changes) -> CircuitMask:
    """What the engine keeps for a target of 0.15 nats; by the robust standard with shifted pairs where the plant has a shortcut."""
    spec = PruneSpec(**(SEARCH | changes))

    def env(stage: str):
        return environment(folder / stage, stage=stage)

    problem = PruningProblem(plant.model, plant.means, plant.batch("train", 128), plant.batch("select", 64), spec, 0.15, 0, env)
    if plant.shortcut:
        problem = replace(problem, shifted=(plant.batch("train", 128, shifted=True), plant.batch("select", 64, shifted=True)))
    found = find_circuits(problem.under(standard)).best
    assert found.met, f"the best circuit has {found.loss:.3f} nats"
    return found.graph


def difference(name: str, kept: set, wanted: set) -> str:
    """What is kept and should not be, and what should be and is not; '' where there is none."""
    found = {"missing": wanted - kept, "kept beside the plant": kept - wanted}
    return "\n".join(f"{name} {what}: {sorted(some)}" for what, some in found.items() if some)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "variant"), [PLANTS[0], PLANTS[3], PLANTS[4]], ids=str)
def test_the_engine_finds_the_planted_edges_and_nothing_else(task, variant, tmp_path):
    plant = plant_of(task, variant)
    nodes, edges = planted.names(plant.model, find(plant, tmp_path))
    wrong = [difference("nodes", nodes, plant.nodes), difference("edges", edges, plant.edges)]
    assert not any(wrong), "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "variant"), [PLANTS[4]], ids=str)
def test_the_robust_standard_finds_the_planted_edges_and_nothing_else(task, variant, tmp_path):
    plant = plant_of(task, variant)
    nodes, edges = planted.names(plant.model, find(plant, tmp_path, "robust", confident=True))
    wrong = [difference("nodes", nodes, plant.nodes), difference("edges", edges, plant.edges)]
    assert not any(wrong), "\n".join(wrong)


@pytest.mark.slow
def test_beside_a_shortcut_the_robust_standard_finds_the_mechanism_and_the_papers_the_shortcut(tmp_path):
    plant = plant_of(QUOTE, {"shortcut": True})
    for shifted in (False, True):
        batch = plant.batch("held_out", 64, shifted=shifted)
        assert task_loss(masked_logit_diff(plant.model, batch, {}, plant.means), batch.sign).item() < 0.05
    quick = {"algorithm": "attribution", "edge_k_coefs": ()}
    enough = find(plant, tmp_path / "paper", necessity=0.0, **quick)  # what is sufficient: without it the model has the mechanism
    assert not difference("edges", planted.names(plant.model, enough)[1], plant.shortcut)
    robust = find(plant, tmp_path / "robust", "robust", confident=True, **quick)
    assert not difference("edges", planted.names(plant.model, robust)[1], plant.edges)


def test_pruning_nodes_only_finds_the_planted_nodes(tmp_path):
    plant = plant_of(QUOTE, {})
    nodes, edges = planted.names(plant.model, find(plant, tmp_path, granularity="node"))
    assert not difference("nodes", nodes, plant.nodes)
    assert edges > plant.edges  # with the strays between them


@pytest.mark.slow
def test_the_engine_finds_a_plant_from_a_poor_ranking(tmp_path):
    plant = plant_of(BRACKET, {})
    nodes, edges = planted.names(plant.model, find(plant, tmp_path, algorithm="attribution", edge_k_coefs=()))
    wrong = [difference("nodes", nodes, plant.nodes), difference("edges", edges, plant.edges)]
    assert not any(wrong), "\n".join(wrong)
