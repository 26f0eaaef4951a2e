"""Every way to rank nodes keeps one contract; and the search of the learned masks, interrupted or not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import micro
import pytest
import torch
from problems import FURTHER, graded_problem, in_folder, interrupted, micro_problem, names_of, random_base, random_batch, random_model
from worlds import environment

from extractor.circuits.graph import CircuitMask
from extractor.errors import SpecError
from extractor.progress import Progress, Stopped
from extractor.pruning import algorithms
from extractor.pruning.algorithms import attribution, masks
from extractor.pruning.problem import PruningProblem
from extractor.pruning.prune import find_circuits
from extractor.spec.schema import PruneSpec

NAMES = algorithms.node_rankings()
every_algorithm = pytest.mark.parametrize("name", NAMES)


def trials_of(folder: Path) -> list[dict]:
    return json.loads((folder / "work" / "search.json").read_text())["trials"]


# the contract


def test_the_algorithms_are_the_files_of_their_folder():
    assert {"masks", "attribution", "random"} <= set(NAMES)
    assert sorted(NAMES) == NAMES
    assert set(algorithms.names()) == {*NAMES, "edges", "race"}


@pytest.mark.parametrize("name", ["guess", "", "__init__", "masks.py"])
def test_an_unknown_algorithm_is_refused_with_those_there_are(name: str):
    with pytest.raises(SpecError) as caught:
        algorithms.rank(micro_problem(algorithm=name))
    assert str(caught.value) == f"pruning algorithm {name!r} is unknown; choose {', '.join(NAMES)}"


@every_algorithm
def test_scores_are_one_number_a_node_or_minus_infinity(name: str, tmp_path: Path):
    problem = micro_problem(tmp_path, algorithm=name)
    scores = algorithms.rank(problem)
    assert scores.shape == (len(problem.index),)
    assert not scores.isnan().any()
    assert not (scores == torch.inf).any()
    assert not scores.requires_grad
    assert len(scores[scores.isfinite()].unique()) > 3


@every_algorithm
def test_equal_problems_are_ranked_alike_and_another_seed_otherwise(name: str, tmp_path: Path):
    first, again = (algorithms.rank(graded_problem(tmp_path / folder, algorithm=name, trials=2)) for folder in "ab")
    assert torch.equal(first, again)
    other = replace(graded_problem(tmp_path / "c", algorithm=name, trials=2), seed=5)
    if name == "attribution":  # of pairs drawn by the seed, and all are drawn here
        assert torch.allclose(algorithms.rank(other), first, atol=1e-5)
    else:
        assert not torch.equal(algorithms.rank(other), first)


@every_algorithm
def test_k_of_a_channel_has_the_score_of_its_q(name: str, tmp_path: Path):
    problem = graded_problem(tmp_path, algorithm=name, trials=2)
    scores = problem.index.split(algorithms.rank(problem))
    both = scores["0.attn.q"].isfinite() & scores["0.attn.k"].isfinite()  # one can be dead without the other
    assert int(both.sum()) > 3
    assert torch.equal(scores["0.attn.q"][both], scores["0.attn.k"][both])
    assert not torch.equal(scores["0.attn.q"][both], scores["0.attn.v"][both])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "random"])
@pytest.mark.parametrize("ablation", ["mean", "resample"])
def test_the_nodes_of_the_micro_circuit_come_first(name: str, ablation: str, tmp_path: Path):
    problem = micro_problem(tmp_path, algorithm=name, ablation=ablation, steps=60)
    first = algorithms.rank(problem).argsort(descending=True)[:3]
    assert names_of(problem.model, problem.index.flags(first)) == set(micro.CIRCUIT)


def test_learned_masks_find_the_micro_circuit_where_what_is_off_is_zero(tmp_path: Path):
    """Attribution does not: without calibration, the write that takes NO's place when it is zero is worth nothing on average."""
    problem = micro_problem(tmp_path, ablation="zero", steps=60)
    first = algorithms.rank(problem).argsort(descending=True)[:3]
    assert names_of(problem.model, problem.index.flags(first)) == set(micro.CIRCUIT)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "random"])
def test_an_algorithm_stops_when_it_is_asked_to(name: str, tmp_path: Path):
    with pytest.raises(Stopped):
        algorithms.rank(interrupted(micro_problem(algorithm=name), tmp_path, 2))


# attribution


def test_attribution_is_the_mean_effect_on_the_way_from_nothing_to_everything():
    """By the fundamental theorem, the scores' sum is the loss of nothing less the loss of everything, but for the trapezoids."""
    problem = micro_problem(algorithm="attribution")
    scores = algorithms.rank(problem)
    own = torch.where(torch.tensor(["attn.k" not in site for site, w in problem.index.widths.items() for _ in range(w)]), scores, 0.0)
    plain = torch.nn.functional.softplus
    network = problem.network(torch.ones(32, dtype=torch.bool))
    prompts = network.prepare(problem.train)
    from extractor.circuits.masks import Masks

    ends = network.logit_diffs(prompts, Masks(torch.stack([torch.zeros(32), torch.ones(32)])))
    nothing, all_on = plain(-problem.train.sign * ends).mean(-1).tolist()
    assert own.sum().item() == pytest.approx(nothing - all_on, abs=0.02)
    assert nothing - all_on > 0.3


def test_attribution_is_signed(tmp_path: Path):
    """A node that writes the wrong answer comes after one that does nothing."""
    problem = micro_problem(algorithm="attribution")
    with torch.no_grad():
        problem.model.blocks[0].mlp.c_proj.weight[3, 1] = 0.3  # neuron 1 tells B, and pushes the answer to A's
    scores = algorithms.rank(problem)
    assert scores[micro.flat_index(problem.model, "0.mlp.post_act.1")] < -1e-3
    assert scores[micro.flat_index(problem.model, "0.mlp.post_act.3")] == 0


@pytest.mark.parametrize("standard", ["paper", "robust"])
def test_attribution_in_parts_of_a_batch_is_that_of_the_batch(standard: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    model, batch = random_model(3, **FURTHER["all"]), random_batch(24, 1)
    spec = PruneSpec(algorithm="attribution", standard=standard)
    problem = PruningProblem(model, random_base(model), batch, batch, spec, 0.15, 0, lambda stage: environment(tmp_path / stage))
    together = algorithms.rank(problem)
    monkeypatch.setattr(attribution, "VALUES_AT_ONCE", 5000)
    assert torch.allclose(algorithms.rank(problem), together, atol=1e-5)
    assert together.abs().max() > 0.01


# the search of masks


def test_trials_are_proposed_in_rounds_and_the_best_one_ranks(tmp_path: Path):
    problem = graded_problem(tmp_path, trials=6, population=2)
    scores = algorithms.rank(problem)
    trials = trials_of(tmp_path)
    assert len(trials) == 6
    assert {path.name for path in (tmp_path / "work").iterdir()} >= {"search.json", "search-6.safetensors"}
    assert [len([one for one in trials[at : at + 2] if one["value"] is None]) for at in (0, 2, 4)] == [1, 1, 1]
    k_coefs = [one["parameters"]["k_coef"] for one in trials]
    assert len(set(k_coefs)) == 6
    assert k_coefs[0] < problem.spec.k_coef < k_coefs[1], "the first round lies round the centre, evenly in logs"
    assert k_coefs[0] * k_coefs[1] == pytest.approx(problem.spec.k_coef**2)
    best = min(one["value"] for one in trials if one["value"] is not None)
    search = masks.Search(problem)
    search._restore()
    assert search._edges_at_target(search.best[None]).item() == best
    assert torch.equal(scores[search.nodes.nodes], search.best)


def test_what_is_dead_in_the_whole_model_is_never_tried_and_comes_last(tmp_path: Path):
    problem = micro_problem(tmp_path)
    scores = algorithms.rank(problem)
    everything = problem.full_mask()
    dead = ~everything.without_dead().nodes
    assert bool((scores[dead] == -torch.inf).all())
    assert bool(scores[~dead].isfinite().all())
    assert 0 < int(dead.sum()) < 32


def test_a_trials_value_is_the_edges_of_its_shortest_prefix_that_does(tmp_path: Path):
    problem = micro_problem(tmp_path)
    search = masks.Search(problem)
    order = torch.linspace(0, 1, len(search.nodes))
    first = order + 2.0 * search.nodes.places(CircuitMask(problem.model, problem.index.flags(micro.flat_indices(problem.model))))
    last = order - 2.0 * search.nodes.places(CircuitMask(problem.model, problem.index.flags(micro.flat_indices(problem.model))))
    assert search._edges_at_target(torch.stack([first, last])).tolist() == [2.0, 6.0]
    never = masks.Search(replace(problem, target=-1.0))
    assert never._edges_at_target(first[None]).item() == search.graph.edge_count() + 1


@pytest.mark.slow
def test_of_several_k_coefs_the_one_with_fewest_edges_is_pruned_as_if_given_alone(tmp_path: Path):
    k_coefs = (1e-4, 3e-3, 3e-2)
    several = find_circuits(graded_problem(tmp_path / "several", k_coefs=k_coefs, population=1, targets=(), edge_k_coefs=())).best
    trials = trials_of(tmp_path / "several")
    assert [one["parameters"]["k_coef"] for one in trials] == list(k_coefs)
    assert len({one["value"] for one in trials}) > 1
    best = min(trials, key=lambda one: one["value"])["parameters"]["k_coef"]
    alone = find_circuits(graded_problem(tmp_path / "alone", k_coefs=(best,), population=1, targets=(), edge_k_coefs=())).best
    assert torch.equal(several.graph.nodes, alone.graph.nodes)
    assert several.graph.named_edges() == alone.graph.named_edges()
    assert (several.edges, several.loss, several.calibration) == (alone.edges, alone.loss, alone.calibration)


def test_given_prices_there_is_no_search(tmp_path: Path):
    problem = micro_problem(tmp_path, k_coefs=(1e-3, 2e-3, 4e-3), population=2, trials=8)
    algorithms.rank(problem)
    found = [one["parameters"] for one in trials_of(tmp_path)]
    assert [one.pop("k_coef") for one in found] == [1e-3, 2e-3, 4e-3]
    assert found == [found[0]] * 3
    assert {"lr": found[0]["lr"], "seed": found[0]["seed"]} == {"lr": problem.spec.lr, "seed": problem.seed}
    assert {path.name for path in (tmp_path / "work").iterdir()} >= {"search-2.safetensors", "search-3.safetensors"}


def test_when_the_minutes_are_over_no_new_round_is_begun(tmp_path: Path):
    algorithms.rank(micro_problem(tmp_path / "late", trials=6, population=2, minutes=1e-6))
    assert len(trials_of(tmp_path / "late")) == 2
    algorithms.rank(micro_problem(tmp_path / "early", trials=4, population=2, minutes=1e6))
    assert len(trials_of(tmp_path / "early")) == 4


def test_a_price_of_nothing_is_not_searched(tmp_path: Path):
    """Weight decay 0 has no range in logs round it."""
    algorithms.rank(micro_problem(tmp_path, trials=4, population=2, weight_decay=0.0, steps=5))
    assert {one["parameters"]["weight_decay"] for one in trials_of(tmp_path)} == {0.0}


def asked_in(folder: Path, problem: PruningProblem) -> int:
    """How often a whole search asks whether to go on."""
    asked: list[int] = []
    algorithms.rank(in_folder(problem, folder, Progress(should_stop=lambda: asked.append(1) or False)))
    return len(asked)


def test_a_search_interrupted_between_rounds_and_inside_them_is_the_undisturbed_one(tmp_path: Path):
    problem = graded_problem(trials=6, population=2, steps=12)
    whole = asked_in(tmp_path / "counted", problem)
    calm = algorithms.rank(in_folder(problem, tmp_path / "calm"))
    rounds: list[int] = []
    for asks in (5, whole // 3, 3, whole // 3 - 7, 9):  # the first step of a round asks twice, as does every other
        with pytest.raises(Stopped):
            algorithms.rank(interrupted(problem, tmp_path / "broken", asks))
        made = tmp_path / "broken" / "work" / "search.json"
        rounds.append(len(trials_of(tmp_path / "broken")) // 2 if made.exists() else 0)
    assert rounds == sorted(rounds)
    assert {0, 1, 2} <= set(rounds)
    assert torch.equal(algorithms.rank(in_folder(problem, tmp_path / "broken")), calm)
    assert trials_of(tmp_path / "broken") == trials_of(tmp_path / "calm")


def test_a_search_stopped_as_a_round_begins_repeats_none_that_is_done(tmp_path: Path):
    problem = micro_problem(trials=4, population=2, steps=6)
    stages: list[str] = []

    def stop_at_the_second(stage: str):
        stages.append(stage)
        if len(stages) == 2:
            raise Stopped
        return kept.env(stage)

    kept = in_folder(problem, tmp_path / "a")
    with pytest.raises(Stopped):
        algorithms.rank(replace(kept, env=stop_at_the_second))
    first = trials_of(tmp_path / "a")
    assert len(first) == 2
    algorithms.rank(replace(kept, env=stop_at_the_second))
    assert stages == ["round0", "round1", "round1"]
    assert trials_of(tmp_path / "a")[:2] == first
    algorithms.rank(in_folder(problem, tmp_path / "calm"))
    assert trials_of(tmp_path / "a") == trials_of(tmp_path / "calm")
    algorithms.rank(replace(kept, env=stop_at_the_second))
    assert len(stages) == 3, "a search that is done is not made again"


def test_without_a_folder_nothing_is_kept(tmp_path: Path):
    problem = micro_problem(tmp_path, trials=2, steps=4)
    algorithms.rank(replace(problem, work=None))
    assert not (tmp_path / "work").exists()
