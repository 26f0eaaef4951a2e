"""The page of a batch: fills page.html; each function makes one section. All text is escaped.

Rows are models, columns are tasks; a cell shows edges / nodes / loss of a circuit, on a darker green for fewer edges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from extractor.errors import html_text
from extractor.spec.claims import NOT_DENSE, is_foreign, is_met

Facts = dict[str, Any]


def page(summary: Facts) -> str:
    """index.html as text, from a summary of `worker.batches.results.gather`."""
    frame = resources.files("worker.batches").joinpath("page.html").read_text(encoding="utf-8")
    return Template(frame).substitute(
        title=html_text(f"Batch {summary['batch']}"),
        eyebrow=html_text(f"Batch {summary['batch']} · {summary['state']} · {', '.join(summary['asked'].get('models', ()))}"),
        headline=html_text(headline(summary)),
        cards="".join(
            f'<li class="card"><b>{number:,}</b><span>{html_text(name)}</span></li>' for name, number in _figures(summary).items()
        ),
        table=_table(summary),
        troubles=_list("troubles", "Jobs without a result", _troubles(summary)),
        foreign=_list("foreign", "Tasks that the dense model does not do as its sparse model does", _foreign(summary)),
        left_out=_list("left-out", "Tasks that a model's tokenizer cannot express", _left_out(summary)),
        refused=_list("refused", "Rejected models", [(m["model"], m["reason"]) for m in summary["refused"]]),
    )


def headline(summary: Facts) -> str:
    """The result of the batch in one sentence."""
    circuits = [cell for model in summary["models"] for cell in model["tasks"].values() if cell["edges"] is not None]
    models = len(summary["models"])
    if not circuits:
        running = any(cell["state"] != "succeeded" for model in summary["models"] for cell in model["tasks"].values())
        return f"No circuit found{' yet' * running} in {models} model{'s' * (models != 1)}."
    met = [cell["edges"] for cell in circuits if is_met(cell)]
    size = f", with {min(met):,} to {max(met):,} edges" if met else ""
    return f"{len(met)} of {len(circuits)} circuits in {models} model{'s' * (models != 1)} meet their target loss{size}."


def _figures(summary: Facts) -> dict[str, int]:
    jobs = {f"jobs {state}": number for state, number in summary["counts"].items()}
    return {"models accepted": len(summary["models"]), "models rejected": len(summary["refused"])} | jobs


def _table(summary: Facts) -> str:
    head = "".join(f'<th scope="col" class="number">{html_text(name)}</th>' for name in ("parameters", *summary["tasks"]))
    sizes = [cell["edges"] for model in summary["models"] for cell in model["tasks"].values() if cell["edges"]]
    most = math.log1p(max(sizes, default=1))
    rows = "".join(_row(model, summary["tasks"], most) for model in summary["models"])
    return f'<table><thead><tr><th scope="col">model</th>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _row(model: Facts, tasks: list[str], most: float) -> str:
    count = "&ndash;" if model["parameters"] is None else f"{model['parameters']:,}"
    cells = "".join(_cell(model, task, most) for task in tasks)
    name = f'<th scope="row" title="{html_text(model["reference"])}">{html_text(model["model"])}</th>'
    return f'<tr>{name}<td class="number">{count}</td>{cells}</tr>'


def _cell(model: Facts, task: str, most: float) -> str:
    cell: Mapping[str, Any] | None = model["tasks"].get(task)
    if cell is None:
        return f'<td class="none" title="{html_text(model["left_out"].get(task, ""))}">not expressible</td>'
    hint = html_text(cell["error"] or cell["why"] or f"job {cell['job']}")
    if cell["edges"] is None:
        text = NOT_DENSE if is_foreign(cell) else cell["state"]
        return f'<td class="{html_text(cell["state"].replace(" ", "-"))}" title="{hint}">{html_text(text)}</td>'
    loss = "" if cell["loss"] is None else f" / {cell['loss']:.3f}"
    paper = f" ({cell['paper_edges']:,})" if cell.get("standard") == "robust" else ""
    text = f"{cell['edges']:,}{paper} / {cell['nodes']:,}{loss}"
    if cell["report"]:
        text = f'<a href="{html_text(Path(cell["report"]).as_uri())}">{text}</a>'
    if not is_met(cell):
        return f'<td class="number unmet" title="{hint}">{text}</td>'
    return f'<td class="number met" style="--small:{100 - 85 * math.log1p(cell["edges"]) / most:.0f}%" title="{hint}">{text}</td>'


def _troubles(summary: Facts) -> list[tuple[str, str]]:
    return [
        (f"{model['model']}, {task} ({cell['job']})", f"{cell['state']}{': ' + cell['error'] if cell['error'] else ''}")
        for model in summary["models"]
        for task, cell in model["tasks"].items()
        if cell["state"] in ("failed", "missing", "cancelled", "not expressible")
    ]


def _foreign(summary: Facts) -> list[tuple[str, str]]:
    cells = [(model["model"], task, cell) for model in summary["models"] for task, cell in model["tasks"].items()]
    return [(f"{model}, {task}", cell["why"]) for model, task, cell in cells if is_foreign(cell)]


def _left_out(summary: Facts) -> list[tuple[str, str]]:
    return [(f"{model['model']}, {task}", why) for model in summary["models"] for task, why in model["left_out"].items()]


def _list(anchor: str, title: str, rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    items = "".join(f"<tr><th scope='row'>{html_text(name)}</th><td class='reason'>{html_text(text)}</td></tr>" for name, text in rows)
    body = f'<div class="card scroll"><table><tbody>{items}</tbody></table></div>'
    return f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{html_text(title)} <small>{len(rows)}</small></h2>{body}</section>'
