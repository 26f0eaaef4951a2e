"""From a problem to its circuits: what is demanded, what is found, and that it is found again."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import micro
import pytest
import torch
from problems import everything, graded_problem, in_folder, interrupted, micro_problem, names_of, nodes_of

from extractor.circuits.calibration import calibrated_loss
from extractor.circuits.graph import CircuitMask, links
from extractor.circuits.network import FastMaskedModel
from extractor.circuits.prompt_network import PromptMaskedModel
from extractor.circuits.reference import ReferenceMaskedModel, masked_logit_diff
from extractor.errors import SpecError
from extractor.progress import Progress, Stopped
from extractor.pruning import algorithms, prune, starts
from extractor.pruning.bisection import smallest_count
from extractor.pruning.criteria import CircuitCriteria
from extractor.pruning.problem import POLICY, PruningProblem
from extractor.pruning.prune import PruneResult, find_circuits
from extractor.spec.schema import CHANCE

REDUNDANT = {"0.mlp.act_in.1", "0.mlp.post_act.1", "0.mlp.resid_delta.2"}


def same(one: PruneResult, other: PruneResult) -> bool:
    """Bit for bit."""

    def alike(a: CircuitMask, b: CircuitMask) -> bool:
        edges = (a.edges is None) == (b.edges is None) and all(torch.equal(m, (b.edges or {})[link]) for link, m in (a.edges or {}).items())
        return torch.equal(a.nodes, b.nodes) and edges

    numbers = [[(p.edges, p.loss, p.calibration, p.target, p.met) for p in (found.best, *found.curve)] for found in (one, other)]
    graphs = [[p.graph for p in (found.best, *found.curve)] + list(found.path) for found in (one, other)]
    return numbers[0] == numbers[1] and len(graphs[0]) == len(graphs[1]) and all(map(alike, *graphs))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[PruningProblem, PruneResult]]:
    """By granularity, the graded problem and its circuits."""
    problems = {kind: graded_problem(tmp_path_factory.mktemp(kind), granularity=kind, confident=True) for kind in ("node", "edge")}
    return {kind: (problem, find_circuits(problem)) for kind, problem in problems.items()}


@pytest.fixture(params=["node", "edge"])
def found(request, both: dict[str, tuple[PruningProblem, PruneResult]]) -> tuple[PruningProblem, PruneResult]:
    return both[request.param]


# what is demanded


def test_the_circuit_alone_will_do_and_is_needed():
    problem = micro_problem()
    criteria, scorer = CircuitCriteria(problem), problem.scorer(problem.select)
    assert problem.select_target(0.15) == pytest.approx(0.13)
    assert problem.select_target(0.02) == pytest.approx(0.01), "a margin takes no more than half of a target"
    circuit = nodes_of(problem.model, *micro.CIRCUIT)
    assert scorer.loss(circuit) <= problem.select_target(0.15)
    assert criteria.is_necessary(circuit)
    assert criteria.is_roughly_necessary(circuit)
    for left_out in range(3):
        fewer = nodes_of(problem.model, *(node for n, node in enumerate(micro.CIRCUIT) if n != left_out))
        assert scorer.loss(fewer) > problem.select_target(0.15)
    assert not criteria.is_necessary(nodes_of(problem.model))


def test_necessity_is_counted_from_the_full_models_loss_and_capped_at_chance():
    full = CircuitCriteria(micro_problem()).full_loss
    assert full == pytest.approx(micro_problem().scorer(micro.micro_batch()).loss(everything(micro.micro_model())))
    assert CircuitCriteria(micro_problem(necessity=0.3)).least_loss_without == pytest.approx(full + 0.3)
    assert CircuitCriteria(micro_problem(necessity=5.0)).least_loss_without == pytest.approx(0.97 * math.log(2))
    assert CircuitCriteria(micro_problem(necessity=0.0)).least_loss_without == 0


def test_a_sufficient_set_that_the_model_does_not_miss_is_not_necessary():
    problem = micro_problem(redundant=True)
    one_way = nodes_of(problem.model, *micro.CIRCUIT)
    assert problem.scorer(problem.select).loss(one_way) < 0.01
    assert not CircuitCriteria(problem).is_necessary(one_way)
    assert CircuitCriteria(problem).is_necessary(CircuitMask(problem.model, one_way.nodes | nodes_of(problem.model, *REDUNDANT).nodes))
    assert CircuitCriteria(micro_problem(redundant=True, necessity=0.0)).is_necessary(one_way)


# problems


def test_what_is_off_has_its_mean_or_zero_or_another_prompts_values():
    kept = nodes_of(micro.micro_model(), *micro.CIRCUIT).nodes
    for ablation, kind in (("mean", FastMaskedModel), ("zero", FastMaskedModel), ("resample", PromptMaskedModel)):
        problem = micro_problem(ablation=ablation)
        network = problem.network(kept)
        assert type(network) is kind
        assert getattr(network, "ablation_values", None) == (None if ablation == "resample" else problem.ablation_values)
        assert all(torch.equal(x, 0 * x if ablation == "zero" else problem.means[site]) for site, x in problem.ablation_values.items())
        assert problem.scorer(problem.select).loss(CircuitMask(problem.model, kept)) < 0.01


def test_resampled_values_are_those_of_the_definition_for_any_batch():
    problem = graded_problem(ablation="resample")
    for batch in (problem.select, problem.draw(3, 8)):
        kept = torch.rand(len(problem.index), generator=torch.Generator().manual_seed(0)) < 0.6
        fast, plain = problem.network(kept), ReferenceMaskedModel(problem.model, kept, None)
        assert torch.allclose(fast.logit_diffs(fast.prepare(batch)), plain.logit_diffs(plain.prepare(batch)), atol=1e-5)


def test_an_algorithm_that_there_is_not_is_refused(tmp_path: Path):
    with pytest.raises(SpecError, match="choose attribution, edges, masks, race, random"):
        find_circuits(micro_problem(tmp_path, algorithm="guess"))


# the micro model


@pytest.mark.parametrize("granularity", ["node", "edge"])
@pytest.mark.parametrize("seed", range(3))
def test_the_smallest_circuit_is_three_nodes_and_two_edges_whatever_the_ranking(seed: int, granularity: str, tmp_path: Path):
    problem = replace(micro_problem(tmp_path, algorithm="random", granularity=granularity), seed=seed)
    best = find_circuits(problem).best
    assert best.met
    assert names_of(problem.model, best.graph.nodes) == set(micro.CIRCUIT)
    assert best.edges == best.graph.edge_count() == 2
    assert (best.graph.edges is None) == (granularity == "node")


def test_the_smallest_circuit_of_all_starts_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The circuit of a race is the smallest that any of its rankings leads to; `starts` has the size for each ranking."""
    alone = {
        name: find_circuits(graded_problem(tmp_path / name, algorithm=name, edge_k_coefs=())) for name in ("edges", "attribution", "masks")
    }
    raced = find_circuits(graded_problem(tmp_path / "race", algorithm="race", edge_k_coefs=()))
    sizes = {name: found.starts[name] for name, found in alone.items()}
    assert list(raced.starts) == ["edges", "attribution", "masks"][: len(raced.starts)]
    assert raced.starts == {name: sizes[name] for name in raced.starts}
    assert raced.best.edges == min(alone[name].best.edges for name in raced.starts)
    assert sorted(raced.path.edges) == sorted(count for name in raced.starts for count in alone[name].path.edges)
    assert raced.path.edges == sorted(raced.path.edges, reverse=True)


def test_a_race_ends_when_its_minutes_are_over(tmp_path: Path):
    found = find_circuits(graded_problem(tmp_path, algorithm="race", minutes=1e-6))
    assert list(found.starts) == ["edges"]


def test_a_race_that_is_late_makes_no_further_ranking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(POLICY, "paper", replace(POLICY["paper"], few=0))
    ranked: list[str] = []
    rank = algorithms.rank
    monkeypatch.setattr(algorithms, "rank", lambda problem, name: ranked.append(name) or rank(problem, name))
    assert find_circuits(graded_problem(tmp_path / "late", algorithm="race", minutes=1e-6)).best.met
    assert ranked == []
    find_circuits(graded_problem(tmp_path / "long", algorithm="race"))
    assert ranked == ["attribution", "masks"]


@pytest.mark.parametrize("seed", [9, 24, 28])
def test_the_size_of_a_start_is_that_of_a_circuit_that_holds(seed: int, tmp_path: Path):
    found = find_circuits(graded_problem(tmp_path, seed=seed, algorithm="edges", confident=True))
    assert (found.starts["edges"] is None) == (not found.best.met)
    assert found.starts["edges"] is None or found.best.edges <= found.starts["edges"]


def test_edges_and_nothing_else_are_ranked_where_edges_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(POLICY, "paper", replace(POLICY["paper"], few=0, large=0))
    assert list(find_circuits(graded_problem(tmp_path, algorithm="edges")).starts) == ["edges"]
    with pytest.raises(SpecError, match="ranks edges and granularity 'node' keeps nodes"):
        find_circuits(graded_problem(tmp_path, algorithm="edges", granularity="node"))


@pytest.mark.parametrize("algorithm", algorithms.names())
def test_a_model_without_a_live_edge_has_no_circuit(algorithm: str, tmp_path: Path):
    problem = graded_problem(tmp_path, algorithm=algorithm)
    with torch.no_grad():
        for _, _, weight in links(problem.model):
            weight.zero_()
    for guarded in (True, False):
        best = find_circuits(replace(problem, guarded=guarded)).best
        assert (best.met, best.edges) == (False, 0)


def test_a_start_by_edges_that_is_too_large_is_the_shortest_prefix(monkeypatch: pytest.MonkeyPatch):
    problem = graded_problem(algorithm="edges", seed=7)
    criteria = CircuitCriteria(problem)
    start = lambda: starts.edge_start(problem, criteria, (0.15,))  # noqa: E731
    long = start().edge_count()
    monkeypatch.setitem(POLICY, "paper", replace(POLICY["paper"], few=long - 1))
    assert start().edge_count() < long
    assert criteria.is_sufficient(start(), problem.select_target(0.15))


def test_a_race_over_nodes_ranks_no_edges(tmp_path: Path):
    found = find_circuits(graded_problem(tmp_path, algorithm="race", granularity="node"))
    assert next(iter(found.starts)) == "attribution"
    assert found.best.graph.edges is None


@pytest.mark.slow
def test_where_the_edges_of_the_model_are_too_many_nodes_are_ranked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(starts, "MOST_RANKED_EDGES", 3)
    assert list(find_circuits(graded_problem(tmp_path, algorithm="edges")).starts) == ["attribution"]
    assert "edges" not in find_circuits(graded_problem(tmp_path, algorithm="race")).starts


def test_a_shortest_prefix_is_longer_by_the_slack_at_most():
    for least, most, slack in ((1, 1000, 0.0), (1, 1000, 0.05), (7, 1000, 0.05), (5, 5, 0.0)):
        for wanted in range(least, most + 1, 37):
            found = smallest_count(lambda k, wanted=wanted: k >= wanted, most, least, slack)
            assert wanted <= found <= max(wanted, (1 + slack) * wanted)
    assert smallest_count(lambda k: False, 9) == 0
    assert smallest_count(lambda k: True, 9, least=4) == 4


@pytest.mark.parametrize("ranking", ["forwards", "backwards"])
def test_even_the_worst_ranking_only_takes_longer(ranking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    problem = micro_problem(tmp_path)
    scores = torch.zeros(32).index_fill(0, micro.flat_indices(problem.model), 1.0 if ranking == "forwards" else -1.0)
    monkeypatch.setattr(algorithms, "rank", lambda problem, name: scores)
    found = find_circuits(problem)
    assert names_of(problem.model, found.best.graph.nodes) == set(micro.CIRCUIT)
    assert (found.path.edges[0] == 2) == (ranking == "forwards")


@pytest.mark.parametrize("algorithm", [name for name in algorithms.names() if name != "random"])
@pytest.mark.parametrize("ablation", ["mean", "zero", "resample"])
def test_the_micro_circuit_is_found_however_things_are_ranked_and_ablated(algorithm: str, ablation: str, tmp_path: Path):
    problem = micro_problem(tmp_path, algorithm=algorithm, ablation=ablation, trials=2)
    best = find_circuits(problem).best
    assert (best.met, best.edges) == (True, 2)
    assert names_of(problem.model, best.graph.nodes) == set(micro.CIRCUIT)


@pytest.mark.parametrize("granularity", ["node", "edge"])
def test_without_learned_edge_masks_elimination_alone_finds_it(granularity: str, tmp_path: Path):
    problem = micro_problem(tmp_path, algorithm="random", granularity=granularity, edge_k_coefs=())
    assert find_circuits(problem).best.edges == 2
    assert not (tmp_path / ".work").exists()


@pytest.mark.parametrize("granularity", ["node", "edge"])
@pytest.mark.parametrize("ablation", ["mean", "zero", "resample"])
def test_a_redundant_model_needs_both_ways(granularity: str, ablation: str, tmp_path: Path):
    problem = micro_problem(tmp_path, redundant=True, algorithm="random", granularity=granularity, ablation=ablation)
    best = find_circuits(problem).best
    assert best.met
    assert int(best.graph.nodes.sum()) >= 4
    assert problem.scorer(problem.select).loss(best.graph.complement()) >= 0.5
    if ablation != "resample":  # there the other way, off, says what another prompt would, so that one way alone is contradicted
        either = replace(problem, spec=problem.spec.model_copy(update={"necessity": 0.0}))
        found = find_circuits(either).best
        assert (int(found.graph.nodes.sum()), found.edges, found.met) == (3, 2, True)


def test_a_way_that_is_cut_at_one_dead_node_does_not_count_as_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One way, and the last node of the other: ablated together they cut both, but the second is not in the circuit."""
    problem = micro_problem(tmp_path, redundant=True, granularity="node")
    order = [*micro.CIRCUIT, "0.mlp.resid_delta.2", "0.mlp.post_act.1", "0.mlp.act_in.1"]
    scores = torch.zeros(32)
    scores[micro.flat_indices(problem.model, tuple(order))] = torch.arange(6, 0, -1.0)
    monkeypatch.setattr(algorithms, "rank", lambda problem, name: scores)
    assert CircuitCriteria(problem).is_necessary(nodes_of(problem.model, *order[:4]))
    best = find_circuits(problem).best
    assert best.met
    assert names_of(problem.model, best.graph.nodes) == set(order)


# targets


def test_several_targets_have_a_circuit_each_the_harder_the_larger(found: tuple[PruningProblem, PruneResult]):
    problem, circuits = found
    assert [one.target for one in circuits.curve] == [0.05, 0.15, 0.3]
    assert all(one.met for one in circuits.curve)
    sizes = [one.edges for one in circuits.curve]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]
    assert circuits.best is circuits.curve[1]
    for one in circuits.curve:
        assert CircuitCriteria(problem).measured(one.graph)[0].upper <= one.target


def test_no_circuit_of_the_path_that_is_smaller_meets_the_target(found: tuple[PruningProblem, PruneResult]):
    problem, circuits = found
    criteria = CircuitCriteria(problem)
    for one in circuits.curve:
        smaller = [i for i, edges in enumerate(circuits.path.edges) if edges < one.edges]
        assert not any(criteria.holds(circuits.path[i], one.target) for i in smaller)


def test_a_circuits_numbers_are_its_own(found: tuple[PruningProblem, PruneResult]):
    problem, circuits = found
    for one in circuits.curve:
        edges = None if one.graph.edges is None else {link: mask.float() for link, mask in one.graph.edges.items()}
        masks = problem.index.split(one.graph.nodes.float())
        diff = masked_logit_diff(problem.model, problem.select, masks, problem.ablation_values, edges)
        assert calibrated_loss(diff, problem.select.sign, one.calibration) == pytest.approx(one.loss, abs=1e-5)
        listed = one.graph.named_edges()
        assert one.edges == len(listed) > 0
        assert torch.equal(one.graph.without_dead().nodes, one.graph.nodes)
        assert problem.scorer(problem.select).loss(one.graph.complement()) >= CircuitCriteria(problem).least_loss_without


def test_the_path_is_told_from_large_to_small_with_edges_counted(found: tuple[PruningProblem, PruneResult]):
    problem, circuits = found
    assert circuits.path.edges == sorted(circuits.path.edges, reverse=True)
    assert [graph.edge_count() for graph in circuits.path] == circuits.path.edges
    assert all((graph.edges is None) == (problem.spec.granularity == "node") for graph in circuits.path)


def test_edges_make_circuits_smaller_than_nodes(both: dict[str, tuple[PruningProblem, PruneResult]]):
    for edge, node in zip(both["edge"][1].curve, both["node"][1].curve, strict=True):
        assert edge.edges < node.edges


@pytest.mark.parametrize("granularity", ["node", "edge"])
def test_a_target_out_of_reach_keeps_the_best_and_says_so(granularity: str, tmp_path: Path):
    """One prompt in four asks for the other answer: nothing can do better than the entropy of that."""
    problem = micro_problem(tmp_path, algorithm="attribution", granularity=granularity, targets=(0.6,), necessity=0.1)
    odd = problem.select.as_answered(torch.tensor([1.0, -1.0, -1.0, -1.0]))
    problem = replace(problem, train=odd, select=odd)
    circuits = find_circuits(problem)
    assert not circuits.best.met
    losses = problem.scorer(odd).losses(circuits.path)
    assert problem.scorer(odd).loss(circuits.best.graph) == pytest.approx(losses.min().item(), abs=1e-6)
    assert circuits.best.loss == pytest.approx(0.5 * math.log(2), abs=0.01)
    easy = circuits.curve[1]
    assert (easy.target, easy.met, easy.edges) == (0.6, True, 2)
    assert set(micro.CIRCUIT) <= names_of(problem.model, circuits.best.graph.nodes)


def test_a_circuit_may_do_what_the_full_model_does_not(tmp_path: Path):
    """Seed 1's model has nodes that harm it."""
    spec = {"targets": (), "algorithm": "attribution", "granularity": "node", "margin": 0.0, "necessity": 0.1}
    problem = graded_problem(tmp_path, seed=1, target=0.02, **spec)
    assert CircuitCriteria(problem).full_loss > 0.02
    best = find_circuits(problem).best
    assert best.met
    assert best.loss <= 0.02


def test_a_model_that_knows_nothing_has_no_circuit(tmp_path: Path):
    problem = micro_problem(tmp_path, algorithm="attribution", granularity="node")
    with torch.no_grad():
        problem.model.lm_head.weight.zero_()
    best = find_circuits(problem).best
    assert not best.met
    assert best.loss == pytest.approx(CHANCE, abs=1e-3)


# outside


def test_elimination_is_told_and_a_wish_to_stop_passes_through(tmp_path: Path):
    told: list[tuple[int, int]] = []
    problem = micro_problem(algorithm="random")
    find_circuits(in_folder(problem, tmp_path / "told", tick=lambda done, of: told.append((done, of))))
    assert told
    assert all(0 <= done <= of for done, of in told)

    def stop(done: int, of: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        find_circuits(in_folder(problem, tmp_path / "stopped", tick=stop))


def test_an_unexpected_error_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prune, "eliminate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        find_circuits(micro_problem(tmp_path, algorithm="random"))


def test_equal_problems_have_equal_circuits(tmp_path: Path):
    first, again = (find_circuits(graded_problem(tmp_path / name, targets=(), trials=1, trial_pairs=16)) for name in "ab")
    assert same(first, again)
    other = find_circuits(replace(graded_problem(tmp_path / "c", targets=(), trials=1, trial_pairs=16), seed=9))
    assert not same(first, other)


def test_sizes_are_chosen_on_pairs_that_nothing_is_learned_or_tried_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    problem = micro_problem(tmp_path)
    other = torch.where(problem.train.ids == 0, micro.OTHER, problem.train.ids)
    judged, drawn, scorer, draw = [], [], PruningProblem.scorer, PruningProblem.draw
    monkeypatch.setattr(PruningProblem, "scorer", lambda self, batch: judged.append(batch) or scorer(self, batch))
    monkeypatch.setattr(PruningProblem, "draw", lambda self, number, pairs: drawn.append(draw(self, number, pairs)) or drawn[-1])
    find_circuits(replace(problem, train=replace(problem.train, ids=other)))
    assert [{int(token) for batch in batches for token in batch.ids[:, 0]} for batches in (judged, drawn)] == [{0, 6}, {5, 6}]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "spec"), [(micro_problem, {"redundant": True}), (graded_problem, {"trial_pairs": 16, "targets": ()})])
def test_interrupted_at_ten_moments_it_finds_the_same_circuit_bit_for_bit(make, spec: dict, tmp_path: Path):
    problem = make(steps=10, edge_steps=8, trials=4, population=2, **spec)
    asked: list[int] = []

    def ask(*_) -> bool:
        asked.append(1)
        return False

    calm = find_circuits(in_folder(problem, tmp_path / "calm", Progress(should_stop=ask), ask))
    chance, stops = random.Random(0), 0
    for _ in range(10):
        try:
            find_circuits(interrupted(problem, tmp_path / "broken", chance.randrange(1, len(asked) // 2)))
            break
        except Stopped:
            stops += 1
    assert stops >= 3
    assert same(find_circuits(in_folder(problem, tmp_path / "broken")), calm)
    assert (tmp_path / "broken" / "metrics.jsonl").read_bytes() == (tmp_path / "calm" / "metrics.jsonl").read_bytes()
    assert calm.best.met


def test_where_the_first_edges_are_still_too_many_they_are_the_candidate(monkeypatch):
    robust = graded_problem().under("robust")
    problem = replace(robust, spec=robust.spec.model_copy(update={"algorithm": "attribution", "edge_k_coefs": ()}))
    monkeypatch.setitem(POLICY, "robust", replace(POLICY["robust"], most_edges=5))
    found = find_circuits(problem)
    assert len(found.path) == 1
    assert found.best.graph.edges is not None
    assert found.path.edges == [found.best.edges] == [found.path[0].edge_count()]
    assert found.best.edges > 5
