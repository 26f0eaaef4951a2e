"""Circuits as values: edges counted by hand and proven by intervention."""

from __future__ import annotations

import json
from dataclasses import replace

import micro
import pytest
import torch

from extractor.circuits.circuit import Calibration, Circuit, Edge, Node
from extractor.circuits.graph import edges_between, links, live_nodes
from extractor.circuits.node_labels import describe_nodes
from extractor.circuits.sites import node_id, widths
from extractor.spec.schema import SparseModelSpec
from extractor.training.train_sparse import new_sparse_gpt


def all_kept(model) -> dict[str, torch.Tensor]:
    return {site: torch.arange(width) for site, width in widths(model).items()}


def kept(model, *nodes: str) -> dict[str, torch.Tensor]:
    found: dict[str, list[int]] = {site: [] for site in widths(model)}
    for node in nodes:
        site, _, channel = node.rpartition(".")
        found[site].append(int(channel))
    return {site: torch.tensor(sorted(channels), dtype=torch.long) for site, channels in found.items()}


def live(model, *nodes: str) -> set[str]:
    return {node_id(site, c) for site, channels in live_nodes(model, kept(model, *nodes)).items() for c in channels}


BY_HAND = {
    ("0.attn.act_in.1", "0.attn.v.0", 0.5),
    ("0.attn.v.0", "0.attn.resid_delta.2", 0.1),
    ("0.mlp.act_in.0", "0.mlp.post_act.0", 1.5),
    ("0.mlp.act_in.1", "0.mlp.post_act.1", 1.5),
    ("0.mlp.act_in.0", "0.mlp.post_act.2", 0.7),
    ("0.mlp.act_in.3", "0.mlp.post_act.3", 0.7),
    ("0.mlp.post_act.0", "0.mlp.resid_delta.3", 1.0),
    ("0.mlp.post_act.1", "0.mlp.resid_delta.2", 0.1),
}


def test_the_edges_of_the_micro_model_by_hand():
    model = micro.micro_model()
    found = list(edges_between(model, all_kept(model)))
    assert {(e.source, e.target, round(e.weight, 6)) for e in found} == BY_HAND
    assert len(found) == len(BY_HAND)


def test_the_edges_of_the_smallest_circuit_by_hand():
    model = micro.micro_model()
    found = list(edges_between(model, kept(model, *micro.CIRCUIT)))
    assert found == [Edge(micro.CIRCUIT[0], micro.CIRCUIT[1], 1.5), Edge(micro.CIRCUIT[1], micro.CIRCUIT[2], 1.0)]
    assert len(list(edges_between(model, kept(model, micro.CIRCUIT[0], micro.CIRCUIT[2])))) == 0


def a_sparse_model():
    """Two layers, a tenth of the weights, AbsTopK at a half, everything random."""
    model = new_sparse_gpt(SparseModelSpec(d_model=8, d_head=4, mlp_ratio=2, activation_frac=0.5, n_ctx=8), 2, 12, 0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight")):
                parameter.mul_(torch.rand(parameter.shape, generator=generator) < 0.1)
    return model.requires_grad_(False)


def weight_behind(model, edge: Edge) -> tuple[torch.Tensor, int, int, torch.nn.Linear]:
    """(matrix, row, column, its layer) of an edge, worked out from the two names alone."""
    layer, part, place, channel = edge.target.split(".")
    source = int(edge.source.rpartition(".")[2])
    block = getattr(model.blocks[int(layer)], part)
    row = int(channel)
    if place in "qkv":
        return block.c_attn.weight, row + "qkv".index(place) * 8, source, block.c_attn
    if place == "post_act":
        return block.c_fc.weight, row, source, block.c_fc
    return block.c_proj.weight, row, source, block.c_proj


def test_zeroing_an_edges_weight_changes_its_target_by_weight_times_source():
    """Every claimed edge, by intervention: the target's value before nonlinearity and AbsTopK, at every token."""
    model = a_sparse_model()
    ids = torch.randint(12, (3, 6), generator=torch.Generator().manual_seed(1))
    edges = list(edges_between(model, all_kept(model)))
    assert len(edges) > 60
    assert len({e.target.split(".")[2] for e in edges}) == 5

    def inputs_and_outputs(linear: torch.nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
        seen: list[torch.Tensor] = []
        handle = linear.register_forward_hook(lambda _m, args, out: seen.extend((args[0].clone(), out.clone())))
        model(input_ids=ids)
        handle.remove()
        return seen[0], seen[1]

    for edge in edges:
        weight, row, column, linear = weight_behind(model, edge)
        assert weight[row, column].item() == edge.weight
        read, before = inputs_and_outputs(linear)
        weight[row, column] = 0
        after = inputs_and_outputs(linear)[1]
        weight[row, column] = edge.weight
        change = before - after
        assert torch.allclose(change[..., row], edge.weight * read[..., column], atol=1e-5), edge
        change[..., row] = 0
        assert not change.any(), edge


def test_the_source_of_an_edge_is_what_its_matrix_reads():
    """Site values and matrix inputs are the same thing, but for v, which attention mixes over tokens first."""
    model = a_sparse_model()
    ids = torch.randint(12, (3, 6), generator=torch.Generator().manual_seed(1))
    seen: dict[str, torch.Tensor] = {}
    handles = [
        getattr(getattr(model.blocks[i], part), name).register_forward_pre_hook(
            lambda _m, args, key=f"{i}.{site}": seen.__setitem__(key, args[0])
        )
        for i in (0, 1)
        for part, name, site in (("attn", "c_attn", "attn.act_in"), ("mlp", "c_fc", "mlp.act_in"), ("mlp", "c_proj", "mlp.post_act"))
    ]
    with model.record() as values:
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    assert len(seen) == 6
    assert all(torch.equal(seen[site], values[site]) for site in seen)


def test_no_weight_is_missed_and_none_is_counted_twice():
    model = a_sparse_model()
    nonzero = sum(
        int(p.count_nonzero()) for n, p in model.named_parameters() if n.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight"))
    )
    assert len(list(edges_between(model, all_kept(model)))) == nonzero
    pairs = [(e.source, e.target) for e in edges_between(model, all_kept(model))]
    assert len(set(pairs)) == len(pairs) == nonzero
    assert len(list(links(model))) == 2 * 6


@pytest.mark.parametrize("seed", range(4))
def test_counting_equals_listing_for_any_kept_nodes(seed: int):
    model = a_sparse_model()
    generator = torch.Generator().manual_seed(seed)
    some = {site: (torch.rand(width, generator=generator) < 0.6).nonzero().flatten() for site, width in widths(model).items()}
    listed = list(edges_between(model, some))
    names = {node_id(site, int(c)) for site, channels in some.items() for c in channels}
    assert len(list(edges_between(model, some))) == len(listed) > 0
    assert listed == [e for e in edges_between(model, all_kept(model)) if {e.source, e.target} <= names]


def test_live_nodes_keep_the_path():
    assert live(micro.micro_model(), *micro.CIRCUIT) == set(micro.CIRCUIT)


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ("0.mlp.post_act.3", "its read is not kept"),
        ("0.mlp.act_in.2", "nothing writes channel 2 and no kept neuron reads it"),
        ("0.mlp.post_act.2", "it writes nothing"),
        ("0.mlp.resid_delta.0", "no kept neuron writes it, and nothing reads it"),
        ("0.attn.v.0", "its read is not kept"),
        ("0.attn.q.0", "its head has no v"),
        ("0.attn.k.3", "its head has no v"),
    ],
)
def test_live_nodes_drop_what_is_unfed_or_unused(extra: str, why: str):
    assert live(micro.micro_model(), *micro.CIRCUIT, extra) == set(micro.CIRCUIT), why


def test_an_unfed_read_and_all_behind_it_are_dead():
    model = micro.micro_model()
    model.blocks[0].mlp.c_proj.weight[2, 3] = 1.0
    path = ("0.mlp.act_in.3", "0.mlp.post_act.3", "0.mlp.resid_delta.2")
    assert live(model, *path) == set()  # no embedding writes channel 3 ...
    model.blocks[0].attn.c_proj.weight[3, 0] = 1.0
    attention = ("0.attn.act_in.1", "0.attn.v.0", "0.attn.resid_delta.3")
    assert live(model, *path, *attention) == {*path, *attention}  # ... but attention can


def test_q_and_k_live_with_a_used_v_of_their_head():
    model = micro.micro_model()
    model.blocks[0].attn.c_attn.weight[0, 1] = 1.0  # q.0
    model.blocks[0].attn.c_attn.weight[4 : 4 + 2, 1] = 1.0  # k.0, which q.0 meets, and k.1
    model.blocks[0].attn.c_attn.weight[2, 1] = 1.0  # q.2, of the second head
    value = ("0.attn.act_in.1", "0.attn.v.0", "0.attn.resid_delta.2")
    assert live(model, *value, "0.attn.q.0", "0.attn.k.0", "0.attn.k.1", "0.attn.q.2") == {*value, "0.attn.q.0", "0.attn.k.0", "0.attn.k.1"}


def test_dead_nodes_of_a_random_model_do_not_matter():
    """Replacing every dead node by its mean leaves the logits alone, wherever the mean is what an unvarying node has."""
    from extractor.circuits.graph import NodeIndex
    from extractor.circuits.reference import masked_logit_diff

    model = micro.micro_model()
    batch, means, index = micro.micro_batch(), micro.micro_means(model), NodeIndex.of(model)
    alive = live(model, *(node_id(site, c) for site, width in widths(model).items() for c in range(width)))
    assert set(micro.CIRCUIT) < alive
    on = index.flags(torch.tensor([micro.flat_index(model, node) for node in sorted(alive)])).float()
    full = masked_logit_diff(model, batch, {}, {})
    assert torch.allclose(masked_logit_diff(model, batch, index.split(on), means), full, atol=1e-5)


def test_a_circuit_survives_json():
    circuit = Circuit(
        model="python-tiny",
        task="quote_close",
        answers=('")', "')"),
        answer_ids=(5, 7),
        nodes=(Node("0.mlp.act_in.0", "0.mlp.act_in", 0, 0.25, ('"', " é"), ()), Node("0.mlp.post_act.3", "0.mlp.post_act", 3, -1.5e-9)),
        edges=(Edge("0.mlp.act_in.0", "0.mlp.post_act.3", 0.1 + 0.2),),
        calibration=Calibration(3.5, -0.1),
    )
    assert Circuit.from_json(json.loads(json.dumps(circuit.to_json()))) == circuit
    varying = replace(circuit, task="class_init", answers=(), answer_ids=())
    assert Circuit.from_json(json.loads(json.dumps(varying.to_json()))) == varying


def test_nodes_are_described_by_the_tokens_they_respond_to_and_promote():
    class Letters:
        def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
            return "0ABYNO6"[ids[0]]

        def id_to_token(self, token: int) -> str:
            return self.decode([token])

    model, batch = micro.micro_model(), micro.micro_batch()
    prompts = batch.pick(torch.tensor([0, 1, 0, 1]))  # four prompts end in A, four in B
    at_rest = {"0.mlp.act_in.0": 0.0, "0.mlp.act_in.1": 2.0, "0.mlp.resid_delta.3": -1.5}
    names = [*micro.CIRCUIT, "0.mlp.act_in.1", "0.mlp.post_act.1", "0.attn.q.0"]
    nodes = [Node(name, name.rpartition(".")[0], int(name.rpartition(".")[2]), at_rest.get(name, 0.0)) for name in names]
    told = {node.id: node for node in describe_nodes(nodes, model, Letters(), prompts)}
    assert list(told) == names
    assert told["0.mlp.act_in.0"].reads == ("A",)
    assert "B" not in told["0.mlp.act_in.1"].reads  # there it has its mean
    assert told["0.mlp.post_act.0"].reads == ("A",)
    assert told["0.mlp.resid_delta.3"].reads == ("A",)
    assert told["0.mlp.post_act.0"].writes == ("Y",)
    assert told["0.mlp.post_act.1"].writes == ("O",)
    assert told["0.mlp.resid_delta.3"].writes == ("Y",)  # above its mean where it departs from it
    assert told["0.mlp.act_in.0"].writes == ()
    assert told["0.attn.q.0"].reads == ()


def test_padding_is_not_read():
    class Letters:
        def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
            return "0ABYNO6"[ids[0]]

        def id_to_token(self, token: int) -> str:
            return self.decode([token])

    model, batch = micro.micro_model(), micro.micro_batch().pick(torch.tensor([0, 1, 0, 1]))
    padded = replace(batch, ids=torch.cat([batch.ids, torch.full((8, 3), micro.A)], dim=1))
    nodes = [Node("0.mlp.act_in.1", "0.mlp.act_in", 1, 2.0)]  # furthest from its mean on A and on the first tokens
    plain = describe_nodes(nodes, model, Letters(), batch)
    assert describe_nodes(nodes, model, Letters(), padded) == plain
