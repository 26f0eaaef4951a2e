"""Writes index.html of a job of several tasks: a row for each task, with a link to its report.

index.html is self-contained and runs no script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from extractor.files import write_text
from extractor.report.html import ABSENT, count, nats, percent, plain, scroll, section, share, table, track
from extractor.report.picture import short_name
from extractor.report.plain_page import plain_page
from extractor.spec.claims import CONDITION_WORDS, is_foreign, is_met, worst_condition
from extractor.spec.schema import CHANCE
from extractor.spec.unmeasured import is_constant

NAME = "index.html"
Rows = Sequence[Mapping[str, Any]]
Results = Mapping[str, Mapping[str, Any]]
_NAMED = ("task", "verdict", "standard", "circuit alone", "story")  # columns of words and bars; the others are numbers
_COLUMNS = (
    *("task", "verdict", "standard", "nodes", "edges", "circuit alone", "nats", "worst ablation", "full model", "without", "edges cut"),
    *("random", "right on shifted, and full model", "as dense", "story"),
)
_NOTE = (
    "Each task is a link to its report. Losses in nats, of the full model without calibration, of the others with their best one. The bar "
    "is the loss of the circuit alone, by its standard; it ends at chance, {chance:.3f}; the dashed line is the target. Worst ablation: "
    "the circuit without calibration, under the ablation that harms it most. Without: the model without the circuit&rsquo;s nodes. Edges "
    "cut: the same with all nodes kept and the circuit&rsquo;s edges removed. Random: as many random nodes. Right on shifted: on longer "
    "prompts from other templates.{dense} Story: whether every claim of the report on how the circuit works holds on held-out prompts."
)
_OF_DENSE = " As dense: the held-out prompts on which the sparse model answers as the dense one."


def write_index(folder: Path, rows: Rows, about: Mapping[str, Any], results: Results) -> None:
    """Write index.html into a result's folder. Raises DiskFull.

    rows      of tasks.json
    about     {model, target_loss, seed, bridge: the content of faithfulness.json or None}; losses in nats
    results   {task: the content of its result.json}, of the tasks with a circuit
    """
    write_text(folder / NAME, index_page(rows, about, results))


def index_page(rows: Rows, about: Mapping[str, Any], results: Results) -> str:
    """The text of index.html; see `write_index`."""
    is_bridged = any(row.get("agreement") is not None for row in rows)
    shown = [name for name in _COLUMNS if is_bridged or name != "as dense"]
    cells = [_cells(row, about["target_loss"], results.get(row["task"], {}).get("validation") or {}) for row in rows]
    numbers = {place for place, name in enumerate(shown) if name not in _NAMED}
    note = _NOTE.format(chance=CHANCE, dense=_OF_DENSE if is_bridged else "")
    tasks = scroll(table(shown, [[one[name] for name in shown] for one in cells], numbers), "All tasks") + _reasons(rows)
    return plain_page(
        f"{len(rows)} tasks in {short_name(about['model'])}",
        f"Circuits of {count(len(rows), 'task')}",
        _headline(rows, about, results),
        " · ".join([f"Model {plain(about['model'])}", f"seed {about['seed']}", *_fidelity(about.get("bridge"))]),
        section("tasks", "The tasks", f'<p class="note">{note}</p>{tasks}', "tasks"),
    )


def _headline(rows: Rows, about: Mapping[str, Any], results: Results) -> str:
    met = [row for row in rows if is_met(row)]
    worst = [worst_condition((results.get(row["task"]) or {}).get("validation")) for row in met]
    known = [found[1]["loss"] <= about["target_loss"] for found in worst if found]
    model = f"{plain(short_name(about['model']))}{'&rsquo;s sparse model' if about.get('bridge') else ''}"
    have = f"{len(met)} of {count(len(rows), 'task')} in {model} {'has' if len(met) == 1 else 'have'} a circuit that meets"
    if not known or len(known) < len(met):
        return f"{have} {nats(about['target_loss'])} nats."
    holds = sum(known)
    still = f"{holds or 'none'} of these {'does' if holds < 2 else 'do'} so without calibration under all {len(CONDITION_WORDS)} ablations"
    return f"{have} {nats(about['target_loss'])} nats; {still}."


def _cells(row: Mapping[str, Any], target: float, validation: Mapping[str, Any]) -> dict[str, str]:
    """{column: HTML}. validation: that of result.json."""
    name, found = plain(row["task"]), row["nodes"] is not None
    worst, shifted, story = worst_condition(validation), validation.get("shifted"), (validation.get("mechanism") or {}).get("holds")
    on_shifted = [percent(shifted["accuracy"][name]) for name in ("circuit", "full")] if shifted else []
    mark = f'<u style="left:{share(target, CHANCE)}"></u>'
    return {
        "task": f'<a href="circuits/{quote(row["task"], safe="")}/report.html">{name}</a>' if found else name,
        "verdict": _verdict(row),
        "standard": plain(row.get("standard") or "") or ABSENT,
        "nodes": f"{row['nodes']:,}" if found else ABSENT,
        "edges": f"{row['edges']:,}" if found else ABSENT,
        "circuit alone": track(row["loss"], CHANCE, "circuit", mark) if found else "",
        "nats": nats(row["loss"]),
        "worst ablation": nats(worst[1]["loss"]) if worst else ABSENT,
        "full model": nats(row.get("full_loss")),
        "without": nats(row.get("without")),
        "edges cut": nats((validation.get("removed") or {}).get("edges")),
        "random": nats(row.get("random")),
        "right on shifted, and full model": " / ".join(on_shifted) or ABSENT,
        "as dense": percent(row.get("agreement")),
        "story": {None: ABSENT, True: "holds", False: "no simple story"}[story],
    }


def _verdict(row: Mapping[str, Any]) -> str:
    if is_foreign(row):
        return '<span class="why">not the dense model&rsquo;s</span>'
    if row["nodes"] is None:
        return '<span class="why">no circuit</span>'
    if not row["meets_target"]:
        return '<span class="why">target missed</span>'
    return "no node is needed" if row["nodes"] == 0 else "meets the target"


def _fidelity(bridge: Mapping[str, Any] | None) -> list[str]:
    explained = (bridge or {}).get("explained")
    if not explained or bridge is None or is_constant(bridge):
        return []
    mean, worst, alone = (percent(explained.get(name)) for name in ("mean", "worst", "sparse"))
    what = f"of the dense model&rsquo;s predictions beyond bigrams on {plain(explained['source'])}"
    return [f"explains {mean} {what}, {worst} at the worst crossing (share of KL; the sparse model alone {alone})"]


def _reasons(rows: Rows) -> str:
    lines = "".join(f"<li><b>{plain(row['task'])}</b>: {plain(row['why'].removesuffix('.'))}.</li>" for row in rows if row.get("why"))
    return f'<ul class="note">{lines}</ul>' if lines else ""
