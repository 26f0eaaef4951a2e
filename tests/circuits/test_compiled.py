"""Circuits as small networks of their own: what the full model computes with the same masks, without the model."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import micro
import pytest
import torch
from circuit_worlds import KINDS, WORDS, World, every_kind
from rerun import rerun
from safetensors import safe_open
from torch import Tensor
from worlds import python

from extractor.circuits.circuit import Edge, Node
from extractor.circuits.compiled import CompiledCircuit, compile_circuit, mask_of
from extractor.circuits.graph import CircuitMask, NodeIndex
from extractor.data.prompts import TaskBatch, task_loss
from extractor.errors import BrokenArtifact
from extractor.files import read_tensors, write_json, write_tensors


def logit_diffs(compiled: CompiledCircuit, batch: TaskBatch) -> Tensor:
    return compiled(batch.ids, batch.last, batch.first, batch.second)


def assert_same(found: Tensor, wanted: Tensor) -> None:
    assert (found - wanted).abs().max() <= 1e-5 * max(1.0, wanted.abs().max().item())


@every_kind
@pytest.mark.parametrize("edges", [None, 0.7, 0.2, 0.0], ids=["all_edges", "most_edges", "few_edges", "no_edges"])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.02])
def test_it_is_the_whole_model_under_the_same_masks(kind: str, share: float, edges: float | None):
    for seed in range(2):
        world = World(kind, seed)
        graph = world.graph(share, edges)
        wanted = world.wanted(graph)
        assert wanted.std() > 1e-3
        assert_same(logit_diffs(world.compiled(graph), world.batch), wanted)


@every_kind
def test_without_nodes_it_says_what_the_other_channels_and_bigrams_say(kind: str):
    world = World(kind)
    graph = CircuitMask(world.model, torch.zeros(len(world.index), dtype=torch.bool))
    compiled = world.compiled(graph)
    assert compiled.tracked.shape == (WORDS, 0)
    assert_same(logit_diffs(compiled, world.batch), world.wanted(graph))


@every_kind
def test_every_single_node_compiles(kind: str):
    world = World(kind)
    for site, start in world.index.starts().items():
        graph = CircuitMask(world.model, world.index.flags(torch.tensor([start + world.index.widths[site] - 1])))
        assert_same(logit_diffs(world.compiled(graph), world.batch), world.wanted(graph))


@every_kind
@pytest.mark.parametrize("part", ["attn", "mlp"])
def test_one_kind_of_sublayer_alone_compiles(kind: str, part: str):
    world = World(kind)
    flags = {site: torch.full((width,), f".{part}." in site) for site, width in world.index.widths.items()}
    graph = replace(world.graph(1.0, 0.5), nodes=world.index.join(flags))
    compiled = world.compiled(graph)
    if part == "mlp" and not world.model.config.sinks:
        assert [attention.heads for attention, _ in compiled.layers] == [0] * world.model.config.n_layer
    assert_same(logit_diffs(compiled, world.batch), world.wanted(graph))


def test_more_nodes_than_a_site_keeps_compete():
    world = World("few_kept")
    graph = world.graph(0.6, 0.7)
    compiled = world.compiled(graph)
    assert all(neurons.site.k == 9 < len(neurons.site.channels) for _, neurons in compiled.layers)
    wanted = world.wanted(graph)
    assert_same(logit_diffs(compiled, world.batch), wanted)
    compiled._layers = tuple((a, replace(n, site=replace(n.site, k=10**6))) for a, n in compiled.layers)
    assert (logit_diffs(compiled, world.batch) - wanted).abs().max() > 1e-2


@every_kind
def test_a_saved_circuit_is_the_same_bits(kind: str, tmp_path: Path):
    world = World(kind)
    compiled = world.compiled(world.graph(0.3, 0.5))
    assert compiled.save(tmp_path) == tmp_path / "compiled.safetensors"
    assert compiled.save(tmp_path / "other.safetensors").is_file()
    assert not list(tmp_path.glob("*.tmp"))
    for place in (tmp_path, tmp_path / "compiled.safetensors", tmp_path / "other.safetensors"):
        loaded = CompiledCircuit.load(place)
        assert torch.equal(logit_diffs(loaded, world.batch), logit_diffs(compiled, world.batch))
        assert (loaded.nbytes, loaded.longest) == (compiled.nbytes, compiled.longest)
    assert 0 < (tmp_path / "compiled.safetensors").stat().st_size - compiled.nbytes < 40_000


def test_it_holds_no_more_than_its_nodes_and_tables():
    world = World("sinks")
    compiled = world.compiled(CircuitMask(world.model, world.index.flags(torch.tensor([0, 40, 400]))))
    assert not list(compiled.parameters())
    assert sum(t.numel() for name, t in compiled.state_dict().items() if name[0].isdigit()) < 200
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in compiled.state_dict().values()), "a view keeps the model's tensors alive"


def test_a_saved_circuit_needs_no_model(tmp_path: Path):
    world = World("added_positions")
    compiled = world.compiled(world.graph(0.3, 0.5))
    compiled.save(tmp_path)
    b = world.batch
    write_tensors(tmp_path / "prompts.safetensors", {"ids": b.ids, "last": b.last, "first": b.first, "second": b.second})
    said = python(
        """
import sys
from pathlib import Path
from extractor.files import read_tensors
from extractor.compiled import CompiledCircuit
print(CompiledCircuit.load(Path(sys.argv[1]))(**read_tensors(Path(sys.argv[1]) / "prompts.safetensors")).tolist())
""",
        str(tmp_path),
    )
    assert_same(torch.tensor(json.loads(said)), logit_diffs(compiled, b))


def rewritten(path: Path, change, structure: str | None = None) -> None:
    """The file with its tensors changed in place, and what it says of their structure."""
    tensors = read_tensors(path)
    with safe_open(path, "pt") as file:
        ((kind, said),) = file.metadata().items()
    change(tensors)
    write_tensors(path, tensors, {kind: said if structure is None else structure})


BREAKS = {
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "not_safetensors": lambda path: path.write_bytes(b"PK not a tensor in sight"),
    "another_kind": lambda path: write_tensors(path, {"x": torch.zeros(1)}),
    "a_table_gone": lambda path: rewritten(path, lambda tensors: tensors.pop("squares")),
    "a_weight_gone": lambda path: rewritten(path, lambda tensors: tensors.pop("0_mlp_fc_weight")),
    "a_table_short": lambda path: rewritten(path, lambda tensors: tensors.update(direct=tensors["direct"][:-1].clone())),
    "a_weight_misshapen": lambda path: rewritten(path, lambda tensors: tensors.update({"0_mlp_fc_weight": torch.zeros(2, 1)})),
    "structure_not_json": lambda path: rewritten(path, lambda tensors: None, "[["),
    "structure_of_another_sort": lambda path: rewritten(
        path, lambda tensors: None, '{"layers": [[{"part": "Module", "of": {}}]], "longest": null}'
    ),
    "no_layers": lambda path: rewritten(path, lambda tensors: None, '{"layers": [], "longest": null}'),
    "a_tensor_with_a_methods_name": lambda path: rewritten(path, lambda tensors: tensors.update(forward=torch.zeros(1))),
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_file_is_one_clear_line(how: str, tmp_path: Path):
    world = World("sinks")
    path = world.compiled(world.graph(0.3, 0.5)).save(tmp_path)
    BREAKS[how](path)
    with pytest.raises(BrokenArtifact) as error:
        CompiledCircuit.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["sinks", "added_positions", "position_channels"])
def test_moves_and_casts_reach_every_tensor(kind: str):
    world = World(kind)
    graph = world.graph(0.4, 0.6)
    compiled = world.compiled(graph)
    exact = copy.deepcopy(compiled).double()
    assert all(t.dtype != torch.float32 for t in exact.state_dict().values())
    assert logit_diffs(exact, world.batch).dtype == torch.float64
    assert_same(logit_diffs(exact, world.batch).float(), world.wanted(graph))
    assert logit_diffs(compiled, world.batch).dtype == torch.float32


def test_two_answers_and_the_last_place_need_not_be_named():
    world = World("added_positions")
    compiled = compile_circuit(world.model, world.base, world.graph(0.4, None), torch.tensor([7, 3]))
    ids = world.batch.ids
    first, second = torch.full((len(ids),), 7), torch.full((len(ids),), 3)
    assert torch.equal(compiled(ids), compiled(ids, torch.full((len(ids),), ids.shape[1] - 1), first, second))
    assert_same(compiled(ids, world.batch.last), -compiled(ids, world.batch.last, second, first))


def test_what_it_cannot_answer_is_refused():
    world = World("added_positions")
    compiled = compile_circuit(world.model, world.base, world.graph(0.4, None), torch.tensor([7, 3, 7, 5]))
    ids = world.batch.ids
    assert compiled.answers.tolist() == [7, 3, 5]
    with pytest.raises(ValueError, match="this circuit has 3 answers: name two of them"):
        compiled(ids)
    with pytest.raises(ValueError, match="token 4 is not one of this circuit's 3 answers"):
        compiled(ids, first=torch.full((len(ids),), 4), second=torch.full((len(ids),), 3))
    with pytest.raises(ValueError, match="17 tokens are too many: the circuit has positions for 16"):
        compiled(torch.zeros(1, 17, dtype=torch.long), first=torch.tensor([7]), second=torch.tensor([3]))
    free = World("sinks")
    assert free.compiled(free.graph(0.1, None)).longest is None


def test_means_of_another_model_are_refused():
    world = World("sinks")
    other = {site: mean[:-1] for site, mean in world.base.items()}
    with pytest.raises(BrokenArtifact, match="means do not fit the model"):
        compile_circuit(world.model, other, world.graph(0.1, None), torch.tensor([1, 2]))


@pytest.mark.parametrize("kind", ["position_channels", "added_positions", "added_positions_sinks"])
def test_tables_are_made_a_few_tokens_at_a_time(kind: str, monkeypatch: pytest.MonkeyPatch):
    world = World(kind)
    graph = world.graph(0.3, 0.5)
    whole = world.compiled(graph).state_dict()
    monkeypatch.setattr("extractor.circuits.compiled._AT_ONCE", 7 * WORDS)
    parts = world.compiled(graph).state_dict()
    assert whole.keys() == parts.keys()
    assert all(torch.allclose(whole[name], parts[name], rtol=1e-6, atol=1e-6) for name in whole)


@every_kind
def test_a_circuits_lists_become_the_graph_they_were_made_from(kind: str):
    world = World(kind)
    graph = world.graph(0.3, 0.5)
    found = mask_of(world.circuit(graph), world.model)
    assert torch.equal(found.nodes, graph.nodes)
    for link, there in graph.present_edges().items():
        assert torch.equal(found.edges[link], there)
    whole = mask_of(world.circuit(CircuitMask(world.model, graph.nodes)), world.model)
    assert torch.equal(whole.nodes, graph.nodes)
    assert whole.edges is None, "every weight between the nodes is listed"


@every_kind
def test_a_circuit_compiles(kind: str):
    world = World(kind)
    for edges in (None, 0.5):
        graph = world.graph(0.3, edges)
        circuit = world.circuit(graph)
        wanted = world.wanted(graph)
        assert_same(
            logit_diffs(compile_circuit(world.model, world.base, mask_of(circuit, world.model), world.batch.correct), world.batch), wanted
        )


def no_weight(world: World) -> Edge:
    weight = world.model.blocks[0].mlp.c_fc.weight
    row, column = (weight == 0).nonzero()[0].tolist()
    return Edge(f"0.mlp.act_in.{column}", f"0.mlp.post_act.{row}", 1.0)


MISFITS = {
    "unknown_site": (lambda c, w: replace(c, nodes=(*c.nodes, Node("9.mlp.post_act.0", "9.mlp.post_act", 0, 0.0))), "9.mlp.post_act.0"),
    "channel_beyond": (lambda c, w: replace(c, nodes=(Node("0.attn.q.999", "0.attn.q", 999, 0.0),)), "no node 0.attn.q.999"),
    "channel_below": (lambda c, w: replace(c, nodes=(Node("0.attn.q.-1", "0.attn.q", -1, 0.0),)), "no node 0.attn.q.-1"),
    "channel_no_number": (lambda c, w: replace(c, nodes=(Node("0.attn.q.1", "0.attn.q", "1", 0.0),)), "no node 0.attn.q.1"),
    "zero_weight": (lambda c, w: replace(c, edges=(no_weight(w),)), "no weight joins"),
    "no_such_link": (lambda c, w: replace(c, edges=(Edge("0.attn.q.1", "0.mlp.post_act.1", 1.0),)), "no weight joins 0.attn.q.1 to"),
    "end_not_a_node": (lambda c, w: replace(c, edges=(Edge("0.attn.act_in.99", "0.attn.q.1", 1.0),)), "no weight joins 0.attn.act_in.99"),
}


@pytest.mark.parametrize("how", MISFITS)
def test_a_circuit_that_does_not_fit_the_model_is_one_clear_line(how: str):
    world = World("sinks")
    change, said = MISFITS[how]
    circuit = change(world.circuit(CircuitMask.full(world.model)), world)
    with pytest.raises(BrokenArtifact, match=f"^the circuit of 't' does not fit the model: .*{said}"):
        mask_of(circuit, world.model)


@pytest.mark.parametrize("edges", [None, 0.5], ids=["all_edges", "some_edges"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_script_that_knows_nothing_of_us_computes_the_same(kind: str, edges: float | None, tmp_path: Path):
    """tests/rerun_circuit.py, from the files of a result, and the compiled circuit against the reference."""
    world = World(kind)
    world.model.lm_head.weight.mul_(20)  # so that an activation that is nearly right shows
    graph = world.graph(0.6, edges)
    world.model.save_pretrained(tmp_path / "model")
    folder = tmp_path / "circuits" / "t"
    folder.mkdir(parents=True)
    write_json(folder / "circuit.json", world.circuit(graph).to_json())
    write_tensors(folder / "means.safetensors", world.base)
    write_tensors(folder / "held_out.safetensors", vars(world.batch))
    diff = 0.7 * world.wanted(graph) + 0.2
    assert rerun(tmp_path) == pytest.approx(task_loss(diff, world.batch.sign).item(), abs=1e-5)


def test_a_circuit_on_paper():
    """The hand-made model's three nodes, all others 0, say gelu(3) - 1.5 for YES and against NO, over a norm of width 4."""
    model, batch = micro.micro_model(), micro.micro_batch()
    nodes = NodeIndex.of(model).flags(micro.flat_indices(model))
    zeros = {site: torch.zeros(width) for site, width in NodeIndex.of(model).widths.items()}
    diff = compile_circuit(model, zeros, CircuitMask(model, nodes), torch.tensor([micro.YES, micro.NO]))(batch.ids)
    says = [2 * write / math.sqrt((1 + write**2) / 4) + micro.BIGRAM for write in (micro.GELU_3 - 1.5, -1.5)]
    assert diff.tolist() == pytest.approx(says * 2, abs=1e-5)
