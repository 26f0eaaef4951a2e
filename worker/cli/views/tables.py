"""The tables that commands print. Text of others in them is shown as it is: neither an escape code nor rich markup in it is obeyed."""

from __future__ import annotations

from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from extractor.errors import printable


def styled(text: object, style: str = "") -> Text:
    """A cell or a line of a table, in a style."""
    return Text(printable(str(text)), style=style)


class PlainTable(Table):
    """A table of plain text; cells may also be made by `styled`."""

    def __init__(self, title: str = "", header_style: str = "bold", **options: Any) -> None:
        super().__init__(box=None, pad_edge=False, header_style=header_style, **options)
        self.title = styled(title) if title else None

    def add_column(self, header: RenderableType = "", *footer: RenderableType, **options: Any) -> None:
        super().add_column(_plain(header), *footer, **options)

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        super().add_row(*(_plain(cell) for cell in cells), **options)


def print_table(table: Table, width: int = 100) -> None:
    """Print a table, at least `width` characters wide where the output is no terminal."""
    console = Console()
    (console if console.is_terminal else Console(width=max(width, console.width))).print(table, highlight=False)


def _plain(cell: Any) -> Any:
    return styled(cell) if isinstance(cell, str) else cell
