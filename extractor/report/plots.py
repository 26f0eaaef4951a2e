"""A small line plot over the bridge sites as inline SVG: a band for every layer, a point for every site, the page's own colours.

Lengths are SVG user units, about one CSS pixel. Colours come from the page's styles by class: a line's kind colours its points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_LEAST_WIDTH, _SITE = 420, 15  # more sites than fit that width have this much each
_HEIGHT = 222
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 8, 10, 198
_RADIUS = 4
_DIGITS, _NAME = 26, 60  # room for a layer's number, and for its name
_NARROWEST, _WIDEST = 0.76, 1.1  # of the natural width, before it scrolls or stays as it is
_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Line:
    """One value a site in forward order, None where there is none. `kind` is its CSS class, `name` what its points are called."""

    kind: str
    name: str
    values: Sequence[float | None]
    square: bool = False


@dataclass(frozen=True)
class Level:
    """A line across the plot at one value."""

    kind: str
    value: float


def crossing(index: int, sites: int) -> str:
    """Where site `index` of `sites` stands, in words."""
    if index == sites - 1:
        return "before the final norm"
    return f"layer {index // 2}, before {'the MLP' if index % 2 else 'attention'}"


def known(values: Sequence[float | None]) -> list[float]:
    """The values that are numbers."""
    return [v for v in values if v is not None and math.isfinite(v)]


def plot(label: str, lines: Sequence[Line], levels: Sequence[Level], span: tuple[float, float], tell: Callable[[float], str]) -> str:
    """The plot as an <svg>.

    label  HTML text, for those who do not see it
    span   lowest and highest value shown; what is lower is drawn hollow on the lower edge, what is higher on the upper one
    tell   a value as HTML text, on the axis and in the points' tips
    """
    frame = _Frame(max(len(line.values) for line in lines), *span)
    parts = [*_layers(frame), *_axis(frame, tell)]
    parts += [f'<path class="level {level.kind}" d="M{_LEFT} {frame.y(level.value)}H{frame.right}"/>' for level in levels]
    for line in lines:
        parts += _line(frame, line, tell)
    size = f"min-width:{_NARROWEST * frame.width:.0f}px;max-width:{_WIDEST * frame.width:.0f}px"
    return f'<svg viewBox="0 0 {frame.width} {_HEIGHT}" style="{size}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


@dataclass(frozen=True)
class _Frame:
    sites: int
    low: float
    high: float

    @property
    def width(self) -> int:
        return max(_LEAST_WIDTH, _LEFT + _RIGHT + _SITE * self.sites)

    @property
    def right(self) -> int:
        return self.width - _RIGHT

    def x(self, site: float) -> float:
        """The left edge of a site's share of the width."""
        return round(_LEFT + site * (self.right - _LEFT) / self.sites, 1)

    def y(self, value: float) -> float:
        share = min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
        return round(_BOTTOM - share * (_BOTTOM - _TOP), 1)


def _layers(frame: _Frame) -> list[str]:
    """Bands of two sites a layer, every other one shaded, and their names, as many as there is room for."""
    layers, found = (frame.sites - 1) // 2, []
    band = frame.x(2) - frame.x(0)
    every = max(1, math.ceil(_DIGITS / band))
    for layer in range(layers):
        left = frame.x(2 * layer)
        if layer % 2 == 0:
            found.append(f'<rect class="band" x="{left}" y="{_TOP}" width="{band:.1f}" height="{_BOTTOM - _TOP}"/>')
        if layer % every == 0:
            name = f"layer {layer}" if band > _NAME else str(layer)
            found.append(_text(left + band / 2, _HEIGHT - 7, name))
    return [*found, _text(frame.x(frame.sites - 0.5), _HEIGHT - 7, "end")]


def _axis(frame: _Frame, tell: Callable[[float], str]) -> list[str]:
    step = next((s for s in _STEPS if (frame.high - frame.low) / s <= 6), _STEPS[-1])
    found = []
    for number in range(math.ceil(frame.low / step - 1e-9), math.floor(frame.high / step + 1e-9) + 1):
        y = frame.y(number * step)
        found.append(f'<path class="tick" d="M{_LEFT} {y}H{frame.right}"/>{_text(_LEFT - 8, y + 4, tell(number * step), "end")}')
    return found


def _line(frame: _Frame, line: Line, tell: Callable[[float], str]) -> list[str]:
    points = [(i, v) for i, v in enumerate(line.values) if v is not None and math.isfinite(v)]
    places = " ".join(f"{frame.x(i + 0.5)},{frame.y(v)}" for i, v in points)
    found = [f'<polyline points="{places}"/>']
    for index, value in points:
        x, y = frame.x(index + 0.5), frame.y(value)
        inside = frame.low <= value <= frame.high
        tip = f"<title>{crossing(index, frame.sites)}: {line.name} {tell(value)}</title>"
        kind = "point" if inside else "point beyond"
        side = 2 * _RADIUS - 1
        shape = (
            f'<rect class="{kind}" x="{x - side / 2:.1f}" y="{y - side / 2:.1f}" width="{side}" height="{side}">{tip}</rect>'
            if line.square
            else f'<circle class="{kind}" cx="{x}" cy="{y}" r="{_RADIUS}">{tip}</circle>'
        )
        found.append(shape)
    return [f'<g class="{line.kind}">', *found, "</g>"]


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
