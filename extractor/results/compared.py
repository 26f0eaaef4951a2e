"""`extractor.compare(a, b)`: two results side by side, given as results, folders or jobs."""

from __future__ import annotations

import os
from typing import Any

from extractor.errors import UsageError
from extractor.results.compare import compare as compare_results
from extractor.results.places import HasId
from extractor.results.result import Result, load
from extractor.results.rows import Rows, html_table

Given = Result | str | os.PathLike[str] | HasId


class Comparison(dict[str, Any]):
    """What two circuits share: the dict of `extractor.results.compare.compare`, with a short text and a table."""

    @property
    def circuits(self) -> Rows:
        """A row for each of the two circuits: task, model, standard, nodes, edges, loss and accuracy of the circuit."""
        names = ("task", "model", "standard", "nodes", "edges")
        measured = [{name: one[name]["circuit"] for name in ("loss", "accuracy")} for one in self["circuits"]]
        return Rows({name: one[name] for name in names} | own for one, own in zip(self["circuits"], measured, strict=True))

    def _lines(self) -> list[str]:
        if self["by_name"]:
            parts = [
                f"{len(self['by_name'][kind]['shared'])} {kind} ({self['by_name'][kind]['overlap']:.0%})" for kind in ("nodes", "edges")
            ]
            lines = [f"one sparse model; both circuits have {' and '.join(parts)} of all in either"]
        else:
            lines = ["two sparse models: ids of nodes mean different things"]
        if found := self["by_values"]:
            return [*lines, f"{len(found['matched'])} pairs of nodes have similar values over {found['pairs']} held-out pairs of the first"]
        return [*lines, f"values were not compared: {self['why_no_values']}"]

    def __repr__(self) -> str:
        sizes = " beside ".join(f"{one['task']} in {one['model']} ({one['nodes']} nodes, {one['edges']} edges)" for one in self["circuits"])
        return f"Comparison({sizes}: {'; '.join(self._lines())}; keys: {', '.join(self)})"

    def _repr_html_(self) -> str:
        rows = self.circuits
        return rows._repr_html_() + html_table(("shared",), [(line,) for line in self._lines()])


def compare(first: Given, second: Given) -> Comparison:
    """What two circuits share, by the ids of their nodes and by values; see `extractor.results.compare.compare`.

    first, second   results, folders, or jobs. Raises what `extractor.load` raises, UsageError for a folder or job of several tasks,
                    BrokenArtifact where the files of a result do not fit together.
    """
    return Comparison(compare_results(_opened(first), _opened(second)))


def _opened(given: Given) -> Result:
    if isinstance(given, Result):
        return given
    found, named = load(given), str(getattr(given, "id", given))
    if len(found) > 1:
        raise UsageError(f"{named} has circuits of {', '.join(found.tasks)}; give one, as extractor.load({named!r}, {found.task!r})")
    return found
