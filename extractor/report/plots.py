"""The report's plots as inline SVG: values at every crossing, circuit size against loss, effects of edges, spread of a node's values.

Lengths are SVG user units, about one CSS pixel. Colours come from the page's styles by CSS class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from extractor.report.html import nats, percent, plain
from extractor.spec.schema import CHANCE
from extractor.spec.thresholds import COUNTED_RISE

_WIDTH, _HEIGHT = 420, 222
_SITE_WIDTH = 15  # per crossing; a plot with many crossings is wider than _WIDTH
_RADIUS = 4
_DIGITS_ROOM, _NAME_ROOM = 26, 60  # least width of a band for a layer's number, and for its full name
_MIN_SCALE, _MAX_SCALE = 0.76, 1.1  # of the natural width: below the first the plot scrolls, above the second it does not grow
_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 5.0)  # distances between two ticks of the vertical axis
_TICK_ROOM = 34  # least distance between two labels of the edge axis
_MAX_TIPS = 200  # a plot with more edges has no tips on its bars
_SPREAD_WIDTH = 100


@dataclass(frozen=True)
class Line:
    """One value per crossing in forward order, None where not measured. `kind` is its CSS class, `name` its text in the points' tips."""

    kind: str
    name: str
    values: Sequence[float | None]
    square: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line at one value."""

    kind: str
    value: float


@dataclass(frozen=True)
class _Frame:
    """The plotting area: its edges, and the values at its lower and upper edge."""

    left: int
    right: int
    top: int
    bottom: int
    low: float
    high: float

    def y(self, value: float) -> float:
        share = min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
        return round(self.bottom - share * (self.bottom - self.top), 1)

    def axis(self, show: Callable[[float], str], intervals: int) -> list[str]:
        """Horizontal lines at round values with their labels, at most `intervals` + 1 of them."""
        step = next((s for s in _STEPS if (self.high - self.low) / s <= intervals), _STEPS[-1])
        parts = []
        for number in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1):
            y = self.y(number * step)
            parts.append(f'<path class="tick" d="M{self.left} {y}H{self.right}"/>')
            parts.append(_text(self.left - 8, y + 4, show(number * step), "end"))
        return parts

    def level(self, kind: str, value: float) -> str:
        return f'<path class="level {kind}" d="M{self.left} {self.y(value)}H{self.right}"/>'


@dataclass(frozen=True)
class _SiteFrame(_Frame):
    """A plotting area that is divided among the crossings."""

    sites: int
    of_layer: int = 2

    def x(self, site: float) -> float:
        """The left edge of a crossing's part of the width."""
        return round(self.left + site * (self.right - self.left) / self.sites, 1)


def crossing(index: int, sites: int, of_layer: int = 2) -> str:
    """The position of crossing `index` of `sites`, in words; of_layer: crossings of a layer, 1 where its blocks are parallel."""
    if index == sites - 1:
        return "before the final norm"
    if of_layer == 1:
        return f"before layer {index}"
    return f"layer {index // 2}, before {'the MLP' if index % 2 else 'attention'}"


def known(values: Sequence[float | None]) -> list[float]:
    """The values that are finite numbers."""
    return [v for v in values if v is not None and math.isfinite(v)]


def crossings_plot(
    label: str,
    lines: Sequence[Line],
    levels: Sequence[Level],
    span: tuple[float, float],
    show: Callable[[float], str],
    of_layer: int = 2,
) -> str:
    """An <svg> with one point per crossing for each line.

    label  HTML text for screen readers
    span   lowest and highest value shown; a value outside is drawn hollow on the nearer edge
    show   formats a value as HTML text, for the axis and the points' tips
    of_layer   crossings of a layer
    """
    sites = max(len(line.values) for line in lines)
    width = max(_WIDTH, 56 + _SITE_WIDTH * sites)
    frame = _SiteFrame(48, width - 8, 10, 198, *span, sites, of_layer)
    parts = [*_layers(frame), *frame.axis(show, intervals=6), *(frame.level(level.kind, level.value) for level in levels)]
    for line in lines:
        parts += _line(frame, line, show)
    size = f"min-width:{_MIN_SCALE * width:.0f}px;max-width:{_MAX_SCALE * width:.0f}px"
    return f'<svg viewBox="0 0 {width} {_HEIGHT}" style="{size}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _layers(frame: _SiteFrame) -> list[str]:
    """A band for the crossings of a layer, every other one shaded, and the layers' names where there is room."""
    layers, parts = (frame.sites - 1) // frame.of_layer, []
    band = frame.x(frame.of_layer) - frame.x(0)
    every = max(1, math.ceil(_DIGITS_ROOM / band))
    for layer in range(layers):
        left = frame.x(frame.of_layer * layer)
        if layer % 2 == 0:
            parts.append(f'<rect class="band" x="{left}" y="{frame.top}" width="{band:.1f}" height="{frame.bottom - frame.top}"/>')
        if layer % every == 0:
            name = f"layer {layer}" if band > _NAME_ROOM else str(layer)
            parts.append(_text(left + band / 2, _HEIGHT - 7, name))
    return [*parts, _text(frame.x(frame.sites - 0.5), _HEIGHT - 7, "end")]


def _line(frame: _SiteFrame, line: Line, show: Callable[[float], str]) -> list[str]:
    points = [(i, v) for i, v in enumerate(line.values) if v is not None and math.isfinite(v)]
    places = " ".join(f"{frame.x(i + 0.5)},{frame.y(v)}" for i, v in points)
    parts = [f'<polyline points="{places}"/>']
    for index, value in points:
        x, y = frame.x(index + 0.5), frame.y(value)
        tip = f"<title>{crossing(index, frame.sites, frame.of_layer)}: {line.name} {show(value)}</title>"
        kind = "point" if frame.low <= value <= frame.high else "point beyond"
        side = 2 * _RADIUS - 1
        shape = (
            f'<rect class="{kind}" x="{x - side / 2:.1f}" y="{y - side / 2:.1f}" width="{side}" height="{side}">{tip}</rect>'
            if line.square
            else f'<circle class="{kind}" cx="{x}" cy="{y}" r="{_RADIUS}">{tip}</circle>'
        )
        parts.append(shape)
    return [f'<g class="{line.kind}">', *parts, "</g>"]


def curve_plot(curve: Sequence[dict], target: float) -> str:
    """Edges (logarithmic) against held-out loss of the circuit of every target; a dash marks the target loss of each."""
    rows = sorted(curve, key=lambda row: (row["edges"], -row["loss"]))
    frame = _validation_frame(0.0, 1.12 * max(max(row["loss"], row["target"]) for row in rows))
    logs = [math.log(max(1, row["edges"])) for row in rows]
    pad = 0.08 * max(logs[-1] - logs[0], 0.1)
    low, wide = logs[0] - pad, logs[-1] - logs[0] + 2 * pad
    places = [frame.left + (frame.right - frame.left) * (x - low) / wide for x in logs]
    parts = [*_nats_axis(frame), *_edge_ticks(rows, places, frame.bottom + 17)]
    line = " ".join(f"{x:.1f},{frame.y(row['loss'])}" for x, row in zip(places, rows, strict=True))
    parts.append(f'<polyline points="{line}"/>')
    for x, row in zip(places, rows, strict=True):
        allowed, y = frame.y(row["target"]), frame.y(row["loss"])
        parts.append(f'<path class="allowed" d="M{x - 7:.1f} {allowed}H{x + 7:.1f}M{x:.1f} {allowed}V{y}"/>')
        tip = f"target {nats(row['target'])}: {row['edges']:,} edges, {row['nodes']:,} nodes, {nats(row['loss'])} nats, "
        tip += f"{percent(row['accuracy'])} right{'' if row['met'] else '; not met'}"
        kind, radius = "point" if row["met"] else "point beyond", 6 if row["target"] == target else 4
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y}" r="{radius}"><title>{tip}</title></circle>')
    label = "; ".join(f"target {nats(row['target'])}: {row['edges']:,} edges at {nats(row['loss'])} nats" for row in rows)
    return _validation_svg(frame, label, parts, "edges")


def effects_plot(effects: Sequence[Sequence]) -> str:
    """One bar per edge [source, target, rise of the loss in nats], largest first. A negative rise (removal helps) hangs below zero."""
    ordered = sorted(effects, key=lambda one: -one[2])
    frame = _validation_frame(
        min(ordered[-1][2], 0.0) * 1.05, max(ordered[0][2], 0.01) * 1.05
    )  # at least 0.01: noise must not fill the plot
    step = (frame.right - frame.left) / len(ordered)
    gap = 0.2 * step if step > 3 else 0.0
    parts = _nats_axis(frame)
    for number, (source, to, rise) in enumerate(ordered):
        a, b = sorted((frame.y(rise), frame.y(0.0)))
        tip = f"<title>{plain(source)} to {plain(to)}: {rise:+.3f}</title>" if len(ordered) <= _MAX_TIPS else ""
        kind = "helps" if rise > 0 else "harms"
        place = f'x="{frame.left + number * step:.2f}" y="{a}" width="{step - gap:.2f}" height="{max(b - a, 0.5):.1f}"'
        parts.append(f'<rect class="{kind}" {place}>{tip}</rect>')
    raising = sum(rise >= COUNTED_RISE for _, _, rise in ordered)
    most = f"removing one raises the loss by at most {ordered[0][2]:.3f} nats"
    label = f"{len(ordered)} edges; {most}; {raising} of them raise it by {COUNTED_RISE} or more"
    return _validation_svg(frame, label, parts, f"{len(ordered):,} edges")


def _validation_frame(low: float, high: float) -> _Frame:
    return _Frame(44, _WIDTH - 12, 12, 184, low, high)


def _nats_axis(frame: _Frame) -> list[str]:
    parts = frame.axis(lambda value: f"{value:g}", intervals=5)
    return [*parts, frame.level("chance", CHANCE)] if frame.low <= CHANCE <= frame.high else parts


def _edge_ticks(rows: Sequence[dict], places: Sequence[float], y: float) -> list[str]:
    """The number of edges below each circuit, where there is room."""
    parts, last = [], -math.inf
    for x, row in zip(places, rows, strict=True):
        if x - last >= _TICK_ROOM:
            parts.append(_text(x, y, f"{row['edges']:,}"))
            last = x
    return parts


def _validation_svg(frame: _Frame, label: str, parts: Sequence[str], below: str) -> str:
    under = _text((frame.left + frame.right) / 2, _HEIGHT - 5, below)
    drawn = f'<g class="circuit-alone">{"".join(parts)}</g>{under}'
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{drawn}</svg>'


def distribution(percentiles: Sequence[int], values: Sequence[float]) -> str:
    """A box plot of a node's values at 1, 10, 25, 50, 75, 90 and 99 % with zero marked; text where all values are equal."""
    label = "percentiles " + ", ".join(f"{at}: {value:.3g}" for at, value in zip(percentiles, values, strict=True))
    low, high = min(values[0], 0.0), max(values[-1], 0.0)
    if not all(map(math.isfinite, values)) or values[0] == values[-1]:
        return f'<span title="{label}">nearly always {values[0]:.3g}</span>'
    p1, p10, p25, p50, p75, p90, p99 = (_SPREAD_WIDTH * (value - low) / (high - low) for value in values)
    shapes = (
        f'<path class="zero" d="M{_SPREAD_WIDTH * -low / (high - low):.1f} 0V16"/><path d="M{p1:.1f} 8H{p99:.1f}"/>'
        f'<rect class="most" x="{p10:.1f}" y="4" width="{p90 - p10:.1f}" height="8"/>'
        f'<rect x="{p25:.1f}" y="2" width="{p75 - p25:.1f}" height="12"/><path class="middle" d="M{p50:.1f} 1V15"/>'
    )
    drawn = f'<svg viewBox="-2 0 {_SPREAD_WIDTH + 4} 16" role="img" aria-label="{label}"><title>{label}</title>{shapes}</svg>'
    return f'<span class="spread"><small>{values[0]:.2g}</small>{drawn}<small>{values[-1]:.2g}</small></span>'


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
