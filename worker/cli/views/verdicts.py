"""The lines below a result's table. Every result of a kind has the same lines; where a number is missing, its line says why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from extractor.spec.claims import (
    CONDITION_WORDS,
    NOT_DENSE,
    about_standards,
    is_foreign,
    is_met,
    loss_shares,
    which_layers,
    worst_condition,
)
from extractor.spec.schema import CHANCE
from extractor.spec.thresholds import FULL_MODEL_FAILS
from extractor.spec.unmeasured import is_constant, no_gain, why_no_causal, why_no_share, why_no_steering

_NULLS = {"inverted": "exchanged answers", "coin": "random answers", "random_weights": "random weights"}
_EARLIER = "not measured: the version that made this result did not do it"


def verdict_lines(facts: dict[str, Any]) -> Iterator[str]:
    """The lines of a circuit job, with one task or several; none for a training. facts: as of `storage.results.summary`."""
    circuit = facts.get("circuit")
    if isinstance(circuit, dict):
        yield f"circuit: {_circuit(facts, circuit)}"
        removed = (facts.get("validation") or {}).get("removed") or {}
        if removed.get("edges") is not None:
            yield f"without its edges alone: the model, all nodes kept, has {removed['edges']:.3f} nats; chance {CHANCE:.3f}"
    if "tasks" in facts:
        yield f"circuits: {describe_tasks(facts['tasks'])}"
    if isinstance(circuit, dict) or "tasks" in facts:
        elsewhere = ""
        if "tasks" in facts:
            is_found = any(row["nodes"] is not None for row in facts["tasks"])
            elsewhere = "of each circuit, in its report" if is_found else "not measured: there is no circuit"
        yield f"robust standard: {elsewhere or about_standards(facts)}"
        yield f"without calibration: {elsewhere or _conditions(facts)}"
        yield f"null searches: {elsewhere or _null_searches(facts)}"
        yield f"shifted prompts: {elsewhere or _shifted(facts)}"
        yield f"sparse model: {_share(facts)}"
        yield f"causal agreement: {elsewhere or _causal(facts)}"
        yield f"steering: {elsewhere or _steering(facts)}"


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


def _conditions(facts: dict[str, Any]) -> str:
    """'at worst 0.981 nats and 3.1% right, where other nodes have ...; 0.517 nats where they have their means, and 81.0% right'."""
    worst = worst_condition(facts.get("validation"))
    if worst is None:
        return _EARLIER
    name, line = worst[0], _worst(worst)
    mean = facts["validation"]["conditions"]["mean"]
    if name == "mean":
        return line
    return f"{line}; {mean['loss']:.3f} nats where they have their means, and {mean['accuracy']:.1%} right"


def _null_searches(facts: dict[str, Any]) -> str:
    """'no circuit of inverted answers, random answers or random weights', or which of them has one, and of how many edges."""
    validation = facts.get("validation") or {}
    if "null_searches" not in validation:
        return _EARLIER
    found = validation["null_searches"]
    if found is None and validation.get("removed", {}).get("nothing", 0.0) >= FULL_MODEL_FAILS:
        return "not made: the full model does not do the task"
    if found is None:
        return "not made: the job asks for no controls (prune.controls)"
    made = [
        f"{name}: {one['edges']} edges by the {standard} standard"
        for standard, searches in found.items()
        for kind, name in _NULLS.items()
        if (one := searches.get(kind)) and one["met"]
    ]
    names = [name for kind, name in _NULLS.items() if kind in found["paper"]]
    if not made and not found["paper"]["task"]["met"]:
        return "they say nothing here: the quick search finds no circuit of the task itself either"
    return f"circuits where there is nothing to find: {'; '.join(made)}" if made else f"no circuit of {', '.join(names)}"


def _shifted(facts: dict[str, Any]) -> str:
    """'circuit and full model prefer the same answer on 74.2% (70% to 78%); right on 75.8% and 98.0%'."""
    if "shifted" not in (facts.get("validation") or {}):
        return _EARLIER
    found = facts["validation"]["shifted"]
    if found is None:
        return "not measured: the task has none that fit this model"
    (low, high), right = found["interval"], found["accuracy"]
    line = f"circuit and full model prefer the same answer on {found['same_answer']:.1%} ({low:.0%} to {high:.0%})"
    line += f"; right on {right['circuit']:.1%} and {right['full']:.1%}"
    worst = worst_condition(found)
    return f"{line}; without calibration {_worst(worst)}" if worst else line


def _worst(condition: tuple[str, Mapping[str, Any]]) -> str:
    """'at worst 0.981 nats and 3.1% right, where other nodes have ...'."""
    name, numbers = condition
    return f"at worst {numbers['loss']:.3f} nats and {numbers['accuracy']:.1%} right, where other nodes {CONDITION_WORDS[name]}"


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
    remarks += [which] if (which := which_layers(bridge)) else []
    prompts = bridge.get("prompts") or {}
    if prompts.get("interval"):  # not in results of earlier versions
        shifted = prompts.get("shifted")
        same = f"same answer as the dense model on {prompts['agreement']:.1%} of held-out prompts"
        remarks.append(same + (f", {shifted['agreement']:.1%} of shifted ones" if shifted else ""))
    alone = (explained or {}).get("sparse")  # the share above is a mean over this and all passes that cross once
    remarks += [f"the sparse model alone explains {alone:.0%}"] if alone is not None else []
    return "; ".join([line, *remarks])


def _causal(facts: dict[str, Any]) -> str:
    found = facts.get("causal")
    if not found:
        return f"not measured: {why_no_causal(facts)}"
    nodes, random = found["nodes"], found["random"]
    line = f"effects of {nodes['count']} nodes in the dense model and in the sparse one: correlation {_two(nodes['correlation'])}, "
    line += f"slope {_two(nodes['slope'])}, same sign {_share_of(nodes['same_sign'])}"
    if not random:
        return line
    line += f"; random nodes: correlation {_two(random['correlation'])}"
    return line + (f", same sign {_share_of(random['same_sign'])}" if "same_sign" in random else "")


def _two(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _share_of(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0%}"


def _few(few: dict[str, Any], of_model: dict[str, Any] | None) -> str:
    """'2 nodes flip 57% (50% to 64%) of the dense model's right answers; the strongest of 100 random edits flips 0%; ...'"""
    held_out, shifted, count = few["held_out"], few.get("shifted"), len(few["nodes"])
    low, high = held_out["interval"]
    line = (
        f"{count} node{'s flip' if count > 1 else ' flips'} {held_out['flipped']:.0%} ({low:.0%} to {high:.0%}) of the dense model's right "
    )
    line += f"answers on held-out prompts, the strongest random edits {held_out['random_flipped']:.0%}"
    line += f"; on shifted prompts {shifted['flipped']:.0%}, random {shifted['random_flipped']:.0%}" if shifted else ""
    if of_model and of_model.get("held_out"):
        best = of_model["held_out"]
        line += f"; {len(of_model['nodes'])} of all nodes of the sparse model {best['flipped']:.0%}, random {best['random_flipped']:.0%}"
    return line


def _steering(facts: dict[str, Any]) -> str:
    why = why_no_steering(facts)
    if why is not None:
        return f"not measured: {why}"
    found = facts["steering"]
    few = found.get("few")
    if few and few.get("held_out"):
        return _few(few, found.get("few_of_model"))
    moved = "{:.1%} to {:.1%}".format(found["probability"][0], found["probability"][-1])
    worst = f"{found['random_worst'][-1]:.1%}"
    return f"{found['node']} moves the dense model's other answer from {moved}; random directions reach {worst} at most"
