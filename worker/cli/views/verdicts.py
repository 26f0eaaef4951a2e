"""The lines below a result's table. Every result of a kind has the same lines; where a number is missing, its line says why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from extractor.spec.unmeasured import is_constant, why_no_share, why_no_steering


def verdict_lines(facts: dict[str, Any]) -> Iterator[str]:
    """The lines of a circuit job, with one task or several; none for a training. facts: as of `storage.results.summary`."""
    circuit = facts.get("circuit")
    if isinstance(circuit, dict):
        yield f"circuit: {_circuit(facts, circuit)}"
    if "tasks" in facts:
        yield f"circuits: {describe_tasks(facts['tasks'])}"
    if isinstance(circuit, dict) or "tasks" in facts:
        yield f"sparse model: {_share(facts)}"
        yield f"steering: {_steering(facts) if 'tasks' not in facts else 'of each circuit, in its report'}"


def describe_tasks(rows: list[dict[str, Any]]) -> str:
    """'17 of 20 meet the target loss, 1 task is not expressible for this model'."""
    missing = sum(row["nodes"] is None for row in rows)
    met = f"{sum(row['meets_target'] for row in rows)} of {len(rows)} meet the target loss"
    return f"{met}, {missing} {'task is' if missing == 1 else 'tasks are'} not expressible for this model" if missing else met


def _circuit(facts: dict[str, Any], circuit: dict[str, Any]) -> str:
    verdict = "meets" if facts.get("meets_target") else "does not meet"
    size = f"{circuit.get('nodes')} nodes, {circuit.get('edges')} edges"
    line = f"{size}; {verdict} the target loss {facts.get('target_loss')} on {facts.get('held_out_pairs')} held-out pairs"
    return line + (f": {facts['why']}" if facts.get("why") else "")


def _share(facts: dict[str, Any]) -> str:
    why = why_no_share(facts)
    if why is not None:
        return f"its share of the dense model's gain over bigrams is not known: {why}"
    bridge = facts["bridge"]
    line = f"recovers {bridge['recovered']['mean']:.0%} of the dense model's gain over bigrams, mean over all crossings"
    constant = f"; the text is nearly constant (bigram loss {bridge['bigram_loss']:.3f} nats)" if is_constant(bridge) else ""
    return line + constant


def _steering(facts: dict[str, Any]) -> str:
    why = why_no_steering(facts)
    if why is not None:
        return f"not measured: {why}"
    found = facts["steering"]
    moved = "{:.1%} to {:.1%}".format(found["probability"][0], found["probability"][-1])
    worst = f"{found['random_worst'][-1]:.1%}"
    return f"{found['node']} moves the dense model's other answer from {moved}; random directions reach {worst} at most"
