"""Populations of learned masks: what they rank first, when elements leave, what they share, and that nothing of it is lost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import micro
import pytest
import torch
from problems import everything, graded_problem, in_folder, interrupted, micro_problem, names_of
from worlds import environment

from extractor.circuits.network import FastMaskedModel
from extractor.progress import Progress, Stopped
from extractor.pruning import mask_sets
from extractor.pruning.elements import Edges, Nodes
from extractor.pruning.mask_sets import MaskPopulation, MaskTrial, _Heaviside, learn_scores
from extractor.pruning.problem import PruningProblem

TRIAL = MaskTrial(k_coef=2e-3, lr=0.03, weight_decay=1e-3, beta2=0.95, warmup=0.05, temperature=1.0, seed=0)
POPULATION = [replace(TRIAL, k_coef=k, lr=lr, seed=seed) for seed, (k, lr) in enumerate([(2e-3, 0.03), (2e-2, 0.05), (1e-4, 0.1)])]
STEPS = 40


def nodes_of(problem: PruningProblem) -> Nodes:
    return Nodes(everything(problem.model))


def scores_of(problem: PruningProblem, trials=(TRIAL,), steps: int = STEPS, elements=None, **more) -> torch.Tensor:
    """Scores (P, E) of mask sets learned on all nodes."""
    return learn_scores(problem, elements or nodes_of(problem), list(trials), steps, problem.env("masks"), **more)[0]


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """What the newest checkpoint holds."""
    saved = environment(folder, stage="masks").checkpoints.load()
    assert saved is not None
    return {name.removeprefix("extra/"): tensor for name, tensor in saved[1].items()}


def saving(problem: PruningProblem, folder: Path) -> PruningProblem:
    """The problem, every step of whose loops is saved."""
    return in_folder(problem, folder, Progress(checkpoint_seconds=0))


def kept_of(folder: Path) -> list[float]:
    """The number of elements that were not gone, step by step."""
    return [json.loads(line)["kept"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ranking


def test_heaviside_by_hand():
    tau = torch.tensor([[0.5, -0.5, 0.0, 2.0]] * 2, requires_grad=True)
    on = _Heaviside.apply(tau, torch.tensor([[0.5], [1.0]]))
    assert on.tolist() == [[1.0, 0.0, 0.0, 1.0]] * 2
    (on * torch.tensor([1.0, 2.0, 1.0, 1.0])).sum().backward()
    # s(1 - s) / T at tau / T = 1, -1, 0, 4: 0.196612, 0.196612, 0.25, 0.017663, over 0.5
    # at 0.5, -0.5, 0, 2: 0.235004, 0.235004, 0.25, 0.104994
    assert tau.grad[0].tolist() == pytest.approx([0.393224, 0.786448, 0.5, 0.035325], abs=1e-5)
    assert tau.grad[1].tolist() == pytest.approx([0.235004, 0.470007, 0.25, 0.104994], abs=1e-5)


def test_planted_nodes_come_first(tmp_path: Path):
    problem = micro_problem(tmp_path)
    first = scores_of(problem, steps=120)[0].argsort(descending=True)[:3]
    assert names_of(problem.model, problem.index.flags(first)) == set(micro.CIRCUIT)


def test_planted_edges_come_first(tmp_path: Path):
    problem = micro_problem(tmp_path)
    edges = Edges(everything(problem.model).without_dead())
    assert len(edges) == 6
    scores = scores_of(problem, elements=edges, steps=120)[0]
    graph = edges.graph(scores >= scores.sort().values[-2]).without_dead()
    assert names_of(problem.model, graph.nodes) == set(micro.CIRCUIT)


def test_masks_repeat_themselves_under_a_seed_and_not_under_another(tmp_path: Path):
    first, again = (scores_of(graded_problem(tmp_path / name), POPULATION) for name in "ab")
    assert torch.equal(first, again)
    other = scores_of(graded_problem(tmp_path / "c"), [replace(trial, seed=trial.seed + 7) for trial in POPULATION])
    assert not torch.equal(first, other)


def test_elements_that_left_rank_by_when_they_were_last_on_and_below_all_that_are_on(tmp_path: Path):
    problem = saving(graded_problem(), tmp_path)
    (scores,) = scores_of(problem, [replace(TRIAL, k_coef=1e-3)])
    saved, ties = state_of(tmp_path), nodes_of(problem).ties
    tau, last_on = saved["tau0"][ties], saved["last_on"][0][ties]
    on = (tau > 0) & (saved["kept"][ties] > 0)
    assert torch.equal(scores[on], tau[on])
    assert torch.equal(scores[~on], last_on[~on] - STEPS - 1)
    assert len(set(last_on[~on].tolist())) > 3, "elements should have left at different steps"
    assert on.sum() > 3
    assert scores[on].min() > 0 > scores[~on].max()


def test_tau_stays_between_minus_one_and_one(tmp_path: Path):
    scores_of(saving(micro_problem(), tmp_path), [replace(TRIAL, lr=0.2)])
    tau = state_of(tmp_path)["tau0"]
    assert tau.min() == -1
    assert tau.max() == 1


def test_a_larger_price_keeps_fewer(tmp_path: Path):
    problem = graded_problem(tmp_path)
    scores = scores_of(problem, [replace(TRIAL, k_coef=k) for k in (1e-4, 1e-2, 1e-1)])
    on = (scores > 0).sum(-1).tolist()
    assert on == sorted(on, reverse=True)
    assert len(set(on)) == 3


# q and k


def test_q_and_k_of_a_channel_share_their_mask(tmp_path: Path):
    problem = graded_problem(tmp_path)
    scores = problem.index.split(scores_of(problem, POPULATION))
    assert torch.equal(scores["0.attn.q"], scores["0.attn.k"])
    assert len(scores["0.attn.q"].unique()) > 3
    assert not torch.equal(scores["0.attn.q"], scores["0.attn.v"])


def test_the_network_sees_one_mask_for_q_and_k_and_both_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    problem = micro_problem(tmp_path)
    sets = MaskPopulation(problem, nodes_of(problem), [TRIAL], STEPS)
    seen: list[torch.Tensor] = []
    elements, q, k = sets.elements, micro.flat_index(problem.model, "0.attn.q.1"), micro.flat_index(problem.model, "0.attn.k.1")
    with torch.no_grad():
        sets.mask_logits[0][q], sets.mask_logits[0][k] = -0.5, 0.5
    masks = Nodes.masks
    monkeypatch.setattr(Nodes, "masks", lambda self, on: seen.append(on) or masks(self, on))
    counted = sets.step(0)["on"]
    assert seen[0][0, [q, k]].tolist() == [0.0, 0.0]
    assert counted == len(elements) - 2


# populations


@pytest.mark.parametrize("kind", [Nodes, Edges])
def test_each_of_a_population_is_what_it_is_alone(kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Sets share nothing but the pairs; in fp32 a sum over a larger batch may round otherwise."""
    monkeypatch.setattr(mask_sets, "SHRINK", 0.0)
    problem = graded_problem()
    elements = kind(everything(problem.model))
    together = scores_of(in_folder(problem, tmp_path / "all"), POPULATION, steps=12, elements=elements)
    for row, trial in enumerate(POPULATION):
        alone = scores_of(in_folder(problem, tmp_path / str(row)), [trial], steps=12, elements=elements)
        assert torch.allclose(together[row], alone[0], atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_equal_sets_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    problem = micro_problem(tmp_path, init_noise=0.0)
    sets = MaskPopulation(problem, nodes_of(problem), POPULATION, STEPS)
    asked: list[int] = []
    diffs = FastMaskedModel.logit_diffs
    monkeypatch.setattr(
        FastMaskedModel, "logit_diffs", lambda self, prompts, masks: asked.append(len(masks.nodes)) or diffs(self, prompts, masks)
    )
    sets.step(0)
    assert asked == [1]


def test_half_way_the_worse_half_stops(tmp_path: Path):
    problem = saving(graded_problem(), tmp_path)
    asked: list[torch.Tensor] = []
    trials = [*POPULATION, replace(TRIAL, seed=9)]

    def measure(scores: torch.Tensor) -> torch.Tensor:
        asked.append(scores)
        return torch.tensor([4.0, 1.0, 3.0, 2.0])

    scores, alive = learn_scores(problem, nodes_of(problem), trials, STEPS, problem.env("masks"), measure)
    assert alive.tolist() == [False, True, False, True]
    (half_way,) = asked
    on = (half_way > 0) & (state_of(tmp_path)["kept"][nodes_of(problem).ties] > 0)
    assert on.any(-1).all()
    assert torch.equal(scores[[0, 2]][on[[0, 2]]], half_way[[0, 2]][on[[0, 2]]]), "what has stopped keeps its numbers"
    assert not torch.isclose(scores[[1, 3]][on[[1, 3]]], half_way[[1, 3]][on[[1, 3]]]).any()


def test_without_a_measure_or_alone_every_set_runs_to_the_end(tmp_path: Path):
    problem = micro_problem(tmp_path / "a")
    assert learn_scores(problem, nodes_of(problem), POPULATION, 6, problem.env("masks"))[1].tolist() == [True] * 3
    problem = micro_problem(tmp_path / "b")
    alone = learn_scores(problem, nodes_of(problem), [TRIAL], 6, problem.env("masks"), lambda scores: pytest.fail("asked"))
    assert alone[1].tolist() == [True]


# shrinking


def test_what_was_off_in_every_set_for_a_while_is_gone_and_the_network_shrinks(tmp_path: Path):
    problem = saving(graded_problem(), tmp_path)
    scores = scores_of(problem, [replace(TRIAL, k_coef=k) for k in (2e-2, 5e-2)])
    kept, gone = kept_of(tmp_path), state_of(tmp_path)["kept"] == 0
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] < 0.5 * kept[0]
    assert int((~gone).sum()) == kept[-1]
    assert bool((scores[:, gone] < 0).all())


def test_the_network_computes_what_is_left(tmp_path: Path):
    problem = micro_problem(tmp_path)
    sets = MaskPopulation(problem, nodes_of(problem), POPULATION, STEPS)
    assert len(sets.network(0)) == len(problem.index)
    wanted = torch.zeros(len(problem.index))
    wanted[micro.flat_indices(problem.model)] = 1
    sets.last_on[:] = 10 * wanted
    assert len(sets.network(10)) == 3
    assert torch.equal(sets.kept, wanted)
    sets.last_on[:] = 11.0
    assert len(sets.network(11)) == 3, "what is gone does not come back"


def test_a_little_patience_and_a_dead_set_keep_nothing(tmp_path: Path):
    problem = micro_problem(tmp_path)
    sets = MaskPopulation(problem, nodes_of(problem), POPULATION[:2], 100)  # off for five steps is gone
    sets.last_on[0, :], sets.last_on[1, :4] = 4.0, 6.0
    assert len(sets.network(8)) == 32
    assert len(sets.network(9)) == 4
    sets = MaskPopulation(problem, nodes_of(problem), POPULATION[:2], 100)
    sets.last_on[0, :], sets.last_on[1, :4] = 9.0, 9.0
    sets.halve(torch.tensor([2.0, 1.0]))
    assert sets.alive.tolist() == [0.0, 1.0]
    assert len(sets.network(9)) == 4, "only sets in the race are asked"


@pytest.mark.parametrize(("make", "prices"), [(micro_problem, (1e-2, 2e-2)), (graded_problem, (1e-3, 2e-3))])
def test_a_run_that_shrinks_is_one_that_does_not_where_nothing_comes_back(make, prices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mask_sets, "PATIENCE", 0.5)
    trials = [replace(TRIAL, k_coef=price, seed=seed) for seed, price in enumerate(prices)]
    shrunk = scores_of(in_folder(make(), tmp_path / "shrunk"), trials)
    monkeypatch.setattr(mask_sets, "SHRINK", 0.0)
    whole = scores_of(in_folder(make(), tmp_path / "whole"), trials)
    assert kept_of(tmp_path / "shrunk")[-1] < 0.5 * kept_of(tmp_path / "whole")[-1]
    assert torch.allclose(shrunk, whole, atol=1e-3)


# interrupted


@pytest.mark.parametrize("kind", [Nodes, Edges])
def test_interrupted_ten_times_it_ends_in_the_same_bits(kind, tmp_path: Path):
    problem = graded_problem()
    graph = problem.full_mask().without_dead()

    def learn(problem: PruningProblem):
        measure = lambda scores: scores.mean(-1)  # noqa: E731
        return learn_scores(problem, kind(graph), POPULATION, STEPS, problem.env("masks"), measure)

    calm = learn(in_folder(problem, tmp_path / "calm"))
    for asks in (1, 2, 5, 3, 8, 13, 1, 21, 4, 9):
        with pytest.raises(Stopped):
            learn(interrupted(problem, tmp_path / "broken", asks))
    found = learn(in_folder(problem, tmp_path / "broken"))
    assert all(torch.equal(one, other) for one, other in zip(found, calm, strict=True))
    assert (tmp_path / "broken" / "metrics.jsonl").read_bytes() == (tmp_path / "calm" / "metrics.jsonl").read_bytes()
    assert calm[1].tolist().count(False) == 1
    assert kept_of(tmp_path / "calm")[-1] < kept_of(tmp_path / "calm")[0]


def test_two_stages_do_not_touch_each_others_lines(tmp_path: Path):
    problem = micro_problem(tmp_path)
    for stage in ("prune-round0 one", "prune-round0 two"):
        learn_scores(problem, nodes_of(problem), [TRIAL], 3, problem.env(stage))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [(f"prune-round0 {n}", i) for n in ("one", "two") for i in range(3)]
