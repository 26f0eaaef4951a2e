"""The lines below a result's table. Every result of a kind has the same lines; where a number is missing, its line says why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from extractor.spec.claims import NOT_DENSE, is_foreign, is_met, loss_shares
from extractor.spec.unmeasured import is_constant, no_gain, why_no_share, why_no_steering


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
    """'17 of 20 meet the target loss, 1 task is not the dense model's, 1 task is not expressible for this model'."""
    foreign = sum(map(is_foreign, rows))
    missing = sum(row["nodes"] is None and not is_foreign(row) for row in rows)
    parts = [f"{sum(map(is_met, rows))} of {len(rows)} meet the target loss"]
    for count, what in ((foreign, NOT_DENSE), (missing, "not expressible for this model")):
        if count:
            parts.append(f"{count} {'task is' if count == 1 else 'tasks are'} {what}")
    return ", ".join(parts)


def _circuit(facts: dict[str, Any], circuit: dict[str, Any]) -> str:
    verdict = "meets" if facts.get("meets_target") else "does not meet"
    size = f"{circuit.get('nodes')} nodes, {circuit.get('edges')} edges"
    line = f"{size}; {verdict} the target loss {facts.get('target_loss')} on {facts.get('held_out_pairs')} held-out pairs"
    line += ", in the sparse model only" if is_foreign(facts) else ""
    return line + (f": {facts['why']}" if facts.get("why") else "")


def _share(facts: dict[str, Any]) -> str:
    why = why_no_share(facts)
    if why is not None:
        return f"what it explains of the dense model is not known: {why}"
    bridge = facts["bridge"]
    remarks = [f"the text is nearly constant (bigram loss {bridge['bigram_loss']:.3f} nats)"] if is_constant(bridge) else []
    explained, shares = bridge.get("explained"), loss_shares(bridge)
    if explained:
        line = (
            f"explains {explained['mean']:.0%} of the dense model's predictions beyond bigrams on {explained['source']}, its worst source, "
        )
        line += f"and {explained['worst']:.0%} at the worst crossing (share of KL)"
        remarks += [] if shares else [no_gain(bridge)]
    else:
        assert shares is not None  # `why_no_share` has found them
        line = f"recovers {shares['mean']:.0%} of the dense model's gain over bigrams, mean over all crossings"
    return "; ".join([line, *remarks])


def _steering(facts: dict[str, Any]) -> str:
    why = why_no_steering(facts)
    if why is not None:
        return f"not measured: {why}"
    found = facts["steering"]
    moved = "{:.1%} to {:.1%}".format(found["probability"][0], found["probability"][-1])
    worst = f"{found['random_worst'][-1]:.1%}"
    return f"{found['node']} moves the dense model's other answer from {moved}; random directions reach {worst} at most"
