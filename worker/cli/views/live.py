"""What watched batches and sweeps share: a table that is redrawn in a terminal, or a line for each change in a pipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live

from worker.cli.text import print_json, print_line
from worker.cli.views.tables import PlainTable

Facts = dict[str, Any]


class GroupView(Protocol):
    """Shows the facts of all jobs of a batch or sweep, repeatedly, inside a `with` block."""

    def __enter__(self) -> GroupView: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, facts: list[Facts]) -> None: ...


class LiveView:
    """A table that is redrawn and disappears at the end. draw: makes the table."""

    def __init__(self, console: Console, draw: Callable[[list[Facts]], PlainTable]) -> None:
        self._draw = draw
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.update("", refresh=True)
        self._live.stop()

    def show(self, facts: list[Facts]) -> None:
        self._live.update(self._draw(facts), refresh=True)


class ChangeView:
    """A line, or a JSON object, for each job that has changed.

    phase     what must differ to count as a change
    describe  the line for people, '' for none
    to_json   the object for --json; None when lines are wanted
    """

    def __init__(
        self, phase: Callable[[Facts], str], describe: Callable[[Facts], str], to_json: Callable[[Facts], Facts] | None = None
    ) -> None:
        self._phase, self._describe, self._to_json = phase, describe, to_json
        self._shown: dict[str, str] = {}

    def __enter__(self) -> ChangeView:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, facts: list[Facts]) -> None:
        for job in facts:
            phase = self._phase(job)
            if self._shown.get(job["job"]) == phase:
                continue
            self._shown[job["job"]] = phase
            if self._to_json is not None:
                print_json(self._to_json(job))
            elif line := self._describe(job):
                print_line(line)
