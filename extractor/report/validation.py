"""The report's section on validation: other ablations, size against loss, effects of single edges, other seeds.

Reads result["validation"] and result["curve"] (see `extractor.validation.validate`); leaves out the parts that an older result lacks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median_high

from extractor.report.controls import controls_part
from extractor.report.html import Bar, bars_table, count, identifier, nats, percent, scroll, section, table
from extractor.report.plots import curve_plot, effects_plot
from extractor.spec.claims import CONDITION_WORDS, why_no_circuit, worst_condition
from extractor.spec.thresholds import COUNTED_RISE, FULL_MODEL_FAILS, OTHER_ROLE

_ABLATIONS = {"mean": "All other nodes at their means", "zero": "All other nodes at zero", "resample": "Everything else resampled"}
_OWN_SCALE = {
    "zero": "all other nodes at zero",
    "same": "all else from a prompt with the same answer",
    "other": "all else from a prompt with the other answer",
    "subset": "a random share of the rest at its own values",
}
_REMOVED = {
    "nothing": "Full model, calibrated",
    "edges": "Without the circuit&rsquo;s edges, all nodes kept",
    "random_nodes": "Without as many random nodes",
}
_SWITCH_COST = 0.01  # nats; a node whose binarisation costs no more counts as a switch
_SHOWN_NODES = 6


def validation_section(result: dict) -> str:
    """The section as HTML; empty where nothing was measured."""
    found, curve = result.get("validation") or {}, result.get("curve") or []
    body = [
        _standards(result),
        _conditions(result, found),
        controls_part(result) or _no_controls(found),
        _figures(result, found, curve),
        _seeds(found.get("seeds")),
    ]
    if not any(body):
        return ""
    said = (_interval(result, found), _shifted(found.get("shifted")), _edges(found.get("edge_effects")), _roles(found.get("roles")))
    text = " ".join(filter(None, said))
    return section("validation", "Validation", (f"<p>{text}</p>" if text else "") + "".join(body))


def _no_controls(found: dict) -> str:
    """Why a result has no controls, where that is the model's fault; '' where the job asked for none."""
    if found.get("null_searches", found) is not None or found.get("removed", {}).get("nothing", 0.0) < FULL_MODEL_FAILS:
        return ""
    return "<p>No controls were made: the full model does not do the task.</p>"


def effects_of(result: dict) -> dict[tuple[str, str], float]:
    """(source, target) of every measured edge -> rise of the loss, in nats, when it alone is removed."""
    found = (result.get("validation") or {}).get("edge_effects") or {}
    return {(source, target): rise for source, target, rise in found.get("edges", [])}


def activations_of(result: dict) -> dict | None:
    """{percentiles, tokens, nodes: {id: {values, nonzero}}}; None where not measured."""
    return (result.get("validation") or {}).get("activations")


def _interval(result: dict, found: dict) -> str:
    own = (found.get("interval") or {}).get("circuit")
    if not own:
        return ""
    target, (low, high) = result["target_loss"], own
    met = "all of it meets" if high <= target else "none of it meets" if low > target else "only a part of it meets"
    return f"95&nbsp;% interval of the circuit&rsquo;s loss: {low:.3f} to {high:.3f} nats; {met} the target of {nats(target)}."


def _edges(effects: dict | None) -> str:
    if not effects or not effects["edges"]:
        return ""
    measured = len(effects["edges"])
    raising = sum(rise >= COUNTED_RISE for _, _, rise in effects["edges"])
    edges = count(measured, "edge") if measured == effects["of"] else f"the {count(measured, 'edge')} with the largest weights"
    if raising == measured:
        return (
            f"Removing any single edge raises the loss by {COUNTED_RISE} nats or more (all {measured:,})."
            if measured == effects["of"]
            else f"Removing any of {edges} raises the loss by {COUNTED_RISE} nats or more."
        )
    return f"Removing a single edge raises the loss by {COUNTED_RISE} nats or more for {raising:,} of {edges}."


def _roles(found: dict | None) -> str:
    """Which nodes and heads do something else in the circuit than in the full model."""
    nodes = {name: one[0] for name, one in ((found or {}).get("nodes") or {}).items() if one[0] is not None}
    if not found or not nodes:
        return ""
    changed = found["changed"]
    text = f"Against the full model, the median unexplained variance of a node&rsquo;s value is {median_high(nodes.values()):.2f}; "
    text += f"{len(changed)} of {count(len(nodes), 'node')} {'has' if len(changed) == 1 else 'have'} another role (above {OTHER_ROLE})"
    if changed:
        shown = " ".join(identifier(name) for name in changed[:_SHOWN_NODES])
        text += f": {shown}{' ...' if len(changed) > _SHOWN_NODES else ''}"
    heads = found["heads"] or {}
    far = max(heads, key=heads.__getitem__) if heads else None
    return text + (f". Attention of head {identifier(far)} differs most: distance {heads[far]:.2f} of 1." if far else ".")


def _shifted(found: dict | None) -> str:
    """Whether the circuit answers as the full model does in longer code of other templates."""
    if not found:
        return ""
    low, high = (percent(end) for end in found["interval"])
    right, worst = found["accuracy"], worst_condition(found)
    beyond = f" Without calibration, where other nodes {CONDITION_WORDS[worst[0]]}: {nats(worst[1]['loss'])} nats there." if worst else ""
    return (
        f"On {found['prompts']} shifted prompts, longer and from other templates, circuit and full model prefer the same answer on "
        f"{percent(found['same_answer'])} ({low} to {high}); the circuit is right on {percent(right['circuit'])}, the full model on "
        f"{percent(right['full'])}.{beyond}"
    )


def _conditions(result: dict, found: dict) -> str:
    """The loss of the circuit under other ablations, with binarised nodes, and without calibration."""
    intervals, ablation = found.get("interval") or {}, found.get("ablation") or {}
    if not ablation:
        return ""
    own = result.get("ablation", "mean")
    bars = [_bar(f"<strong>{_ABLATIONS[own]}</strong> (as in the search)", own, ablation, intervals)]
    bars += [_bar(name, kind, ablation, intervals) for kind, name in _ABLATIONS.items() if kind != own]
    binarised = found.get("binarised")
    if binarised:
        bars.append(Bar("Every node binarised", "circuit", binarised["loss"], None, intervals.get("binarised")))
    if found.get("uncalibrated") is not None:
        bars.append(Bar("Without calibration", "circuit", found["uncalibrated"], None, intervals.get("uncalibrated")))
    for kind, one in (found.get("conditions") or {}).items():
        if kind in _OWN_SCALE:  # the others are like rows above
            bars.append(Bar(f"Without calibration, {_OWN_SCALE[kind]}", "circuit", one["loss"], None, one["interval"]))
    note = "The same nodes and edges; the replacement values of ablated nodes or the allowed values of kept nodes change."
    below = _switches(result, binarised)
    drawn = bars_table("Condition", bars, result["target_loss"], has_right=False)
    return f'<p class="note">{note}</p><div class="card losses">{drawn}{below}</div>'


def _standards(result: dict) -> str:
    """The circuits by each standard beside each other; empty where there was one search only."""
    standards: dict = result.get("standards") or {}
    if len(standards) < 2:
        return ""
    rows = []
    for name, one in standards.items():
        worst, numbers = max(one["conditions"].items(), key=lambda item: item[1]["loss"])
        shown = f"<strong>{name}</strong> (shown here)" if name == result["standard"] else name
        sizes = (f"{one['nodes']:,}", f"{one['edges']:,}", nats(one["loss"]), _met(one["met"] and one["found"]))
        rows.append((shown, *sizes, f"{nats(numbers['loss'])} ({worst})", percent(numbers["accuracy"])))
    missed = {name.capitalize(): one for name, one in standards.items() if one["met"] and not one["found"]}
    head = ("standard", "nodes", "edges", "nats by it", "found and met", "worst ablation, not calibrated", "right there")
    note = (
        "Paper: other nodes at one replacement value, scale and shift of the answer fitted. Robust: the worst of five ablations, nothing "
        f"fitted. The model has {next(iter(standards.values()))['edges_of_model']:,} edges."
        + "".join(f" {name}: what the search ended with holds; {why_no_circuit(one)}." for name, one in missed.items())
    )
    return f'<p class="note">{note}</p>{scroll(table(head, rows, numbers={1, 2, 3, 4, 5, 6}), "Both standards")}'


def _bar(name: str, kind: str, ablation: Mapping[str, float], intervals: Mapping[str, Sequence[float]]) -> Bar:
    return Bar(name, "circuit", ablation.get(kind), None, intervals.get(kind))


def _switches(result: dict, binarised: dict | None) -> str:
    """The nodes that can be binarised at no cost, one at a time, and those that cannot."""
    if binarised is None or "nodes" not in binarised:  # not measured at all, or by an older version
        return ""
    alone = binarised["nodes"]
    if alone is None:
        return '<p class="note">Nodes were not binarised one at a time: the circuit has too many, or its ablation is resample.</p>'
    if not alone:
        return ""
    own = result["loss"].get("circuit")
    if own is None or not math.isfinite(own):
        return ""
    costs = sorted(((loss - own, node) for node, loss in alone.items()), key=lambda cost: (-cost[0], cost[1]))
    graded = [(cost, node) for cost, node in costs if cost > _SWITCH_COST]
    text = f"Binarised one at a time, {len(costs) - len(graded)} of {count(len(costs), 'node')} cost at most {_SWITCH_COST} nats."
    if graded:
        worst = ", ".join(f"{identifier(node)} {cost:+.3f}" for cost, node in graded[:_SHOWN_NODES])
        text += f" The others{', costliest first' if len(graded) > _SHOWN_NODES else ''}: {worst}."
    return f'<p class="note">{text}</p>'


def _figures(result: dict, found: dict, curve: Sequence[dict]) -> str:
    """Plots of size against loss and of the edges' effects."""
    figures = []
    if len({row["edges"] for row in curve}) > 1:
        rows = [
            (nats(row["target"]), f"{row['nodes']:,}", f"{row['edges']:,}", nats(row["loss"]), percent(row["accuracy"]), _met(row["met"]))
            for row in curve
        ]
        below = table(("target", "nodes", "edges", "nats", "right", "met"), rows, numbers={0, 1, 2, 3, 4, 5})
        caption = "The circuit that the search chose for every target: number of edges against held-out loss in nats"
        figures.append(_figure(caption, curve_plot(curve, result["target_loss"]), scroll(below, caption, "scroll")))
    effects = found.get("edge_effects") or {}
    if len(effects.get("edges", [])) > 1:
        caption = "Rise of the loss in nats when a single edge is removed, largest first"
        note = f"Measured on {count(effects['pairs'], 'held-out pair')}, with a calibration fitted on these for every set of edges."
        figures.append(_figure(caption, effects_plot(effects["edges"]), f'<p class="note">{note}</p>'))
    return f'<div class="plots">{"".join(figures)}</div>' if figures else ""


def _met(met: bool) -> str:
    return "yes" if met else "<strong>no</strong>"


def _figure(caption: str, drawn: str, below: str) -> str:
    return f'<figure class="card plot"><figcaption>{caption}</figcaption>{drawn}{below}</figure>'


def _seeds(found: dict | None) -> str:
    """The circuits of other seeds and their overlap."""
    if not found:
        return ""
    rows = [(str(one["seed"]), f"{one['nodes']:,}", f"{one['edges']:,}", nats(one["loss"]), _met(one["met"])) for one in found["circuits"]]
    shared = found["shared"]
    names = " ".join(identifier(name) for name in shared) or "none"
    text = (
        f"The same search from {count(len(rows), 'seed')}. Mean overlap of two circuits (intersection over union): "
        f"{percent(found['node_overlap'])} of nodes, {percent(found['edge_overlap'])} of edges. "
        f"{count(len(shared), 'node')} {'is' if len(shared) == 1 else 'are'} in every circuit."
    )
    drawn = table(("seed", "nodes", "edges", "nats", "met"), rows, numbers={1, 2, 3, 4})
    listed = f'<details><summary class="note">Nodes in every circuit</summary><p class="ids">{names}</p></details>'
    return f'<h3 id="seeds">Other seeds</h3><p>{text}</p><div class="card">{drawn}{listed}</div>'


def controls(result: dict) -> list[Bar]:
    """What the networks above are compared with, as bars; without those that were not measured."""
    found = result.get("validation") or {}
    intervals, control = found.get("interval") or {}, found.get("attribution")
    bars = [
        Bar(_REMOVED[name], "without", loss, None, intervals.get(f"without {name}")) for name, loss in (found.get("removed") or {}).items()
    ]
    if control:
        name = f"Top {count(control['nodes'], 'node')} by attribution"
        bars.append(Bar(name, "random", control["loss"], control["accuracy"], intervals.get("attribution")))
    return bars


def interval_of(result: dict, network: str) -> Sequence[float] | None:
    """[low, high], the 95 % interval of a network's loss in nats; None where not measured."""
    return ((result.get("validation") or {}).get("interval") or {}).get(network)
