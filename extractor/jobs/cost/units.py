"""Counts, bytes and seconds as text."""

from __future__ import annotations


def show_count(number: float) -> str:
    """'254 M'."""
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {name}" if number < 100 * size else f"{number / size:.0f} {name}"
    return f"{number:.0f}"


def show_bytes(number: float) -> str:
    """'9.8 GB'."""
    return f"{show_count(number)}B" if number >= 1e3 else f"{number:.0f} B"


def show_seconds(seconds: float) -> str:
    """'3 h 20 min'."""
    total = max(1, round(seconds))
    for size, name, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if total >= size:
            return f"{total // size:,} {name} {total % size // smaller} {part}"
    return f"{total} s"


def show_roughly(seconds: float) -> str:
    """An estimated duration: '10 s', '2 min 10 s', '12 min', '1 h 20 min'."""
    coarse = 10 if seconds < 600 else 60 if seconds < 3600 else 300
    return show_seconds(max(1, round(seconds / coarse)) * coarse).removesuffix(" 0 s").removesuffix(" 0 min").removesuffix(" 0 h")
