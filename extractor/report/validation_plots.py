"""Inline SVG for the report's validation: size against loss, the effects of edges, how a node's values are spread. Colours by CSS class."""

from __future__ import annotations

import math
from collections.abc import Sequence

from extractor.report.html import nats, percent, plain
from extractor.spec.schema import CHANCE

_WIDTH, _HEIGHT = 420, 222  # user units, about one CSS pixel
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 12, 184
_NEAR = 34  # closer ticks on the axis of edges would run into each other
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_TOLD = 200  # bars of edges that have a tip each
_SPREAD = 100  # units that a distribution is wide


def curve_plot(curve: Sequence[dict], target: float) -> str:
    """Edges (logarithmic) against held-out loss of the circuit of every target; a dash marks what each was allowed."""
    rows = sorted(curve, key=lambda row: (row["edges"], -row["loss"]))
    high = 1.12 * max(max(row["loss"], row["target"]) for row in rows)
    logs = [math.log(max(1, row["edges"])) for row in rows]
    pad = 0.08 * max(logs[-1] - logs[0], 0.1)
    low, wide = logs[0] - pad, logs[-1] - logs[0] + 2 * pad
    places = [_LEFT + (_WIDTH - _LEFT - _RIGHT) * (x - low) / wide for x in logs]
    parts = [*_axis(high), *_edge_ticks(rows, places)]
    line = " ".join(f"{x:.1f},{_y(row['loss'], high)}" for x, row in zip(places, rows, strict=True))
    parts.append(f'<polyline points="{line}"/>')
    for x, row in zip(places, rows, strict=True):
        allowed, y = _y(row["target"], high), _y(row["loss"], high)
        parts.append(f'<path class="allowed" d="M{x - 7:.1f} {allowed}H{x + 7:.1f}M{x:.1f} {allowed}V{y}"/>')
        tip = f"target {nats(row['target'])}: {row['edges']:,} edges, {row['nodes']:,} nodes, {nats(row['loss'])} nats, "
        tip += f"{percent(row['accuracy'])} right{'' if row['met'] else '; not met'}"
        kind, radius = "point" if row["met"] else "point beyond", 6 if row["target"] == target else 4
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y}" r="{radius}"><title>{tip}</title></circle>')
    label = "; ".join(f"target {nats(row['target'])}: {row['edges']:,} edges at {nats(row['loss'])} nats" for row in rows)
    return _svg(label, parts, "edges")


def effects_plot(effects: Sequence[Sequence]) -> str:
    """A bar for every edge's effect [source, target, nats], the largest first; those whose removal helps hang below the line."""
    ordered = sorted(effects, key=lambda one: -one[2])
    # One edge that is worth everything must not make all others invisible, nor noise fill the plot.
    high, low = max(ordered[0][2], 0.01) * 1.05, min(ordered[-1][2], 0.0) * 1.05
    step = (_WIDTH - _LEFT - _RIGHT) / len(ordered)
    gap = 0.2 * step if step > 3 else 0.0
    parts = _axis(high, low)
    for number, (source, to, rise) in enumerate(ordered):
        a, b = sorted((_y(rise, high, low), _y(0.0, high, low)))
        tip = f"<title>{plain(source)} to {plain(to)}: {rise:+.3f}</title>" if len(ordered) <= _TOLD else ""
        kind = "helps" if rise > 0 else "harms"
        place = f'x="{_LEFT + number * step:.2f}" y="{a}" width="{step - gap:.2f}" height="{max(b - a, 0.5):.1f}"'
        parts.append(f'<rect class="{kind}" {place}>{tip}</rect>')
    raising = sum(rise > 0 for _, _, rise in ordered)
    label = f"{len(ordered)} edges; the loss rises by {ordered[0][2]:.3f} nats at most, and for {raising} of them"
    return _svg(label, parts, f"{len(ordered):,} edges")


def distribution(percentiles: Sequence[int], values: Sequence[float]) -> str:
    """A node's values at 1, 10, 25, 50, 75, 90 and 99 % as a tiny box, zero marked, its ends in numbers; as words where all are one."""
    label = "percentiles " + ", ".join(f"{at}: {value:.3g}" for at, value in zip(percentiles, values, strict=True))
    low, high = min(values[0], 0.0), max(values[-1], 0.0)
    if not all(map(math.isfinite, values)) or values[0] == values[-1]:
        return f'<span title="{label}">nearly always {values[0]:.3g}</span>'
    p1, p10, p25, p50, p75, p90, p99 = (_SPREAD * (value - low) / (high - low) for value in values)
    shapes = (
        f'<path class="zero" d="M{_SPREAD * -low / (high - low):.1f} 0V16"/><path d="M{p1:.1f} 8H{p99:.1f}"/>'
        f'<rect class="most" x="{p10:.1f}" y="4" width="{p90 - p10:.1f}" height="8"/>'
        f'<rect x="{p25:.1f}" y="2" width="{p75 - p25:.1f}" height="12"/><path class="middle" d="M{p50:.1f} 1V15"/>'
    )
    drawn = f'<svg viewBox="-2 0 {_SPREAD + 4} 16" role="img" aria-label="{label}"><title>{label}</title>{shapes}</svg>'
    return f'<span class="spread"><small>{values[0]:.2g}</small>{drawn}<small>{values[-1]:.2g}</small></span>'


def _y(value: float, high: float, low: float = 0.0) -> float:
    return round(_BOTTOM - (_BOTTOM - _TOP) * min(max((value - low) / (high - low), 0.0), 1.0), 1)


def _axis(high: float, low: float = 0.0) -> list[str]:
    """Lines across at round values of nats."""
    step = next((s for s in _STEPS if (high - low) / s <= 5), _STEPS[-1])
    found = []
    for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        y = _y(number * step, high, low)
        found.append(f'<path class="tick" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>')
        found.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number * step:g}</text>')
    if low <= CHANCE <= high:
        found.append(f'<path class="level chance" d="M{_LEFT} {_y(CHANCE, high, low)}H{_WIDTH - _RIGHT}"/>')
    return found


def _edge_ticks(rows: Sequence[dict], places: Sequence[float]) -> list[str]:
    """How many edges each circuit has, under it, where there is room."""
    found, last = [], -math.inf
    for x, row in zip(places, rows, strict=True):
        if x - last >= _NEAR:
            found.append(f'<text x="{x:.1f}" y="{_BOTTOM + 17}" text-anchor="middle">{row["edges"]:,}</text>')
            last = x
    return found


def _svg(label: str, parts: Sequence[str], below: str) -> str:
    under = f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.1f}" y="{_HEIGHT - 5}" text-anchor="middle">{below}</text>'
    drawn = f'<g class="circuit-alone">{"".join(parts)}</g>{under}'
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{drawn}</svg>'
