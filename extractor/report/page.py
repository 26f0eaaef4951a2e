"""Writes the report of a circuit: circuit.svg, circuit.png, report.html.

report.html is self-contained (styles, picture and script are inline, nothing is loaded) and states the result in one sentence, also when
the target was missed. page.html is its template, style.css its style; each function here fills one section. All text
from a model is escaped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from extractor.circuits.circuit import Circuit, Edge, Node
from extractor.files import write_text
from extractor.report import picture
from extractor.report.bridge import bridge_section
from extractor.report.drawings import Others, changed_of, class_labels, drawings
from extractor.report.html import (
    ABSENT,
    Bar,
    bars_table,
    count,
    identifier,
    nats,
    percent,
    plain,
    scroll,
    section,
    share,
    spaced,
    table,
    token,
    track,
)
from extractor.report.page_script import page_json, page_script
from extractor.report.picture import short_name
from extractor.report.plain_page import template_file
from extractor.report.plots import distribution
from extractor.report.steering import steering_section
from extractor.report.story import story_section
from extractor.report.validation import activations_of, controls, effects_of, interval_of, validation_section
from extractor.report.verdicts import answers_of, headline, known, verdicts
from extractor.spec.schema import CHANCE

_MAX_EDGES = 20  # rows of the table of edges
_NETWORKS = (
    ("full", "Full model", "full"),
    ("circuit", "Circuit alone", "circuit"),
    ("without_circuit", "Without the circuit", "without"),
    ("random", "Same number of random nodes", "random"),
)


@dataclass(frozen=True)
class Example:
    """A held-out prompt. `full`, `circuit`, `without`: probability of `answer` against `other` in full model, circuit, model without it."""

    prompt: str
    answer: str
    other: str
    full: float
    circuit: float
    without: float


def write_report(
    folder: Path,
    circuit: Circuit,
    result: dict,
    examples: list[Example],
    check: Callable[[], None] = lambda: None,
    tokens: Mapping[str, Any] | None = None,
    live: Mapping[str, Any] | None = None,
    others: Others = (),
) -> None:
    """Write circuit.svg, circuit.png and report.html into an existing folder. Of a very large circuit they show the strongest part.

    result   the content of result.json, with losses in nats per prompt, accuracies as fractions, times in seconds
    check    called often; what it raises ends the writing
    tokens   the content of tokens.json, see `jobs.page_data`; None: the page has no token view
    live     the circuit itself, see `jobs.live_data`; None: the page does not run it
    others   circuits that the page offers beside this one, see `jobs.other_circuits`

    Raises DiskFull.
    """
    check()
    scene = picture.layout(circuit, changed_of(result), class_labels(circuit, result))
    write_text(folder / "circuit.svg", picture.to_svg(scene))
    check()
    picture.write_png(scene, folder / "circuit.png", check=check)
    check()
    write_text(folder / "report.html", page(circuit, result, examples, scene, tokens, live, others))


def page(
    circuit: Circuit,
    result: dict,
    examples: Sequence[Example],
    scene: picture.Scene,
    tokens: Mapping[str, Any] | None = None,
    live: Mapping[str, Any] | None = None,
    others: Others = (),
) -> str:
    """The text of report.html; see `write_report`."""
    scale, shift = circuit.calibration.scale, circuit.calibration.shift
    drawn = [chip.node.id for chip in scene.chips]
    listed = [node for node in circuit.nodes if node.id in drawn]
    effects, drawn_as = effects_of(result), drawings(circuit, result, scene, others)
    order = "by rise of the loss when removed" if effects else "by absolute weight"
    shown = f"{min(len(circuit.edges), _MAX_EDGES)} of {len(circuit.edges)}, ordered {order}."
    text = Template(template_file("page.html")).substitute(
        contents=_CONTENTS,
        title=plain(f"{result['task']} in {short_name(result['model'])}"),
        eyebrow=f"Circuit report · {plain(result['task'])}",
        headline=headline(circuit, result),
        description=_description(result),
        meta=_meta(circuit, result),
        verdicts=verdicts(result),
        story=story_section(result),
        picture=drawn_as.first,
        tokens=template_file("tokens.html") if tokens else "",
        data=page_json(circuit, result, tokens, drawn, live if tokens else None, drawn_as.data),
        script=page_script(),
        picture_note=f" Of this circuit is {scene.note}." if scene.note else "",
        style=Template(template_file("style.css")).substitute(least_width=round(0.85 * scene.width)),
        losses_note=_losses_note(result),
        losses=_losses(result),
        validation=validation_section(result),
        examples=_examples(examples),
        edges_note=f"{shown} A positive weight passes the signal on, a negative weight inverts it.{_EFFECT_NOTE if effects else ''}",
        edges=scroll(_edges(circuit, effects), "Strongest edges"),
        nodes_note=_nodes_note(circuit, listed, result),
        nodes=scroll(_nodes(listed, result), "All nodes", "scroll"),
        bridge=bridge_section(result),
        steering=steering_section(result),
        chance=f"{CHANCE:.3f}",
        calibration=f"{scale:.3g} and {shift:+.3g}",
        seconds=_seconds(result.get("seconds") or {}),
    )
    return text.replace(_CONTENTS, _contents(text), 1)


_CONTENTS, _HEADING = "<nav></nav>", re.compile(r'<h2 id="([a-z]+)">([^<]*)</h2>')


def _contents(text: str) -> str:
    """Links to the sections of a page."""
    links = "".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading in _HEADING.findall(text))
    return f'<nav class="contents" aria-label="Sections"><ul>{links}</ul></nav>'


def _description(result: dict) -> str:
    task = f"<p>The task: {plain(result['description'])}.</p>" if result.get("description") else ""
    return task + (f'<p class="why">Why: {plain(result["why"])}.</p>' if result.get("why") else "")


def _meta(circuit: Circuit, result: dict) -> str:
    facts = [
        f"Model {plain(result['model'])}",
        f"answers {answers_of(circuit)}" if circuit.answers else "every pair has its own answers",
        f"target {nats(result['target_loss'])} nats",
        f"{result['held_out_pairs']} held-out pairs of prompts",
        f"seed {result['seed']}",
    ]
    return " · ".join(facts)


def _losses_note(result: dict) -> str:
    full, target = known(result["loss"].get("full")), result["target_loss"]
    text = "Loss on held-out prompts, lower is better. Right: share of prompts on which the right answer is preferred to the other."
    return text + (" The full model itself is above the target." if full is not None and full > target else "")


def _losses(result: dict) -> str:
    """A table with bars: full model, circuit, the rest, random nodes, and the attribution baseline."""
    loss, right = result["loss"], result["accuracy"]
    bars = [Bar(name, kind, loss.get(key), right.get(key), interval_of(result, key)) for key, name, kind in _NETWORKS]
    return bars_table("Network", [*bars, *controls(result)], result["target_loss"])


def _examples(examples: Sequence[Example]) -> str:
    if not examples:
        return ""
    cards = "".join(_example(e) for e in examples)
    note = "Held-out prompts with the right answer marked, and its probability against the other answer."
    return section("examples", "Examples", f'<p class="note">{note}</p><div class="examples">{cards}</div>')


def _example(example: Example) -> str:
    prompt = '<span class="space">↵</span>\n'.join(map(spaced, example.prompt.split("\n")))
    names = ("full model", "circuit alone", "without circuit")
    rows = zip(names, (example.full, example.circuit, example.without), ("full", "circuit", "without"), strict=True)
    bars = "".join(f"<dt>{name}</dt><dd>{track(p, 1.0, kind)}</dd><dd class='number'>{percent(p)}</dd>" for name, p, kind in rows)
    caption = f'<p class="note">{token(example.answer)}, not {token(example.other)}</p>'
    return f'<div class="card"><pre>{prompt}<mark>{spaced(example.answer)}</mark></pre>{caption}<dl class="bars">{bars}</dl></div>'


_EFFECT_NOTE = " Loss if removed: rise of the loss, in nats, when this edge alone is removed."


def _edges(circuit: Circuit, effects: Mapping[tuple[str, str], float]) -> str:
    """The edges with the largest effects where these were measured, else with the largest weights."""
    nodes = {node.id: node for node in circuit.nodes}
    strongest = sorted(circuit.edges, key=lambda e: (-effects.get((e.source, e.target), -math.inf), -_size(e), e.source, e.target))
    top = max([0.01, *effects.values()])
    rows = []
    for edge in strongest[:_MAX_EDGES]:
        source, target = nodes.get(edge.source), nodes.get(edge.target)
        reads, writes = _tokens(source.reads[:2] if source else ()), _tokens(target.writes[:2] if target else ())
        sign = "negative" if edge.weight < 0 else "positive"
        weight = f'<span class="{sign}">{edge.weight:+.3f}</span>'
        rows.append((identifier(edge.source), reads, identifier(edge.target), writes, weight, _effect(effects, edge, top)))
    head = ("from", "which reads", "to", "which writes", "weight", "loss if removed")
    columns = len(head) if effects else len(head) - 1
    return table(head[:columns], [row[:columns] for row in rows], numbers={4, 5})


def _effect(effects: Mapping[tuple[str, str], float], edge: Edge, top: float) -> str:
    rise = effects.get((edge.source, edge.target))
    if rise is None:
        return ABSENT
    return f'<span class="effect"><i style="width:{share(rise, top)}"></i></span>{rise:+.3f}'


def _nodes_note(circuit: Circuit, listed: Sequence[Node], result: dict) -> str:
    size = count(len(circuit.nodes), "node")
    few = f"; the {len(listed):,} of the picture are listed" if len(listed) < len(circuit.nodes) else ""
    unmeasured = "; their values on text were not measured" if circuit.nodes and not activations_of(result) else ""
    return f"{size}{few}{unmeasured}"


def _nodes(listed: Sequence[Node], result: dict) -> str:
    found = activations_of(result)
    rows = []
    for n in listed:
        one = found["nodes"].get(n.id) if found else None
        spread = (distribution(found["percentiles"], one["values"]), percent(one["nonzero"])) if found and one else (ABSENT, ABSENT)
        rows.append((identifier(n.id), f"{n.mean:.4g}", _tokens(n.reads), _tokens(n.writes), *spread))
    head = ("node", "mean", "reads", "writes", "values on text, full model, 1&ndash;99&nbsp;%", "nonzero")
    columns = len(head) if found else len(head) - 2
    return table(head[:columns], [row[:columns] for row in rows], numbers={1, 5})


def _seconds(seconds: dict[str, float]) -> str:
    if not seconds:
        return ""
    rows = [(plain(stage), _duration(value)) for stage, value in seconds.items()]
    rows.append(("total", _duration(sum(seconds.values()))))
    return section("seconds", "Time", f'<div class="card">{table(("stage", "time"), rows, numbers={1})}</div>')


def _tokens(tokens: Sequence[str]) -> str:
    return " ".join(map(token, tokens))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _size(edge: Edge) -> float:
    return abs(edge.weight) if math.isfinite(edge.weight) else 0.0
