"""Position channels in circuits: reads that nothing in the residual stream writes, from pruning to the picture."""

from __future__ import annotations

import json
import math
from pathlib import Path

import micro
import pytest
import torch
from rerun import rerun
from test_formats import variant
from test_sparse_model import small_model
from worlds import CORPUS, VOCABULARY, environment

from extractor.circuits.circuit import Calibration, Circuit, Node
from extractor.circuits.graph import CircuitMask, NodeIndex, edges_between, live_nodes
from extractor.circuits.node_labels import describe_nodes
from extractor.circuits.reference import masked_logit_diff
from extractor.circuits.sites import node_id, widths
from extractor.data.prompts import TaskBatch, task_loss
from extractor.files import write_json, write_tensors
from extractor.jobs.run import run_job
from extractor.models.tokenizer import save_tokenizer
from extractor.pruning.problem import PruningProblem
from extractor.pruning.prune import find_circuits
from extractor.report.picture import layout, to_svg
from extractor.sparse import SparseGPTConfig, SparseGPTForCausalLM
from extractor.spec.schema import BridgeSpec, JobSpec, PruneSpec
from extractor.validation.validate import validate

PATH = ("0.mlp.act_in.4", "0.mlp.post_act.0", "0.mlp.resid_delta.3")


@torch.no_grad()
def model_that_counts() -> SparseGPTForCausalLM:
    """Width 4 and two position channels: place 1 is (1, 0), place 2 is (0, 1), the others 0, so that RMSNorm makes a 1 a sqrt(2).

    Neuron 0 reads channel 4, the first position channel, with weight 2 and writes channel 3 over a bias of -1.4: YES at place 1, NO at 2.
    Neuron 1 reads residual channel 0, which A writes, and writes channel 2, which nothing answers from; neuron 2 reads channel 5, the other
    position channel, and writes nothing.
    """
    model = SparseGPTForCausalLM(
        SparseGPTConfig(
            vocab_size=7,
            n_layer=1,
            d_model=4,
            d_head=2,
            d_mlp=4,
            n_ctx=4,
            activation_frac=1.0,
            sinks=False,
            d_pos_emb=2,
            rms_norm_eps=1e-12,
        )
    )
    for name, parameter in model.named_parameters():
        if ".ln_" not in name:
            parameter.zero_()
    model.transformer.wte.weight[micro.A, 0] = 1
    model.transformer.wpe.weight[1, 0] = 1
    model.transformer.wpe.weight[2, 1] = 1
    mlp = model.blocks[0].mlp
    mlp.c_fc.weight[0, 4] = 2
    mlp.c_fc.weight[1, 0] = 1
    mlp.c_fc.weight[2, 5] = 1
    mlp.c_proj.weight[3, 0] = 1
    mlp.c_proj.bias[3] = -1.4
    mlp.c_proj.weight[2, 1] = 0.1
    model.lm_head.weight[micro.YES, 3] = 1
    model.lm_head.weight[micro.NO, 3] = -1
    model.lm_head.weight[micro.OTHER, 2] = 1
    return model.eval().requires_grad_(False)


def prompts() -> TaskBatch:
    """Two pairs of prompts that end in A, at place 1 (YES) or 2 (NO)."""
    a, first = micro.A, micro.FIRST
    ids = torch.tensor([[0, a, 0], [0, 0, a], [first, a, 0], [first, 0, a]])
    correct = torch.tensor([micro.YES, micro.NO, micro.YES, micro.NO])
    wrong = torch.tensor([micro.NO, micro.YES, micro.NO, micro.YES])
    last = torch.tensor([1, 2, 1, 2])
    return TaskBatch(ids, last, correct, wrong, torch.tensor([1.0, -1.0, 1.0, -1.0]))


def means_of(model: SparseGPTForCausalLM, batch: TaskBatch) -> dict[str, torch.Tensor]:
    rows = torch.arange(len(batch.ids))
    with model.record() as values:
        model(input_ids=batch.ids)
    return {site: x[rows, batch.last].mean(0) for site, x in values.items()}


SPEC = PruneSpec(steps=120, lr=0.03, pairs=2, trial_pairs=2, k_coef=2e-3, trials=2, population=2, edge_steps=20, targets=())


@pytest.fixture
def problem(tmp_path: Path) -> PruningProblem:
    model, batch = model_that_counts().requires_grad_(False), prompts()
    return PruningProblem(model, means_of(model, batch), batch, batch, SPEC, 0.15, 0, lambda stage: environment(tmp_path, stage=stage))


def all_nodes(model: SparseGPTForCausalLM) -> dict[str, torch.Tensor]:
    return {site: torch.arange(width) for site, width in widths(model).items()}


def test_the_model_does_what_its_description_says():
    model, batch = model_that_counts(), prompts()
    with model.record(["0.mlp.act_in", "0.mlp.post_act"]) as values:
        logits = model(input_ids=batch.ids).logits
    assert torch.allclose(values["0.mlp.act_in"][0, 1], torch.tensor([2.0, 0, 0, 0, math.sqrt(2), 0]), atol=1e-5)
    assert torch.allclose(values["0.mlp.act_in"][1, 2], torch.tensor([2.0, 0, 0, 0, 0, math.sqrt(2)]), atol=1e-5)
    last = logits[torch.arange(4), batch.last]
    assert (last[:, micro.YES] > last[:, micro.NO]).tolist() == [True, False, True, False]


def test_reads_have_nodes_for_position_channels():
    found = widths(model_that_counts())
    assert found == {f"0.{place}": 6 if place.endswith("act_in") else 4 for place in (s.partition(".")[2] for s in found)}


def test_edges_from_position_channels_are_listed():
    model = model_that_counts()
    edges = {(e.source, e.target): e.weight for e in edges_between(model, all_nodes(model))}
    assert edges == {
        ("0.mlp.act_in.4", "0.mlp.post_act.0"): 2.0,
        ("0.mlp.act_in.0", "0.mlp.post_act.1"): 1.0,
        ("0.mlp.act_in.5", "0.mlp.post_act.2"): 1.0,
        ("0.mlp.post_act.0", "0.mlp.resid_delta.3"): 1.0,
        ("0.mlp.post_act.1", "0.mlp.resid_delta.2"): pytest.approx(0.1),
    }


def live(model: SparseGPTForCausalLM) -> set[str]:
    return {node_id(site, c) for site, channels in live_nodes(model, all_nodes(model)).items() for c in channels}


def test_a_position_channel_is_fed_by_the_position_table_alone():
    model = model_that_counts()
    decoy = {"0.mlp.act_in.0", "0.mlp.post_act.1", "0.mlp.resid_delta.2"}
    assert live(model) == {*PATH, *decoy}
    model.transformer.wpe.weight[:, 0] = 0
    assert live(model) == decoy


def test_an_added_position_table_feeds_the_stream():
    model = small_model(n_layer=1, added_positions=True, bigram="none", activation_frac=1.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("wte.weight", "c_attn.weight", "c_proj.weight")):
                parameter.zero_()
        model.transformer.wpe.weight.zero_()
        model.transformer.wpe.weight[:, 3] = torch.arange(16.0)
        model.blocks[0].mlp.c_proj.weight[7] = 1
    assert {n for n in live(model) if "act_in" in n} == {"0.mlp.act_in.3"}


def test_ranking_and_pruning_find_the_position_circuit(problem: PruningProblem):
    best = find_circuits(problem).best
    assert set(best.graph.nodes.nonzero().flatten().tolist()) == {micro.flat_index(problem.model, node) for node in PATH}
    assert (best.met, best.edges) == (True, 2)
    report = validate(best, problem, problem.select)
    assert report.accuracy["circuit"] == report.accuracy["full"] == 1.0
    assert report.loss["circuit"] < 0.15
    assert report.loss["without_circuit"] > 0.6


def test_a_masked_position_channel_takes_its_mean(problem: PruningProblem):
    on = torch.ones(len(problem.index))
    on[micro.flat_index(problem.model, PATH[0])] = 0
    diff = masked_logit_diff(problem.model, problem.select, problem.index.split(on), problem.means)
    pre = 2 * math.sqrt(2) / 2  # the mean of channel 4 is sqrt(2) / 2, wherever the prompt ends
    write = pre * 0.5 * (1 + math.erf(pre / math.sqrt(2))) - 1.4
    norm = math.sqrt(((1**2) + write**2) / 4)
    assert diff[0].item() == pytest.approx(2 * write / norm, abs=0.05)  # channel 2's trace aside
    assert abs(diff[0].item() - diff[1].item()) < 0.05


class Letters:
    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "0ABYNO6"[ids[0]]

    def id_to_token(self, token: int) -> str:
        return self.decode([token])


def circuit_of(problem: PruningProblem) -> Circuit:
    names = [*PATH, "0.mlp.act_in.0"]
    nodes = [Node(n, n.rpartition(".")[0], int(n.rpartition(".")[2]), 0.0) for n in names]
    batch = problem.select.pick(torch.tensor([0, 1, 0, 1]))
    told = describe_nodes(nodes, problem.model, Letters(), batch)
    kept = {site: torch.tensor(sorted(n.channel for n in nodes if n.site == site), dtype=torch.long) for site in widths(problem.model)}
    edges = tuple(edges_between(problem.model, kept))
    return Circuit("m", "count", ("YES", "NO"), (3, 4), tuple(told), edges, Calibration(1.0, 0.0))


def test_position_reads_are_described_by_places(problem: PruningProblem):
    told = {node.id: node for node in circuit_of(problem).nodes}
    assert told[PATH[0]].position
    assert told[PATH[0]].reads == ("place 1",)
    assert not told["0.mlp.act_in.0"].position
    assert told["0.mlp.act_in.0"].reads == ("A",)
    assert not told[PATH[2]].position


def test_the_picture_draws_no_residual_wire_to_a_position_read(problem: PruningProblem):
    circuit = circuit_of(problem)
    scene = layout(circuit)
    streams = {(wire.source, wire.target) for wire in scene.wires if wire.kind == "stream"}
    assert streams == {("", "0.mlp.act_in.0"), (PATH[2], "")}
    assert {chip.node.id for chip in scene.chips} == {node.id for node in circuit.nodes}
    assert "reads place·1" in to_svg(scene)
    assert Circuit.from_json(json.loads(json.dumps(circuit.to_json()))) == circuit


def test_circuits_from_before_position_channels_still_open(problem: PruningProblem):
    data = circuit_of(problem).to_json()
    data["nodes"] = [{k: v for k, v in node.items() if k != "position"} for node in data["nodes"]]
    assert not any(node.position for node in Circuit.from_json(data).nodes)


def test_a_whole_job_over_a_model_with_position_channels(tokenizer, tmp_path: Path):
    model = small_model(vocab_size=VOCABULARY, n_layer=1, d_model=16, d_mlp=16, n_ctx=32, d_pos_emb=4, activation="relu")
    model.save_pretrained(tmp_path / "model")
    save_tokenizer(tokenizer, tmp_path / "model", 32)
    prune = PruneSpec(
        steps=10, pairs=8, trials=1, edge_steps=5, select_pairs=16, trial_pairs=8, held_out_pairs=32, necessity=0.0, mean_tokens=512
    )
    spec = JobSpec(
        kind="circuit",
        model=str(tmp_path / "model"),
        tasks=("for_while",),
        target_loss=0.69,
        corpus=CORPUS,
        bridge=BridgeSpec(),
        prune=prune,
    )
    run_job(spec, tmp_path / "out", threads=1)
    folder = tmp_path / "out" / "circuits" / "for_while"
    numbers = json.loads((folder / "result.json").read_text())
    circuit = Circuit.from_json(json.loads((folder / "circuit.json").read_text()))
    assert numbers["circuit"]["nodes"] == len(circuit.nodes) > 0
    assert all(node.position == ("act_in" in node.site and node.channel >= 16) for node in circuit.nodes)
    assert (folder / "circuit.svg").stat().st_size > 1000
    assert rerun(tmp_path / "out") == pytest.approx(numbers["loss"]["circuit"], abs=1e-4)


@pytest.mark.parametrize("name", ["default", "position_channels", "added_positions", "counts", "low_rank"])
def test_every_options_circuits_can_be_recomputed_from_their_files(name: str, tmp_path: Path):
    """Half the nodes of a random model, by the project's code and by a script that knows none of it."""
    model, batch = variant(name).requires_grad_(False), micro.micro_batch()
    generator = torch.Generator().manual_seed(0)
    means = {site: torch.randn(width, generator=generator) for site, width in widths(model).items()}
    index = NodeIndex.of(model)
    kept = torch.randperm(len(index), generator=generator)[: len(index) // 2]
    names = [node_id(site, c) for site, width in widths(model).items() for c in range(width)]
    nodes = tuple(Node(names[n], names[n].rpartition(".")[0], int(names[n].rpartition(".")[2]), 0.0) for n in kept.tolist())
    on = index.flags(kept)
    edges = tuple(CircuitMask(model, on).named_edges())
    circuit = Circuit("m", "t", ("YES", "NO"), (micro.YES, micro.NO), nodes, edges, Calibration(0.7, 0.2))
    model.save_pretrained(tmp_path / "model")
    folder = tmp_path / "circuits" / "t"
    folder.mkdir(parents=True)
    write_json(folder / "circuit.json", circuit.to_json())
    write_tensors(folder / "means.safetensors", means)
    write_tensors(folder / "held_out.safetensors", {name: getattr(batch, name) for name in ("ids", "last", "correct", "wrong", "sign")})
    diff = 0.7 * masked_logit_diff(model, batch, index.split(on.float()), means) + 0.2
    assert diff.std() > 1e-3
    assert rerun(tmp_path) == pytest.approx(task_loss(diff, batch.sign).item(), abs=1e-4)
