"""Tables of a notebook: as HTML, and as a pandas DataFrame where pandas is there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex, overload

from extractor.errors import html_text

_SHOWN_ROWS = 100  # in a notebook


class Rows(list[dict[str, Any]]):
    """Rows of equal keys: a list of dicts that a notebook shows as a table. A slice of it is one, too."""

    @overload
    def __getitem__(self, wanted: SupportsIndex) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, wanted: slice) -> Rows: ...
    def __getitem__(self, wanted: SupportsIndex | slice) -> dict[str, Any] | Rows:
        return Rows(super().__getitem__(wanted)) if isinstance(wanted, slice) else super().__getitem__(wanted)

    def _repr_html_(self) -> str:
        names = list(self[0]) if self else []
        return html_table(names, ([_shown(row[name]) for name in names] for row in self[:_SHOWN_ROWS]), len(self) - _SHOWN_ROWS)

    def to_frame(self) -> Any:
        """A pandas DataFrame. Raises ModuleNotFoundError where pandas is not installed."""
        import pandas

        return pandas.DataFrame(list(self))


def html_table(names: Sequence[str], rows: Iterable[Sequence[object]], further: int = 0) -> str:
    """A table whose cells are text, escaped. further: number of rows that are not shown."""
    head = "".join(f"<th>{html_text(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{html_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    more = f"<p>{further} further rows</p>" if further > 0 else ""
    return f"<table><tr>{head}</tr>{body}</table>{more}"


def _shown(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
