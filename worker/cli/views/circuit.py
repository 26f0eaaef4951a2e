"""A circuit as lines of text: what its result says, how it works, and its nodes from the prompt (top) down to the answer.

Lines are styled; an output without colours has the same text.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from extractor.errors import printable
from extractor.spec.claims import about_standards
from extractor.spec.story import FAILED, Notation, how_measured, mechanism_of, no_story, plain_nats, plain_percent, tell
from worker.cli.views.circuit_rows import Glyphs, RowColumns, best_place, row_order
from worker.cli.views.tables import styled
from worker.cli.views.verdicts import verdict_lines

Facts = Mapping[str, Any]

LEAST_WIDTH = 60  # of lines of words; rows need about 72, and in a narrower output the terminal breaks them
_SUBLAYERS = {"attn": "attention", "mlp": "MLP"}
_NETWORKS = {"circuit": "circuit", "full": "full model", "without_circuit": "without the circuit"}


def result_lines(facts: Facts, numbers: Facts, width: int, glyphs: Glyphs, limit: int | None) -> Iterator[Text]:
    """All lines. facts: of `show.circuit_facts`; numbers: the content of result.json; limit: most nodes that are drawn, None for all.

    Raises KeyError, TypeError, ValueError or AttributeError where a value is missing or malformed.
    """
    width = max(width, LEAST_WIDTH)
    yield styled(f"{facts['task']} in {Path(str(facts['model'])).name}", "bold")
    for line in _summary(facts, numbers):
        yield from wrapped(line, width, "  ")
    found = mechanism_of(numbers)
    if found:
        yield styled("")
        yield from story_lines(found, width, glyphs)
    yield styled("")
    yield from circuit_lines(facts, (found or {}).get("loss"), width, glyphs, limit)


def wrapped(text: str, width: int, indent: str = "", style: str = "") -> Iterator[Text]:
    """Lines of at most `width` cells; further ones begin with `indent`. Words are not broken; a no-break space joins two of them."""
    line = ""
    for word in text.split(" "):
        word = " ".join(map(printable, word.split("\xa0")))
        if line and cell_len(f"{line} {word}") > width:
            yield styled(line, style)
            line = f"{indent}{word}"
        else:
            line = f"{line} {word}" if line else word
    yield styled(line, style)


def _summary(facts: Facts, numbers: Facts) -> Iterator[str]:
    size = {"nodes": len(facts["nodes"]), "edges": len(facts["edges"])}
    yield next(verdict_lines({**numbers, "circuit": size}))
    loss, right = numbers["loss"], numbers["accuracy"]
    parts = (f"{words} {plain_nats(loss.get(name))} nats, {plain_percent(right.get(name))} right" for name, words in _NETWORKS.items())
    yield f"loss: {'; '.join(parts)}"
    standard = f"standard: {facts['standard']}; " if facts["standard"] else ""  # earlier versions do not name it
    yield f"{standard}robust standard: {about_standards(numbers)}"


def story_lines(found: Facts, width: int, glyphs: Glyphs) -> Iterator[Text]:
    """The claims of `validation.mechanism`, numbered, each with whether it holds on held-out prompts."""
    notation = Notation(lambda text: glyphs.quoted(text).replace(" ", "\xa0"), str, plain_nats, plain_percent)
    yield styled("how it works", "bold")
    if none := no_story(found, notation):
        yield from wrapped("".join(none), width, style="yellow")
    for number, one in enumerate(tell(found, notation), 1):
        verdict = {None: "", True: " This holds.", False: f" {FAILED}"}[one.holds]
        yield from wrapped(f"{number}.\xa0{one.text}{verdict}", width, "   ", "yellow" if one.holds is False else "")
    yield from wrapped(how_measured(found), width, style="dim")


def circuit_lines(facts: Facts, loss: float | None, width: int, glyphs: Glyphs, limit: int | None) -> Iterator[Text]:
    """The drawing. loss: nats of the circuit on the prompts on which single nodes were removed; None where that was not measured."""
    nodes, shown = facts["nodes"], most_effective(facts["nodes"], limit)
    drawn = [node for node in nodes if node["id"] in shown]
    columns = RowColumns.of(drawn, facts["answers"], width, glyphs)
    yield styled("circuit, from the prompt down to the answer", "bold")
    if hidden := len(nodes) - len(drawn):
        measure = "largest loss without them" if any(node["without"] is not None for node in nodes) else "largest weights"
        note = f"{len(drawn):,} of {len(nodes):,} nodes, those with the {measure}; {hidden:,} are not shown, --all draws them"
        yield from wrapped(note, width, style="yellow")
    if drawn:
        yield columns.head(any(map(best_place, drawn)))
    yield styled(f"{glyphs.top} prompt", "bold")
    for (layer, sublayer), members in _by_sublayer(nodes).items():
        rows = sorted((node for node in members if node["id"] in shown), key=row_order)
        count = f" ({len(rows):,} of {len(members):,} nodes)" if len(rows) < len(members) else ""
        yield styled(f"{glyphs.branch}{glyphs.dash} layer {layer}, {_SUBLAYERS[sublayer]}{count}", "bold")
        for above, node in zip([None, *rows], rows, strict=False):
            yield columns.row(node, above)
    answers = [glyphs.quoted(answer) for answer in facts["answers"]]
    yield styled(
        f"{glyphs.end} {' (first) or '.join(answers)} (second)" if answers else f"{glyphs.end} the two answers of each pair", "bold"
    )
    for line in _legend(drawn, loss, glyphs):
        yield from wrapped(line, width, "  ", "dim")


def most_effective(nodes: Sequence[Facts], limit: int | None) -> Collection[str]:
    """Ids of the nodes without which the loss is largest, where that was measured, else of those with the largest weights in all."""
    if limit is None or len(nodes) <= limit:
        return {node["id"] for node in nodes}
    return {node["id"] for node in sorted(nodes, key=_effect, reverse=True)[:limit]}


def _effect(node: Facts) -> tuple[float, float]:
    without, weights = node["without"], sum(abs(weight) for way in ("in", "out") for _, weight in node[way])
    return -math.inf if without is None or math.isnan(without) else without, 0.0 if math.isnan(weights) else weights


def _by_sublayer(nodes: Sequence[Facts]) -> dict[tuple[int, str], list[Facts]]:
    found: dict[tuple[int, str], list[Facts]] = {}
    for node in nodes:
        layer, sublayer, _ = node["site"].split(".")
        found.setdefault((int(layer), sublayer), []).append(node)
    return {place: found[place] for place in sorted(found)}


def _legend(nodes: Sequence[Facts], loss: float | None, glyphs: Glyphs) -> Iterator[str]:
    """What the columns of the drawing mean, of those that it has."""
    if any(map(best_place, nodes)):
        yield (
            "AUC: how well the value of the node tells the prompts of the two answers apart; then the answer before which it is higher, "
            "and where in the prompt: at the difference of the two prompts of a pair, after it, or at the end"
        )
    if any(node["without"] is not None for node in nodes):
        yield f"without: loss without the node, in nats; with it {plain_nats(loss)}"
    if any(node["in"] for node in nodes):
        whence = "from reads of the same sublayer, of a write from its v or neurons"
        yield f"{glyphs.edge} the edges that end here, with their weights, the largest first: {whence}"
    if any(node["stream"] for node in nodes):
        yield f"{glyphs.stream} the sublayers that write to this channel of the residual stream before it is read here"
