"""The rows of a drawn circuit, one per node: place, channel, what it tells apart or reads and writes, the loss without it, edges in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from extractor.spec.story import best_place
from extractor.spec.thresholds import SEPARATES
from worker.cli.views.tables import styled

Facts = Mapping[str, Any]

WIDE = 110  # from this width on, rows with an AUC have tokens as well, and edges the place of their sources
_MOST_ANSWER = 6  # characters of an answer in a row; a longer one is 'first' or 'second'
_MOST_TEXT = 34  # characters of a column of text
_NAMES = {
    "act_in": "read",
    "q": "q",
    "k": "k",
    "v": "v",
    "gate": "gate",
    "up": "up",
    "post_act": "neuron",
    "resid_delta": "write",
}  # forward
_OF_HEADS = ("q", "k", "v")
_GAP, _WITHOUT = "  ", "without"  # between columns, and a title that may cover the gap before it
_AT = {"difference": "at difference", "after": "after it", "end": "at end"}
_POSITIVE, _NEGATIVE = "blue", "red"  # weights


@dataclass(frozen=True)
class Glyphs:
    """The characters of a drawing."""

    top: str = "┌"
    branch: str = "├"
    bar: str = "│"
    end: str = "└"
    dash: str = "─"
    edge: str = "←"
    stream: str = "⇠"

    @property
    def is_ascii(self) -> bool:
        return self.bar.isascii()

    def quoted(self, text: str) -> str:
        """The text of a token in quotes, on one line."""
        return ascii(text) if self.is_ascii else repr(text)


def glyphs_for(encoding: str) -> Glyphs:
    """Lines and arrows where the output's encoding has them, else ASCII."""
    found = Glyphs()
    try:
        "".join(vars(found).values()).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return Glyphs("+", "+", "|", "+", "-", "<-", "<~")
    return found


def row_order(node: Facts) -> tuple[int, int, int, int]:
    """Reads first, then head by head its q, k and v, then neurons and writes."""
    name, order = _place(node["site"]), list(_NAMES).index(_place(node["site"]))
    return 1 if name in _OF_HEADS else order, node["head"] or 0, order, node["channel"]


@dataclass(frozen=True)
class RowColumns:
    """The columns of all rows: their widths in cells, 0 for one that is left out, and how their cells are written."""

    glyphs: Glyphs
    answers: tuple[str, str]
    width: int  # of a line
    name: int = 0
    channel: int = 0
    label: int = 0
    tokens: int = 0
    without: int = 0

    @classmethod
    def of(cls, nodes: Iterable[Facts], answers: Sequence[str], width: int, glyphs: Glyphs) -> RowColumns:
        """The columns for these nodes. answers: () where they vary from pair to pair."""
        quoted = [glyphs.quoted(answer) for answer in answers]
        fits = len(quoted) == 2 and all(cell_len(text) <= _MOST_ANSWER for text in quoted)
        bare = cls(glyphs, (quoted[0], quoted[1]) if fits else ("first", "second"), width)
        rows = [bare._cells(node, _name(node)) for node in nodes]
        widest = [max((cell_len(row[column]) for row in rows), default=0) for column in range(5)]
        return replace(
            bare,
            name=widest[0],
            channel=widest[1],
            label=min(widest[2], _MOST_TEXT),
            tokens=min(widest[3], _MOST_TEXT) if width >= WIDE else 0,
            without=max(widest[4], len(_WITHOUT) - len(_GAP)) if widest[4] else 0,
        )

    def head(self, has_auc: bool) -> Text:
        """The titles of the columns."""
        titles = ("", "", "tells apart" if has_auc else "reads, writes", "reads, writes", _WITHOUT)
        return styled(f"{self._line(titles, '', ' ').plain}edges in", "dim")

    def row(self, node: Facts, above: Facts | None) -> Text:
        """A node. The name of its place is left out where the row above has it."""
        name, best = _name(node), best_place(node["auc"] or {})
        is_bold = best is not None and max(best[1], 1 - best[1]) >= SEPARATES
        line = self._line(self._cells(node, "" if above and _name(above) == name else name), "bold" if is_bold else "", self.glyphs.bar)
        line.append_text(self._edges(node, self.width - line.cell_len)).rstrip()
        return line

    def _cells(self, node: Facts, name: str) -> tuple[str, ...]:
        tokens = self._tokens(node)
        label = self._label(node)
        return name, str(node["channel"]), label or tokens, tokens if label else "", _number(node["without"])

    def _line(self, cells: Sequence[str], style: str, bar: str) -> Text:
        line = Text(f"{bar:<{len(self.glyphs.bar)}} ", end="")
        name, channel, label, tokens, without = cells
        line.append_text(_fixed(name, self.name, "bold")).append(" ").append(channel.rjust(self.channel), "bold").append(_GAP)
        line.append_text(_fixed(label, self.label, style))
        if self.tokens:
            line.append(_GAP).append_text(_fixed(tokens, self.tokens))
        if self.without:
            line.append(without.rjust(len(_GAP) + self.without))
        return line.append(_GAP)

    def _label(self, node: Facts) -> str:
        """'AUC 1.00 ':' at difference'; '' where no AUC was measured."""
        best = best_place(node["auc"] or {})
        if best is None:
            return ""
        place, auc = best
        return f"AUC {max(auc, 1 - auc):.2f} {self.answers[auc <= 0.5]} {_AT[place]}"

    def _tokens(self, node: Facts) -> str:
        """'reads ' u' writes 'me'': the first token of each."""
        reads, writes = ([*node[way]][:1] for way in ("reads", "writes"))
        texts = [f"reads {text if node['position'] else self.glyphs.quoted(text)}" for text in reads]
        return " ".join([*texts, *(f"writes {self.glyphs.quoted(text)}" for text in writes)])

    def _edges(self, node: Facts, room: int) -> Text:
        """The edges that end at a node, the largest weight first: '← 20 +0.62, 34 -0.41, 16 more'. A line of at most `room` cells, but of
        at least one edge. A read has no edges; in their place are the sublayers that write to its channel: '⇠ 0.mlp'."""
        if node["in"]:
            place = f"{_NAMES[_place(node['in'][0][0])]} " if self.width >= WIDE else ""
            items = [f"{source.rpartition('.')[2]} {_weight(weight)}" for source, weight in node["in"]]
            styles = [_NEGATIVE if weight < 0 else _POSITIVE for _, weight in node["in"]]
            begin = f"{self.glyphs.edge} {place}"
        else:
            items = [".".join(writer.split(".")[:2]) for writer in node["stream"]]
            styles, begin = ["dim"] * len(items), f"{self.glyphs.stream} "
        line = Text("", end="")
        for number, (item, style) in enumerate(zip(items, styles, strict=True)):
            left = len(items) - number
            if number and line.cell_len + len(f", {item}{_more(left - 1)}") > room:
                return line.append(_more(left))
            line.append(", " if number else begin).append(item, style)
        return line


def _place(site: str) -> str:
    """'act_in' of a site or of a node's id."""
    return site.split(".")[2]


def _name(node: Facts) -> str:
    name = _NAMES[_place(node["site"])]
    return name if node["head"] is None else f"head {node['head']} {name}"


def _fixed(text: str, width: int, style: str = "") -> Text:
    """Text of exactly `width` cells."""
    cell = styled(text, style)
    cell.truncate(width, overflow="crop", pad=True)
    return cell


def _number(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.3f}"


def _more(count: int) -> str:
    return f", {count:,} more" if count else ""


def _weight(value: float) -> str:
    return f"{value:+.2f}" if abs(value) >= 0.01 else f"{value:+.1g}"
