"""Graphs: nodes in one order, edges counted exactly, and what does nothing taken out."""

from __future__ import annotations

import micro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import everything, names_of, nodes_of, random_edges, random_model

from extractor.circuits.graph import CircuitMask, NodeIndex, links
from extractor.circuits.sites import widths
from extractor.pruning.elements import ELEMENTS, Edges, Nodes

FC, PROJ = ("0.mlp.act_in", "0.mlp.post_act"), ("0.mlp.post_act", "0.mlp.resid_delta")


def listed(model, graph: CircuitMask) -> list:
    return graph.named_edges()


def random_graph(model, seed: int, share: float, with_edges: bool) -> CircuitMask:
    generator = torch.Generator().manual_seed(seed)
    nodes = torch.rand(len(NodeIndex.of(model)), generator=generator) < share
    return CircuitMask(model, nodes, {link: mask[0].bool() for link, mask in random_edges(model, 1, seed).items()} if with_edges else None)


# nodes in one order


def test_nodes_stand_site_by_site_in_forward_order():
    model = micro.micro_model()
    index = NodeIndex.of(model)
    assert len(index) == 32
    assert index.starts() == {site: 4 * place for place, site in enumerate(widths(model))}
    flags = index.flags(micro.flat_indices(model))
    assert names_of(model, flags) == set(micro.CIRCUIT)
    assert CircuitMask(model, flags).channels()["0.mlp.resid_delta"].tolist() == [3]


def test_splitting_and_joining_undo_each_other_whatever_stands_before_the_last_axis():
    index = NodeIndex({"a": 2, "b": 3, "c": 1})
    flat = torch.arange(24.0).view(2, 2, 6)
    parts = index.split(flat)
    assert {site: part.shape for site, part in parts.items()} == {"a": (2, 2, 2), "b": (2, 2, 3), "c": (2, 2, 1)}
    assert torch.equal(index.join(parts), flat)
    assert torch.equal(index.join(dict(reversed(parts.items()))), flat)


def test_the_others_are_all_nodes_but_these_with_every_edge():
    model = micro.micro_model()
    graph = random_graph(model, 0, 0.5, with_edges=True)
    others = graph.complement()
    assert torch.equal(others.nodes, ~graph.nodes)
    assert others.edges is None


# edges


def test_the_edges_of_the_micro_circuit_by_hand():
    model = micro.micro_model()
    circuit = nodes_of(model, *micro.CIRCUIT)
    there = circuit.present_edges()
    assert {link for link, mask in there.items() if mask.any()} == {FC, PROJ}
    assert there[FC].nonzero().tolist() == [[0, 0]]
    assert there[PROJ].nonzero().tolist() == [[3, 0]]
    assert circuit.edge_count() == 2
    assert everything(model).edge_count() == 8


def test_an_edge_counts_when_it_is_on_and_is_a_weight_and_both_its_ends_are_on():
    model = micro.micro_model()
    masks = {(source, target): torch.ones_like(weight, dtype=torch.bool) for source, target, weight in links(model)}
    graph = CircuitMask(model, nodes_of(model, *micro.CIRCUIT, "0.mlp.post_act.3").nodes, masks)
    assert graph.edge_count() == 2
    masks[FC][0, 0] = False
    assert graph.edge_count() == 1
    assert CircuitMask(model, everything(model).nodes, masks).edge_count() == 7


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 500), share=st.sampled_from([0.0, 0.2, 0.6, 1.0]), with_edges=st.booleans())
def test_counting_equals_listing_for_any_graph(seed: int, share: float, with_edges: bool):
    model = random_model(seed % 5)
    graph = random_graph(model, seed, share, with_edges)
    assert graph.edge_count() == len(listed(model, graph)) == sum(int(mask.sum()) for mask in graph.present_edges().values())


# what does nothing


def test_without_the_dead_only_the_path_is_left():
    model = micro.micro_model()
    more = nodes_of(model, *micro.CIRCUIT, "0.mlp.post_act.2", "0.mlp.post_act.3", "0.attn.q.0", "0.attn.resid_delta.2")
    assert names_of(model, more.without_dead().nodes) == set(micro.CIRCUIT)
    assert names_of(model, nodes_of(model, *micro.CIRCUIT[1:]).without_dead().nodes) == set()


@pytest.mark.parametrize("gone", [FC, PROJ])
def test_a_node_dies_with_its_last_edge_and_takes_its_other_edges_along(gone: tuple[str, str]):
    model = micro.micro_model()
    masks = {link: mask.clone() for link, mask in everything(model).present_edges().items()}
    masks[gone][:] = False
    slim = CircuitMask(model, everything(model).nodes, masks).without_dead()
    attention = {"0.attn.act_in.1", "0.attn.v.0", "0.attn.resid_delta.2"}
    assert names_of(model, slim.nodes) == attention
    assert slim.edges is not None
    assert {link for link, mask in slim.edges.items() if mask.any()} == {
        ("0.attn.act_in", "0.attn.v"),
        ("0.attn.v", "0.attn.resid_delta"),
    }
    assert slim.edge_count() == 2


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 500), share=st.sampled_from([0.1, 0.4, 0.8]), with_edges=st.booleans())
def test_what_is_left_has_nothing_dead_and_only_edges_between_what_is_left(seed: int, share: float, with_edges: bool):
    model = random_model(seed % 5)
    graph = random_graph(model, seed, share, with_edges)
    slim = graph.without_dead()
    assert not (slim.nodes & ~graph.nodes).any()
    assert torch.equal(slim.without_dead().nodes, slim.nodes)
    assert (slim.edges is None) == (graph.edges is None)
    if slim.edges is not None:
        present = slim.present_edges()
        assert all(torch.equal(mask, present[link]) for link, mask in slim.edges.items())
    for edge in listed(model, slim):
        assert {edge.source, edge.target} <= names_of(model, slim.nodes)


# elements


def test_what_can_be_pruned_is_nodes_and_edges():
    assert dict(ELEMENTS) == {"node": Nodes, "edge": Edges}


@pytest.mark.parametrize("kind", ["node", "edge"])
def test_the_graph_of_some_elements_has_them_and_no_others(kind: str):
    model = random_model(1)
    whole = random_graph(model, 3, 0.7, with_edges=kind == "edge")
    elements = ELEMENTS[kind](whole)
    assert len(elements) == (int(whole.nodes.sum()) if kind == "node" else whole.edge_count())
    on = torch.rand(len(elements), generator=torch.Generator().manual_seed(0)) < 0.5
    graph = elements.graph(on)
    assert torch.equal(elements.places(graph), on)
    assert bool(elements.places(elements.circuit if kind == "node" else elements.graph(torch.ones_like(on))).all())
    assert int(on.sum()) == (int(graph.nodes.sum()) if kind == "node" else graph.edge_count())
    if kind == "edge":
        assert torch.equal(graph.nodes, whole.nodes)


def test_masks_of_edges_lie_where_the_network_looks_for_them():
    """Cut to the kept nodes, sets stacked: as `FastMaskedModel.cut` makes them of full masks."""
    from extractor.circuits.network import FastMaskedModel

    model = random_model(2)
    whole = random_graph(model, 4, 0.6, with_edges=True)
    elements = Edges(whole)
    on = (torch.rand(3, len(elements), generator=torch.Generator().manual_seed(1)) < 0.5).float()
    made = elements.masks(on).edges
    assert made is not None
    network = FastMaskedModel(model, {site: torch.zeros(width) for site, width in widths(model).items()}, whole.nodes)
    cut = [network.cut(elements.graph(row.bool()).edges) for row in on]
    for link, mask in made.items():
        assert torch.equal(mask, torch.stack([one[link] for one in cut]).float()), link


def test_masks_of_nodes_are_on_at_these_nodes_of_all():
    model = random_model(2)
    whole = random_graph(model, 4, 0.6, with_edges=False)
    elements = Nodes(whole)
    on = torch.rand(2, len(elements), generator=torch.Generator().manual_seed(1))
    made = elements.masks(on).nodes
    assert made is not None
    assert torch.equal(made[:, whole.nodes], on)
    assert not made[:, ~whole.nodes].any()


def test_q_and_k_of_a_channel_are_tied_where_both_are_there():
    model = random_model(0)
    index = NodeIndex.of(model)
    starts, width = index.starts(), model.config.d_model
    q, k = starts["1.attn.q"], starts["1.attn.k"]
    whole = everything(model).nodes.clone()
    ties = Nodes(CircuitMask(model, whole)).ties
    own = torch.arange(len(whole))
    moved = (ties != own).nonzero().flatten().tolist()
    assert moved == [starts[f"{layer}.attn.k"] + channel for layer in range(2) for channel in range(width)]
    assert torch.equal(ties[k : k + width], own[q : q + width])
    whole[q + 2] = False  # a k without its q stands for itself
    elements = Nodes(CircuitMask(model, whole))
    place = {int(node): place for place, node in enumerate(elements.nodes)}
    assert elements.ties[place[k + 2]] == place[k + 2]
    assert elements.ties[place[k + 3]] == place[q + 3]
    assert torch.equal(Edges(CircuitMask(model, whole)).ties, torch.arange(CircuitMask(model, whole).edge_count()))


def test_the_model_without_a_circuits_edges_has_all_nodes_and_all_other_edges():
    model = random_model(3)
    circuit = nodes_of(
        model, "0.mlp.act_in.1", "0.mlp.act_in.2", "0.mlp.post_act.3", "0.mlp.resid_delta.4", "1.attn.act_in.4", "1.attn.q.0"
    )
    for one in (circuit, circuit.with_edges()):
        rest = one.without_edges()
        assert bool(rest.nodes.all())
        assert rest.edge_count() == everything(model).edge_count() - one.edge_count() < everything(model).edge_count()
        assert not any(bool((on & rest.edges[link]).any()) for link, on in one.present_edges().items())
