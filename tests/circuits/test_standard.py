"""Standards: losses of circuits by the paper's and by the robust one, against the plain definition."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import micro
import pytest
import torch
from problems import graded_problem, micro_problem, names_of

from extractor.circuits.circuit import Calibration
from extractor.circuits.conditions import CONDITIONS, Conditions
from extractor.circuits.reference import masked_logit_diff
from extractor.circuits.standard import OWN_SCALE, PaperStandard, RobustStandard
from extractor.data.prompts import task_loss
from extractor.pruning.problem import FEWEST_PAIRS, PruningProblem
from extractor.pruning.prune import find_circuits


@pytest.fixture(scope="module")
def problem() -> PruningProblem:
    return graded_problem()


@pytest.fixture(scope="module")
def robust(problem: PruningProblem) -> PruningProblem:
    return problem.under("robust")


def some_nodes(problem: PruningProblem) -> torch.Tensor:
    return torch.rand(len(problem.index), generator=torch.Generator().manual_seed(3)) < 0.7


def test_a_robust_loss_is_that_of_the_worst_condition_and_nothing_is_fitted(robust: PruningProblem):
    kept, model = some_nodes(robust), robust.model
    network = robust.standard.network(kept)
    diffs = network.logit_diffs(network.prepare(robust.select))
    _, values = Conditions(model, robust.means, robust.seed)(robust.select)
    repeated = robust.select.repeat(len(CONDITIONS))
    rows = torch.arange(len(repeated.ids))
    base = {site: values.of(site, rows, repeated.ids.shape[1], torch.arange(width)) for site, width in robust.index.widths.items()}
    plain = masked_logit_diff(model, repeated, robust.index.split(kept.float()), base)
    assert torch.allclose(diffs[0], plain, atol=1e-4)
    losses = [task_loss(part, robust.select.sign).item() for part in plain.unflatten(0, (len(CONDITIONS), -1))]
    assert robust.standard.losses(diffs, robust.select.sign).item() == pytest.approx(max(losses), abs=1e-4)
    assert robust.standard.calibration(diffs[0], robust.select.sign) == OWN_SCALE


def test_the_gradient_is_that_of_the_nearly_worst_conditions(robust: PruningProblem):
    sign = torch.tensor([1.0, -1.0])
    diffs = torch.zeros(1, 2 * len(CONDITIONS))
    diffs[0, :2] = torch.tensor([-3.0, 3.0])  # the first condition is by far the worst
    diffs.requires_grad_()
    loss, held = robust.standard.held(diffs, sign)
    (gradient,) = torch.autograd.grad(held, diffs)
    assert loss == pytest.approx(math.log1p(math.exp(3)), abs=1e-5)
    assert gradient[0, :2].abs().min() > 0.4
    assert gradient[0, 2:].abs().max() < 1e-6


@pytest.mark.parametrize("standard", ["paper", "robust"])
def test_what_is_measured_has_an_upper_end_over_pairs(standard: str, problem: PruningProblem):
    one = problem.under(standard).standard
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0])
    single = torch.tensor([2.0, -2.0, 0.5, 0.5])  # the second pair: one right, one wrong
    losses = [math.log1p(math.exp(-x)) for x in (2.0, 2.0, 0.5, -0.5)]
    pairs = [sum(losses[:2]) / 2, sum(losses[2:]) / 2]
    error = (sum((x - sum(pairs) / 2) ** 2 for x in pairs) / 1 / 2) ** 0.5
    found = one.measured(single.repeat(one.copies), sign, Calibration(1.0, 0.0))
    assert found.loss == pytest.approx(sum(losses) / 4, abs=1e-6)
    assert found.upper == pytest.approx(sum(losses) / 4 + 2 * error, abs=1e-6)
    assert found.accuracy == 0.75


def test_values_of_a_batch_are_made_once_while_it_is_used(problem: PruningProblem):
    standard = RobustStandard(problem.model, problem.means, 0)
    batches = [problem.select.pick(torch.arange(4 + extra)) for extra in range(4)]
    first = standard._conditions(batches[0])
    assert standard._conditions(batches[0]) is first
    for batch in batches[1:]:
        standard._conditions(batch)
    assert standard._conditions(batches[0]) is not first


def test_the_robust_problem_has_fewer_pairs_half_of_them_shifted(problem: PruningProblem):
    marked = [replace(batch, sign=7 * batch.sign) for batch in (problem.train, problem.select)]
    robust = replace(problem, shifted=(marked[0], marked[1])).under("robust")
    assert robust.spec.standard == "robust"
    assert robust.spec.trial_pairs == max(FEWEST_PAIRS, problem.spec.trial_pairs // len(CONDITIONS))
    for batch in (robust.train, robust.select):
        assert (batch.sign.abs() == 7).double().mean().item() == 0.5
    assert robust.under("robust") is robust
    assert isinstance(robust.under("paper").standard, PaperStandard)
    assert problem.under("paper") is problem


def test_a_robust_circuit_is_found_in_the_micro_model(tmp_path: Path):
    """The paper's three nodes hold under every condition, too: what the rest of the model may carry is little."""
    problem = micro_problem(tmp_path, granularity="edge").under("robust")
    best = find_circuits(problem).best
    assert (best.met, best.standard, best.calibration) == (True, "robust", OWN_SCALE)
    assert names_of(problem.model, best.graph.nodes) == set(micro.CIRCUIT)
    assert best.edges == 2
