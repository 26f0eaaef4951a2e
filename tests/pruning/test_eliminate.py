"""One by one: paths of nested circuits, what may go, what must stay."""

from __future__ import annotations

from itertools import pairwise

import micro
import pytest
import torch
from problems import everything, graded_problem, micro_problem, names_of, nodes_of

from extractor.circuits.graph import CircuitMask
from extractor.progress import Stopped
from extractor.pruning import eliminate as eliminating
from extractor.pruning.elements import ELEMENTS
from extractor.pruning.eliminate import EliminationPath, eliminate
from extractor.pruning.problem import PruningProblem

KINDS = ("node", "edge")
every_kind = pytest.mark.parametrize("kind", KINDS)


def start(problem: PruningProblem, kind: str) -> CircuitMask:
    """All that is alive in the model."""
    graph = everything(problem.model).without_dead()
    return graph if kind == "node" else graph.with_edges()


def path_of(problem: PruningProblem, kind: str, most: float = 0.15, is_necessary=lambda graph: True) -> EliminationPath:
    return eliminate(problem, kind, start(problem, kind), most, is_necessary)


def elements(problem: PruningProblem, kind: str, graph: CircuitMask) -> int:
    return int(graph.nodes.sum()) if kind == "node" else graph.edge_count()


@pytest.fixture(scope="module", params=KINDS)
def passed(request) -> tuple[str, PruningProblem, EliminationPath]:
    """(kind, problem, path) of the graded problem."""
    problem = graded_problem()
    return request.param, problem, path_of(problem, request.param, 0.3)


# paths


@every_kind
def test_the_micro_model_is_cut_down_to_its_circuit(kind: str):
    problem = micro_problem()
    path = path_of(problem, kind)
    assert torch.equal(path[0].nodes, start(problem, kind).nodes)
    assert names_of(problem.model, path[-1].nodes) == set(micro.CIRCUIT)
    assert path[-1].edge_count() == 2
    assert len(path) > 1


def test_a_path_begins_with_the_whole_and_every_circuit_lies_in_the_one_before(passed):
    kind, problem, path = passed
    assert len(path) > 10
    for before, after in pairwise(path):
        assert not (after.nodes & ~before.nodes).any()
        assert elements(problem, kind, after) < elements(problem, kind, before)
        if kind == "edge":
            assert all(not (after.edges[link] & ~mask).any() for link, mask in before.edges.items())


def test_nothing_on_a_path_is_dead(passed):
    kind, _, path = passed
    for graph in path:
        assert torch.equal(graph.without_dead().nodes, graph.nodes)
        if kind == "edge":
            there = graph.present_edges()
            assert all(torch.equal(mask, there[link]) for link, mask in graph.edges.items())
        else:
            assert graph.edges is None


def test_edges_are_counted_exactly_at_every_step(passed):
    _, _, path = passed
    listed = [graph.named_edges() for graph in path]
    assert path.edges == [graph.edge_count() for graph in path] == [len(edges) for edges in listed]


def test_a_path_can_be_cut_and_joined(passed):
    _, _, path = passed
    assert [graph.nodes.sum() for graph in path[2:5]] == [path[place].nodes.sum() for place in (2, 3, 4)]
    assert torch.equal(path[-1].nodes, path[len(path) - 1].nodes)
    whole = EliminationPath.joined([path, path])
    assert whole.edges == sorted([*path.edges, *path.edges], reverse=True)
    assert [graph.edge_count() for graph in whole] == whole.edges


def test_a_path_goes_as_far_as_the_loss_allows(passed):
    """All train pairs are drawn in every round, so that the loss of each circuit is known; what is dead goes without being asked."""
    kind, problem, path = passed
    losses = problem.scorer(problem.train).losses(path)
    assert losses.max() <= 0.3 + 0.02
    assert losses.max() > 0.15
    nearer = path_of(problem, kind, 0.1)
    assert elements(problem, kind, nearer[-1]) > elements(problem, kind, path[-1])


@every_kind
def test_where_the_start_is_beyond_the_loss_nothing_goes(kind: str):
    problem = graded_problem()
    (only,) = path_of(problem, kind, most=-1.0)
    assert torch.equal(only.nodes, start(problem, kind).nodes)


@every_kind
def test_whatever_the_loss_something_is_left(kind: str):
    problem = micro_problem()
    path = path_of(problem, kind, most=10.0)
    assert all(bool(graph.nodes.any()) for graph in path)


@every_kind
def test_what_costs_nothing_goes_even_where_nothing_may_be_spent(kind: str):
    problem = graded_problem()
    scorer = problem.scorer(problem.train)
    before = scorer.loss(start(problem, kind))
    path = path_of(problem, kind, most=before)
    assert elements(problem, kind, path[-1]) < 0.5 * elements(problem, kind, path[0])
    assert scorer.losses(path).max() <= before + 1e-3


# what must stay


@every_kind
def test_what_makes_a_circuit_necessary_stays(kind: str):
    """A decoy without which no circuit is called necessary, and the way that leads through it."""
    problem = micro_problem()
    decoy = micro.flat_index(problem.model, "0.mlp.post_act.1")
    path = path_of(problem, kind, is_necessary=lambda graph: bool(graph.nodes[decoy]))
    way = {"0.mlp.act_in.1", "0.mlp.post_act.1", "0.mlp.resid_delta.2"}
    assert names_of(problem.model, path[-1].nodes) == {*micro.CIRCUIT, *way}
    assert path[-1].edge_count() == 4
    assert all(bool(graph.nodes[decoy]) for graph in path)


@every_kind
def test_where_nothing_may_go_everything_is_tried_and_stays(kind: str):
    problem = micro_problem()
    asked: list[CircuitMask] = []
    path = path_of(problem, kind, most=100.0, is_necessary=lambda graph: bool(asked.append(graph)))
    assert torch.equal(path[-1].nodes, path[0].nodes)
    assert kind == "edge" or len(path) == 1
    assert len(asked) >= elements(problem, kind, path[-1])


@every_kind
def test_a_model_with_two_ways_keeps_both_where_it_must_fail_without_the_circuit(kind: str):
    problem = micro_problem(redundant=True)
    scorer = problem.scorer(problem.select)
    is_necessary = lambda graph: scorer.loss(graph.complement()) >= 0.5  # noqa: E731
    path = path_of(problem, kind, is_necessary=is_necessary)
    assert is_necessary(path[-1])
    assert int(path[-1].nodes.sum()) >= 4
    assert int(path_of(problem, kind)[-1].nodes.sum()) == 3
    if kind == "node":
        assert all(is_necessary(graph) for graph in path)


# from outside


@every_kind
def test_every_round_is_told(kind: str):
    problem = micro_problem()
    told: list[tuple[int, int]] = []
    object.__setattr__(problem, "tick", lambda done, of: told.append((done, of)))
    path = path_of(problem, kind)
    assert {of for _, of in told} == {elements(problem, kind, path[0])}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[0][0] == 0
    assert len(told) >= len(path)


@pytest.mark.parametrize("redundant", [False, True])
def test_every_round_has_pairs_of_its_own_none_of_them_those_of_mask_learning(redundant: bool, monkeypatch: pytest.MonkeyPatch):
    problem = micro_problem(redundant=redundant)
    numbers: list[int] = []
    draw = PruningProblem.draw
    monkeypatch.setattr(PruningProblem, "draw", lambda self, number, pairs: numbers.append(number) or draw(self, number, pairs))
    scorer = problem.scorer(problem.select)
    path_of(problem, "node", is_necessary=lambda graph: not redundant or scorer.loss(graph.complement()) >= 0.5)
    assert len(numbers) > 2
    assert len(set(numbers)) == len(numbers)
    assert min(numbers) > 1_000_000


def test_pairs_are_drawn_by_number_and_seed_from_the_train_split():
    problem = graded_problem()
    one, again, other = problem.draw(3, 16), problem.draw(3, 16), problem.draw(4, 16)
    assert one.pairs == 16
    assert torch.equal(one.ids, again.ids)
    assert not torch.equal(one.last, other.last)
    there, drawn = (
        {tuple(row[: last + 1]) for row, last in zip(some.ids.tolist(), some.last.tolist(), strict=True)} for some in (problem.train, other)
    )
    assert drawn < there
    assert len(drawn) > 25


@every_kind
def test_a_wish_to_stop_passes_through(kind: str):
    problem = micro_problem()

    def tick(done: int, of: int) -> None:
        if done:
            raise Stopped

    object.__setattr__(problem, "tick", tick)
    with pytest.raises(Stopped):
        path_of(problem, kind)


@every_kind
def test_equal_problems_are_passed_alike(kind: str):
    first, again = (path_of(graded_problem(trial_pairs=16), kind, 0.3) for _ in range(2))
    assert len(first) == len(again) > 3
    assert all(torch.equal(a.nodes, b.nodes) for a, b in zip(first, again, strict=True))


def test_only_edges_can_go_while_their_nodes_stay(passed):
    kind, problem, path = passed
    assert any(torch.equal(before.nodes, after.nodes) for before, after in pairwise(path)) == (kind == "edge")
    last = path[-1]
    assert (last.edge_count() < CircuitMask(problem.model, last.nodes).edge_count()) == (kind == "edge")


def test_a_graph_that_names_fewer_edges_is_gone_on_from():
    problem = micro_problem()
    graph = nodes_of(problem.model, *micro.CIRCUIT, "0.mlp.act_in.1", "0.mlp.post_act.1", "0.mlp.resid_delta.2").with_edges()
    graph.edges["0.mlp.act_in", "0.mlp.post_act"][1, 1] = False
    slim = graph.without_dead()
    (only,) = eliminate(problem, "edge", slim, 0.15, lambda graph: True)
    assert names_of(problem.model, only.nodes) == set(micro.CIRCUIT)


# rounds


def a_round(problem: PruningProblem, kind: str) -> eliminating.EliminationRound:
    graph = start(problem, kind)
    first = ELEMENTS[kind](graph)
    return eliminating._round(problem, first, graph, 1, torch.zeros(len(first)))


@every_kind
def test_what_was_tried_is_known_exactly_the_next_time(kind: str):
    here = a_round(graded_problem(), kind)
    now, rise = here.predicted()
    eliminating._options(here, torch.ones(len(rise), dtype=torch.bool), 0.3, len(rise))
    tried = here.correction.nonzero().flatten()
    assert 0 < len(tried) <= eliminating.SINGLE_TRIALS
    exact = here.losses(torch.eye(len(rise), dtype=torch.bool)[tried]) - now
    torch.testing.assert_close((rise + here.correction)[tried], exact.float(), atol=1e-5, rtol=1e-4)


@every_kind
def test_a_cheap_guess_that_was_dear_waits_behind_the_others(kind: str):
    here = a_round(graded_problem(), kind)
    _, rise = here.predicted()
    cheapest = int(rise.argmin())
    here.correction[cheapest] = 100.0
    options, _ = eliminating._options(here, torch.ones(len(rise), dtype=torch.bool), 0.3, len(rise))
    assert not options[:, cheapest].any()
    assert here.correction[cheapest] == 100.0  # not tried


@every_kind
def test_options_shrink_to_a_single_one_and_never_hold_what_must_stay(kind: str):
    here = a_round(graded_problem(), kind)
    free = torch.ones(len(here.correction), dtype=torch.bool)
    free[::3] = False
    options, _ = eliminating._options(here, free, 0.3, 8)
    sizes = options.sum(-1).tolist()
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] <= 8
    assert sizes[-1] == 1
    assert not (options & ~free).any()
