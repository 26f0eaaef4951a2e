"""What the report's sections are made of: text from models made safe, numbers as people read them, sections and tables. All HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from extractor.picture import visible

ABSENT = "&ndash;"


def section(name: str, title: str, body: str) -> str:
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>{body}</section>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: set[int]) -> str:
    """Cells are HTML; the columns in `numbers` are set flush right."""
    kinds = [' class="number"' if i in numbers else "" for i in range(len(head))]
    top = "".join(f'<th scope="col"{kind}>{cell}</th>' for kind, cell in zip(kinds, head, strict=True))
    body = "".join(f"<tr>{''.join(f'<td{k}>{c}</td>' for k, c in zip(kinds, row, strict=True))}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def plain(text: object) -> str:
    return escape(visible(str(text), " "))


def spaced(text: str) -> str:
    """Escaped, every space marked."""
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
    """A fraction as a percentage; 100 % is only said of all."""
    if value is None or not math.isfinite(value):
        return ABSENT
    text = f"{100 * value:.1f}".removesuffix(".0")
    return f"{'99.9' if text == '100' and value < 1 else text}&nbsp;%"


def identifier(name: str) -> str:
    """A node's id."""
    return f'<code class="id">{plain(name)}</code>'


def share(value: float, top: float) -> str:
    """A length as CSS: value's part of top."""
    return f"{100 * min(max(value / top, 0.0), 1.0):.1f}%"


def track(value: float | None, top: float, kind: str, marks: str = "") -> str:
    """A bar of `value`, where `top` is the whole width; its number stands beside it for those who do not see it."""
    bar = f'<i class="{kind}" style="width:{share(value, top)}"></i>' if value is not None and math.isfinite(value) else ""
    return f'<div class="track" aria-hidden="true">{bar}{marks}</div>'
