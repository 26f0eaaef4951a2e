"""The claims of a mechanism as sentences: each with its numbers, and with a line where it fails."""

from __future__ import annotations

import copy
import json
import re

import pytest
from worlds import ROOT

from extractor.report.story import story_section
from extractor.report.verdicts import verdicts
from extractor.spec.claims import worst_condition

EXAMPLE = json.loads((ROOT / ".github" / "example" / "result.json").read_text(encoding="utf-8"))
FAILED = "This does not hold on held-out prompts"


def sentences(result: dict) -> list[str]:
    return [re.sub(r"<[^>]*>", "", one).replace("&nbsp;", " ") for one in re.findall(r"<li>(.*?)</li>", story_section(result))]


def test_the_story_of_the_example():
    told = sentences(EXAMPLE)
    assert len(told) == len(EXAMPLE["validation"]["mechanism"]["claims"])
    assert told[0].startswith("The two prompts of a pair differ in one token: (&quot; before the first answer")
    place = {claim["kind"]: i for i, claim in enumerate(EXAMPLE["validation"]["mechanism"]["claims"])}  # of several the last
    head = EXAMPLE["validation"]["mechanism"]["claims"][place["head"]]
    layer, number = head["head"]
    assert f"Head {number} of layer {layer} gives from the last token {100 * head['attention']['end']:.1f} %" in told[place["head"]]
    mlp = EXAMPLE["validation"]["mechanism"]["claims"][place["mlp"]]
    assert f"The MLP of layer {mlp['layer']} has {len(mlp['nodes'])} neurons in the circuit, {mlp['nodes'][0]}" in told[place["mlp"]]
    assert FAILED not in story_section(EXAMPLE)
    assert told[place["write"]].endswith("directly (share of its variance).")  # its node's effect stands in the sentence before
    result = copy.deepcopy(EXAMPLE)
    claims = result["validation"]["mechanism"]["claims"]
    node, together = claims[place["node"]], claims[place["together"]]
    together |= {"moved": node["moved"] + 0.1}
    assert "alone does as much" not in sentences(result)[place["together"]]
    together |= {name: node[name] for name in ("moved", "flipped", "without")}  # as if all together did no more than one of them
    assert f"({node['nodes'][0]} alone does as much)" in sentences(result)[place["together"]]


def test_a_claim_that_fails_says_so_and_several_differing_tokens_are_no_failure():
    result = copy.deepcopy(EXAMPLE)
    found = result["validation"]["mechanism"]
    found["claims"][0] |= {"one_token": 0.0, "tokens": [], "before_end": None, "holds": False}
    found["claims"][1] |= {"holds": False, "moved": 0.01}
    found["holds"] = False
    told = sentences(result)
    assert told[0] == "The two prompts of a pair differ in more than one token (100 % of the pairs)."
    assert told[1].endswith(FAILED + ".")
    assert "tokens that differ" in next(one for one in told if one.startswith("Head"))
    assert "No simple story was found" in story_section(result)


def test_attention_is_told_for_each_answer_where_it_was_measured():
    result = copy.deepcopy(EXAMPLE)
    (head, *_) = (claim for claim in result["validation"]["mechanism"]["claims"] if claim["kind"] == "head")
    head["attention"], head["attention_by_answer"] = {"end": 0.302, "after": None}, {"end": [0.6, 0.05], "after": [None, None]}
    assert "30.2&nbsp;% (60&nbsp;% before the first answer, 5&nbsp;% before the second) of its attention" in story_section(result)
    del head["attention_by_answer"]  # as earlier versions left it
    assert "30.2&nbsp;% of its attention" in story_section(result)


def test_no_mechanism_no_section():
    for absent in ({}, {"validation": None}, {"validation": {"mechanism": None}}):
        assert story_section(absent) == ""


@pytest.mark.parametrize(
    ("circuit", "full", "same", "claim"),
    [
        (0.99, 1.0, 0.97, "Holds on shifted prompts"),
        (0.449, 0.973, 0.477, "Not on shifted prompts"),
        (0.6, 0.7, 0.99, "Full model fails"),
        (0.5, 0.7, 0.6, "Not on"),
    ],
)
def test_shifted_prompts_have_a_card(circuit: float, full: float, same: float, claim: str):
    result = copy.deepcopy(EXAMPLE)
    result["validation"]["shifted"] |= {"accuracy": {"circuit": circuit, "full": full}, "same_answer": same}
    (card,) = re.findall(rf'<li class="card \w+"><b>{claim}.*?</li>', verdicts(result))
    assert f"right on {100 * circuit:.4g}&nbsp;%" in card
    _, worst = worst_condition(result["validation"]["shifted"])
    assert f"without calibration at worst {worst['loss']:.3f} nats" in card
