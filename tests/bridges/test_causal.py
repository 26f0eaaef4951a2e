"""Effects in both models, and small sets of nodes: against a pair whose sparse model is the dense one, and by hand."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor
from worlds import tiny_pair

from extractor.bridges.initialisation import start_from_dense
from extractor.bridges.pair import BridgedPair, new_pair
from extractor.bridges.steering import few_nodes as few
from extractor.bridges.steering import ranking
from extractor.bridges.steering.causal import CausalEffects, agreement, causal_report, random_nodes
from extractor.bridges.steering.edit import CounterfactualRun, SteeredNode, find_node, random_directions, steerable
from extractor.bridges.steering.evaluate import steering_report
from extractor.bridges.steering.ranking import first_order_effects, strongest_of_circuit, strongest_of_model
from extractor.bridges.steering.trials import SteeringPrompts
from extractor.circuits.reference import masked_logit_diff
from extractor.data.bootstrap import share_interval
from extractor.data.prompts import TaskBatch, task_batch
from extractor.data.task_choice import check_expressible
from extractor.models.dense.base import residuals
from extractor.models.load import load_dense
from extractor.models.reference import BUNDLED, open_model
from extractor.models.tokenizer import load_tokenizer
from extractor.spec.schema import BridgeSpec, SparseModelSpec
from tasks import find_task

EXACT = BridgeSpec(init="dense", encoder_frac=1.0, model=SparseModelSpec(d_model=144, activation_frac=1.0))
NODES = ("0.attn.act_in.3", "0.attn.v.17", "0.attn.resid_delta.5", "0.mlp.act_in.9", "0.mlp.post_act.33", "0.mlp.resid_delta.40")
NODES = (*NODES, "1.attn.act_in.40", "1.attn.act_in.7", "1.mlp.post_act.2", "1.mlp.resid_delta.11", "0.attn.q.4")


@pytest.fixture(scope="module")
def exact() -> BridgedPair:
    """python-tiny-1, of which NODES are chosen, and a sparse model that is the same function, with bridges that are exact."""
    found = new_pair(load_dense(open_model("python-tiny-1")), EXACT, 0)
    ids = torch.randint(1024, (8, 16), generator=torch.Generator().manual_seed(9))
    start_from_dense(found, [h.flatten(0, 1) for h in residuals(found.dense, ids)])
    for site in found.sites:
        site.fold_scaling()
    found.adapter.eval().requires_grad_(False)
    found.sparse.eval().requires_grad_(False)
    return found


@pytest.fixture(scope="module")
def batches() -> dict[str, TaskBatch]:
    tokenizer = load_tokenizer(BUNDLED / "python-tiny-1")
    expression = check_expressible(find_task("quote_close"), tokenizer)
    return {split: task_batch(expression, tokenizer, split, 24, 0, 48) for split in ("select", "held_out")}


def test_where_the_sparse_model_is_the_dense_one_every_effect_is_the_same(exact: BridgedPair, batches: dict[str, TaskBatch]):
    told = causal_report(exact, NODES, batches["held_out"], 0)
    for kind in ("nodes", "sets", "random"):
        assert told[kind]["correlation"] == pytest.approx(1, abs=1e-3), kind
        assert told[kind]["slope"] == pytest.approx(1, abs=1e-2), kind
    assert told["nodes"]["same_sign"] == pytest.approx(1, abs=0.02)
    assert told["nodes"]["count"] == told["random"]["count"] == 10, "a query cannot be edited"
    assert told["sets"]["count"] == 1, "1.attn.act_in alone has two"
    assert {row[0] for row in told["effects"]} == {*NODES} - {"0.attn.q.4"}
    assert told["distance"] > 1
    assert told["pairs"] == 24


def test_where_it_is_another_model_they_are_not():
    ids, last = torch.randint(600, (24, 12), generator=torch.Generator().manual_seed(1)), torch.full((24,), 11)
    answers, sign = torch.tensor([5, 9]).repeat(12), torch.tensor([1.0, -1.0]).repeat(12)
    batch = TaskBatch(ids, last, answers, answers.flip(0), sign)
    told = causal_report(tiny_pair(), ["0.attn.act_in.1", "0.mlp.post_act.5", "1.attn.v.3"], batch, 0)
    assert abs(told["nodes"]["correlation"]) < 0.9


def test_effects_are_toward_the_other_answer(exact: BridgedPair, batches: dict[str, TaskBatch]):
    """Exchanging all that the last read of the residual holds gives the counterfactual's own logit difference, nearly."""
    effects = CausalEffects(exact, batches["held_out"], 8)
    everything = [find_node(exact, f"1.mlp.resid_delta.{c}") for c in range(144)]
    assert effects.sparse(everything).shape == (16,)
    last = [find_node(exact, f"0.attn.act_in.{c}") for c in range(144)]
    assert effects.sparse(last).mean() > 0.5 * effects.distance


def test_agreement_by_hand():
    sparse, dense = torch.tensor([[1.0, -1.0], [3.0, 0.001]]), torch.tensor([[2.0, 2.0], [6.0, -5.0]])
    told = agreement(sparse, dense, 1.0)
    assert told["count"] == 2
    assert told["same_sign"] == pytest.approx(2 / 3), "the effect of 0.001 is not compared"
    assert told["slope"] == pytest.approx((2 - 2 + 18 - 0.005) / (1 + 1 + 9), abs=1e-5)
    assert told["sparse"] == pytest.approx(0.75025)
    assert agreement(torch.zeros(2, 3), torch.zeros(2, 3), 0.0)["same_sign"] is None
    still = agreement(torch.zeros(2, 3), dense[:, :1].expand(2, 3), 1.0)
    assert (still["correlation"], still["slope"], still["same_sign"]) == (None, None, None)


def test_random_nodes_are_others_of_the_same_sites_and_the_same_for_a_seed(exact: BridgedPair):
    like = [find_node(exact, node) for node in NODES if ".q." not in node]
    found = random_nodes(exact, like, {node.id for node in like}, 3)
    assert sorted(node.source for node in found) == sorted(node.source for node in like)
    assert not {node.id for node in found} & {node.id for node in like}
    assert found == random_nodes(exact, like, {node.id for node in like}, 3)
    assert found != random_nodes(exact, like, {node.id for node in like}, 4)


def test_a_change_that_passes_through_two_nodes_is_added_once(exact: BridgedPair, batches: dict[str, TaskBatch]):
    """All writes of the first block, then all reads of the second: after the writes nothing but rounding is left to read."""
    batch = batches["held_out"].pick(torch.arange(6))
    run = CounterfactualRun(exact, batch.ids, batch.ids[torch.arange(12) ^ 1], batch.last)
    first = [find_node(exact, f"0.attn.act_in.{channel}") for channel in range(144)]
    later = find_node(exact, "1.attn.act_in.40")
    alone = run.edits([(later, "read")])[0].amount
    assert torch.allclose(alone, run.edit([later]).amount, atol=1e-5)
    left = run._remaining([*first, later])
    embedded = run._remaining([later])[later.id]
    # What the first block computes is exchanged; what the embedding itself carries to the second read is left.
    assert left[later.id][:, -1].abs().mean() < embedded[:, -1].abs().mean()
    both = run.edits([(find_node(exact, "0.mlp.resid_delta.40"), "stream"), (later, "read")])
    assert not torch.allclose(both[1].amount, alone, atol=1e-3)


def test_edits_of_several_sites_are_the_edits_one_after_the_other(exact: BridgedPair, batches: dict[str, TaskBatch]):
    batch = batches["held_out"].pick(torch.arange(4))
    run = CounterfactualRun(exact, batch.ids, batch.ids[torch.arange(8) ^ 1], batch.last)
    edits = [run.edit([find_node(exact, name)], "stream") for name in ("0.mlp.resid_delta.40", "1.attn.act_in.7", "1.mlp.resid_delta.3")]
    h = run.residuals[0]
    for index in range(exact.dense.n_sublayers + 1):
        h = h + sum(edit.of(0.7) for edit in edits if edit.site == index)
        if index < exact.dense.n_sublayers:
            h = exact.dense.sublayer(index, h, run.context)
    rows = torch.arange(len(h))
    assert torch.allclose(run.logits(edits, 0.7), exact.dense.unembed(h[rows, batch.last]), atol=1e-4)
    assert torch.allclose(run.logits([edits[1]]), run.logits(edits[1]))


@pytest.mark.slow
def test_few_nodes_are_chosen_on_select_and_measured_elsewhere_beside_the_strongest_of_random_edits(
    exact: BridgedPair, batches: dict[str, TaskBatch], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(few, "RANDOM_DRAWS", 6)
    told = steering_report(exact, NODES, batches["select"], batches["held_out"], 0, shifted=batches["held_out"])["few"]
    chosen = [(find_node(exact, node), way) for node, way in told["nodes"]]
    assert 1 <= len(chosen) <= few.MOST
    assert [way for node, way in chosen if node.reads] == ["read" for node, _ in chosen if node.reads]
    held_out = told["held_out"]
    assert told["shifted"] == held_out
    prompts = SteeringPrompts(exact, batches["held_out"], few.MEASURED_ON)
    between = prompts.odds(prompts.run.edits(chosen), 1.0).between
    assert held_out["prompts"] == int(prompts.counted.sum())
    assert held_out["flipped"] == pytest.approx((between > 0.5)[prompts.counted].double().mean().item())
    assert held_out["interval"][0] <= held_out["flipped"] <= held_out["interval"][1]

    def of_draw(some: SteeringPrompts, draw: int) -> float:
        turned = [random_directions(edit, 6, number)[draw] for number, edit in enumerate(some.run.edits(chosen))]
        return some.mean(some.odds(turned, 1.0).between)

    choosing = SteeringPrompts(exact, batches["select"], few.CHOSEN_ON)
    strongest = max(range(6), key=lambda draw: of_draw(choosing, draw))
    assert held_out["random_probability"] == pytest.approx(of_draw(prompts, strongest), abs=1e-6)


@pytest.mark.slow
def test_a_set_may_be_chosen_among_all_nodes_of_the_sparse_model(
    exact: BridgedPair, batches: dict[str, TaskBatch], monkeypatch: pytest.MonkeyPatch
):
    """Nodes of its own choice, most of them outside of the circuit, flip more than nodes of this circuit, which was not searched for."""
    monkeypatch.setattr(few, "RANDOM_DRAWS", 6)
    told = steering_report(exact, NODES, batches["select"], batches["held_out"], 0, shifted=batches["held_out"])
    of_model, of_circuit = told["few_of_model"], told["few"]
    assert of_circuit["in_circuit"] == len(of_circuit["nodes"])
    assert of_model["in_circuit"] == sum(node in NODES for node, _ in of_model["nodes"]) < len(of_model["nodes"])
    assert of_model["held_out"]["flipped"] > of_circuit["held_out"]["flipped"]
    chosen = [(find_node(exact, node), way) for node, way in of_model["nodes"]]
    prompts = SteeringPrompts(exact, batches["held_out"], few.MEASURED_ON)
    for size, flipped in enumerate(of_model["held_out"]["by_size"], 1):
        between = prompts.odds(prompts.run.edits(chosen[:size]), 1.0).between
        assert flipped == pytest.approx(prompts.mean(between > 0.5))


def test_the_nodes_of_a_model_are_ranked_by_what_a_small_step_toward_their_other_value_does(
    exact: BridgedPair, batches: dict[str, TaskBatch]
):
    prompts = SteeringPrompts(exact, batches["select"], 6)
    ranked = strongest_of_model(exact, prompts, 10**6)
    config = exact.sparse.config
    assert len({node.id for node in ranked}) == len(ranked) == config.n_layer * (5 * config.d_model + config.d_mlp)
    plain = masked_logit_diff(exact.sparse, prompts.batch, {}, {})

    def step(node: SteeredNode, size: float) -> float:
        change = prompts.run.counterfactual_values[node.source] - prompts.run.presented_values[node.source]

        def moved(site: str, values: Tensor) -> Tensor:
            if site != node.source:
                return values
            values = values.clone()
            values[..., node.channel] += size * change[..., node.channel]
            return values

        found = masked_logit_diff(exact.sparse, prompts.batch, {}, {}, rewrite=moved)
        return float(-(prompts.batch.sign * (found - plain))[prompts.counted].sum() / size)

    some = [*ranked[:8], *ranked[-3:]]
    effects = [step(node, 0.01) for node in some]
    assert effects[0] > 1
    assert effects[-1] < 0
    assert all(before > after - 0.02 * effects[0] for before, after in itertools.pairwise(effects))


def test_of_a_large_circuit_the_nodes_with_the_largest_first_order_effects_are_tried(
    exact: BridgedPair, batches: dict[str, TaskBatch], monkeypatch: pytest.MonkeyPatch
):
    prompts = SteeringPrompts(exact, batches["select"], 6)
    effects = first_order_effects(exact, prompts.run, prompts.batch)
    nodes = steerable(exact, NODES)
    assert strongest_of_circuit(exact, nodes, prompts.batch) == nodes, "a small one is tried whole"
    monkeypatch.setattr(ranking, "MOST_OF_CIRCUIT", 2)
    kept = strongest_of_circuit(exact, nodes, prompts.batch)
    assert len(kept) == 2
    assert min(abs(effects[node.id]) for node in kept) >= max(abs(effects[node.id]) for node in nodes if node not in kept)
    assert kept == [node for node in nodes if node in kept]
    found = causal_report(exact, NODES, batches["held_out"], 0)
    assert found["nodes"]["count"] == 2
    assert found["sets"] is None or found["sets"]["sparse"] is not None


def test_a_node_that_random_edits_equal_is_not_preferred(
    exact: BridgedPair, batches: dict[str, TaskBatch], monkeypatch: pytest.MonkeyPatch
):
    """Of two candidates the one with the larger margin is taken, although the other raises the probability more."""
    choosing = SteeringPrompts(exact, batches["select"], 4)
    candidates = [(find_node(exact, "0.attn.act_in.3"), "read"), (find_node(exact, "1.mlp.resid_delta.11"), "stream")]
    raised = {"0.attn.act_in.3": 0.9, "1.mlp.resid_delta.11": 0.8}

    def strengths(prompts: SteeringPrompts, drawn: list, tick: object) -> list[float]:
        if len(drawn) == len(candidates):  # the edits themselves
            return [raised[node.id] for node, _ in candidates]
        return [0.1, 0.7] if drawn[0][0].site == 0 else [0.1, 0.2]

    monkeypatch.setattr(few, "_strengths", strengths)
    found = few._margins(choosing, [], candidates, 0, lambda: None)
    assert found == pytest.approx({0: 0.2, 1: 0.6})


def test_the_interval_of_a_share_covers_it_and_narrows():
    generator = torch.Generator().manual_seed(0)
    widths = []
    for pairs in (20, 2000):
        counted = (torch.rand(2 * pairs, generator=generator) < 0.8).double()
        hits = counted * (torch.rand(2 * pairs, generator=generator) < 0.3)
        low, high = share_interval(hits, counted, 0)
        assert low <= float(hits.sum() / counted.sum()) <= high
        widths.append(high - low)
    assert widths[1] < widths[0] / 5
    assert share_interval(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]), 0) == [1.0, 1.0]


def test_a_circuit_of_queries_alone_has_no_effects(exact: BridgedPair, batches: dict[str, TaskBatch], tmp_path: Path):
    assert causal_report(exact, ["0.attn.q.4"], batches["held_out"], 0) == {}
