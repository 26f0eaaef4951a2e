"""Notebooks (nbformat 4.5) without Jupyter: check the format, run the code cells, store what they show.

    python -m tests.support.notebooks extractor/examples/read_a_circuit.ipynb

runs a notebook in its own folder and writes its outputs into it.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_RICH = {"text/html": "_repr_html_", "image/png": "_repr_png_"}

Cell = dict[str, Any]


def read_notebook(path: Path) -> dict[str, Any]:
    """The content of a notebook. Raises AssertionError where nbformat 4.5 forbids it."""
    book: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert set(book) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in book["cells"]:
        own = {"code": {"outputs", "execution_count"}, "markdown": set()}[cell["cell_type"]]
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | own, cell["id"]
        assert _ID.fullmatch(cell["id"])
        assert isinstance(cell["source"], str | list)
        for output in cell.get("outputs", ()):
            kinds = {"stream": {"name", "text"}, "execute_result": {"data", "metadata", "execution_count"}}
            assert set(output) == {"output_type"} | kinds[output["output_type"]], cell["id"]
    return book


def text_of(part: str | list[str]) -> str:
    """A text of a notebook, which may be stored as a list of lines."""
    return part if isinstance(part, str) else "".join(part)


def code_cells(book: dict[str, Any]) -> list[Cell]:
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def texts(outputs: list[dict[str, Any]]) -> str:
    """What outputs say as plain text."""
    return "".join(text_of(output["text"] if output["output_type"] == "stream" else output["data"]["text/plain"]) for output in outputs)


def run_cells(book: dict[str, Any], folder: Path) -> Iterator[tuple[Cell, list[dict[str, Any]]]]:
    """Run the code cells in order, in one namespace and in `folder`: each cell with its new outputs."""
    space: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(book), 1):
        printed = io.StringIO()
        with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
            value = _run(text_of(cell["source"]), cell["id"], space)
            result = [] if value is None else [_shown(value, number)]
        said = printed.getvalue()
        yield cell, ([{"name": "stdout", "output_type": "stream", "text": _lines(said)}] if said else []) + result


def _run(source: str, name: str, space: dict[str, Any]) -> Any:
    """Run a cell: the value of its last expression, None where it ends with a statement or with ';'."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), space)
    if last is None:
        return None
    value = eval(compile(ast.Expression(last.value), name, "eval"), space)
    return None if source.rstrip().endswith(";") else value


def _shown(value: Any, number: int) -> dict[str, Any]:
    data: dict[str, Any] = {"text/plain": _lines(repr(value))}
    for kind, method in _RICH.items():
        rich = getattr(value, method, None)
        if rich is not None:
            found = rich()
            data[kind] = base64.b64encode(found).decode() if isinstance(found, bytes) else _lines(found)
    return {"data": data, "execution_count": number, "metadata": {}, "output_type": "execute_result"}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def store(path: Path) -> None:
    """Run a notebook and write it with the outputs of today."""
    book = read_notebook(path)
    for number, (cell, outputs) in enumerate(run_cells(book, path.parent), 1):
        cell["outputs"], cell["execution_count"] = outputs, number
    for cell in book["cells"]:
        cell["source"] = _lines(text_of(cell["source"]))
    path.write_text(json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in sys.argv[1:]:
        store(Path(name).absolute())
