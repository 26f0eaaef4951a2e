"""The page of a sweep: fills page.html; each function makes one section. All text is escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from string import Template

from extractor.errors import html_text
from worker.sweeps.grid import Facts

_ABSENT = "&ndash;"


def page(sweep: str, comparison: Facts, svg: str, shades: Mapping[int, str]) -> str:
    """index.html as text. svg: the plot; shades: its colours by number of parameters."""
    points = comparison["points"]
    done = [point for point in points if "held_out_loss" in point]
    frame = resources.files("worker.sweeps").joinpath("page.html").read_text(encoding="utf-8")
    return Template(frame).substitute(
        title=html_text(f"Sweep {sweep}"),
        eyebrow=html_text(f"Sweep {sweep} · {', '.join(comparison['tasks']) or 'no task'}"),
        headline=headline(comparison),
        compared=_compared(comparison, done),
        verdicts="".join(_verdict(claim) for claim in comparison["findings"]),
        picture=svg[svg.index("<svg") :],
        table=_table(comparison, done, shades),
        gallery="".join(_gallery(task, done) for task in comparison["tasks"]),
        pairs="".join(_pairs(claim) for claim in comparison["findings"]),
        absent=_absent([point for point in points if "held_out_loss" not in point]),
        summaries=json.dumps({point["job"]: summary(point) for point in done}).replace("<", "\\u003c"),
    )


def headline(comparison: Facts) -> str:
    """The result of the sweep in one sentence."""
    done = [point for point in comparison["points"] if "held_out_loss" in point]
    if not done:
        return "No point of this sweep has a result yet."
    losses = [point["held_out_loss"] for point in done]
    sizes = [point["edges_geometric_mean"] for point in done if point["edges_geometric_mean"] is not None]
    models = f"{len(done)} model{'s' * (len(done) > 1)}"
    if not sizes:
        return f"{models}, {min(losses):.2f} to {max(losses):.2f} nats per token; no circuit meets the target loss."
    best = min((p for p in done if p["edges_geometric_mean"] is not None), key=lambda p: p["edges_geometric_mean"])
    return (
        f"{models}, {min(losses):.2f} to {max(losses):.2f} nats per token; circuits of {min(sizes):.0f} to {max(sizes):.0f} edges. "
        f"The smallest circuits are in {html_text(best['label'])}."
    )


def _compared(comparison: Facts, done: list[Facts]) -> str:
    common = comparison["compared_tasks"]
    if not common:
        return "No task met its target loss in any model, so sizes cannot be compared."
    out = [point["label"] for point in done if point["edges_geometric_mean"] is None]
    text = f"Sizes are geometric means over the tasks that meet the target loss in every compared model: {', '.join(common)}."
    return html_text(text + (f" Not compared: {'; '.join(out)}." if out else ""))


def _verdict(claim: Facts) -> str:
    kind = "none" if not claim["of"] else "yes" if claim["agree"] == claim["of"] else "part" if claim["agree"] else "no"
    mark = {"none": "&bull;", "yes": "✓", "part": "~", "no": "✗"}[kind]
    word = claim["verdict"][0].upper() + claim["verdict"][1:]
    return f'<li class="card {kind}"><b>{mark} {html_text(word)}</b><span>{html_text(claim["claim"])}</span></li>'


def _table(comparison: Facts, done: list[Facts], shades: Mapping[int, str]) -> str:
    names = ["model", "parameters", "nonzeros", "loss", "mean edges", *comparison["tasks"]]
    head = "".join(f'<th scope="col"{"" if n == 0 else " class=number"}>{html_text(name)}</th>' for n, name in enumerate(names))
    rows = []
    for point in sorted(done, key=lambda p: p["held_out_loss"]):
        size = point["edges_geometric_mean"]
        numbers = (
            f"{point['parameters']:,}",
            f"{point['nonzeros']:,}",
            f"{point['held_out_loss']:.4f}",
            _ABSENT if size is None else f"{size:g}",
        )
        cells = [f'<td class="number">{text}</td>' for text in numbers]
        cells += [f'<td class="number">{_task_cell(point["tasks"].get(task))}</td>' for task in comparison["tasks"]]
        dot = f'<i class="dot" style="background:{shades[point["parameters"]]}"></i>'
        head_cell = f'<th scope="row">{dot}{html_text(point["label"])}</th>'
        rows.append(f'<tr id="row-{point["job"]}" tabindex="0">{head_cell}{"".join(cells)}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _task_cell(facts: Facts | None) -> str:
    if facts is None:
        return _ABSENT
    missed = f'<span class="unmet" title="{html_text(facts.get("why") or "")}">not met</span>'
    text = f"{facts['edges']:,}" if facts["meets_target"] else missed
    return f'<a href="{html_text(facts["report"])}">{text}</a>' if facts.get("report") else text


def _gallery(task: str, done: list[Facts]) -> str:
    """The circuits of a task side by side, smallest first."""
    found = [(point, point["tasks"][task]) for point in done if task in point["tasks"]]
    met = sorted(((p, f) for p, f in found if f["meets_target"] and f.get("picture")), key=lambda item: (item[1]["edges"], item[0]["job"]))
    if not met:
        return ""
    figures = "".join(_figure(task, point, facts) for point, facts in met)
    return f'<h3><code class="token">{html_text(task)}</code></h3><div class="gallery">{figures}</div>'


def _figure(task: str, point: Facts, facts: Facts) -> str:
    label, report, picture = (html_text(text) for text in (point["label"], facts["report"], facts["picture"]))
    return (
        f'<figure data-point="{point["job"]}"><a href="{report}">'
        f'<img src="{picture}" loading="lazy" alt="The {html_text(task)} circuit of {label}"></a>'
        f"<figcaption><b>{facts['nodes']} nodes, {facts['edges']} edges</b>{label}; {facts['loss']:.3f} nats</figcaption></figure>"
    )


def _pairs(claim: Facts) -> str:
    rows = "".join(
        f'<li class="{"yes" if p["agrees"] else "no"}">{"✓" if p["agrees"] else "✗"} {html_text(p["text"])}</li>' for p in claim["pairs"]
    )
    return f"<h3>{html_text(claim['claim'])}: {html_text(claim['verdict'])}</h3><ul class='pairs'>{rows}</ul>"


def _absent(points: list[Facts]) -> str:
    if not points:
        return ""
    rows = "".join(
        f"<li><b>{html_text(point['label'])}</b> ({html_text(point['job'])}) {html_text(point['state'])}"
        f"{': ' + html_text(point['error']) if point.get('error') else ''}</li>"
        for point in points
    )
    return f'<section aria-labelledby="absent"><h2 id="absent">Without a result</h2><div class="card"><ul>{rows}</ul></div></section>'


def summary(point: Facts) -> str:
    """One line about a point."""
    size = point["edges_geometric_mean"]
    circuits = "; ".join(f"{task} {_circuit_words(facts)}" for task, facts in point["tasks"].items())
    mean = "no size to compare" if size is None else f"{size:g} edges"
    facts = (
        f"{point['held_out_loss']:.4f} nats, {mean}, {thousands(point['parameters'])} parameters, {thousands(point['nonzeros'])} nonzeros"
    )
    return f"{point['label']}: {facts}" + (f" ({circuits})" if circuits else "")


def _circuit_words(facts: Facts) -> str:
    return f"{facts['edges']} edges" if facts["meets_target"] else "not met"


def thousands(number: float) -> str:
    return f"{number / 1e6:.3g}M" if number >= 1e6 else f"{number / 1e3:.3g}k" if number >= 1e3 else f"{number:g}"
