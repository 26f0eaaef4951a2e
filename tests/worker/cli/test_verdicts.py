"""The lines below a result's table: the same ones whatever happened, and a missing number says why."""

from __future__ import annotations

import json
from typing import Any

import pytest
from worlds import ROOT

from worker.cli.views.verdicts import verdict_lines

MEASURED: dict[str, Any] = {
    "circuit": {"nodes": 3, "edges": 2},
    "meets_target": True,
    "target_loss": 0.15,
    "held_out_pairs": 512,
    "bridge": {"recovered": {"mean": 0.84}, "dense_loss": 2.0, "bigram_loss": 3.1},
    "causal": {
        "nodes": {"count": 61, "correlation": 0.869, "slope": 0.79, "same_sign": 0.843},
        "random": {"count": 61, "correlation": 0.0957},
    },
    "steering": {"node": "1.mlp.post_act.4", "probability": [0.002, 0.299], "random_worst": [0.0, 0.007]},
}
FEW = {"flipped": 0.574, "interval": [0.504, 0.641], "random_flipped": 0.0}
OF_MODEL = {"nodes": [["a", "read"], ["b", "read"]], "held_out": FEW | {"flipped": 0.914, "random_flipped": 0.031}, "shifted": None}
CONDITIONS = {
    "mean": {"loss": 0.5171, "accuracy": 0.81, "interval": [0.5, 0.53]},
    "other": {"loss": 0.9814, "accuracy": 0.031, "interval": [0.9, 1.0]},
}
PAPER = {"nodes": 14, "edges": 10, "loss": 0.061, "edges_of_model": 23592}
ROBUST = {"nodes": 45, "edges": 52, "loss": 0.144, "edges_of_model": 23592}
NULLS = {"paper": {"task": {"edges": 9, "met": True}, "inverted": {"edges": 9, "met": False}, "random_weights": {"edges": 9, "met": False}}}
SHIFTED = {"prompts": 256, "same_answer": 0.742, "interval": [0.7, 0.78], "accuracy": {"full": 0.98, "circuit": 0.758}}
NO_DENSE = "model m has no bridges: it was not made from a dense model"
NO_GAIN = MEASURED["bridge"] | {"recovered": None, "dense_loss": 0.02, "bigram_loss": 0.01}


SHIFTED_CONDITIONS = SHIFTED | {"conditions": CONDITIONS}


def lines(**changes: Any) -> dict[str, str]:
    """{beginning of a line: the rest}; a change to None removes a field."""
    facts = {name: value for name, value in (MEASURED | changes).items() if value is not None}
    return dict(line.split(": ", 1) for line in verdict_lines(facts))


def test_the_lines_of_a_result_that_has_everything():
    assert lines() == {
        "circuit": "3 nodes, 2 edges; meets the target loss 0.15 on 512 held-out pairs",
        "robust standard": "not measured: the version that made this result did not do it",
        "without calibration": "not measured: the version that made this result did not do it",
        "null searches": "not measured: the version that made this result did not do it",
        "shifted prompts": "not measured: the version that made this result did not do it",
        "sparse model": "recovers 84% of the dense model's gain over bigrams, mean over all crossings",
        "causal agreement": "effects of 61 nodes in the dense model and in the sparse one: correlation 0.87, slope 0.79, same sign 84%; "
        "random nodes: correlation 0.10",
        "steering": "1.mlp.post_act.4 moves the dense model's other answer from 0.2% to 29.9%; random directions reach 0.7% at most",
    }


EXPLAINED = MEASURED["bridge"] | {"loss_recovered": {"mean": 1.2}, "explained": {"source": "stdlib", "mean": 0.731, "worst": 0.6}}
FOREIGN = {"nodes": None, "meets_target": False, "holds_for_dense": False}
UNFIT = {"nodes": None, "meets_target": False, "holds_for_dense": None}


@pytest.mark.parametrize(
    ("changes", "line", "said"),
    [
        (
            {"bridge": EXPLAINED | {"prompts": {"agreement": 0.999, "interval": {"agreement": [1, 1]}, "shifted": {"agreement": 0.68}}}},
            "sparse model",
            "(share of KL); same answer as the dense model on 99.9% of held-out prompts, 68.0% of shifted ones",
        ),
        (
            {"bridge": EXPLAINED},
            "sparse model",
            "explains 73% of the dense model's predictions beyond bigrams on stdlib, its worst source, and 60% at the worst crossing",
        ),
        (
            {"bridge": EXPLAINED | NO_GAIN | {"loss_recovered": None}},
            "sparse model",
            "0.010 nats); on the held-out text the dense model (0.020",
        ),
        (
            {"holds_for_dense": False, "why": "the dense model does not do this task: 0.9 nats"},
            "circuit",
            "meets the target loss 0.15 on 512 held-out pairs, in the sparse model only: the dense model does not do this task: 0.9 nats",
        ),
        (
            {"circuit": None, "tasks": [{"nodes": 1, "meets_target": True}, FOREIGN, FOREIGN | {"nodes": 4, "meets_target": True}, UNFIT]},
            "circuits",
            "1 of 4 meet the target loss, 2 tasks are not the dense model's, 1 task is not expressible for this model",
        ),
        (
            {"meets_target": False, "why": "best loss 0.4"},
            "circuit",
            "does not meet the target loss 0.15 on 512 held-out pairs: best loss",
        ),
        (
            {"bridge": NO_GAIN},
            "sparse model",
            "the dense model (0.020 nats per token) is no better than a bigram model (0.010); choose",
        ),
        (
            {"bridge": MEASURED["bridge"] | {"sparse_layers": [24, 28]}},
            "sparse model",
            "layers 24 to 28 are sparse, the others the dense model's own",
        ),
        ({"bridge": {"dense_loss": 2.0}}, "sparse model", "not known: the version that made this result did not record why"),
        ({"bridge": None}, "sparse model", "not known: there is no dense model beside the one that was pruned"),
        ({"bridge": None, "not_measured": {"bridge": NO_DENSE}}, "sparse model", NO_DENSE),
        ({"bridge": MEASURED["bridge"] | {"bigram_loss": 0.01}}, "sparse model", "the text is nearly constant (bigram loss 0.010 nats)"),
        ({"steering": None}, "steering", "not measured: the version that made this result did not record why"),
        ({"steering": None, "bridge": None}, "steering", "not measured: there is no dense model beside the one that was pruned"),
        ({"steering": None, "not_measured": {"steering": "no node"}}, "steering", "not measured: no node"),
        ({"steering": {}, "bridge": {}}, "steering", "not measured"),
        ({"causal": None}, "causal agreement", "not measured: the version that made this result did not record why"),
        ({"causal": None, "bridge": None}, "causal agreement", "not measured: there is no dense model beside the one that was pruned"),
        (
            {"causal": {"nodes": {"count": 1, "correlation": None, "slope": None, "same_sign": None}, "random": None}},
            "causal agreement",
            "correlation unknown, slope unknown, same sign unknown",
        ),
        (
            {"steering": MEASURED["steering"] | {"few": {"nodes": [["a", "read"], ["b", "read"]], "held_out": FEW, "shifted": None}}},
            "steering",
            "2 nodes flip 57% (50% to 64%) of the dense model's right answers on held-out prompts, the strongest random edits 0%",
        ),
        (
            {"steering": MEASURED["steering"] | {"few": {"nodes": [["a", "read"]], "held_out": FEW, "shifted": FEW}}},
            "steering",
            "1 node flips 57% (50% to 64%) of the dense model's right answers on held-out prompts, the strongest random edits 0%; on "
            "shifted prompts 57%, random 0%",
        ),
        (
            {"steering": MEASURED["steering"] | {"few": {"nodes": [["a", "read"]], "held_out": FEW}, "few_of_model": OF_MODEL}},
            "steering",
            "1 node flips 57% (50% to 64%) of the dense model's right answers on held-out prompts, the strongest random edits 0%; 2 of all "
            "nodes of the sparse model 91%, random 3%",
        ),
        ({"standards": {"paper": PAPER}, "standard": "paper"}, "robust standard", "not asked for; --standard robust asks for it"),
        (
            {"standards": {"paper": PAPER, "robust": ROBUST}, "standard": "robust"},
            "robust standard",
            "this circuit holds under 5 ablations, without calibration; the paper's standard alone needs 14 nodes and 10 edges",
        ),
        (
            {"standards": {"paper": PAPER, "robust": ROBUST | {"edges": 12000}}, "standard": "paper"},
            "robust standard",
            "the search found no small circuit that holds and is necessary; it ended with 45 nodes and 12,000 of the model's 23,592 edges",
        ),
        (
            {"standards": {"paper": PAPER, "robust": ROBUST | {"edges": 12000, "met": True}}, "standard": "paper"},
            "robust standard",
            ", which hold; more than 6,000 edges are not shown as a circuit",
        ),
        ({"validation": {"conditions": CONDITIONS}}, "without calibration", "where they have their means, and 81.0% right"),
        (
            {"validation": {"conditions": CONDITIONS}},
            "without calibration",
            "at worst 0.981 nats and 3.1% right, where other nodes have the values of a prompt with the other answer; "
            "0.517 nats where they have their means",
        ),
        (
            {"validation": {"conditions": {"mean": CONDITIONS["mean"]}}},
            "without calibration",
            "at worst 0.517 nats and 81.0% right, where other nodes have their means",
        ),
        ({"validation": {"null_searches": None}}, "null searches", "not made: the job asks for no controls (prune.controls)"),
        (
            {"validation": {"null_searches": None, "removed": {"nothing": 0.69}}},
            "null searches",
            "not made: the full model does not do the task",
        ),
        ({"validation": {"null_searches": NULLS}}, "null searches", "no circuit of exchanged answers, random weights"),
        (
            {"validation": {"null_searches": NULLS | {"robust": {"coin": {"edges": 7, "met": True}}}}},
            "null searches",
            "circuits where there is nothing to find: random answers: 7 edges by the robust standard",
        ),
        (
            {"validation": {"shifted": SHIFTED}},
            "shifted prompts",
            "circuit and full model prefer the same answer on 74.2% (70% to 78%); right on 75.8% and 98.0%",
        ),
        (
            {"validation": {"shifted": SHIFTED_CONDITIONS}},
            "shifted prompts",
            "right on 75.8% and 98.0%; without calibration at worst 0.981 nats and 3.1% right, where other nodes have the values",
        ),
        ({"validation": {"shifted": None}}, "shifted prompts", "not measured: the task has none that fit this model"),
        ({"circuit": None, "tasks": [{"nodes": 1, "meets_target": True}]}, "without calibration", "of each circuit, in its report"),
        ({"circuit": None, "tasks": [FOREIGN]}, "steering", "not measured: there is no circuit"),
        ({"circuit": None, "tasks": [{"nodes": 1, "meets_target": True}]}, "steering", "of each circuit, in its report"),
        (
            {"circuit": None, "tasks": [{"nodes": 1, "meets_target": True}], "bridge": NO_GAIN},
            "sparse model",
            "no better than a bigram model",
        ),
    ],
)
def test_a_line_without_its_number_says_why_and_no_line_is_left_out(changes: dict[str, Any], line: str, said: str):
    found = lines(**changes)
    first = "circuits" if "tasks" in changes else "circuit"
    names = ["robust standard", "without calibration", "null searches", "shifted prompts", "sparse model", "causal agreement", "steering"]
    assert list(found) == [first, *names]
    assert said in found[line]


def test_the_lines_of_the_stored_example_are_those_of_the_readme():
    stored = json.loads((ROOT / ".github/example/result.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(line in readme for line in verdict_lines(stored))


def test_a_training_has_none_of_these_lines():
    assert list(verdict_lines({"model": "sparse_gpt", "held_out_loss": 2.0})) == []
