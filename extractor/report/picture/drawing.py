"""Two renderers of a scene: SVG and PNG."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

from PIL import Image, ImageDraw

from extractor.files import explain_full_disk
from extractor.report.picture.scene import NEGATIVE, Box, Chip, Label, Scene, Wire, font, visible

# Of a cubic curve at 25 places: the weights of its four points in the point there, and in the tangent.
_CURVE = [
    (
        ((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t * t, t**3),
        (-3 * (1 - t) ** 2, 3 * (1 - t) ** 2 - 6 * (1 - t) * t, 6 * (1 - t) * t - 3 * t * t, 3 * t * t),
    )
    for t in (i / 24 for i in range(25))
]
_STRIP, _SMOOTH = 512, 2  # the PNG is drawn at twice its size for smooth lines, in strips of 512 rows to save memory
_MAX_PIXELS = 40e6


def to_svg(scene: Scene) -> str:
    """The scene as one self-contained SVG document. Nodes carry data-id, edges data-source, data-target and data-weight."""
    width, height = _number(scene.width), _number(scene.height)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="circuit" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{escape(scene.title)}" font-family="Aileron, \'Helvetica Neue\', Arial, sans-serif">',
        f"<title>{escape(scene.title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *map(_svg_box, scene.boxes),
        *map(_svg_wire, scene.wires),
        *map(_svg_chip, scene.chips),
        *map(_svg_label, scene.labels),
    ]
    return "\n".join([*parts, "</svg>", ""])


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _svg_box(box: Box) -> str:
    x, y, width, height, radius = map(_number, (box.x, box.y, box.width, box.height, box.radius))
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" fill="{box.fill}" stroke="{box.stroke}"/>'


def _svg_label(label: Label) -> str:
    place = f'x="{_number(label.x)}" y="{_number(label.y)}" font-size="{_number(label.size)}"'
    return f'<text {place} fill="{label.color}" text-anchor="{label.anchor}">{escape(label.text)}</text>'


def _svg_wire(wire: Wire) -> str:
    start, *rest = (f"{_number(x)} {_number(y)}" for x, y in wire.points)
    look = f'fill="none" stroke="{wire.color}" stroke-width="{_number(wire.width)}" stroke-opacity="{_number(wire.opacity)}"'
    curve = f'd="M{start} C{", ".join(rest)}" {look}'
    source, target = escape(visible(wire.source)), escape(visible(wire.target))
    if wire.kind != "edge":
        return f'<path class="{wire.kind}" data-source="{source}" data-target="{target}" {curve}/>'
    sign = "negative" if wire.color == NEGATIVE else "positive"
    data = f'data-source="{source}" data-target="{target}" data-weight="{wire.weight:.4g}"'
    return f'<path class="edge {sign}" {data} {curve}><title>{source} to {target}: {wire.weight:+.4g}</title></path>'


def _svg_chip(chip: Chip) -> str:
    inside = "".join([_svg_box(chip.box), *map(_svg_label, chip.labels)])
    return f'<g class="node" data-id="{escape(visible(chip.node.id))}"><title>{escape(chip.tip)}</title>{inside}</g>'


def write_png(scene: Scene, path: Path, scale: float = 2, check: Callable[[], None] = lambda: None) -> None:
    """Draw the scene into a PNG with `scale` pixels per scene pixel, fewer for a very large scene. Written atomically. Raises DiskFull.

    check is called before each strip of 512 rows; what it raises ends the drawing.
    """
    scale = min(scale, math.sqrt(_MAX_PIXELS / (scene.width * scene.height)))
    width, height = round(scene.width * scale), round(scene.height * scale)
    image = Image.new("RGB", (width, height))
    for top in range(0, height, _STRIP):
        check()
        rows = min(_STRIP, height - top)
        strip = Image.new("RGB", (width * _SMOOTH, rows * _SMOOTH), "#ffffff")
        _draw(scene, strip, scale * _SMOOTH, top * _SMOOTH)
        image.paste(strip.resize((width, rows), Image.Resampling.BOX), (0, top))
    temporary = path.with_name(path.name + ".tmp")
    with explain_full_disk(path):
        image.save(temporary, format="PNG", optimize=False)
        os.replace(temporary, path)


def _draw(scene: Scene, strip: Image.Image, scale: float, top: int) -> None:
    """Draw the part of the scene that lies in a strip whose first line is `top` (strip pixels)."""
    pen = ImageDraw.Draw(strip, "RGBA")  # mode RGBA blends translucent fills
    for box in scene.boxes:
        _draw_box(pen, box, scale, top)
    for wire in scene.wires:
        _draw_wire(pen, wire, scale, top, strip.height)
    for chip in scene.chips:
        _draw_box(pen, chip.box, scale, top)
    for label in [*(label for chip in scene.chips for label in chip.labels), *scene.labels]:
        y = label.y * scale - top
        if -100 * scale < y < strip.height + 100 * scale:
            anchor = {"start": "ls", "middle": "ms", "end": "rs"}[label.anchor]
            pen.text((label.x * scale, y), label.text, fill=label.color, font=font(label.size * scale), anchor=anchor)


def _draw_box(pen: ImageDraw.ImageDraw, box: Box, scale: float, top: int) -> None:
    corners = (box.x * scale, box.y * scale - top, (box.x + box.width) * scale, (box.y + box.height) * scale - top)
    stroke = None if box.stroke == "none" else box.stroke
    pen.rounded_rectangle(corners, box.radius * scale, fill=box.fill, outline=stroke, width=round(scale) if stroke else 0)


def _draw_wire(pen: ImageDraw.ImageDraw, wire: Wire, scale: float, top: int, height: int) -> None:
    """Draw one polygon along the curves inside the strip; overlapping segments would blend twice."""
    left, right = [], []
    for start in range(0, len(wire.points) - 3, 3):
        curve = wire.points[start : start + 4]
        ys = [y * scale - top for _, y in curve]
        if max(ys) < -wire.width * scale or min(ys) > height + wire.width * scale:
            continue
        for x, y, dx, dy in _samples(curve):
            reach = wire.width * scale / 2 / (math.hypot(dx, dy) or 1.0)
            left.append(_pixel(x * scale - dy * reach, y * scale - top + dx * reach))
            right.append(_pixel(x * scale + dy * reach, y * scale - top - dx * reach))
    if left:
        pen.polygon(left + right[::-1], fill=wire.color + f"{round(255 * wire.opacity):02x}")


def _pixel(x: float, y: float) -> tuple[int, int]:
    return math.floor(x + 0.5001), math.floor(y + 0.5001)  # round half pixels one way: straight lines stay straight


def _samples(points: tuple[tuple[float, float], ...]) -> Iterator[tuple[float, float, float, float]]:
    """Points of a cubic curve with the tangent at each: (x, y, dx, dy)."""
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = points
    upright = x0 == x1 == x2 == x3
    for (a, b, c, d), (e, f, g, h) in (_CURVE[0], _CURVE[-1]) if upright else _CURVE:
        dx, dy = e * x0 + f * x1 + g * x2 + h * x3, e * y0 + f * y1 + g * y2 + h * y3
        yield a * x0 + b * x1 + c * x2 + d * x3, a * y0 + b * y1 + c * y2 + d * y3, dx, dy
