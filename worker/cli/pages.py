"""The pages of `extract view`, `extract compare --out` and `extract motifs --out`, made from results."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extractor.errors import OutputError, UsageError
from extractor.files import write_text
from worker.cli.text import say

if TYPE_CHECKING:
    from extractor.results.result import Result


class Viewer:
    """All results that are viewed: a start page, and on demand the comparison of two circuits. Folder number i is served as /i."""

    def __init__(self, names: Sequence[str], results: Sequence[Result]):
        self.names, self.results = names, results

    @property
    def folders(self) -> dict[str, Path]:
        return {str(i): result.folder for i, result in enumerate(self.results)}

    @property
    def circuits(self) -> dict[str, Result]:
        """{'i:task': its result}"""
        return {f"{i}:{one.task}": one for i, result in enumerate(self.results) for one in result}

    @property
    def pages(self) -> dict[str, Callable[[Mapping[str, str]], str]]:
        return {"/": self.start, "/compare": self.compare, "/motifs": self.motifs}

    def start(self, _: Mapping[str, str]) -> str:
        """A row for each circuit, with a link to its report; a form that compares two."""
        from extractor.report.html import count
        from extractor.report.plain_page import plain_page

        circuits = self.circuits
        size = f"{count(len(circuits), 'circuit')} of {count(len(self.results), 'result')}"
        motifs = '<p><a href="/motifs">Motifs</a>: small subgraphs of these circuits, against shuffles of their edges.</p>'
        return plain_page("extract view", "extract view", size, "Served from this machine only.", _table(self) + _form(self) + motifs)

    def compare(self, parameters: Mapping[str, str]) -> str:
        """The comparison of ?first=0:task&second=1:task. Raises UsageError for circuits that are not viewed."""
        from worker.cli.views.job import silence_transformers

        silence_transformers()
        circuits = self.circuits
        keys = [parameters.get(which, "") for which in ("first", "second")]
        if unknown := [key for key in keys if key not in circuits]:
            raise UsageError(f"there is no circuit {unknown[0]!r} here; it has {', '.join(circuits)}")
        from extractor.results.compare import compare

        first, second = (circuits[key] for key in keys)
        return comparison(compare(first, second), first, second, [f"/{key.partition(':')[0]}" for key in keys])

    def motifs(self, _: Mapping[str, str]) -> str:
        """Small subgraphs of all circuits, against shuffles of their edges."""
        from extractor.report.motifs_page import motifs_page
        from extractor.results.motifs import motifs

        addresses = {str(result.folder): f"/{i}" for i, result in enumerate(self.results)}
        return motifs_page(motifs(self.circuits.values()), lambda folder: addresses[folder])


def comparison(found: Mapping[str, Any], first: Result, second: Result, addresses: Sequence[str]) -> str:
    """The page that compares two circuits. found: what `results.compare.compare` returns; addresses: of the folders of both results."""
    from extractor.report.compare_page import compare_page
    from extractor.report.plain_page import report_address

    def address(folder: str, task: str) -> Callable[[str], str]:
        return lambda node: report_address(folder, task, node)

    places = (address(addresses[0], first.task), address(addresses[1], second.task))
    return compare_page(found, (first.circuit, second.circuit), places)


def write_page(out: Path, text: str) -> None:
    """Write a page that --out asks for, and say so. Raises OutputError."""
    try:
        write_text(out, text)
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error.strerror}); name another file with --out") from None
    say(f"page: {out}")


def relative_address(folder: Path, page: Path) -> str:
    """The address of a folder in a page that is stored as a file."""
    from urllib.parse import quote

    return quote(os.path.relpath(folder.resolve(), page.resolve().parent))


def _table(viewer: Viewer) -> str:
    from extractor.report.html import nats, percent, plain, scroll, section, table
    from extractor.report.plain_page import node_link, report_address

    rows = []
    for key, one in viewer.circuits.items():
        number = key.partition(":")[0]
        link = node_link(report_address(f"/{number}", one.task), one.task)
        index = f'<a href="/{number}/index.html">all tasks</a>' if (one.folder / "index.html").is_file() else ""
        loss, met = one.numbers["loss"]["circuit"], one.numbers["meets_target"]
        sizes = (f"{len(one.circuit.nodes):,}", f"{len(one.circuit.edges):,}")
        verdict = f"{'meets' if met else 'misses'} {one.numbers['target_loss']:g}"
        right = percent(one.numbers["accuracy"]["circuit"])
        name = plain(viewer.names[int(number)])
        rows.append([link, name, plain(one.numbers["model"]), *sizes, nats(loss), right, verdict, index])
    heads = ("task", "result", "model", "nodes", "edges", "loss, nats", "right", "target", "page")
    return section("circuits", "Circuits", scroll(table(heads, rows, {3, 4, 5, 6}), "Circuits"))


def _form(viewer: Viewer) -> str:
    from extractor.report.html import plain, section

    if len(viewer.circuits) < 2:
        return ""

    def choice(name: str, chosen: int) -> str:
        options = "".join(
            f'<option value="{plain(key)}"{" selected" if i == chosen else ""}>{plain(viewer.names[int(key.partition(":")[0])])}: '
            f"{plain(one.task)}</option>"
            for i, (key, one) in enumerate(viewer.circuits.items())
        )
        return f'<label>{name} <select name="{name}">{options}</select></label>'

    button = '<button type="submit">Compare</button>'
    form = f'<form action="/compare" class="choices">{choice("first", 0)}{choice("second", 1)}{button}</form>'
    return section("compare", "Compare two", form)
