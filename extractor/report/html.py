"""HTML parts of the report: escaped text from models, formatted numbers, sections, tables, bars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from extractor.report.picture import visible
from extractor.spec.schema import CHANCE

ABSENT = "&ndash;"


def section(name: str, title: str, body: str, kind: str = "") -> str:
    own = f' class="{kind}"' if kind else ""
    return f'<section aria-labelledby="{name}"{own}><h2 id="{name}">{title}</h2>{body}</section>'


def scroll(body: str, label: str, kind: str = "card scroll") -> str:
    """What may be wider than the page, with a bar to scroll it by mouse or keyboard."""
    return f'<div class="{kind}" tabindex="0" role="group" aria-label="{label}">{body}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: set[int]) -> str:
    """A table. Cells are HTML; the columns whose indices are in `numbers` are right-aligned."""
    kinds = [' class="number"' if i in numbers else "" for i in range(len(head))]
    top = "".join(f'<th scope="col"{kind}>{cell}</th>' for kind, cell in zip(kinds, head, strict=True))
    body = "".join(f"<tr>{''.join(f'<td{k}>{c}</td>' for k, c in zip(kinds, row, strict=True))}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def plain(text: object) -> str:
    """Escaped text; characters that do not print become their escapes."""
    return escape(visible(str(text), " "))


def spaced(text: str) -> str:
    """Escaped text with every space shown as a dot."""
    return escape(visible(text, "\0")).replace("\0", '<span class="space">·</span>')


def token(text: str) -> str:
    return f'<code class="token">{spaced(text)}</code>'


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def nats(value: Any) -> str:
    if value is None or not math.isfinite(value):
        return ABSENT
    return "under 0.001" if 0 <= value < 0.001 else f"{value:.3f}"


def percent(value: Any) -> str:
    """A fraction as a percentage; a fraction below 1 never shows as 100 %."""
    if value is None or not math.isfinite(value):
        return ABSENT
    text = f"{100 * value:.1f}".removesuffix(".0")
    return f"{'99.9' if text == '100' and value < 1 else text}&nbsp;%"


def identifier(name: str) -> str:
    """The id of a node."""
    return f'<code class="id">{plain(name)}</code>'


def share(value: float, top: float) -> str:
    """`value` as a part of `top`, a CSS length from 0.0% to 100.0%."""
    return f"{100 * min(max(value / top, 0.0), 1.0):.1f}%"


def track(value: float | None, top: float, kind: str, marks: str = "") -> str:
    """A bar of `value` on a scale from 0 to `top`. Hidden from screen readers: the table has the number beside it."""
    bar = f'<i class="{kind}" style="width:{share(value, top)}"></i>' if value is not None and math.isfinite(value) else ""
    return f'<div class="track" aria-hidden="true">{bar}{marks}</div>'


@dataclass(frozen=True)
class Bar:
    """One row of `bars_table`. name: HTML; kind: CSS class of the colour; loss, interval: nats; right: a fraction. None: not measured."""

    name: str
    kind: str
    loss: float | None
    right: float | None = None
    interval: Sequence[float] | None = None


def bars_table(first: str, bars: Sequence[Bar], target: float, has_right: bool = True) -> str:
    """A row with a bar for each of `bars`; `first` is the heading of their names, `target` the target loss in nats."""
    top = 1.08 * max([CHANCE, target, *(bar.loss for bar in bars if bar.loss is not None and math.isfinite(bar.loss))])
    known = any(bar.interval for bar in bars)
    head = [f'<th scope="col">{first}</th>', f'<th scope="col" class="bar">{_scale(target, top)}</th>']
    head += [f'<th scope="col" class="number">{name}</th>' for name in ("nats", *(["95&nbsp;%"] * known), *(["right"] * has_right))]
    rows = "".join(_row(bar, top, target, known, has_right) for bar in bars)
    kind = "wide" if known and has_right else ""
    return f'<table class="{kind}"><thead><tr>{"".join(head)}</tr></thead><tbody>{rows}</tbody></table>'


def span(interval: Sequence[float] | None) -> str:
    """An interval in nats as '0.099-0.161' (with an en dash); empty without one."""
    return "" if not interval else f"{interval[0]:.3f}&ndash;{interval[1]:.3f}"


def _row(bar: Bar, top: float, target: float, known: bool, has_right: bool) -> str:
    marks = f'<u style="left:{share(target, top)}"></u><u class="chance" style="left:{share(CHANCE, top)}"></u>{_whisker(bar, top)}'
    cells = [nats(bar.loss), *([span(bar.interval)] * known), *([percent(bar.right)] * has_right)]
    kinds = ["number", *(["number interval"] * known), *(["number"] * has_right)]
    numbers = "".join(f'<td class="{kind}">{cell}</td>' for kind, cell in zip(kinds, cells, strict=True))
    return f'<tr><th scope="row">{bar.name}</th><td class="bar">{track(bar.loss, top, bar.kind, marks)}</td>{numbers}</tr>'


def _whisker(bar: Bar, top: float) -> str:
    if not bar.interval:
        return ""
    low, high = bar.interval
    return f'<b style="left:{share(low, top)};width:{share(high - low, top)}"></b>'


def _scale(target: float, top: float) -> str:
    return (
        f'<div class="scale"><span style="left:{share(target, top)}">target {nats(target)}</span>'
        f'<span style="left:{share(CHANCE, top)}">chance {nats(CHANCE)}</span></div>'
    )
