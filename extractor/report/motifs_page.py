"""The motifs of circuits as a page without a script: each with a drawing, its numbers, and examples that open in the reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from extractor.report.html import ABSENT, count, percent, plain, scroll, section, table
from extractor.report.plain_page import node_link, plain_page, report_address

LISTED = 100  # rows of a table
_EXAMPLES = 3  # of a motif
_BOX, _ACROSS, _DOWN, _FONT = 18.0, 72.0, 20.0, 10.0  # height of a box, room between boxes, size of the letters
_LINKS = ("residual", "query-key")
_CLASSES = {"+": "positive", "-": "negative"}
_NOTE = (
    "An arrow is an edge{signs}; a dashed line is a link without a weight: a write that is read later from the residual stream, or a "
    "query and a key that meet. Letters tell heads apart. Expected: mean over the shuffles, and standard deviation. p: share of the "
    "circuits and their shuffles with at least this count; in the row of a motif that is rarer, with at most this count. q: p corrected "
    "for the number of tests; a motif with a q of at most 0.05 is called more frequent, or rarer."
)
_SIGNS = {
    "each": " with the sign of its weight",
    "product": ", of either sign; a circle is balanced where the product of its signs is positive",
}
_SHUFFLES = (
    "A shuffle moves edges and keeps, of every node, the number of edges in and out by site of the other end and by sign; links stay. "
    "{moved}Tests overlap: two motifs may share their nodes."
)


def motifs_page(found: Mapping[str, Any], address: Callable[[str], str] = lambda folder: ".") -> str:
    """The text of the page.

    found     what `results.motifs.motifs` returns
    address   of a result's folder, without '/' at its end, in links of this page; '' where its reports cannot be reached. Without it the
              page lies in the folder of the only result
    """
    rows = found["motifs"]
    tested = [row for row in rows if row["tested"] or row["q_rare"] is not None]
    tested.sort(key=lambda row: (not row["significant"], not row["rare"]))
    others = [row for row in rows if row not in tested]
    several = len({example["folder"] for row in rows for example in row["examples"]}) > 1
    return plain_page(
        f"Motifs of {count(found['circuits'], 'circuit')}",
        "Motifs",
        _headline(found),
        f"{count(found['circuits'], 'circuit')} of {count(found['models'], 'sparse model')} · {count(found['shuffles'], 'shuffle')} · seed "
        f"{plain(found['seed'])}",
        "".join([_tested(found, tested, address, several), _counted(others, address, several), _left_out(found["left_out"])]),
    )


def _headline(found: Mapping[str, Any]) -> str:
    frequent, rare = (sum(row[name] for row in found["motifs"]) for name in ("significant", "rare"))
    told = (
        f"{frequent or 'None'} of {count(found['tested'], 'tested motif')} {'is' if frequent < 2 else 'are'} more frequent in the circuits"
    )
    return f"{told} than in shuffles of their edges, {rare or 'none'} of {found['tested_rare']:,} rarer."


def _tested(found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], address: Callable[[str], str], several: bool) -> str:
    moved = "" if found["moved"] is None else f"On average it moves {percent(found['moved'])} of the edges. "
    notes = [_NOTE.format(signs=_SIGNS[found["signs"]]), _SHUFFLES.format(moved=moved)]
    if found["least_q"] is not None and found["least_q"] > 0.05 and not any(row["significant"] for row in rows):
        notes.append(
            f"With {found['shuffles']:,} shuffles a single motif cannot be significant among {found['tested']:,}: its q is at least "
            f"{found['least_q']:.3f}. More shuffles would tell."
        )
    cells = []
    for row in rows[:LISTED]:
        verdict = "<b>more frequent</b>" if row["significant"] else "<b>rarer</b>" if row["rare"] else "not significant"
        p, q = ("p_rare", "q_rare") if row["rare"] or not row["tested"] else ("p", "q")
        chance = [f"{row[p]:.4f}", f"{row[q]:.3f}"]
        numbers = [f"{row['count']:,}", f"{row['expected']:.1f}&nbsp;&plusmn;&nbsp;{row['sd']:.1f}", *chance, f"{row['circuits']:,}"]
        cells.append([_named(row), verdict, *numbers, _examples(row, address, several)])
    heads = ("motif", "verdict", "count", "expected", "p", "q", "circuits", "examples")
    body = scroll(table(heads, cells, {2, 3, 4, 5, 6}), "Tested motifs") if cells else "<p>No motif varies between the shuffles.</p>"
    return section("tested", "Tested motifs", "".join(f'<p class="note">{note}</p>' for note in notes) + body + _more(rows))


def _counted(rows: Sequence[Mapping[str, Any]], address: Callable[[str], str], several: bool) -> str:
    if not rows:
        return ""
    note = "The degrees of the nodes decide how frequent these are, or leave too little open for a test."
    cells = [[_named(row), f"{row['count']:,}", f"{row['circuits']:,}", _examples(row, address, several)] for row in rows[:LISTED]]
    body = scroll(table(("motif", "count", "circuits", "examples"), cells, {1, 2}), "Counted motifs")
    return section("counted", "Motifs that are counted only", f'<p class="note">{note}</p>{body}{_more(rows)}')


def _more(rows: Sequence[Any]) -> str:
    return f'<p class="note">{len(rows) - LISTED:,} more are not shown.</p>' if len(rows) > LISTED else ""


def _left_out(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = "".join(f"<li>{plain(row['task'])} in {plain(row['folder'])}: {plain(row['why'])}.</li>" for row in rows)
    return section("left-out", "Circuits that are left out", f'<ul class="note">{lines}</ul>') if lines else ""


def _named(row: Mapping[str, Any]) -> str:
    return f'{_drawing(row)}<br><span class="note">{plain(row["motif"])}</span>'


def _examples(row: Mapping[str, Any], address: Callable[[str], str], several: bool) -> str:
    lines = []
    for example in row["examples"][:_EXAMPLES]:
        folder, task = str(example["folder"]), str(example["task"])
        where = address(folder)
        links = " ".join(node_link(_report(where, task, node) if where else "", node) for node in example["nodes"])
        name = f"{PurePath(folder).name}: {task}" if several else task
        lines.append(f"{node_link(_report(where, task) if where else '', name)} {links}")
    return "<br>".join(lines) or ABSENT


def _report(folder: str, task: str, node: str = "") -> str:
    return report_address(folder, task, node).removeprefix("./")


def _drawing(row: Mapping[str, Any]) -> str:
    """Nodes as boxes in levels from left to right, edges as arrows with their sign."""
    nodes, edges = row["parts"]["nodes"], row["parts"]["edges"]
    labels = [node["kind"] + ("" if node["head"] is None else f" {chr(65 + node['head'])}") for node in nodes]
    levels = [[i for i, node in enumerate(nodes) if node["level"] == level] for level in range(1 + max(node["level"] for node in nodes))]
    height = max(map(len, levels)) * (_BOX + _DOWN) + 2
    boxes: dict[int, tuple[float, float, float]] = {}  # left, middle, width
    left = 1.0
    for level in levels:
        width = 0.62 * _FONT * max(len(labels[i]) for i in level) + 10
        step = height / len(level)
        boxes |= {i: (left, (place + 0.5) * step, width) for place, i in enumerate(level)}
        left += width + _ACROSS
    drawn = "".join(_arrow(boxes[edge["source"]], boxes[edge["target"]], edge["kind"], height / 2) for edge in edges)
    for i, (x, y, width) in boxes.items():
        drawn += (
            f'<rect x="{x:.1f}" y="{y - _BOX / 2:.1f}" width="{width:.1f}" height="{_BOX:.0f}" rx="4" fill="none" stroke="currentColor"/>'
        )
        drawn += f'<text x="{x + width / 2:.1f}" y="{y + 3.5:.1f}" text-anchor="middle" font-family="monospace">{plain(labels[i])}</text>'
    size = f'width="{left - _ACROSS + 1:.0f}" height="{height:.0f}"'
    return f'<svg {size} font-size="{_FONT:.0f}" fill="currentColor" role="img" aria-label="{plain(row["motif"])}">{drawn}</svg>'


def _arrow(source: tuple[float, float, float], target: tuple[float, float, float], kind: str, centre: float) -> str:
    """source, target: boxes; centre: the middle of the drawing from top to bottom."""
    dashes = ' stroke-dasharray="4 3"' if kind in _LINKS else ""
    if source[0] == target[0]:  # a query and a key beside each other
        x, ends = source[0] + source[2] / 2, sorted((source[1], target[1]))
        return f'<path d="M{x:.1f} {ends[0] + _BOX / 2:.1f}V{ends[1] - _BOX / 2:.1f}" fill="none" stroke="currentColor"{dashes}/>'
    (x, y), (end, low) = (source[0] + source[2], source[1]), target[:2]
    line = f'<path d="M{x:.1f} {y:.1f}L{end:.1f} {low:.1f}" fill="none" stroke="currentColor"{dashes}/>'
    if kind == "query-key":
        return line
    length = ((end - x) ** 2 + (low - y) ** 2) ** 0.5
    across, down = (end - x) / length, (low - y) / length
    back = (end - 6 * across, low - 6 * down)
    corners = [(end, low), (back[0] - 3 * down, back[1] + 3 * across), (back[0] + 3 * down, back[1] - 3 * across)]
    head = "".join(f"{px:.1f},{py:.1f} " for px, py in corners).strip()
    sign = ""
    if kind in _CLASSES:
        text = "+" if kind == "+" else "\N{MINUS SIGN}"
        crosses = abs(low - y) > _BOX + _DOWN / 2  # another arrow, in the middle
        below = low < y if crosses else (y + low) / 2 > centre
        part, beside = (0.34 if crosses else 0.5), (10 if below else -3)
        sign = f'<text x="{x + part * (end - x):.1f}" y="{y + part * (low - y) + beside:.1f}" text-anchor="middle">{text}</text>'
    return f'<g class="{_CLASSES.get(kind, "neutral")}" fill="currentColor">{line}<polygon points="{head}"/>{sign}</g>'
