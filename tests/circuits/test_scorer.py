"""Losses of many circuits at once, and the smallest prefixes of many rankings."""

from __future__ import annotations

import math

import micro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import everything, graded_problem, micro_problem, nodes_of, random_base, random_batch, random_edges, random_model

from extractor.circuits import scorer
from extractor.circuits.calibration import calibrate, calibrated_loss
from extractor.circuits.graph import CircuitMask, NodeIndex
from extractor.circuits.network import FastMaskedModel
from extractor.circuits.reference import ReferenceMaskedModel, masked_logit_diff
from extractor.circuits.scorer import CircuitScorer
from extractor.circuits.standard import PaperStandard
from extractor.data.prompts import task_loss
from extractor.pruning.bisection import smallest

CHANCE = math.log(2)


class Given(PaperStandard):
    """The paper's standard with a network of the test's."""

    def __init__(self, make):
        self.network = make


def random_graphs(model, count: int, with_edges: bool) -> list[CircuitMask]:
    generator = torch.Generator().manual_seed(0)
    nodes = torch.rand(count, len(NodeIndex.of(model)), generator=generator) < 0.8
    masks = random_edges(model, count)
    edges = [{link: mask[i].bool() for link, mask in masks.items()} if with_edges else None for i in range(len(nodes))]
    return [CircuitMask(model, row, some) for row, some in zip(nodes, edges, strict=True)]


@pytest.mark.parametrize("with_edges", [False, True])
@pytest.mark.parametrize("plain", [False, True])
def test_margins_of_graphs_are_the_definitions_one_by_one(with_edges: bool, plain: bool):
    model, batch = random_model(1), random_batch(6, 1)
    base, index = random_base(model), NodeIndex.of(model)
    made = CircuitScorer(
        Given(lambda kept: ReferenceMaskedModel(model, kept, base) if plain else FastMaskedModel(model, base, kept)), batch
    )
    graphs = random_graphs(model, 4, with_edges)
    diffs = made.logit_diffs(graphs)
    assert diffs.shape == (4, 12)
    for row, graph in zip(diffs, graphs, strict=True):
        edges = None if graph.edges is None else {link: mask.float() for link, mask in graph.edges.items()}
        assert torch.allclose(row, masked_logit_diff(model, batch, index.split(graph.nodes.float()), base, edges), atol=1e-4)


@pytest.mark.parametrize("with_edges", [False, True])
def test_a_judge_that_holds_little_at_once_says_the_same(with_edges: bool, monkeypatch: pytest.MonkeyPatch):
    model, batch, base = random_model(2), random_batch(4, 2), random_base(random_model(2))
    asked: list[int] = []

    class Watched(FastMaskedModel):
        def logit_diffs(self, prompts, masks):
            asked.append(len(masks.nodes))
            return super().logit_diffs(prompts, masks)

    made, graphs = CircuitScorer(Given(lambda kept: Watched(model, base, kept)), batch), random_graphs(model, 5, with_edges)
    whole = made.logit_diffs(graphs)
    monkeypatch.setattr(scorer, "VALUES_AT_ONCE", 2 * int(torch.stack([g.nodes for g in graphs]).any(0).sum()) * batch.ids.numel())
    assert torch.allclose(made.logit_diffs(graphs), whole, atol=1e-5)
    monkeypatch.setattr(scorer, "VALUES_AT_ONCE", 1)
    assert torch.allclose(made.logit_diffs(graphs), whole, atol=1e-5)
    assert asked == [5, 2, 2, 1, 1, 1, 1, 1, 1]


def test_a_loss_is_that_of_the_calibrated_circuit():
    problem = graded_problem()
    made, graphs = problem.scorer(problem.select), random_graphs(problem.model, 3, with_edges=False)
    losses = made.losses(graphs)
    for loss, graph in zip(losses.tolist(), graphs, strict=True):
        diff = masked_logit_diff(problem.model, problem.select, problem.index.split(graph.nodes.float()), problem.ablation_values)
        calibration = calibrate(diff, problem.select.sign)
        assert loss == pytest.approx(calibrated_loss(diff, problem.select.sign, calibration), abs=1e-3)
        assert loss == pytest.approx(made.loss(graph), abs=1e-5)
        assert loss < task_loss(diff, problem.select.sign).item()


def test_the_micro_circuit_alone_will_do_and_nothing_alone_is_chance():
    problem = micro_problem()
    made = problem.scorer(problem.select)
    circuit = nodes_of(problem.model, *micro.CIRCUIT)
    nothing = CircuitMask(problem.model, torch.zeros(32, dtype=torch.bool))
    found = made.losses([circuit, everything(problem.model), nothing, circuit.complement()])
    assert found[:2].max() < 0.01
    assert found[2:].tolist() == pytest.approx([CHANCE] * 2, abs=1e-2)


def test_graphs_with_and_without_edge_masks_are_not_judged_together():
    model = random_model(0)
    made = CircuitScorer(Given(lambda kept: FastMaskedModel(model, random_base(model), kept)), random_batch(2))
    with pytest.raises(AssertionError, match="together"):
        made.logit_diffs([random_graphs(model, 1, True)[0], random_graphs(model, 1, False)[0]])


# bisection


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 400)), min_size=1, max_size=8))
def test_bisection_finds_the_smallest_k_of_every_ranking(rankings: list[tuple[int, int]]):
    """(how many there are, how many are needed); a ranking that needs more than there are has none."""
    most, needed = (torch.tensor(column) for column in zip(*rankings, strict=True))
    asked: list[torch.Tensor] = []

    def meets(k: torch.Tensor) -> torch.Tensor:
        asked.append(k.clone())
        return k >= needed

    assert torch.equal(smallest(meets, most), torch.where(needed <= most, needed, 0))
    assert all(bool(((k >= 1) & (k <= most)).all()) for k in asked)
    assert len(asked) <= 2 * math.ceil(math.log2(int(most.max()) + 1)) + 2


@pytest.mark.parametrize("most", [1, 2, 3, 64, 100])
def test_bisection_gives_up_where_even_all_do_not_meet(most: int):
    asked: list[int] = []

    def meets(k: torch.Tensor) -> torch.Tensor:
        asked.append(int(k))
        return torch.tensor([False])

    assert smallest(meets, torch.tensor([most])).tolist() == [0]
    assert asked[-1] == most


def test_one_ranking_alone_is_asked_no_more_than_it_needs():
    asked: list[int] = []
    assert smallest(lambda k: asked.append(int(k)) or k >= 1, torch.tensor([1000])).tolist() == [1]
    assert asked == [1]


def test_the_answer_meets_even_where_meeting_is_not_monotone():
    good = {3, 4, 9, 20, 21, 22}
    (found,) = smallest(lambda k: torch.tensor([int(k) in good]), torch.tensor([22])).tolist()
    assert found in good
