"""The chain of claims, on a model that a person can compute and on planted circuits: what is named is what was planted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import micro
import planted
import pytest
import torch
from worlds import environment

from extractor.circuits.calibration import calibrate
from extractor.circuits.circuit import Calibration
from extractor.circuits.graph import CircuitMask
from extractor.data.prompts import TaskBatch
from extractor.models.load import open_model
from extractor.models.tokenizer import load_tokenizer
from extractor.pruning.problem import PruningProblem
from extractor.spec.schema import PruneSpec
from extractor.spec.story import best_place
from extractor.validation.mechanism import claims
from extractor.validation.mechanism.claims import mechanism
from extractor.validation.mechanism.observe import CircuitOnPairs
from extractor.validation.mechanism.separation import auc

PLAIN = Calibration(1.0, 0.0)
READ, NEURON, WRITE = micro.CIRCUIT


def pose(folder: Path, model, means, select: TaskBatch, spec: PruneSpec | None = None) -> PruningProblem:
    return PruningProblem(model, means, select, select, spec or PruneSpec(), 0.15, 0, lambda stage: environment(folder / stage))


@pytest.fixture
def problem(tmp_path) -> PruningProblem:
    model = micro.micro_model()
    return pose(tmp_path, model, micro.micro_means(model), micro.micro_batch())


@pytest.fixture
def circuit(problem) -> CircuitMask:
    return CircuitMask(problem.model, problem.index.flags(micro.flat_indices(problem.model, micro.CIRCUIT)))


def test_auc_by_hand():
    first, second = torch.tensor([[3.0, 1.0], [0.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 0.0], [1.0, 2.0], [1.0, 1.0]])
    assert auc(first, second).tolist() == [0.75, 0.0, 0.5]
    assert best_place({"difference": 1.0, "after": None, "end": 0.0}) == ("end", 0.0)
    assert best_place({"difference": 0.9, "after": None, "end": 0.6}) == ("difference", 0.9)
    assert best_place({"difference": None, "after": None, "end": None}) is None


def test_values_places_and_swaps_of_the_micro_circuit(problem, circuit):
    """On A the neuron is gelu(3), on B 0; with B's value on A the circuit answers as on B, and the reverse."""
    seen = CircuitOnPairs(problem, circuit, PLAIN, problem.select)
    assert seen.nodes == list(micro.CIRCUIT)
    assert seen.values[NEURON][:, 1].tolist() == pytest.approx([micro.GELU_3, 0, micro.GELU_3, 0], abs=2e-3)
    assert seen.places["difference"].tolist() == seen.places["end"].tolist() == [[False, True]] * 4
    assert not seen.places["after"].any()
    for nodes in ([READ], [NEURON], [WRITE], micro.CIRCUIT):
        assert seen.swapped(nodes).flipped == 1
        assert seen.swapped(nodes).moved == pytest.approx(1, abs=1e-5)
    assert (seen.swapped([]).moved, seen.swapped([]).flipped) == (0, 0)
    alone = CircuitMask(problem.model, problem.index.flags(micro.flat_indices(problem.model, (NEURON, WRITE))))
    without = CircuitOnPairs(problem, alone, PLAIN, problem.select)
    assert seen.without([READ]) == pytest.approx(problem.select.losses(without.diff).mean().item(), abs=1e-5)


def test_the_write_makes_up_the_logit_difference(problem, circuit):
    """The answers read channel 3 alone; the bigram adds the same after every token."""
    seen = CircuitOnPairs(problem, circuit, Calibration(2.0, 1.0), problem.select)
    assert torch.allclose(seen.written()[WRITE] + micro.BIGRAM, (seen.diff - 1) / 2, atol=1e-4)


def test_the_story_of_the_micro_circuit(problem, circuit):
    found = mechanism(problem, circuit, PLAIN, problem.select)
    assert found is not None
    assert found["holds"]
    difference, *steps, write, together = found["claims"]
    assert (difference["one_token"], difference["tokens"], difference["before_end"]) == (1, [[micro.A, micro.B, 1]], 0)
    assert len(steps) == claims.SHOWN_NODES
    assert {step["auc"] for step in steps} == {1}
    assert (write["nodes"], write["share"]) == ([WRITE], pytest.approx(1, abs=1e-5))
    assert together["flipped"] == 1
    assert found["nodes"][NEURON]["auc"] == {"difference": 1, "after": None, "end": 1}
    diff = CircuitOnPairs(problem, circuit, PLAIN, problem.select).diff - micro.BIGRAM
    assert found["nodes"][WRITE]["direct"] == pytest.approx([diff[0::2].mean().item(), diff[1::2].mean().item()], abs=1e-4)
    assert not {"direct", "head"} & set(found["nodes"][NEURON])


def test_the_numbers_of_heads(problem):
    """A query, a key and a value each know their head."""
    model = problem.model
    wide, heads = model.config.d_model, model.config.n_head
    nodes = {f"0.attn.{place}.{wide - 1}" for place in ("q", "k", "v")} | {f"0.attn.{place}.0" for place in ("q", "k", "v")}
    found = mechanism(problem, CircuitMask(model, problem.index.flags(micro.flat_indices(model, sorted(nodes)))), PLAIN, problem.select)
    assert found is not None
    assert {node: one["head"] for node, one in found["nodes"].items()} == {
        node: heads - 1 if node.endswith(f".{wide - 1}") else 0 for node in nodes
    }


def test_claims_that_do_not_hold_on_held_out_pairs_say_so(problem, circuit):
    """There the two prompts are answered alike: nothing that is swapped moves an answer."""
    same = micro.micro_batch()
    ids = same.ids.clone()
    ids[:, 1] = torch.tensor([micro.A, micro.OTHER, micro.A, micro.OTHER])
    ids[1::2, 1], ids[1::2, 0] = micro.A, micro.OTHER  # both end in A
    found = mechanism(problem, circuit, PLAIN, replace(same, ids=ids))
    assert found is not None
    assert not found["holds"]
    assert not any(claim["holds"] for claim in found["claims"] if claim["kind"] in ("node", "write", "together"))


def test_what_is_not_measured(problem, circuit, monkeypatch):
    empty = CircuitMask(problem.model, torch.zeros_like(circuit.nodes))
    assert mechanism(problem, empty, PLAIN, problem.select) is None
    resampling = replace(problem, spec=problem.spec.model_copy(update={"ablation": "resample"}))
    assert mechanism(resampling, circuit, PLAIN, problem.select) is None
    monkeypatch.setattr(claims, "MOST_NODES", 2)
    assert mechanism(problem, circuit, PLAIN, problem.select) is None


def test_the_story_of_a_planted_circuit_names_what_was_planted(tmp_path):
    """The quote differs; a head of layer 1 looks at it and brings which kind it is; the last MLP writes the answer."""
    plant = planted.planted("quote_close", load_tokenizer(open_model("python-tiny").path))
    graph, select, held_out = planted.graph_of(plant), plant.batch("select", 64), plant.batch("held_out", 64)
    problem = pose(tmp_path, plant.model, plant.means, select)
    calibration = calibrate(problem.scorer(select).logit_diffs([graph])[0], select.sign)
    found = mechanism(problem, graph, calibration, held_out)
    assert found is not None
    assert found["holds"]
    by_kind = {claim["kind"]: claim for claim in found["claims"]}
    assert by_kind["difference"]["one_token"] == 1
    (value,) = (node for node in plant.nodes if node.startswith("1.attn.v."))
    (answer,) = (node for node in plant.nodes if node.startswith("1.mlp.resid_delta."))
    heads = [claim for claim in found["claims"] if claim["kind"] == "head"]
    assert [claim["nodes"] for claim in heads] == [[value]]
    assert heads[0]["attention"]["end"] > 0.9
    assert sum(heads[0]["attention_by_answer"]["end"]) / 2 == pytest.approx(heads[0]["attention"]["end"], abs=1e-6)
    assert heads[0]["flipped"] > 0.95
    assert by_kind["write"]["nodes"] == [answer]
    assert by_kind["write"]["share"] > 0.9
    looks = [node for node in plant.nodes if ".attn.q." in node or ".attn.k." in node]
    assert all(found["nodes"][node]["flipped"] < 0.1 for node in looks if node.startswith("1."))


def test_an_mlp_of_several_neurons_is_told_and_one_that_a_node_tells_is_not(problem, circuit):
    seen = CircuitOnPairs(problem, circuit, PLAIN, problem.select)
    found = {node: {"without": 0.5} for node in seen.nodes}
    assert claims._mlps(seen, seen, found, told={NEURON}) == []
    (claim,) = claims._mlps(seen, seen, found, told=set())
    assert (claim["kind"], claim["layer"], claim["nodes"]) == ("mlp", int(NEURON.partition(".")[0]), [NEURON])
    assert claim["moved"] == pytest.approx(seen.swapped([NEURON]).moved)
    assert claim["holds"]
