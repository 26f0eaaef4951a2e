"""Losses as a table with bars: the target and chance marked on every bar, a whisker where the confidence interval is known. All HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from extractor.report_parts import nats, percent, share, track
from extractor.specs import CHANCE


@dataclass(frozen=True)
class Bar:
    """One network. name: HTML; kind: the CSS class of its colour; loss, interval: nats; right: a fraction. None where not measured."""

    name: str
    kind: str
    loss: float | None
    right: float | None = None
    interval: Sequence[float] | None = None


def bars_table(first: str, bars: Sequence[Bar], target: float, has_right: bool = True) -> str:
    """A row for every network; `first` heads their names."""
    top = 1.08 * max([CHANCE, target, *(bar.loss for bar in bars if bar.loss is not None and math.isfinite(bar.loss))])
    known = any(bar.interval for bar in bars)
    head = [f'<th scope="col">{first}</th>', f'<th scope="col" class="bar">{_scale(target, top)}</th>']
    head += [f'<th scope="col" class="number">{name}</th>' for name in ("nats", *(["95&nbsp;%"] * known), *(["right"] * has_right))]
    rows = "".join(_row(bar, top, target, known, has_right) for bar in bars)
    kind = "wide" if known and has_right else ""
    return f'<table class="{kind}"><thead><tr>{"".join(head)}</tr></thead><tbody>{rows}</tbody></table>'


def span(interval: Sequence[float] | None) -> str:
    """'0.099 to 0.161' as a short text."""
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
