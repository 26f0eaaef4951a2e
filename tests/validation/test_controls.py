"""Controls that can succeed: null searches, random live circuits, the adversary, interchange, the faithfulness curve."""

from __future__ import annotations

from pathlib import Path

import micro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import graded_problem, micro_problem, nodes_of

from extractor.circuits.circuit import Calibration
from extractor.circuits.graph import CircuitMask
from extractor.pruning.problem import POLICY, PruningProblem
from extractor.pruning.prune import find_circuits
from extractor.validation import adversarial, faithfulness_curve, null_search, random_circuits

OWN = Calibration(1.0, 0.0)


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> PruningProblem:
    return graded_problem(tmp_path_factory.mktemp("graded"), trials=1)


def circuit(problem: PruningProblem) -> CircuitMask:
    return nodes_of(problem.model, *micro.CIRCUIT).with_edges()


# searches where there is nothing to find


def test_the_papers_standard_finds_a_circuit_of_the_opposite_answers_and_the_robust_one_does_not(tmp_path: Path):
    """Other nodes of the micro model write against the answer: alone and calibrated they do the opposite task."""
    problem = micro_problem(tmp_path)
    found = null_search.null_searches(problem, ("paper", "robust"), problem.select, None)
    assert found["paper"]["task"] == pytest.approx({"nodes": 3, "edges": 2, "loss": 0, "met": True}, abs=0.01)
    assert found["paper"]["inverted"] == pytest.approx({"nodes": 3, "edges": 2, "loss": 0, "met": True}, abs=0.01)
    assert found["robust"].keys() == {"inverted", "coin"}
    assert not found["robust"]["inverted"]["met"]
    assert not any(one["coin"]["met"] for one in found.values())


def test_a_control_eliminates_nothing_from_thousands_of_edges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All quick searches, also that of the task itself, have the robust standard's limits: a larger start is not eliminated."""
    problem, asked = micro_problem(tmp_path), []
    monkeypatch.setattr(null_search, "find_circuits", lambda one: asked.append(one.policy) or find_circuits(one))
    null_search.null_searches(problem, ("paper",), problem.select, None)
    robust = POLICY["robust"]
    assert {(one.most_start_edges, one.most_edges) for one in asked} == {(robust.most_start_edges, robust.most_edges)}
    assert problem.policy == POLICY["paper"]


def test_a_coin_exchanges_whole_pairs_and_about_half_of_them():
    batch = micro.micro_batch()
    changed = null_search.exchanged(batch, "coin", 0)
    flipped = (changed.sign != batch.sign).view(-1, 2)
    assert torch.equal(flipped[:, 0], flipped[:, 1])
    assert torch.equal(null_search.exchanged(batch, "inverted", 0).sign, -batch.sign)
    assert torch.equal(changed.correct[flipped.flatten()], batch.wrong[flipped.flatten()])


def test_random_weights_stay_where_they_were_and_keep_their_values(graded: PruningProblem):
    changed = null_search.with_random_weights(graded.model, 0)
    differ = 0
    for (name, own), other in zip(graded.model.named_parameters(), changed.parameters(), strict=True):
        assert torch.equal(own != 0, other != 0), name
        assert torch.equal(own.flatten().sort().values, other.flatten().sort().values), name
        differ += int(not torch.equal(own, other))
    assert differ
    assert all(
        torch.equal(a, b) for a, b in zip(changed.parameters(), null_search.with_random_weights(graded.model, 0).parameters(), strict=True)
    )


# random live circuits


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 40), st.integers(0, 5))
def test_random_circuits_are_alive_and_have_as_many_edges(size: int, seed: int):
    problem = graded_problem()
    paths = random_circuits.RandomPaths(problem.full_mask().with_edges(), torch.Generator().manual_seed(seed))
    made = paths.circuit(size)
    longest = 4  # edges of a path: a value, its write, a query, a key
    assert size <= made.edge_count() < size + longest
    assert torch.equal(made.without_dead().nodes, made.nodes)
    assert made.without_dead().edge_count() == made.edge_count()


def test_the_micro_circuit_is_better_than_random_ones_and_each_edge_is_needed():
    problem = micro_problem()
    found = random_circuits.random_circuits(problem, circuit(problem), problem.select, draws=19)
    assert found is not None
    assert found["sufficiency"]["loss"] < 0.01
    assert found["sufficiency"]["p"] <= 0.5  # the model is so small that random paths find the circuit, too
    assert found["minimality"]["edges"] == 2
    assert found["minimality"]["needed"] == 2


def test_a_circuit_of_noise_is_no_better_than_random_ones(graded: PruningProblem):
    paths = random_circuits.RandomPaths(graded.full_mask().with_edges(), torch.Generator().manual_seed(5))
    found = random_circuits.random_circuits(graded, paths.circuit(5), graded.select, draws=19)
    assert found is not None
    assert found["sufficiency"]["p"] > 0.05
    assert random_circuits.random_circuits(graded, nodes_of(graded.model), graded.select) is None


# the adversary, interchange


def test_an_adversary_cannot_harm_a_circuit_that_nothing_else_reaches():
    problem = micro_problem()
    everything = problem.full_mask()
    found = adversarial.adversarial(problem, everything, OWN, problem.select)
    assert found["loss"] == pytest.approx(found["before"], abs=1e-6), "no node is ablated"
    alone = adversarial.adversarial(problem, nodes_of(problem.model), OWN, problem.select)
    assert alone["loss"] > 0.6


def test_the_adversary_raises_the_loss_and_ends_with_the_worst(graded: PruningProblem):
    half = CircuitMask(graded.model, torch.arange(len(graded.index)) % 2 == 0)
    found = adversarial.adversarial(graded, half, OWN, graded.select)
    assert found["loss"] >= found["before"]
    assert found == adversarial.adversarial(graded, half, OWN, graded.select)


def test_with_all_nodes_as_in_the_full_model_the_loss_is_that_of_the_full_model(graded: PruningProblem):
    rows = adversarial.interchange(graded, graded.full_mask(), OWN, graded.select)
    assert [share for share, _ in rows] == list(adversarial.SHARES)
    assert max(loss for _, loss in rows) == pytest.approx(min(loss for _, loss in rows), abs=1e-5)


# the field's numbers


def test_areas_of_known_curves():
    assert faithfulness_curve.areas((0.5, 1.0), (0.0, 1.0))["cpr"]["linear"] == pytest.approx(0.5)
    found = faithfulness_curve.areas(faithfulness_curve.SIZES, [1.0] * 10)
    assert found["cpr"] == pytest.approx({"linear": 1.0, "log": 1.0})
    assert found["cmd"] == pytest.approx({"linear": 0.0, "log": 0.0})
    too_much = faithfulness_curve.areas(faithfulness_curve.SIZES, [2.0] * 10)
    assert too_much["cmd"]["linear"] == pytest.approx(1.0), "more than the full model is as far from 1 as less"


@pytest.mark.parametrize("standard", ["paper", "robust"])
def test_the_curve_ends_at_the_full_model(standard: str, graded: PruningProblem):
    found = faithfulness_curve.faithfulness_curve(graded.under(standard), graded.select)
    assert found.keys() == {"node", "edge"}
    for one in found.values():
        assert one["sizes"] == list(faithfulness_curve.SIZES)
        assert one["faithfulness"][-1] == pytest.approx(1.0)
