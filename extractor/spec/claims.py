"""What a result claims, from its numbers: one rule for the engine, the command line and every page. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from extractor.spec.thresholds import MOST_ROBUST_EDGES

NOT_DENSE = "not the dense model's"  # in a table's cell
# What nodes outside of the circuit have under each of `circuits.conditions`.
CONDITION_WORDS = {
    "mean": "have their means",
    "zero": "are zero",
    "same": "have the values of a prompt with the same answer",
    "other": "have the values of a prompt with the other answer",
    "subset": "have their means but for a random share, which keeps its own values",
}


def is_met(facts: Mapping[str, Any]) -> bool:
    """Whether a circuit meets its target and, where its model is bridged to a dense one, the task is that dense model's.

    facts: the content of result.json, or a row of tasks.json. Results of earlier versions do not say whose the task is.
    """
    return bool(facts.get("meets_target")) and not is_foreign(facts)


def is_foreign(facts: Mapping[str, Any]) -> bool:
    """Whether the task is not the dense model's, so that a circuit of the sparse model says nothing of it; `facts` as above."""
    return facts.get("holds_for_dense") is False


def worst_condition(measured: Mapping[str, Any] | None) -> tuple[str, Mapping[str, Any]] | None:
    """(name, {loss, accuracy, interval}) of the condition under which the circuit, without calibration, has the largest loss.

    measured   'validation' of result.json, or its part on shifted prompts. None where this was not measured: in earlier versions
    """
    found = (measured or {}).get("conditions")
    return max(found.items(), key=lambda item: item[1]["loss"]) if found else None


def sizes_by_standard(facts: Mapping[str, Any]) -> dict[str, Any]:
    """{standard: that of the shown circuit; paper_edges: edges of the circuit of the paper's standard}, as tables show them.

    None in results of earlier versions. facts: the content of result.json.
    """
    paper = (facts.get("standards") or {}).get("paper") or {}
    return {"standard": facts.get("standard"), "paper_edges": paper.get("edges")}


def about_standards(facts: Mapping[str, Any]) -> str:
    """Which standard the shown circuit meets, and what the other search found, in plain words. facts: the content of result.json."""
    found = facts.get("standards")
    if not found:
        return "not measured: the version that made this result did not do it"
    paper, robust = found["paper"], found.get("robust")
    if robust is None:
        return "not asked for; --standard robust asks for it"
    least = f"{paper['nodes']} nodes and {paper['edges']} edges"
    if facts.get("standard") == "robust":
        return f"this circuit holds under {len(CONDITION_WORDS)} ablations, without calibration; the paper's standard alone needs {least}"
    size = f"{robust['nodes']:,} nodes and {robust['edges']:,} of the model's {robust['edges_of_model']:,} edges"
    line = f"the search found no small circuit that holds and is necessary; it ended with {size}, at {robust['loss']:.3f} nats"
    if not robust.get("met"):
        return line
    return f"{line}, which hold; {why_no_circuit(robust)}"


def why_no_circuit(standard: Mapping[str, Any]) -> str:
    """Why what a search ended with counts as no circuit although it holds. standard: of `standards` in result.json."""
    if standard["edges"] > MOST_ROBUST_EDGES:
        return f"more than {MOST_ROBUST_EDGES:,} edges are not shown as a circuit"
    return "but the model does the task without them"


def which_layers(bridge: Mapping[str, Any]) -> str:
    """'layers 24 to 28 are sparse, the others the dense model's own' where faithfulness.json says so; '' where all are sparse."""
    if not bridge.get("sparse_layers"):
        return ""
    first, last = bridge["sparse_layers"]
    some = f"layer {first} is" if first == last else f"layers {first} to {last} are"
    return f"{some} sparse, the others the dense model's own"


def loss_shares(bridge: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The shares of the dense model's gain in loss over bigrams, of faithfulness.json; None where there are none.

    Earlier versions name them `recovered`.
    """
    found = bridge.get("loss_recovered", bridge.get("recovered"))
    return found if isinstance(found, Mapping) else None
