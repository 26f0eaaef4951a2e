"""Masks, ablation, ranking, bisection and the smallest circuit, on a model that a person can compute."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import micro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import environment, stop_after

from extractor.ablation import masked_margin, measure_means, measured_margin
from extractor.circuit import Calibration
from extractor.masks import NodeIndex, _Heaviside, learn_ranking
from extractor.objective import answer_margin, task_loss
from extractor.progress import Progress, Stopped
from extractor.prune import CHANCE, Demand, Probe, _bisect, calibrate, calibrated_loss, smallest_circuit
from extractor.sites import record, widths
from extractor.sparse.train import new_sparse_gpt
from extractor.specs import PruneSpec, SparseModelSpec
from extractor.validation import validate

BATCH = micro.micro_batch()


@pytest.fixture
def model():
    return micro.micro_model()


@pytest.fixture
def means(model):
    return micro.micro_means(model)


@pytest.fixture
def probe(model, means) -> Probe:
    return Probe(model, means, BATCH)


def fresh(trial: int):
    """Pairs for one trial of the elimination: the micro world has no others."""
    return BATCH


def everything(probe: Probe) -> torch.Tensor:
    return torch.arange(len(probe.index))


def test_the_micro_model_is_what_it_says(model):
    with torch.no_grad():
        logits = model(input_ids=BATCH.ids).logits[:, -1]
    a = 2 * (micro.GELU_3 - 1.5) / math.sqrt(1 + (micro.GELU_3 - 1.5) ** 2)
    decoy = 0.1 * micro.GELU_3 + 0.1  # channel 2 on B: neuron 1, and v.0 = 0.5 x 2 over two tokens, times 0.1, plus what neuron 1 reads
    margin = answer_margin(logits, BATCH)
    assert margin[0].item() == pytest.approx(2 * a + micro.BIGRAM, abs=1e-5)
    assert margin[1].item() == pytest.approx(-2 * 2 * 1.5 / math.sqrt(1 + 1.5**2) + micro.BIGRAM, rel=0.05)
    assert decoy < 0.5
    assert torch.equal(margin[:2], margin[2:])


def test_keeping_every_node_leaves_the_margins_unchanged(model, means):
    index = NodeIndex.of(model)
    with torch.no_grad():
        plain = answer_margin(model(input_ids=BATCH.ids).logits[:, -1], BATCH)
        kept = masked_margin(model, BATCH, index.masks(torch.arange(len(index))), means)
    assert torch.allclose(kept, plain, atol=1e-6)


def test_keeping_every_node_leaves_the_margins_of_a_random_model_unchanged(corpus):
    model = new_sparse_gpt(SparseModelSpec(d_model=32, d_head=8, n_ctx=16), 2, 400, 0).eval()
    means = measure_means(model, corpus, 512, 0)
    batch = micro.micro_batch()
    index = NodeIndex.of(model)
    with torch.no_grad():
        plain = answer_margin(model(input_ids=batch.ids).logits[:, -1], batch)
        assert torch.allclose(masked_margin(model, batch, index.masks(torch.arange(len(index))), means), plain, atol=1e-6)
        assert not torch.allclose(masked_margin(model, batch, index.masks(torch.arange(len(index) - 1)), means), plain, atol=1e-6)


def test_mean_ablating_every_node_leaves_only_the_direct_token_path(model, means):
    index = NodeIndex.of(model)
    with torch.no_grad():
        ablated = masked_margin(model, BATCH, index.masks(torch.tensor([], dtype=torch.long)), means)
    written = means["0.attn.resid_delta"] + means["0.mlp.resid_delta"]
    for row in range(4):
        token = int(BATCH.ids[row, 1])
        h = model.transformer.wte.weight[token] + written
        normed = h / h.square().mean().sqrt()
        direct = normed @ (model.lm_head.weight[micro.YES] - model.lm_head.weight[micro.NO]) + micro.BIGRAM
        assert ablated[row].item() == pytest.approx(direct.item(), abs=1e-6)


def test_masked_nodes_take_exactly_their_mean(model, means):
    index = NodeIndex.of(model)
    generator = torch.Generator().manual_seed(0)
    kept = torch.randperm(len(index), generator=generator)[: len(index) // 2]
    masks = index.masks(kept)
    values: dict[str, torch.Tensor] = {}
    from extractor.sites import gate

    # Hooks run in the order they were put in place: masked_margin's first, this one after it is entered.
    watched = {site: (lambda x, site=site: values.__setitem__(site, x) or x) for site in widths(model)}
    from extractor import ablation

    original = ablation.gate

    def spying(model, replace):
        return original(model, {site: (lambda x, site=site, fn=fn: watched[site](fn(x))) for site, fn in replace.items()})

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(ablation, "gate", spying)
        masked_margin(model, BATCH, masks, means)
    assert gate is original
    assert set(values) == set(widths(model))
    for site, x in values.items():
        off = masks[site] == 0
        assert torch.equal(x[..., off], means[site][off].expand_as(x)[..., off] if off.all() else means[site][off].expand(*x.shape[:2], -1))


def test_kept_nodes_keep_their_value_where_nothing_before_them_is_masked(model, means):
    index = NodeIndex.of(model)
    first = micro.flat_index(model, "0.mlp.post_act.0")
    everything_else = torch.tensor([n for n in range(len(index)) if n != first])
    with torch.no_grad():
        without = masked_margin(model, BATCH, index.masks(everything_else), means)
    r = means["0.mlp.post_act"][0].item() - 1.5  # channel 3 when neuron 0 has its mean, whatever the token
    assert without[0].item() == pytest.approx(2 * 2 * r / math.sqrt(1 + r * r) + micro.BIGRAM, abs=1e-5)


def test_hooks_are_gone_afterwards(model, means):
    index = NodeIndex.of(model)
    masked_margin(model, BATCH, index.masks(torch.tensor([0])), means)
    with record(model, ["0.mlp.post_act"]) as values:
        model(input_ids=BATCH.ids)
    assert all(not module._forward_hooks for module in model.modules())
    assert values["0.mlp.post_act"][0, 1, 0].item() == pytest.approx(micro.GELU_3, abs=1e-5)


def test_heaviside_by_hand():
    tau = torch.tensor([0.5, -0.5, 0.0, 2.0], requires_grad=True)
    on = _Heaviside.apply(tau, 0.5)
    assert on.tolist() == [1.0, 0.0, 0.0, 1.0]
    (on * torch.tensor([1.0, 2.0, 1.0, 1.0])).sum().backward()
    # s(1 - s) / T at tau / T = 1, -1, 0, 4: 0.196612, 0.196612, 0.25, 0.017663, over 0.5
    assert tau.grad.tolist() == pytest.approx([0.393224, 0.786448, 0.5, 0.035325], abs=1e-5)


def test_the_mask_gradient_is_the_effect_of_the_node(model, means):
    """The margin's derivative by a mask at 1, against a difference quotient in fp64."""
    index = NodeIndex.of(model)
    model = model.double()
    means = {site: mean.double() for site, mean in means.items()}
    flat = torch.full((len(index),), 0.9, dtype=torch.float64, requires_grad=True)
    masked_margin(model, BATCH, index.split(flat), means)[0].backward()
    for node in (*micro.CIRCUIT, "0.mlp.act_in.1"):
        place, step = micro.flat_index(model, node), 1e-6
        moved = [flat.detach().clone() for _ in range(2)]
        moved[0][place] += step
        moved[1][place] -= step
        up, down = (masked_margin(model, BATCH, index.split(m), means)[0].item() for m in moved)
        assert flat.grad[place].item() == pytest.approx((up - down) / (2 * step), abs=1e-6)


def test_means_are_those_of_the_network_over_the_corpus(corpus):
    model = new_sparse_gpt(SparseModelSpec(d_model=32, d_head=8, n_ctx=16), 2, 400, 0).eval()
    means = measure_means(model, corpus, 80 * 16, 3)
    with record(model) as values, torch.no_grad():
        model(input_ids=corpus.batch(3, 1 << 40, 80, 16))
    assert set(means) == set(widths(model))
    for site, x in values.items():
        assert torch.allclose(means[site], x.double().mean((0, 1)).float(), atol=1e-6), site


@pytest.mark.parametrize("pairs", [1, 2, 9])
def test_measuring_in_groups_of_like_length_equals_measuring_at_once(model, pairs: int):
    from extractor.objective import TaskBatch

    model = new_sparse_gpt(SparseModelSpec(d_model=32, d_head=8, n_ctx=16), 2, 30, 0).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(pairs)
    last = torch.randint(1, 12, (pairs,), generator=generator).repeat_interleave(2)
    ids = torch.randint(30, (2 * pairs, 12), generator=generator)
    correct = torch.tensor([3, 4]).repeat(pairs)
    batch = TaskBatch(ids, last, correct, 7 - correct, torch.tensor([1.0, -1.0]).repeat(pairs))
    index = NodeIndex.of(model)
    masks = index.masks(torch.randperm(len(index), generator=generator)[: len(index) // 2])
    means = {site: torch.randn(width, generator=generator) for site, width in widths(model).items()}
    twin = masked_margin(model, batch, masks, means)
    assert torch.allclose(measured_margin(model, batch, masks, means), twin, atol=1e-5)
    assert twin.std() > 1e-3


SPEC = PruneSpec(steps=120, lr=0.03, pairs=2)


def rank(model, means, env, spec: PruneSpec = SPEC, k_coef: float = 2e-3, seed: int = 0) -> list[int]:
    return learn_ranking(model, means, lambda step: BATCH, spec, k_coef, seed, env, "prune0").tolist()


def test_ranking_finds_the_planted_nodes(model, means, env):
    order = rank(model, means, env)
    assert sorted(order) == list(range(len(NodeIndex.of(model))))
    assert set(order[:3]) == set(micro.flat_indices(model).tolist())


def test_ranking_repeats_itself_under_a_seed(model, means, tmp_path: Path):
    assert rank(model, means, environment(tmp_path / "a")) == rank(model, means, environment(tmp_path / "b"))


def test_nodes_at_the_clamp_rank_by_when_they_were_last_on(model, means, tmp_path: Path):
    env = environment(tmp_path, Progress(checkpoint_seconds=0), "prune0")
    order = rank(model, means, env, SPEC.model_copy(update={"lr": 0.1, "init_noise": 0.05}))
    saved = env.checkpoints.load()
    assert saved is not None
    tau, last_on = saved[1]["extra/tau"], saved[1]["extra/last_on"]
    clamped = [n for n in order if tau[n] == -1]
    when = [last_on[n].item() for n in clamped]
    assert len(set(when)) > 1, "nodes should have left at different steps"
    assert when == sorted(when, reverse=True)
    on = [n for n in order if tau[n] > 0]
    assert order[: len(on)] == on
    assert [tau[n].item() for n in on] == sorted((tau[n].item() for n in on), reverse=True)


def test_an_interrupted_ranking_is_the_undisturbed_one(model, means, tmp_path: Path):
    calm = rank(model, means, environment(tmp_path / "calm", stage="prune0"))
    for steps in (5, 40):
        with pytest.raises(Stopped):
            rank(model, means, environment(tmp_path / "broken", stop_after(steps), "prune0"))
    assert rank(model, means, environment(tmp_path / "broken", stage="prune0")) == calm
    assert (tmp_path / "broken" / "metrics.jsonl").read_bytes() == (tmp_path / "calm" / "metrics.jsonl").read_bytes()


@settings(max_examples=200, deadline=None)
@given(most=st.integers(1, 300), data=st.data())
def test_bisection_finds_the_smallest_k_that_meets(most: int, data):
    smallest = data.draw(st.integers(1, most))
    asked: list[int] = []

    def meets(k: int) -> bool:
        asked.append(k)
        return k >= smallest

    assert _bisect(meets, most) == smallest
    assert all(1 <= k <= most for k in asked)
    assert len(asked) <= 2 * math.ceil(math.log2(most + 1)) + 2


@pytest.mark.parametrize("most", [1, 2, 3, 64, 100])
def test_bisection_gives_up_where_even_all_do_not_meet(most: int):
    assert _bisect(lambda k: False, most) is None


def test_calibration_recovers_a_known_scale_and_shift():
    generator = torch.Generator().manual_seed(0)
    true = 1.5 * torch.randn(40_000, generator=generator, dtype=torch.float64)
    sign = torch.where(torch.rand(40_000, generator=generator, dtype=torch.float64) < torch.sigmoid(true), 1.0, -1.0)
    found = calibrate((true - 0.7) / 4, sign)  # so that 4 x margin + 0.7 is the truth
    assert found.scale == pytest.approx(4, rel=0.05)
    assert found.shift == pytest.approx(0.7, abs=0.06)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 9999), spread=st.floats(1e-3, 50), offset=st.floats(-5, 5), skill=st.floats(-2, 3))
def test_calibration_never_raises_the_loss(seed: int, spread: float, offset: float, skill: float):
    generator = torch.Generator().manual_seed(seed)
    sign = torch.tensor([1.0, -1.0]).repeat(32)
    margin = spread * (skill * sign + torch.randn(64, generator=generator)) + offset
    plain = task_loss(margin, sign).item()
    # The trace of regularisation may cost what the identity would have paid: 1e-4 x (log^2 of the spread + mean^2), thousandths of a nat.
    allowed = 1e-4 * (math.log(margin.std().item()) ** 2 + margin.mean().item() ** 2)
    assert calibrated_loss(margin, sign, calibrate(margin, sign)) <= plain + allowed + 1e-4


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 9999), skill=st.floats(-3, 3))
def test_calibrated_no_network_is_worse_than_chance(seed: int, skill: float):
    sign = torch.tensor([1.0, -1.0]).repeat(32)
    margin = skill * sign + torch.randn(64, generator=torch.Generator().manual_seed(seed))
    assert calibrated_loss(margin, sign, calibrate(margin, sign)) <= CHANCE + 1e-2


def test_calibration_keeps_the_scale_positive_and_bears_constant_margins():
    sign = torch.tensor([1.0, -1.0]).repeat(8)
    assert calibrate(-3 * sign, sign).scale > 0
    constant = torch.full((16,), 2.5)
    found = calibrate(constant, sign)
    assert math.isfinite(found.scale)
    assert math.isfinite(found.shift)
    assert calibrated_loss(constant, sign, found) == pytest.approx(CHANCE, abs=1e-3)


def test_a_probe_measures_the_calibrated_loss_of_the_masked_network(model, means, probe: Probe):
    nodes = micro.flat_indices(model)
    loss, calibration = probe.measure(nodes)
    margin = masked_margin(model, BATCH, probe.index.masks(nodes), means)
    assert loss == pytest.approx(task_loss(calibration.scale * margin + calibration.shift, BATCH.sign).item(), abs=1e-6)
    assert loss < 0.01
    assert probe.measure(everything(probe)[:0])[0] == pytest.approx(CHANCE, abs=1e-3)


def test_the_circuit_alone_will_do_and_is_needed(model, probe: Probe):
    demand = Demand.of(probe, target=0.15, margin=0.02, necessity=0.5)
    nodes = micro.flat_indices(model)
    assert demand.target == pytest.approx(0.13)
    assert demand.is_met(nodes, probe)
    for left_out in range(3):
        fewer = torch.cat([nodes[:left_out], nodes[left_out + 1 :]])
        assert not demand.is_met(fewer, probe)
    assert not demand.is_met(nodes[:0], probe)


def test_a_sufficient_set_that_the_model_does_not_need_is_refused():
    model = micro.micro_model(redundant=True)
    probe = Probe(model, micro.micro_means(model), BATCH)
    one_way = micro.flat_indices(model)
    assert probe.measure(one_way)[0] < 0.13
    assert Demand.of(probe, 0.15, 0.02, 0.0).is_met(one_way, probe)
    assert not Demand.of(probe, 0.15, 0.02, 0.5).is_met(one_way, probe)


def test_necessity_is_counted_from_the_full_models_loss_and_capped_at_chance(probe: Probe):
    full = probe.measure(everything(probe))[0]
    assert Demand.of(probe, 0.15, 0.02, 0.3).without == pytest.approx(full + 0.32)
    assert Demand.of(probe, 0.15, 0.02, 5.0).without == pytest.approx(0.97 * math.log(2))
    assert Demand.of(probe, 0.15, 0.02, 0.0).without == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_smallest_mlp_circuit_is_three_nodes_and_two_edges_whatever_the_ranking(model, probe: Probe, seed: int):
    ranking = torch.randperm(len(probe.index), generator=torch.Generator().manual_seed(seed))
    found = smallest_circuit(ranking, probe, Demand.of(probe, 0.15, 0.02, 0.5), fresh)
    assert found.met
    assert set(found.nodes.tolist()) == set(micro.flat_indices(model).tolist())
    assert found.edges == 2
    assert found.loss == pytest.approx(probe.measure(found.nodes)[0], abs=1e-9)


def test_a_redundant_model_needs_both_ways():
    model = micro.micro_model(redundant=True)
    probe = Probe(model, micro.micro_means(model), BATCH)
    ranking = torch.randperm(len(probe.index), generator=torch.Generator().manual_seed(0))
    found = smallest_circuit(ranking, probe, Demand.of(probe, 0.15, 0.02, 0.5), fresh)
    assert found.met
    assert len(found.nodes) >= 4
    assert probe.measure(probe.others(found.nodes))[0] >= 0.5
    either = smallest_circuit(ranking, probe, Demand.of(probe, 0.15, 0.02, 0.0), fresh)
    assert (len(either.nodes), either.edges) == (3, 2)


def test_a_target_out_of_reach_keeps_all_nodes_and_says_so(probe: Probe):
    ranking = torch.arange(len(probe.index))
    found = smallest_circuit(ranking, probe, Demand(target=-1.0), fresh)
    assert not found.met
    assert torch.equal(found.nodes, ranking)
    assert found.edges == probe.edges(ranking)


def test_nodes_that_went_by_luck_go_back_in(model, probe: Probe):
    easy = replace(BATCH, sign=torch.ones(4))  # pairs on which any set of nodes will do
    ranking = torch.randperm(len(probe.index), generator=torch.Generator().manual_seed(0))
    demand = Demand(0.13)
    found = smallest_circuit(ranking, probe, demand, lambda trial: easy)
    assert found.met
    assert demand.is_met(found.nodes, probe)
    assert set(micro.flat_indices(model).tolist()) <= set(found.nodes.tolist())


def test_every_trial_has_pairs_of_its_own(probe: Probe):
    asked: list[int] = []
    smallest_circuit(torch.arange(len(probe.index)), probe, Demand(0.13), lambda trial: asked.append(trial) or BATCH)
    assert len(asked) > 1
    assert asked == list(range(len(asked)))


def test_every_try_is_told(probe: Probe):
    told: list[tuple[int, int]] = []
    smallest_circuit(torch.arange(len(probe.index)), probe, Demand(0.13), fresh, lambda done, of: told.append((done, of)))
    assert [done for done, _ in told] == list(range(1, told[0][1] + 1))


def test_the_four_networks_of_the_micro_model(model, probe: Probe):
    ranking = torch.randperm(len(probe.index), generator=torch.Generator().manual_seed(0))
    found = smallest_circuit(ranking, probe, Demand.of(probe, 0.15, 0.02, 0.5), fresh)
    report = validate(found, probe, BATCH, 0)
    with torch.no_grad():
        plain = task_loss(answer_margin(model(input_ids=BATCH.ids).logits[:, -1], BATCH), BATCH.sign).item()
    assert report.loss["full"] == pytest.approx(plain, abs=1e-6)
    assert report.loss["circuit"] == pytest.approx(found.loss, abs=1e-6)
    assert report.loss["without_circuit"] == pytest.approx(CHANCE, abs=1e-2)
    assert report.loss["circuit"] < report.loss["random"]
    assert report.accuracy["full"] == report.accuracy["circuit"] == 1.0
    assert set(report.loss) == set(report.accuracy) == {"full", "circuit", "without_circuit", "random"}
    assert report.held_out_pairs == 2


def test_the_plain_calibration_changes_nothing():
    margin, sign = torch.tensor([1.0, 2.0]), torch.tensor([1.0, -1.0])
    assert calibrated_loss(margin, sign, Calibration(1.0, 0.0)) == task_loss(margin, sign).item()
