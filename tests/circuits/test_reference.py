"""What a circuit computes, by the plain definition, on a model that a person can compute and on models of every kind."""

from __future__ import annotations

import math
from functools import partial

import micro
import pytest
import torch
from problems import EVERY_KIND, everything, names_of, nodes_of, random_base, random_batch, random_model
from worlds import VOCABULARY

from extractor.circuits.graph import CircuitMask, NodeIndex, links
from extractor.circuits.masks import compete
from extractor.circuits.mean_activations import Means, measure_means, stored_means
from extractor.circuits.reference import masked_logit_diff, masked_residuals, resampled
from extractor.circuits.sites import widths
from extractor.circuits.standard import PaperStandard
from extractor.data.prompts import logit_diff
from extractor.spec.schema import SparseModelSpec
from extractor.training.train_sparse import new_sparse_gpt

BATCH = micro.micro_batch()
every_kind = pytest.mark.parametrize("kind", EVERY_KIND)


@pytest.fixture
def model():
    return micro.micro_model()


@pytest.fixture
def means(model):
    return micro.micro_means(model)


def masks_of(model, graph: CircuitMask) -> dict[str, torch.Tensor]:
    return NodeIndex.of(model).split(graph.nodes.to(model.dtype))


def without(model, *names: str) -> dict[str, torch.Tensor]:
    return masks_of(model, nodes_of(model, *names).complement())


def values_of(model, batch, masks, base, edges=None) -> dict[str, torch.Tensor]:
    """{site: (B, T, width)} the values that go on from every site."""
    seen: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        masked_logit_diff(model, batch, masks, base, edges, lambda site, x: seen.setdefault(site, x))
    return seen


def edges_but(model, *gone: tuple[str, int, str, int]) -> dict:
    """Edge masks with all on but those from (site, channel) to (site, channel)."""
    masks = {(source, target): torch.ones_like(weight) for source, target, weight in links(model)}
    for source, column, target, row in gone:
        masks[source, target][row, column] = 0
    return masks


def test_the_micro_model_is_what_it_says(model):
    with torch.no_grad():
        logits = model(input_ids=BATCH.ids).logits[:, -1]
    a = 2 * (micro.GELU_3 - 1.5) / math.sqrt(1 + (micro.GELU_3 - 1.5) ** 2)
    decoy = 0.1 * micro.GELU_3 + 0.1  # channel 2 on B: neuron 1, and v.0 = 0.5 x 2 over two tokens, times 0.1, plus what neuron 1 reads
    diff = logit_diff(logits, BATCH)
    assert diff[0].item() == pytest.approx(2 * a + micro.BIGRAM, abs=1e-5)
    assert diff[1].item() == pytest.approx(-2 * 2 * 1.5 / math.sqrt(1 + 1.5**2) + micro.BIGRAM, rel=0.05)
    assert decoy < 0.5
    assert torch.equal(diff[:2], diff[2:])


# everything on


@every_kind
def test_everything_on_is_the_model_itself(kind: str):
    model = random_model(3, torch.float64, **EVERY_KIND[kind])
    batch, base = random_batch(5, 1, torch.float64), random_base(model)
    with torch.no_grad():
        plain = logit_diff(model(input_ids=batch.ids).logits[torch.arange(10), batch.last], batch)
        masks = masks_of(model, everything(model))
        assert plain.std() > 0.1
        assert torch.allclose(masked_logit_diff(model, batch, masks, base), plain, atol=1e-9)
        assert torch.allclose(masked_logit_diff(model, batch, masks, base, edges_but(model)), plain, atol=1e-9)
        assert torch.allclose(masked_logit_diff(model, batch, {}, {}), plain, atol=1e-9)


@every_kind
def test_the_values_and_residuals_of_everything_on_are_the_models(kind: str):
    model = random_model(4, torch.float64, **EVERY_KIND[kind])
    batch, base = random_batch(3, 2, torch.float64), random_base(model)
    masks = masks_of(model, everything(model))
    with model.record() as values, torch.no_grad():
        model(input_ids=batch.ids)
    seen = values_of(model, batch, masks, base)
    assert list(seen) == list(values)
    for site, x in values.items():
        assert torch.allclose(seen[site], x, atol=1e-9), site
    context = model.context(batch.ids.shape[1])
    residuals = masked_residuals(model, batch.ids, masks, base)
    assert len(residuals) == 2 * model.config.n_layer + 1
    h, own = model.embed(batch.ids, context), residuals[::2] if model.config.parallel else residuals
    assert len(own) == model.n_sublayers + 1
    for index, found in enumerate(own):
        assert torch.allclose(found, h, atol=1e-9), index
        if index < model.n_sublayers:
            h = model.sublayer(index, h, context)


def test_one_node_off_changes_the_margins_of_a_random_model(corpus):
    model = new_sparse_gpt(SparseModelSpec(d_model=32, d_head=8, n_ctx=16), 2, VOCABULARY, 0).eval().requires_grad_(False)
    means = measure_means(model, corpus, 512, 0)
    masks = masks_of(model, everything(model))
    full = masked_logit_diff(model, BATCH, masks, means)
    assert torch.allclose(full, logit_diff(model(input_ids=BATCH.ids).logits[:, -1], BATCH), atol=1e-5)
    masks["1.mlp.resid_delta"][-1] = 0
    assert not torch.allclose(masked_logit_diff(model, BATCH, masks, means), full, atol=1e-5)


# nodes off


def test_with_every_node_off_only_the_direct_token_path_is_left(model, means):
    ablated = masked_logit_diff(model, BATCH, masks_of(model, nodes_of(model)), means)
    written = means["0.attn.resid_delta"] + means["0.mlp.resid_delta"]
    for row in range(4):
        token = int(BATCH.ids[row, 1])
        h = model.transformer.wte.weight[token] + written
        normed = h / h.square().mean().sqrt()
        direct = normed @ (model.lm_head.weight[micro.YES] - model.lm_head.weight[micro.NO]) + micro.BIGRAM
        assert ablated[row].item() == pytest.approx(direct.item(), abs=1e-6)


@every_kind
def test_nodes_that_are_off_have_exactly_their_base(kind: str):
    model = random_model(5, **EVERY_KIND[kind])
    batch, base = random_batch(3, 3), random_base(model, 1)
    nodes = torch.rand(len(NodeIndex.of(model)), generator=torch.Generator().manual_seed(0)) < 0.5
    for site, x in values_of(model, batch, masks_of(model, CircuitMask(model, nodes)), base).items():
        off = ~NodeIndex.of(model).split(nodes)[site]
        assert off.any()
        assert torch.equal(x[..., off], base[site][off].expand(*x.shape[:2], -1)), site
        assert not torch.equal(x[..., ~off], base[site][~off].expand(*x.shape[:2], -1)), site


def test_kept_nodes_keep_their_value_where_nothing_before_them_is_off(model, means):
    masks = without(model, "0.mlp.post_act.0")
    diff = masked_logit_diff(model, BATCH, masks, means)
    r = means["0.mlp.post_act"][0].item() - 1.5  # channel 3 when neuron 0 has its mean, whatever the token
    assert diff[0].item() == pytest.approx(2 * 2 * r / math.sqrt(1 + r * r) + micro.BIGRAM, abs=1e-5)
    plain = values_of(model, BATCH, masks_of(model, everything(model)), means)
    values = values_of(model, BATCH, masks, means)
    for site in ("0.attn.act_in", "0.attn.v", "0.mlp.act_in"):
        assert torch.equal(values[site], plain[site])


def test_zero_is_a_base_like_any_other(model):
    zeros = {site: torch.zeros(width) for site, width in widths(model).items()}
    diff = masked_logit_diff(model, BATCH, without(model, "0.mlp.post_act.0"), zeros)
    assert diff[0].item() == pytest.approx(-2 * 2 * 1.5 / math.sqrt(1 + 1.5**2) + micro.BIGRAM, abs=1e-5)


def test_a_base_of_another_run_is_taken_prompt_by_prompt_and_token_by_token(model):
    """A and B take each other's values: so the circuit off says NO on A and YES on B."""
    with model.record() as values:
        model(input_ids=BATCH.ids)
    swapped = {site: x[[1, 0, 3, 2]] for site, x in values.items()}
    masks = without(model, *micro.CIRCUIT)
    seen = values_of(model, BATCH, masks, swapped)
    assert torch.equal(seen["0.mlp.post_act"][..., 0], values["0.mlp.post_act"][[1, 0, 3, 2]][..., 0])
    assert seen["0.mlp.post_act"][1, :, 0].tolist() == pytest.approx([0.0, micro.GELU_3], abs=1e-5)
    assert (masked_logit_diff(model, BATCH, masks, swapped) > 0).tolist() == [False, True, False, True]


def test_values_are_borrowed_from_other_prompts_of_the_same_length():
    model, batch = random_model(6), random_batch(12, 4)
    with model.record() as values:
        model(input_ids=batch.ids)
    borrowed, again = resampled(model, batch), resampled(model, batch)
    first = values["0.attn.act_in"]
    partners = [next(other for other in range(24) if torch.equal(borrowed["0.attn.act_in"][row], first[other])) for row in range(24)]
    assert sorted(partners) == list(range(24)), "every prompt lends once"
    assert batch.last[partners].tolist() == batch.last.tolist()
    lengths = batch.last.tolist()
    assert all((partner != row) == (lengths.count(lengths[row]) > 1) for row, partner in enumerate(partners))
    assert 0.2 < sum(row % 2 != partner % 2 for row, partner in enumerate(partners)) / 24 < 0.8, "either answer's"
    for site, x in values.items():
        assert torch.equal(borrowed[site], x[partners]), site
        assert torch.equal(again[site], borrowed[site]), site


# AbsTopK among what is on


def test_what_is_off_does_not_compete_by_hand():
    x = torch.tensor([[5.0, -4.0, 3.0, 1.0]])
    on = partial(torch.tensor, dtype=torch.bool)
    assert compete(x, on([1, 1, 1, 1]), 2).tolist() == [[5.0, -4.0, 0.0, 0.0]]
    # Without the first, the third is among the two largest; and the first, were it on, would stay.
    assert compete(x, on([0, 1, 1, 1]), 2).tolist() == [[5.0, -4.0, 3.0, 0.0]]
    assert compete(x, on([0, 0, 1, 1]), 2).tolist() == [[5.0, -4.0, 3.0, 1.0]]
    assert compete(x, on([0, 0, 0, 1]), 2) is x
    assert compete(x, on([0, 1, 1, 0]), 1).tolist() == [[5.0, -4.0, 0.0, 0.0]]
    assert compete(x, on([1, 1, 1, 1]), 4) is x


def test_ties_with_the_kth_stay():
    assert compete(torch.tensor([2.0, -2.0, 1.0]), torch.ones(3, dtype=torch.bool), 1).tolist() == [2.0, -2.0, 0.0]


def test_a_neuron_that_is_off_takes_no_other_neurons_place():
    """One neuron in four may speak; on A neuron 0 (gelu(3)) shouts neuron 2 (gelu(1.4)) down, unless it is off."""
    model = micro.micro_model(activation_frac=1.0, site_k={"mlp.post_act": 1})
    base = {site: torch.full((width,), 7.0) for site, width in widths(model).items()}
    all_on = values_of(model, BATCH, masks_of(model, everything(model)), base)["0.mlp.post_act"][0, 1]
    assert all_on.tolist() == pytest.approx([micro.GELU_3, 0, 0, 0], abs=1e-5)
    one_off = values_of(model, BATCH, without(model, "0.mlp.post_act.0"), base)["0.mlp.post_act"][0, 1]
    gelu = 1.4 * 0.5 * (1 + math.erf(1.4 / math.sqrt(2)))
    assert one_off.tolist() == pytest.approx([7, 0, gelu, 0], abs=1e-5)


# edges off


def test_an_edge_that_is_off_carries_its_sources_base(model, means):
    """Neuron 0 hears channel 0's mean (1), times 1.5, on A and on B alike; neuron 2 hears the channel itself."""
    values = values_of(model, BATCH, {}, means, edges_but(model, ("0.mlp.act_in", 0, "0.mlp.post_act", 0)))["0.mlp.post_act"]
    gelu = lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))  # noqa: E731
    assert means["0.mlp.act_in"][0].item() == pytest.approx(1.0, abs=1e-5)
    assert values[:2, 1, 0].tolist() == pytest.approx([gelu(1.5)] * 2, abs=1e-5)
    assert values[:2, 1, 2].tolist() == pytest.approx([gelu(1.4), 0.0], abs=1e-5)


@pytest.mark.parametrize("sinks", [False, True])
def test_an_edge_from_attention_that_is_off_carries_the_base_through_the_pattern(sinks: bool):
    """Nothing scores, so a query at place 1 gives both tokens and, where there is one, the sink a share alike."""
    model = micro.micro_model(sinks=sinks)
    base = {site: torch.zeros(width) for site, width in widths(model).items()} | {"0.attn.v": torch.tensor([3.0, 0, 0, 0])}
    share = 1 / 3 if sinks else 1 / 2
    plain = values_of(model, BATCH, {}, base)["0.attn.resid_delta"][:2, 1]
    assert plain[:, 2].tolist() == pytest.approx([0.0, 0.1 * share], abs=1e-6)  # v.0 is 1 on B
    values = values_of(model, BATCH, {}, base, edges_but(model, ("0.attn.v", 0, "0.attn.resid_delta", 2)))
    assert values["0.attn.resid_delta"][:2, 1, 2].tolist() == pytest.approx([0.1 * 3 * 2 * share] * 2, abs=1e-6)
    assert torch.equal(values["0.attn.v"], values_of(model, BATCH, {}, base)["0.attn.v"])


@pytest.mark.parametrize("target", ["0.attn.q", "0.attn.k", "0.attn.v", "0.attn.resid_delta", "0.mlp.post_act", "0.mlp.resid_delta"])
def test_all_edges_of_a_link_off_is_what_its_sources_off_give_its_targets(target: str):
    model = random_model(7, torch.float64, n_layer=1, activation_frac=1.0)
    batch, base = random_batch(4, 5, torch.float64), random_base(model, 2)
    masks = edges_but(model)
    source = next(source for source, other in masks if other == target)
    masks[source, target].zero_()
    on = {site: torch.ones(width) for site, width in widths(model).items()}
    by_edges = values_of(model, batch, on, base, masks)[target]
    by_nodes = values_of(model, batch, on | {source: torch.zeros(widths(model)[source])}, base)[target]
    assert torch.allclose(by_edges, by_nodes, atol=1e-9)
    assert not torch.allclose(by_edges, values_of(model, batch, on, base)[target], atol=1e-3)


# gradients


@pytest.mark.parametrize("kind", ["sinks", "abs_topk", "position_channels", "gated", "query_key_norm", "all"])
def test_the_gradient_of_a_mask_is_its_difference_quotient(kind: str):
    """In fp64, of node masks and of edge masks, all between 0 and 1."""
    model = random_model(8, torch.float64, **EVERY_KIND[kind])
    batch, base = random_batch(3, 6, torch.float64), random_base(model, 3)
    index = NodeIndex.of(model)
    generator = torch.Generator().manual_seed(0)
    flat = 0.5 + 0.5 * torch.rand(len(index), generator=generator, dtype=torch.float64)
    edges = {(s, t): 0.5 + 0.5 * torch.rand(w.shape, generator=generator, dtype=torch.float64) for s, t, w in links(model)}
    weight = torch.randn(len(batch.ids), generator=generator, dtype=torch.float64)

    def told() -> torch.Tensor:
        return (masked_logit_diff(model, batch, index.split(flat), base, edges) * weight).sum()

    tensors = [flat, *edges.values()]
    for tensor in tensors:
        tensor.requires_grad_()
    told().backward()
    largest = [(tensor, int(tensor.grad.abs().argmax())) for tensor in tensors]
    others = [(flat, int(place)) for place in torch.randperm(len(flat), generator=generator)[:12]]
    for tensor, place in largest + others:
        moved = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                tensor.view(-1)[place] += step
                moved.append(told().item())
                tensor.view(-1)[place] -= step
        quotient = (moved[0] - moved[1]) / 2e-6
        assert tensor.grad.view(-1)[place].item() == pytest.approx(quotient, rel=1e-5, abs=1e-6)
    assert all(tensor.grad.abs().max() > 1e-4 for tensor in tensors)


def test_the_gradient_of_a_planted_nodes_mask_is_its_effect(model, means):
    """Near 1, on the micro model: only what lies on a path to the answer has one."""
    index = NodeIndex.of(model)
    flat = torch.full((len(index),), 0.9, requires_grad=True)
    masked_logit_diff(model, BATCH, index.split(flat), means)[0].backward()
    told = names_of(model, flat.grad.abs() > 1e-3)
    assert set(micro.CIRCUIT) <= told
    assert not told & {"0.mlp.post_act.2", "0.mlp.post_act.3", "0.attn.q.0"}


def test_nothing_is_hooked(model, means):
    masked_logit_diff(model, BATCH, without(model, *micro.CIRCUIT), means)
    with model.record(["0.mlp.post_act"]) as values:
        model(input_ids=BATCH.ids)
    assert all(not module._forward_hooks for module in model.modules())
    assert values["0.mlp.post_act"][0, 1, 0].item() == pytest.approx(micro.GELU_3, abs=1e-5)


# means


def test_the_first_token_of_models_like_pretrained_ones_has_means_of_its_own(corpus):
    """Everything off: the first token has its means, every later one those of later tokens; both are kept in a file."""
    model = random_model(3, rotary=[1.0, 0.1], gated=True, vocab_size=VOCABULARY, n_ctx=16)
    means = measure_means(model, corpus, 80 * 16, 3)
    with model.record() as values, torch.no_grad():
        model(input_ids=corpus.batch(3, 1 << 40, 80, 16))
    assert means.first is not None
    for site, x in values.items():
        assert torch.allclose(means.first[site], x[:, 0].double().mean(0).float(), atol=1e-6), site
        assert torch.allclose(means[site], x[:, 1:].double().mean((0, 1)).float(), atol=1e-6), site
    read, batch = Means.from_stored(stored_means(means)), random_batch(3)
    off = values_of(model, batch, masks_of(model, nodes_of(model)), read)
    for site, x in off.items():
        assert torch.equal(x[:, 0], means.first[site].expand_as(x[:, 0])), site
        assert torch.equal(x[:, 1:], means[site].expand_as(x[:, 1:])), site
    paper = PaperStandard(model, read, "mean")
    network = paper.network(nodes_of(model).nodes)
    wanted = masked_logit_diff(model, batch, masks_of(model, nodes_of(model)), read)
    assert torch.allclose(network.logit_diffs(network.prepare(batch))[0], wanted, atol=1e-4)


def test_means_are_those_of_the_network_over_the_corpus(corpus):
    model = new_sparse_gpt(SparseModelSpec(d_model=32, d_head=8, n_ctx=16), 2, VOCABULARY, 0).eval()
    means = measure_means(model, corpus, 80 * 16, 3)
    with model.record() as values, torch.no_grad():
        model(input_ids=corpus.batch(3, 1 << 40, 80, 16))
    assert set(means) == set(widths(model))
    for site, x in values.items():
        assert torch.allclose(means[site], x.double().mean((0, 1)).float(), atol=1e-6), site
