"""The network that shrinks, and its reference implementation: values and gradients, in fp64."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import KINDS, everything, models, nodes_of, random_base, random_batch, random_edges, random_model

from extractor.circuits.graph import NodeIndex
from extractor.circuits.masks import Masks
from extractor.circuits.network import FastMaskedModel
from extractor.circuits.reference import ReferenceMaskedModel, masked_logit_diff, resampled
from extractor.data.prompts import TaskBatch

SETS = 3
KEPT = ("none", "one", "few", "half", "most", "all", "no heads", "no values", "scores alone", "no reads", "no writes", "no neurons")


def kept_nodes(model, how: str, seed: int) -> torch.Tensor:
    """(N,) bool: which nodes are computed."""
    index = NodeIndex.of(model)
    generator = torch.Generator().manual_seed(seed)
    chance = torch.rand(len(index), generator=generator)
    share = {"none": 0.0, "few": 0.1, "half": 0.5, "most": 0.9, "all": 1.0}.get(how, 0.7)
    kept = chance < share
    if how == "one":
        kept = chance == chance.max()
    gone = {
        "no heads": ("attn.q", "attn.k", "attn.v", "attn.act_in"),
        "no values": ("attn.v",),
        "no reads": ("act_in",),
        "no writes": ("resid_delta",),
        "no neurons": ("post_act",),
    }.get(how, ())
    for site, part in index.split(kept).items():
        if site.endswith(gone) or (how == "scores alone" and not site.endswith(("attn.q", "attn.k"))):
            part.fill_(False)
    return kept


def reference(model, batch: TaskBatch, base, nodes: torch.Tensor, edges=None, gradient: torch.Tensor | None = None):
    """(diffs, gradients of sum(diffs x gradient) by nodes and edges) of one mask set."""
    nodes = nodes.clone().requires_grad_()
    edges = None if edges is None else {link: mask.clone().requires_grad_() for link, mask in edges.items()}
    found = masked_logit_diff(model, batch, NodeIndex.of(model).split(nodes), base, edges)
    asked = [nodes, *(edges or {}).values()]
    gradients = torch.autograd.grad((found if gradient is None else found * gradient).sum(), asked, materialize_grads=True)
    return found.detach(), gradients[0], dict(zip(edges or {}, gradients[1:], strict=True))


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal shapes, and values to 1e-11 of the largest."""
    largest = other.abs().max().item() if other.numel() else 0.0
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=1e-11 * (1 + largest))


def mask_sets(kept: torch.Tensor, seed: int, fractional: bool, dtype=torch.float64) -> torch.Tensor:
    """(P, N) masks that are on at kept nodes only; the first has all of them on."""
    generator = torch.Generator().manual_seed(seed + 1)
    masks = (torch.rand(SETS, len(kept), generator=generator) < 0.7).to(dtype)
    if fractional:
        masks = masks * (0.2 + 0.8 * torch.rand(masks.shape, generator=generator, dtype=dtype))
    masks[0] = 1
    return masks * kept


def assert_definition(network, batch: TaskBatch, values, with_edges: bool, fractional: bool, seed: int) -> None:
    """Random mask sets give the values and gradients of the reference with these replacement values."""
    model, kept = network.model, network.kept_nodes
    masks = mask_sets(kept, seed, fractional).requires_grad_()
    edges = {link: mask.requires_grad_() for link, mask in random_edges(model, SETS, seed).items()} if with_edges else None
    found = network.logit_diffs(network.prepare(batch), Masks(masks, None if edges is None else network.cut(edges)))
    assert found.shape == (SETS, 8)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    given_masks = [masks, *(edges or {}).values()]
    own = torch.autograd.grad((found * weight).sum(), given_masks, materialize_grads=True) if found.requires_grad else None
    for row in range(SETS):
        one = None if edges is None else {link: mask[row].detach() for link, mask in edges.items()}
        expected, by_nodes, by_edges = reference(model, batch, values, masks[row].detach(), one, weight[row])
        assert close(found[row].detach(), expected)
        if own is None:  # nothing that is kept reaches the logits
            assert close(by_nodes[kept], torch.zeros_like(by_nodes[kept]))
            continue
        assert close(own[0][row][kept], by_nodes[kept])
        for gradient, (link, wanted) in zip(own[1:], by_edges.items(), strict=True):
            source, target = (NodeIndex.of(model).split(kept)[site] for site in link)
            assert close(gradient[row][target][:, source], wanted[target][:, source]), link


@settings(max_examples=50, deadline=None)
@given(models, st.sampled_from(KEPT), st.booleans(), st.booleans(), st.integers(0, 10_000))
def test_the_network_is_the_definition_in_values_and_gradients(model, how: str, with_edges: bool, fractional: bool, seed: int):
    batch, base, kept = random_batch(4, seed, torch.float64), random_base(model, seed), kept_nodes(model, how, seed)
    assert_definition(FastMaskedModel(model, base, kept), batch, base, with_edges, fractional, seed)


@pytest.mark.parametrize("kind", KINDS)
def test_without_masks_all_kept_nodes_and_all_edges_are_on(kind: str):
    model = random_model(1, torch.float64, **KINDS[kind])
    batch, base = random_batch(5, 2, torch.float64), random_base(model, 3)
    for how in ("none", "half", "all"):
        kept = kept_nodes(model, how, 4)
        network = FastMaskedModel(model, base, kept)
        found = network.logit_diffs(network.prepare(batch))
        assert len(network) == int(kept.sum())
        assert found.shape == (1, 10)
        assert close(found[0], reference(model, batch, base, kept.double())[0])
        assert found.std() > 0.1


@pytest.mark.parametrize("how", ["few", "half", "all"])
def test_edge_masks_alone_leave_every_kept_node_on(how: str):
    model = random_model(2, torch.float64)
    batch, base, kept = random_batch(4, 1, torch.float64), random_base(model, 1), kept_nodes(model, how, 1)
    edges = random_edges(model, SETS, 1)
    network = FastMaskedModel(model, base, kept)
    found = network.logit_diffs(network.prepare(batch), Masks(edges=network.cut(edges)))
    for row in range(SETS):
        one = {link: mask[row] for link, mask in edges.items()}
        assert close(found[row], reference(model, batch, base, kept.double(), one)[0])


@pytest.mark.parametrize("kept", [(), ("0.mlp.resid_delta.3",), ("0.attn.act_in.1", "0.attn.q.2"), ("0.mlp.act_in.1", "0.mlp.post_act.2")])
def test_every_set_has_its_row_where_no_edge_tells_them_apart(kept: tuple[str, ...]):
    model = random_model(2, torch.float64)
    batch, base = random_batch(2, 1, torch.float64), random_base(model, 1)
    network = FastMaskedModel(model, base, nodes_of(model, *kept).nodes)
    masks = Masks(mask_sets(network.kept_nodes, 0, False), network.cut(random_edges(model, SETS)))
    assert network.logit_diffs(network.prepare(batch), masks).shape == (SETS, 4)
    assert network.logit_diffs(network.prepare(batch), replace(masks, edges=None)).shape == (SETS, 4)


def test_a_network_of_everything_is_the_model():
    for kind, changes in KINDS.items():
        model = random_model(6, torch.float64, **changes)
        batch = random_batch(4, 6, torch.float64)
        network = FastMaskedModel(model, random_base(model), everything(model).nodes)
        with torch.no_grad():
            logits = model(input_ids=batch.ids).logits[torch.arange(8), batch.last]
        plain = logits.gather(1, batch.first[:, None]) - logits.gather(1, batch.second[:, None])
        assert close(network.logit_diffs(network.prepare(batch)), plain.T), kind


# prompts


def test_margins_come_in_the_batchs_order_whatever_the_lengths_and_groups():
    model = random_model(3, torch.float64, d_pos_emb=2)
    batch, base, kept = random_batch(9, 7, torch.float64), random_base(model, 2), kept_nodes(model, "most", 3)
    assert batch.last.tolist() != sorted(batch.last.tolist())
    masks = Masks(mask_sets(kept, 1, True))
    network = FastMaskedModel(model, base, kept)
    whole = network.logit_diffs(network.prepare(batch, groups=1), masks)
    for groups in (2, 4, 18, 40):
        prepared = network.prepare(batch, groups)
        assert 1 < len(prepared) <= groups
        assert close(network.logit_diffs(prepared, masks), whole)
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    assert close(network.logit_diffs(network.prepare(batch.rows(order)), masks), whole[:, order])
    assert whole.std() > 0.1


@pytest.mark.parametrize("pairs", [1, 2, 9])
def test_few_prompts_will_do(pairs: int):
    model = random_model(0, torch.float64)
    batch, base, kept = random_batch(pairs, pairs, torch.float64), random_base(model), kept_nodes(model, "half", 0)
    network = FastMaskedModel(model, base, kept)
    assert close(network.logit_diffs(network.prepare(batch))[0], reference(model, batch, base, kept.double())[0])


def test_groups_are_of_like_length_and_cut_to_it():
    model = random_model(0)
    batch = random_batch(16, 0)
    network = FastMaskedModel(model, random_base(model), everything(model).nodes)
    groups = network.prepare(batch)
    assert sorted(torch.cat([group.rows for group in groups]).tolist()) == list(range(32))
    for before, after in pairwise(groups):
        assert before.last.max() <= after.last.min()
    assert [group.tracked.shape[2] for group in groups] == [int(group.last.max()) + 1 for group in groups]
    assert groups[0].tracked.shape[2] < groups[-1].tracked.shape[2]


def test_what_stands_behind_the_last_token_does_not_matter():
    model = random_model(5, torch.float64)
    batch, base, kept = random_batch(4, 3, torch.float64), random_base(model), kept_nodes(model, "most", 1)
    network = FastMaskedModel(model, base, kept)
    other = torch.where(torch.arange(batch.ids.shape[1]) > batch.last[:, None], 7, batch.ids)
    assert not torch.equal(other, batch.ids)
    assert close(network.logit_diffs(network.prepare(replace(batch, ids=other))), network.logit_diffs(network.prepare(batch)))


# populations


@pytest.mark.parametrize("with_edges", [False, True])
def test_many_sets_at_once_are_each_alone(with_edges: bool):
    model = random_model(4, **KINDS["abs_topk"])
    batch, base, kept = random_batch(6, 2), random_base(model, 5), kept_nodes(model, "most", 5)
    masks, edges = mask_sets(kept, 2, False, torch.float32), random_edges(model, SETS, 3)
    network = FastMaskedModel(model, base, kept)
    prompts = network.prepare(batch)
    cut = network.cut(edges) if with_edges else None
    together = network.logit_diffs(prompts, Masks(masks, cut))
    for row in range(SETS):
        one = None if cut is None else {link: mask[row : row + 1] for link, mask in cut.items()}
        alone = network.logit_diffs(prompts, Masks(masks[row : row + 1], one))
        assert torch.allclose(together[row], alone[0], atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_a_smaller_network_gives_what_a_larger_one_gives_with_the_difference_off():
    model = random_model(9, torch.float64)
    batch, base = random_batch(5, 8, torch.float64), random_base(model, 4)
    large = kept_nodes(model, "most", 6)
    small = large & kept_nodes(model, "half", 7)
    one, two = FastMaskedModel(model, base, large), FastMaskedModel(model, base, small)
    assert len(two) < len(one)
    assert close(one.logit_diffs(one.prepare(batch), Masks(small.double()[None])), two.logit_diffs(two.prepare(batch)))


def test_a_small_network_computes_less():
    model = random_model(9)
    kept = kept_nodes(model, "few", 6)
    network = FastMaskedModel(model, random_base(model), kept)
    sizes = {tuple(matrix.weight.shape) for _, neurons in network.layers for matrix in (neurons.fc, neurons.proj)}
    assert all(rows * columns < 16 * 12 / 4 for rows, columns in sizes)
    assert len(network.tracked) < 12


# the reference implementation


@settings(max_examples=15, deadline=None)
@given(models, st.sampled_from(["one", "half", "all"]), st.booleans(), st.integers(0, 1000))
def test_both_networks_say_the_same_through_what_they_share(model, how: str, with_edges: bool, seed: int):
    batch, base, kept = random_batch(3, seed, torch.float64), random_base(model, seed), kept_nodes(model, how, seed)
    masks = mask_sets(kept, seed, True).requires_grad_()
    weight = torch.randn(SETS, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = []
    for network in (FastMaskedModel(model, base, kept), ReferenceMaskedModel(model, kept, base)):
        assert torch.equal(network.kept_nodes, kept)
        assert len(network) == int(kept.sum())
        cut = network.cut(random_edges(model, SETS, seed))
        prompts = network.prepare(batch)
        diffs = network.logit_diffs(prompts, Masks(masks, cut if with_edges else None))
        (gradient,) = torch.autograd.grad((diffs * weight).sum(), masks)
        alone = network.logit_diffs(prompts, Masks(edges=cut)) if how == "all" else diffs
        found.append((diffs.detach(), gradient[:, kept], alone.detach(), network.logit_diffs(prompts).detach(), *cut.values()))
    assert all(close(one, other) for one, other in zip(*found, strict=True))


def test_queries_of_heads_that_write_nothing_compete_all_the_same():
    """AbsTopK of the queries is over all heads: three of them take the places of a fourth, whose head does write."""
    model, seed = random_model(173, torch.float64, **KINDS["abs_topk"]), 312
    batch, base, index = random_batch(3, seed, torch.float64), random_base(model, seed), NodeIndex.of(model)
    starts = index.starts()
    kept = index.flags(torch.tensor([*(starts["0.attn.q"] + q for q in (3, 5, 6, 8)), starts["0.attn.resid_delta"] + 3]))
    fast, plain = FastMaskedModel(model, base, kept), ReferenceMaskedModel(model, kept, base)
    found, expected = (network.logit_diffs(network.prepare(batch)) for network in (fast, plain))
    assert close(found, expected)
    fewer = kept.clone()
    fewer[starts["0.attn.q"] + 5] = False  # then no two compete
    alone = FastMaskedModel(model, base, fewer)
    assert not close(alone.logit_diffs(alone.prepare(batch)), expected)


def test_the_reference_borrows_values_of_other_prompts():
    model, batch = random_model(2), random_batch(8, 5)
    kept = kept_nodes(model, "half", 2)
    network = ReferenceMaskedModel(model, kept, None)
    expected = masked_logit_diff(model, batch, NodeIndex.of(model).split(kept.float()), resampled(model, batch))
    assert torch.equal(network.logit_diffs(network.prepare(batch))[0], expected)
    everything_on = ReferenceMaskedModel(model, torch.ones_like(kept), None)
    assert torch.allclose(everything_on.logit_diffs(everything_on.prepare(batch))[0], masked_logit_diff(model, batch, {}, {}), atol=1e-5)
