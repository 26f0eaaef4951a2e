"""The report's section on validation: the same circuit under other conditions, its size against its loss, its edges and seeds one by one.

Reads result["validation"] and result["curve"] (see `extractor.validation.validate`); what an older result lacks is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from extractor.report.html import Bar, bars_table, count, identifier, nats, percent, section, table
from extractor.report.validation_plots import curve_plot, effects_plot

_RESTS = {"mean": "The rest at its mean", "zero": "The rest at zero", "resample": "The rest from another prompt"}
_MATTERS = 0.01  # nats that a two-valued node may cost, to pass for a switch
_SHOWN_NODES = 6


def validation_section(result: dict) -> str:
    """The section as HTML; empty for results without any of it."""
    found, curve = result.get("validation") or {}, result.get("curve") or []
    body = [_conditions(result, found), _figures(result, found, curve), _seeds(found.get("seeds"))]
    if not any(body):
        return ""
    told = " ".join(text for text in (_interval(result, found), _edges(found.get("edge_effects"))) if text)
    return section("validation", "Validation", (f"<p>{told}</p>" if told else "") + "".join(body))


def effects_of(result: dict) -> dict[tuple[str, str], float]:
    """(source, target) of every edge whose effect was measured: by how much the loss rises without it, nats."""
    found = (result.get("validation") or {}).get("edge_effects") or {}
    return {(source, target): rise for source, target, rise in found.get("edges", [])}


def activations_of(result: dict) -> dict | None:
    """{percentiles, tokens, nodes: {id: {values, nonzero}}}, where these were measured."""
    return (result.get("validation") or {}).get("activations")


def _interval(result: dict, found: dict) -> str:
    own = (found.get("interval") or {}).get("circuit")
    if not own:
        return ""
    target, (low, high) = result["target_loss"], own
    sure = "all of that meets" if high <= target else "none of that meets" if low > target else "not all of that meets"
    between = f"between {low:.3f} and {high:.3f} nats (95&nbsp;%)"
    return f"With other prompts of this kind the circuit&rsquo;s loss would lie {between}; {sure} the target of {nats(target)}."


def _edges(effects: dict | None) -> str:
    if not effects or not effects["edges"]:
        return ""
    measured = len(effects["edges"])
    raising = round(effects["raising"] * measured)
    of = "all" if raising == measured else f"{raising:,} of"
    those = count(measured, "edge") if measured == effects["of"] else f"the {count(measured, 'edge')} with the largest weights"
    return f"Removed alone, {of} {those} {'makes' if raising == 1 else 'make'} the loss worse."


def _conditions(result: dict, found: dict) -> str:
    """The circuit under other replacements, with two-valued nodes, and uncalibrated."""
    intervals, ablation = found.get("interval") or {}, found.get("ablation") or {}
    if not ablation:
        return ""
    own = result.get("ablation", "mean")
    bars = [_bar(f"<strong>{_RESTS[own]}</strong>: as found", own, ablation, intervals)]
    bars += [_bar(name, kind, ablation, intervals) for kind, name in _RESTS.items() if kind != own]
    binarised = found.get("binarised")
    if binarised:
        bars.append(Bar("Every node two-valued", "circuit", binarised["loss"], None, intervals.get("binarised")))
    if found.get("uncalibrated") is not None:
        bars.append(Bar("Not calibrated", "circuit", found["uncalibrated"], None, intervals.get("uncalibrated")))
    note = "The same nodes and edges; only what stands for the rest, or what their values may be, is different."
    below = _switches(result, binarised)
    drawn = bars_table("The circuit, if", bars, result["target_loss"], has_right=False)
    return f'<p class="note">{note}</p><div class="card losses">{drawn}{below}</div>'


def _bar(name: str, kind: str, ablation: Mapping[str, float], intervals: Mapping[str, Sequence[float]]) -> Bar:
    return Bar(name, "circuit", ablation.get(kind), None, intervals.get(kind))


def _switches(result: dict, binarised: dict | None) -> str:
    """Which single nodes can be two-valued, and which cannot."""
    alone = (binarised or {}).get("nodes")
    if not alone:
        return ""
    own = result["loss"].get("circuit")
    if own is None or not math.isfinite(own):
        return ""
    costs = sorted(((loss - own, node) for node, loss in alone.items()), key=lambda cost: (-cost[0], cost[1]))
    graded = [(cost, node) for cost, node in costs if cost > _MATTERS]
    text = f"One at a time, {len(costs) - len(graded)} of {count(len(costs), 'node')} can be two-valued at less than {_MATTERS} nats."
    if graded:
        worst = ", ".join(f"{identifier(node)} {cost:+.3f}" for cost, node in graded[:_SHOWN_NODES])
        text += f" Those whose finer values matter{' most' if len(graded) > _SHOWN_NODES else ''}: {worst}."
    return f'<p class="note">{text}</p>'


def _figures(result: dict, found: dict, curve: Sequence[dict]) -> str:
    """Size against loss, and what every edge is good for."""
    figures = []
    if len({row["edges"] for row in curve}) > 1:
        rows = [
            (nats(row["target"]), f"{row['nodes']:,}", f"{row['edges']:,}", nats(row["loss"]), percent(row["accuracy"]), _met(row["met"]))
            for row in curve
        ]
        below = table(("target", "nodes", "edges", "nats", "right", "met"), rows, numbers={0, 1, 2, 3, 4, 5})
        caption = "The smallest circuit for every target: edges against held-out loss in nats"
        figures.append(_figure(caption, curve_plot(curve, result["target_loss"]), f'<div class="scroll">{below}</div>'))
    effects = found.get("edge_effects") or {}
    if len(effects.get("edges", [])) > 1:
        caption = "Every edge removed alone: by how many nats the loss rises, the largest first"
        note = f"Measured on {count(effects['pairs'], 'held-out pair')}, with and without it under the calibration that suits these best."
        figures.append(_figure(caption, effects_plot(effects["edges"]), f'<p class="note">{note}</p>'))
    return f'<div class="plots">{"".join(figures)}</div>' if figures else ""


def _met(met: bool) -> str:
    return "yes" if met else "<strong>no</strong>"


def _figure(caption: str, drawn: str, below: str) -> str:
    return f'<figure class="card plot"><figcaption>{caption}</figcaption>{drawn}{below}</figure>'


def _seeds(found: dict | None) -> str:
    """The circuits of other seeds, and what they have in common."""
    if not found:
        return ""
    rows = [(str(one["seed"]), f"{one['nodes']:,}", f"{one['edges']:,}", nats(one["loss"]), _met(one["met"])) for one in found["circuits"]]
    shared = found["shared"]
    names = " ".join(identifier(name) for name in shared) or "none"
    told = (
        f"The same search from {count(len(rows), 'seed')}: two circuits share {percent(found['node_overlap'])} of their nodes and "
        f"{percent(found['edge_overlap'])} of their edges on average, of all that either has. {count(len(shared), 'node')} "
        f"{'is' if len(shared) == 1 else 'are'} in all of them."
    )
    drawn = table(("seed", "nodes", "edges", "nats", "met"), rows, numbers={1, 2, 3, 4})
    listed = f'<details><summary class="note">In all of them</summary><p class="ids">{names}</p></details>'
    return f'<h3 id="seeds">Other seeds</h3><p>{told}</p><div class="card">{drawn}{listed}</div>'


def controls(result: dict) -> list[Bar]:
    """The attribution control as a bar beside the four networks; none where it was not measured."""
    found = result.get("validation") or {}
    control = found.get("attribution")
    if not control:
        return []
    name = f"Attribution&rsquo;s first {count(control['nodes'], 'node')}"
    return [Bar(name, "random", control["loss"], control["accuracy"], (found.get("interval") or {}).get("attribution"))]


def interval_of(result: dict, network: str) -> Sequence[float] | None:
    """[low, high] of a network's loss, 95 %, where it is known."""
    return ((result.get("validation") or {}).get("interval") or {}).get(network)
