"""What is drawn: boxes, wires, chips and labels in pixels, their colours, and printable forms of text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from PIL import ImageFont

from extractor.circuits.circuit import Node
from extractor.circuits.sites import PLACES

POSITIVE, NEGATIVE = "#0072b2", "#d55e00"  # from the palette of Okabe and Ito, safe under common colour blindness
INK, SOFT, FAINT, STREAM = "#1b1f24", "#57606a", "#c8d0d9", "#b4bcc6"
CHANGED = "#b2447e"  # the outline of a node that has another role than in the full model
READS, WRITES = "#57606a", "#6a3d9a"
PLACE_NAMES = dict(
    zip(
        PLACES,
        ("attention read", "query", "key", "value", "attention write", "MLP read", "gate", "up", "neurons", "MLP write"),
        strict=True,
    )
)
_MAX_NAME = 48


@dataclass(frozen=True)
class Label:
    """Text on its baseline; anchor is 'start', 'middle' or 'end'."""

    x: float
    y: float
    text: str
    size: float
    color: str = INK
    anchor: str = "middle"


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float
    fill: str
    stroke: str
    radius: float = 6.0


@dataclass(frozen=True)
class Wire:
    """A chain of cubic curves from one node up to another.

    kind: 'edge', 'stream' (residual, not an edge) or 'sample' (in the legend).
    """

    points: tuple[tuple[float, float], ...]
    color: str
    width: float
    opacity: float
    kind: str
    source: str = ""
    target: str = ""
    weight: float = 0.0


@dataclass(frozen=True)
class Chip:
    """One node: its box, its labels, and the text of its tooltip."""

    node: Node
    box: Box
    labels: tuple[Label, ...]
    tip: str


@dataclass(frozen=True)
class Scene:
    """Everything to draw, in pixels, y downwards, in drawing order: boxes, wires, chips, labels. `note`: which part of a circuit it is."""

    width: float
    height: float
    title: str
    boxes: tuple[Box, ...]
    wires: tuple[Wire, ...]
    chips: tuple[Chip, ...]
    labels: tuple[Label, ...]
    note: str = ""


def visible(text: str, space: str = "·") -> str:
    """Printable text: spaces become `space`, characters that do not print their escapes (\\n, \\x00)."""
    return "".join(space if c == " " else c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def short_name(model: str) -> str:
    """A model's name short enough for a title: of a path or a very long name, its last meaningful part."""
    text = model.rstrip("/")
    if text.startswith(("/", ".", "~")) or len(text) > _MAX_NAME:
        parts = [part for part in text.split("/") if part not in ("", "model", "result")]
        text = parts[-1] if parts else text
    return text if len(text) <= _MAX_NAME else text[: _MAX_NAME - 1] + "…"


def site_words(site: str) -> str:
    """'key channel of layer 1'."""
    layer, _, place = site.partition(".")
    return f"{PLACE_NAMES.get(place, place)} of layer {layer}"


def describe(node: Node) -> str:
    """A node in a few lines: name, mean (where it is known), tokens it reads, tokens it writes."""
    lines = [visible(node.id)] + ([] if math.isnan(node.mean) else [f"mean {node.mean:.4g}"])
    lines += [f"reads {'  '.join(map(visible, node.reads))}"] if node.reads else []
    lines += [f"writes {'  '.join(map(visible, node.writes))}"] if node.writes else []
    return "\n".join(lines)


def drawable(text: str, space: str = "·") -> str:
    return visible(text, "\0").encode("ascii", "backslashreplace").decode().replace("\0", space)


def clip(text: str, width: float, size: float) -> str:
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text + "…"


@lru_cache(maxsize=64)
def font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def text_width(text: str, size: float) -> float:
    return font(100.0).getlength(text) * size / 100
