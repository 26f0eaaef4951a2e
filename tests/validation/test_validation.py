"""Validation on models that a person can compute: every number that is not a mere loss of a known circuit is checked by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import micro
import pytest
import torch
from problems import random_batch, random_model
from torch.nn import functional
from worlds import environment

from extractor.circuits.calibration import calibrate
from extractor.circuits.circuit import Calibration
from extractor.circuits.graph import CircuitMask
from extractor.circuits.reference import masked_logit_diff
from extractor.data.bootstrap import intervals
from extractor.data.prompts import TaskBatch
from extractor.progress import Stopped
from extractor.pruning.criteria import PrunedCircuit
from extractor.pruning.problem import PruningProblem
from extractor.pruning.prune import PruneResult
from extractor.spec.schema import PruneSpec, SparseModelSpec
from extractor.training.train_sparse import new_sparse_gpt
from extractor.validation import seeds
from extractor.validation.ablations import ablated_logit_diffs, parts, reference_logit_diffs
from extractor.validation.activations import activations
from extractor.validation.binarise import Binarised, Steps, fit_steps, two_means
from extractor.validation.edge_effects import edge_effects
from extractor.validation.roles import roles
from extractor.validation.seeds import compare_seeds, overlap
from extractor.validation.validate import under_conditions, validate, why_not

BATCH = micro.micro_batch()
QUICK = PruneSpec(trials=2, population=2, steps=40, edge_steps=20, targets=(), necessity=0.0, controls=0)
ZERO = QUICK.model_copy(update={"ablation": "zero"})
CHANCE = math.log(2)


def pose(folder: Path, model=None, spec: PruneSpec = QUICK, batch: TaskBatch = BATCH, **changes) -> PruningProblem:
    """A problem whose three splits are one batch."""
    model = model or micro.micro_model()
    with model.record() as values:
        model(input_ids=batch.ids)
    means = {site: x[:, -1].mean(0) for site, x in values.items()}
    return PruningProblem(model, means, batch, batch, spec, 0.15, 0, lambda stage: environment(folder / stage), **changes)


def circuit_of(problem: PruningProblem, nodes: tuple[str, ...] = micro.CIRCUIT) -> PrunedCircuit:
    graph = CircuitMask(problem.model, problem.index.flags(micro.flat_indices(problem.model, nodes)))
    calibration = calibrate(problem.scorer(problem.select).logit_diffs([graph])[0], problem.select.sign)
    return PrunedCircuit(graph, graph.edge_count(), 0.0, calibration, problem.target, True)


@pytest.fixture
def problem(tmp_path) -> PruningProblem:
    return pose(tmp_path)


@pytest.fixture
def pruned(problem) -> PrunedCircuit:
    return circuit_of(problem)


def prompts(lengths: list[int], vocabulary: int) -> TaskBatch:
    """A pair for every length, of random tokens."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, vocabulary, (2 * len(lengths), max(lengths)), generator=generator)
    last = torch.tensor(lengths).repeat_interleave(2) - 1
    answers = torch.tensor([[3, 4], [4, 3]] * len(lengths))
    return TaskBatch(ids, last, answers[:, 0], answers[:, 1], torch.tensor([1.0, -1.0] * len(lengths)))


def noisy(folder: Path, spec: PruneSpec = QUICK) -> tuple[PruningProblem, CircuitMask]:
    """A random model whose every site competes, prompts of many lengths, and a graph of a third of its nodes and half of their edges."""
    model = new_sparse_gpt(SparseModelSpec(d_model=16, d_head=4, n_ctx=8, mlp_ratio=2), 2, 40, 0).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "ln_" not in name:
            parameter.mul_(4)
    posed = pose(folder, model, spec, prompts([3, 8, 5, 8, 4, 5], 40))
    generator = torch.Generator().manual_seed(1)
    graph = CircuitMask(posed.model, torch.rand(len(posed.index), generator=generator) < 0.6)
    edges = {link: there & (torch.rand(there.shape, generator=generator) < 0.7) for link, there in graph.present_edges().items()}
    return posed, CircuitMask(posed.model, graph.nodes, edges)


# replacements


def by_hand(third: float, second: float) -> float:
    """The logit difference of a prompt whose residual ends as 1 in the prompt's own channel, `second` and `third` in channels 2 and 3."""
    return 4 * third / math.sqrt(1 + second**2 + third**2) + micro.BIGRAM


def test_what_is_off_is_zero_or_its_mean_by_hand(problem, pruned):
    before, after = (problem.means[site][2].item() for site in ("0.attn.resid_delta", "0.mlp.resid_delta"))
    assert min(before, after) > 0.02
    neuron = functional.gelu(torch.tensor(3 / math.sqrt(1 + before**2))).item()  # what attention wrote lessens what the MLP reads
    usual = [by_hand(neuron - 1.5, before + after), by_hand(-1.5, before + after)]
    expected = {"zero": [by_hand(micro.GELU_3 - 1.5, 0), by_hand(-1.5, 0)], "mean": usual}
    for kind, diffs in expected.items():
        assert ablated_logit_diffs(problem, pruned.graph, kind, BATCH).tolist() == pytest.approx(diffs * 2, abs=1e-5), kind


def test_resampled_nodes_have_their_values_in_the_other_prompt_of_equal_length(problem, pruned):
    pair = BATCH.pick(torch.tensor([0]))  # each of the two is the other's only partner
    with problem.model.record() as values:
        problem.model(input_ids=pair.ids)
    before, after = (values[site][:, -1, 2].tolist() for site in ("0.attn.resid_delta", "0.mlp.resid_delta"))
    neuron = functional.gelu(torch.tensor(3 / math.sqrt(1 + before[1] ** 2))).item()
    expected = [by_hand(neuron - 1.5, before[1] + after[1]), by_hand(-1.5, before[0] + after[0])]
    found = ablated_logit_diffs(problem, pruned.graph, "resample", pair)
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    nothing = ablated_logit_diffs(problem, CircuitMask(problem.model, torch.zeros_like(pruned.graph.nodes)), "resample", pair)
    assert nothing[0] < 0 < nothing[1]  # all that is left speaks for the other prompt


def test_a_part_holds_whole_pairs_and_does_not_line_up_those_that_differ(tmp_path, monkeypatch):
    problem = pose(tmp_path, batch=prompts([8, 3, 8, 8, 5, 8, 8, 8], 7))
    monkeypatch.setattr("extractor.validation.ablations.VALUES_AT_ONCE", 2 * len(problem.index) * 8 * 3)
    found = parts(problem, problem.select)
    assert sorted(torch.cat(found).tolist()) == list(range(16))
    assert [len(rows) for rows in found] == [6, 6, 4]
    assert all(int(row) ^ 1 in rows for rows in found for row in rows)
    order = torch.cat(found)
    assert any(a % 2 == b % 2 for a, b in pairwise(order.tolist()))  # a prompt's next is not always one of the other answer
    diffs = reference_logit_diffs(problem, problem.full_mask(), problem.select)
    assert torch.allclose(diffs, masked_logit_diff(problem.model, problem.select, {}, {}), atol=1e-6)


# intervals


def test_intervals_are_those_of_pairs_seeded_and_as_wide_as_theory_says():
    halves = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(100)  # 200 pairs, half of them all wrong
    within = torch.tensor([0.0, 1.0]).repeat(200)  # every pair is half wrong
    found = intervals({"halves": halves, "within": within}, 0)
    assert found["within"] == [0.5, 0.5]
    spread = 1.96 * 0.5 / math.sqrt(200)
    assert found["halves"] == pytest.approx([0.5 - spread, 0.5 + spread], abs=0.012)
    assert intervals({"halves": halves}, 0)["halves"] == found["halves"]
    assert intervals({"halves": halves}, 1)["halves"] != found["halves"]


# edges


def test_without_either_of_its_edges_the_micro_circuit_knows_nothing(problem, pruned):
    found = edge_effects(problem, pruned.graph, BATCH)
    first, second = found["edges"]
    assert first[:2] == ["0.mlp.act_in.0", "0.mlp.post_act.0"]  # the weight is 1.5, the other's 1
    assert second[:2] == ["0.mlp.post_act.0", "0.mlp.resid_delta.3"]
    own = problem.scorer(BATCH).loss(pruned.graph)
    assert [first[2], second[2]] == pytest.approx([CHANCE - own] * 2, abs=1e-4)
    assert own < 0.01
    assert (found["of"], found["raising"], found["pairs"]) == (2, 1.0, 2)


def test_an_edge_effect_is_the_loss_of_the_graph_without_it(tmp_path, monkeypatch):
    problem, graph = noisy(tmp_path)
    monkeypatch.setattr("extractor.validation.edge_effects.MOST_EDGES", 7)
    monkeypatch.setattr("extractor.circuits.scorer.VALUES_AT_ONCE", int(graph.nodes.sum()) * problem.select.ids.numel() * 3)
    found = edge_effects(problem, graph, problem.select)
    there, scorer = graph.present_edges(), problem.scorer(problem.select)
    assert found["of"] == sum(int(mask.sum()) for mask in there.values()) > len(found["edges"]) == 7
    for source, target, rise in found["edges"]:
        (a, _, column), (b, _, row) = source.rpartition("."), target.rpartition(".")
        cut = {link: mask.clone() for link, mask in there.items()}
        assert cut[a, b][int(row), int(column)]
        cut[a, b][int(row), int(column)] = False
        assert rise == pytest.approx(scorer.loss(CircuitMask(problem.model, graph.nodes, cut)) - scorer.loss(graph), abs=1e-5)


def test_large_circuits_are_asked_fewer_pairs(problem, pruned, monkeypatch):
    monkeypatch.setattr("extractor.validation.edge_effects.MOST_VALUES", 1)
    monkeypatch.setattr("extractor.validation.edge_effects.FEWEST_PAIRS", 1)
    assert edge_effects(problem, pruned.graph, BATCH)["pairs"] == 1


def test_a_circuit_without_edges_has_no_effects(problem):
    found = edge_effects(problem, circuit_of(problem, micro.CIRCUIT[:1]).graph, BATCH)
    assert (found["edges"], found["of"], found["raising"]) == ([], 0, None)


# two values


def test_two_means_are_the_best_split_there_is():
    torch.manual_seed(0)
    values = torch.cat([torch.randn(40, 6), torch.tensor([[0.0], [0.0], [1.0], [10.0], [11.0]]).repeat(8, 6)]) * torch.arange(6)
    values[:, 5] = torch.tensor([2.0, 7.0]).repeat(40)
    threshold, low, high = two_means(values)
    assert (low[5], high[5], threshold[5]) == (2, 7, 4.5)
    assert (low[0], high[0]) == (0, 0)  # a constant

    def left(column: torch.Tensor, at: float) -> float:
        below = column > at
        return sum(((part - part.mean()) ** 2).sum().item() for part in (column[below], column[~below]) if len(part))

    for column in range(1, 6):
        ordered = values[:, column].double().unique()
        best = min(left(values[:, column].double(), (a + b) / 2) for a, b in pairwise(ordered.tolist()))
        assert left(values[:, column].double(), threshold[column].item()) == pytest.approx(best)
        assert low[column] < threshold[column] < high[column]


def test_nodes_that_have_two_values_anyway_are_the_same_binarised(tmp_path):
    """With zero for all else the micro circuit's nodes are 2, gelu(3) and gelu(3) - 1.5 on A, else 0, 0 and -1.5."""
    problem = pose(tmp_path, spec=ZERO)
    pruned = circuit_of(problem)
    binarised = Binarised(problem, pruned.graph)
    on = pruned.graph.nodes
    assert binarised.steps.low[on].tolist() == pytest.approx([0, 0, -1.5], abs=1e-6)
    assert binarised.steps.high[on].tolist() == pytest.approx([2, micro.GELU_3, micro.GELU_3 - 1.5], abs=1e-5)
    plain = problem.scorer(BATCH).logit_diffs([pruned.graph])[0]
    assert torch.allclose(binarised.logit_diffs(BATCH), plain, atol=1e-5)
    own = problem.scorer(BATCH).loss(pruned.graph)
    assert binarised.alone(BATCH) == pytest.approx(dict.fromkeys(micro.CIRCUIT, own), abs=1e-6)


def test_tokens_beyond_a_prompts_end_do_not_move_the_steps(tmp_path):
    padded = TaskBatch(functional.pad(BATCH.ids, (0, 3), value=micro.A), BATCH.last, BATCH.correct, BATCH.wrong, BATCH.sign)
    for batch in (BATCH, padded):
        problem = pose(tmp_path, spec=ZERO, batch=batch)
        steps = fit_steps(problem, circuit_of(problem).graph)
        assert steps.high[micro.flat_index(problem.model, "0.mlp.act_in.0")] == pytest.approx(2, abs=1e-6)
        assert steps.low[micro.flat_index(problem.model, "0.mlp.act_in.0")] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("ablation", ["mean", "zero", "resample"])
def test_binarising_on_the_small_network_is_rewriting_the_whole_ones_values(tmp_path, ablation):
    problem, graph = noisy(tmp_path, QUICK.model_copy(update={"ablation": ablation}))
    binarised = Binarised(problem, graph)
    rewrite = binarised.steps.rewriter(problem.index)
    expected = reference_logit_diffs(problem, graph, problem.select, lambda part: rewrite)
    assert torch.allclose(binarised.logit_diffs(problem.select), expected, atol=1e-4)
    assert not torch.allclose(expected, reference_logit_diffs(problem, graph, problem.select), atol=1e-2)
    alone = binarised.alone(problem.select)
    if ablation == "resample":
        assert alone is None
        return
    assert alone is not None
    nodes = graph.nodes.nonzero().flatten()
    for place in (0, len(nodes) // 2, len(nodes) - 1):
        one = replace(binarised.steps, on=problem.index.flags(nodes[place : place + 1])).rewriter(problem.index)
        diff = reference_logit_diffs(problem, graph, problem.select, lambda part, one=one: one)
        calibration = calibrate(diff, problem.select.sign)
        loss = functional.softplus(-problem.select.sign * (calibration.scale * diff + calibration.shift)).mean().item()
        assert list(alone.values())[place] == pytest.approx(loss, abs=1e-3)


def test_many_nodes_are_not_binarised_one_by_one(problem, pruned, monkeypatch):
    monkeypatch.setattr("extractor.validation.binarise.MOST_NODES", 2)
    assert Binarised(problem, pruned.graph).alone(BATCH) is None


def test_a_step_leaves_other_nodes_alone():
    steps = Steps(torch.zeros(2), torch.full((2,), -1.0), torch.ones(2), torch.tensor([True, False]))
    assert steps.apply(torch.tensor([[0.3, 0.3], [0.0, 5.0]])).tolist() == [[1.0, pytest.approx(0.3)], [-1.0, 5.0]]


# ordinary text


class Text:
    """A corpus of one A among four tokens."""

    def batch(self, seed: int, step: int, rows: int, context: int) -> torch.Tensor:
        return torch.tensor([micro.A, micro.B, micro.FIRST, micro.OTHER]).repeat(rows * context // 4).view(rows, context)


def test_activations_are_told_by_percentile(problem, pruned):
    found = activations(problem, pruned.graph, Text(), tokens=600)
    assert (found["percentiles"], found["tokens"]) == ([1, 10, 25, 50, 75, 90, 99], 600)
    assert list(found["nodes"]) == list(micro.CIRCUIT)
    read, write = found["nodes"]["0.mlp.act_in.0"], found["nodes"]["0.mlp.resid_delta.3"]
    assert read["values"] == pytest.approx([0, 0, 0, 0, 0, 2, 2], abs=1e-5)
    assert read["nonzero"] == 0.25
    assert write["values"] == pytest.approx([-1.5] * 5 + [micro.GELU_3 - 1.5] * 2, abs=1e-5)
    assert write["nonzero"] == 1.0


# the report


def test_the_report_of_the_micro_circuit(problem, pruned):
    report = validate(pruned, problem, BATCH, Text())
    assert set(report.loss) == set(report.accuracy) == {"full", "circuit", "without_circuit", "random"}
    full = masked_logit_diff(problem.model, BATCH, {}, {})
    assert report.loss["full"] == pytest.approx(functional.softplus(-BATCH.sign * full).mean().item(), abs=1e-6)
    assert report.loss["without_circuit"] == pytest.approx(CHANCE, abs=1e-5)
    assert report.necessity == report.loss["without_circuit"] - report.loss["full"]
    uncalibrated = functional.softplus(-BATCH.sign * problem.scorer(BATCH).logit_diffs([pruned.graph])[0]).mean().item()
    assert report.uncalibrated == pytest.approx(uncalibrated, abs=1e-6)
    assert report.loss["circuit"] < report.uncalibrated
    assert report.ablation["mean"] == pytest.approx(report.loss["circuit"], abs=1e-6)
    assert report.binarised["loss"] == pytest.approx(report.loss["circuit"], abs=1e-4)
    assert report.attribution["nodes"] == 3
    assert (report.attribution["edges"], report.attribution["accuracy"]) == (2, 1.0)  # gradients see the micro circuit, too
    assert report.seeds is None
    measured = {**report.loss, **report.ablation, "attribution": report.attribution["loss"], "uncalibrated": report.uncalibrated}
    measured |= {f"without {name}": loss for name, loss in report.removed.items()}
    measured["binarised"] = report.binarised["loss"]
    assert report.interval.keys() == measured.keys()
    for name, (low, high) in report.interval.items():
        assert low - 1e-9 <= measured[name] <= high + 1e-9, name
    assert report.removed["nothing"] < 0.01  # the full model, calibrated
    assert report.removed["random_nodes"] < report.removed["edges"] == pytest.approx(report.loss["without_circuit"], abs=0.05)
    assert report.shifted is None
    assert list(report.conditions) == ["mean", "zero", "same", "other", "subset"]
    assert report.conditions["mean"]["loss"] == pytest.approx(report.uncalibrated, abs=1e-6)
    for one in report.conditions.values():
        assert one["interval"][0] - 1e-9 <= one["loss"] <= one["interval"][1] + 1e-9
    known = set("necessity attribution uncalibrated ablation conditions binarised removed shifted roles interval edge_effects".split())
    known |= {"calibrations", "mechanism"}
    controls = {"null_searches", "random_circuits", "adversarial", "interchange", "faithfulness"}
    assert json.loads(json.dumps(report.details())).keys() == known | {"activations", "seeds"} | controls
    assert {getattr(report, name) for name in controls} == {None}  # the spec asks for none


def test_without_text_there_are_no_activations(problem, pruned):
    assert validate(pruned, problem, BATCH).activations is None


@pytest.mark.parametrize("ablation", ["zero", "resample"])
def test_the_problems_own_replacement_is_the_circuits_own_loss(tmp_path, ablation):
    problem = pose(tmp_path, spec=QUICK.model_copy(update={"ablation": ablation}))
    report = validate(circuit_of(problem), problem, BATCH)
    assert set(report.ablation) == {"mean", "zero", "resample"}
    assert report.loss["circuit"] < 0.01
    if ablation == "zero":
        assert report.ablation["zero"] == pytest.approx(report.loss["circuit"], abs=1e-6)


def test_a_stop_is_heeded_while_validating(tmp_path):
    def stop(done: int, of: int) -> None:
        raise Stopped

    problem = pose(tmp_path, tick=stop)
    with pytest.raises(Stopped):
        validate(circuit_of(problem), problem, BATCH)


def test_why_says_who_missed_the_target():
    assert why_not(0.12, 0.01, 0.15, 9) is None
    assert why_not(0.02, 0.01, 0.15, 0) == "no node is needed: embeddings and bigrams alone have 0.02 nats"
    assert why_not(0.21, 0.19, 0.15, 9) == "best loss 0.21 nats, target 0.15; the full model has 0.19"
    assert why_not(0.61, 0.62, 0.15, 9) == "best loss 0.61 nats, target 0.15; the full model has 0.62: it does not do this task"
    assert "uncalibrated, has 0.19 nats, above the target of 0.15; the circuit has 0.14" in (why_not(0.14, 0.19, 0.15, 9) or "")


# seeds


def test_overlap_is_the_mean_over_pairs_of_shared_over_all():
    sets = [dict.fromkeys(names) for names in ("abc", "bcd", "abc")]
    assert overlap(sets) == pytest.approx((2 / 4 + 1 + 2 / 4) / 3)
    assert overlap([{}, {}]) == 1.0


def told(problem: PruningProblem, nodes: tuple[str, ...], loss: float) -> PruneResult:
    pruned = replace(circuit_of(problem, nodes), loss=loss, calibration=Calibration(2.0, 0.5))
    edges = pruned.graph.present_edges()
    best = replace(pruned, graph=CircuitMask(problem.model, pruned.graph.nodes, edges))
    return PruneResult(best, (best,), (best.graph,))


OTHER = ("0.mlp.act_in.1", "0.mlp.post_act.1", "0.mlp.resid_delta.2")


def test_seeds_are_compared_by_hand_and_kept(tmp_path, monkeypatch):
    problem = pose(tmp_path, micro.micro_model(redundant=True), QUICK.model_copy(update={"seeds": 3}), work=tmp_path / "work")
    both = (*micro.CIRCUIT, *OTHER)
    asked = []

    def find(other: PruningProblem) -> PruneResult:
        asked.append(other.seed)
        other.env("masks").checkpoints.save(0, {})
        return told(other, both if other.seed == 1 else OTHER, 0.1 * other.seed)

    monkeypatch.setattr(seeds, "find_circuits", find)
    pruned = circuit_of(problem, both)
    found = compare_seeds(pruned, problem, BATCH)
    assert asked == [1, 2]
    assert [(row["seed"], row["nodes"], row["edges"]) for row in found["circuits"]] == [(0, 6, 4), (1, 6, 4), (2, 3, 2)]
    assert found["node_overlap"] == found["edge_overlap"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert found["shared"] == sorted(OTHER)
    diff = problem.scorer(BATCH).logit_diffs([told(problem, OTHER, 0).best.graph])[0]
    assert found["circuits"][2]["loss"] == pytest.approx(functional.softplus(-BATCH.sign * (2 * diff + 0.5)).mean().item())
    assert sorted(path.name for path in tmp_path.iterdir() if "seed" in path.name) == ["seed1-masks", "seed2-masks"]
    monkeypatch.setattr(seeds, "find_circuits", None)
    assert compare_seeds(pruned, problem, BATCH) == found  # read again, not made again


def test_an_interrupted_comparison_goes_on_with_the_seed_it_was_at(tmp_path, monkeypatch):
    calls = 0

    def impatient(done: int, of: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Stopped

    spec = QUICK.model_copy(update={"seeds": 2})
    problem = pose(tmp_path / "one", spec=spec, work=tmp_path / "one" / "work", tick=impatient)
    pruned = circuit_of(problem)
    with pytest.raises(Stopped):
        compare_seeds(pruned, problem, BATCH)
    assert (tmp_path / "one" / "work" / "seed1" / "search.json").is_file()
    found = compare_seeds(pruned, problem, BATCH)
    undisturbed = pose(tmp_path / "two", spec=spec)
    assert found == compare_seeds(pruned, undisturbed, BATCH)
    assert found["circuits"][1]["nodes"] >= 3


def test_validation_asks_for_seeds_where_the_spec_does(tmp_path, monkeypatch):
    problem = pose(tmp_path, spec=QUICK.model_copy(update={"seeds": 2}))
    monkeypatch.setattr(seeds, "find_circuits", lambda other: told(other, micro.CIRCUIT, 0.1))
    found = validate(circuit_of(problem), problem, BATCH).seeds
    assert found is not None
    assert (found["node_overlap"], found["shared"]) == (1.0, list(micro.CIRCUIT))


def test_a_model_that_does_not_do_the_task_gets_no_controls_and_no_other_seeds(tmp_path):
    model = micro.micro_model()
    model.lm_head.weight.data.zero_()
    problem = pose(tmp_path, model, QUICK.model_copy(update={"seeds": 2, "controls": 2}))
    found = validate(circuit_of(problem), problem, BATCH)
    assert (found.null_searches, found.random_circuits, found.adversarial, found.interchange, found.faithfulness) == (None,) * 5
    assert found.seeds is None
    assert found.why is not None
    assert found.why.endswith("it does not do this task")


def test_circuit_and_model_are_compared_on_shifted_prompts(problem, pruned):
    found = validate(pruned, problem, BATCH, shifted=BATCH).shifted
    assert (found["prompts"], found["same_answer"]) == (len(BATCH.ids), 1.0)
    assert found["accuracy"] == {"full": 1.0, "circuit": 1.0}
    assert found["conditions"] == under_conditions(problem, pruned.graph, BATCH)
    nothing = replace(pruned, graph=CircuitMask(problem.model, torch.zeros_like(pruned.graph.nodes)), calibration=Calibration(1.0, 0.0))
    found = validate(nothing, problem, BATCH, shifted=BATCH).shifted
    assert found["accuracy"] == {"full": 1.0, "circuit": 0.5}
    assert found["same_answer"] == 0.5
    assert found["loss"]["circuit"] > found["loss"]["full"]


# roles


def test_a_circuit_of_all_nodes_has_every_role_of_the_model(problem):
    found = roles(problem, CircuitMask.full(problem.model), BATCH)
    assert found["pairs"] == BATCH.pairs
    assert all(one in ((0.0, 1.0), (None, None)) for one in found["nodes"].values())
    assert any(one == (0.0, 1.0) for one in found["nodes"].values())
    assert set(found["heads"].values()) == {0.0}
    assert found["changed"] == []


def test_roles_are_those_of_values_by_hand(tmp_path):
    problem = pose(tmp_path, model=random_model(1, activation_frac=1.0), batch=random_batch(12, 3))
    mask = CircuitMask(problem.model, torch.rand(len(problem.index), generator=torch.Generator().manual_seed(0)) < 0.5)
    batch = problem.select
    found = roles(problem, mask, batch)
    with problem.model.record() as full:
        problem.model(input_ids=batch.ids)
    seen: dict[str, torch.Tensor] = {}
    site_masks = problem.index.split(mask.nodes.float())
    masked_logit_diff(problem.model, batch, site_masks, problem.ablation_values, rewrite=lambda site, x: seen.setdefault(site, x))
    real = torch.arange(batch.ids.shape[1]) <= batch.last[:, None]
    changed = []
    for name, (unexplained, correlation) in found["nodes"].items():
        site, channel = name.rsplit(".", 1)
        here, there = (x[site][real][:, int(channel)].double() for x in (seen, full))
        if unexplained is None:
            assert there.var() < 1e-12
            continue
        assert unexplained == pytest.approx(float((here - there).square().mean() / there.var(correction=0)), rel=1e-3, abs=1e-3)
        if correlation is not None:
            assert correlation == pytest.approx(float(torch.corrcoef(torch.stack([here, there]))[0, 1]), abs=1e-3)
        changed += [name] if unexplained > 0.5 else []
    assert found["changed"] == changed != []
    assert 0 < max(found["heads"].values()) <= 1
    width = problem.model.config.d_head
    kept = {f"{layer}.attn.{c // width}" for layer in range(2) for c in mask.channels()[f"{layer}.attn.v"].tolist()}
    assert set(found["heads"]) == kept
