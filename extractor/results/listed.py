"""`extractor.jobs()`: the jobs of the service, as `extract list` shows them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from extractor.circuits.guesses import no_attribute
from extractor.errors import NotFound, UsageError, printable
from extractor.results.places import service
from extractor.results.rows import html_table

if TYPE_CHECKING:
    from extractor.results.result import Result

LIMIT = 50  # newest jobs
_COLUMNS = ("id", "state", "kind", "tasks", "model", "created")
_SHOWN_TASKS = 3
_LINES = 20  # of jobs as text
_INSTEAD = {
    "job": ".id",
    "job_id": ".id",
    "status": ".state",
    "name": ".id",
    "task": ".tasks",
    "folder": ".result.folder",
    "open": ".load()",
}
_INSTEAD_OF_ALL = {"load": "jobs()[0].load()", "result": "jobs()[0].result", "newest": "jobs()[0]", "filter": "a list comprehension"}


@dataclass(frozen=True)
class ListedJob:
    """A job of the service, as it was when it was listed.

    state     queued, running, succeeded, failed or cancelled;   kind: circuit or train
    tasks     whose circuits it finds;                           model: the given model, None in a train job
    created   local time at which it was queued, None where its record does not say;   error: why it failed
    facts     all that `extract list --json` prints of it
    """

    id: str
    state: str
    kind: str
    tasks: tuple[str, ...]
    model: str | None
    created: datetime | None
    error: str | None
    facts: dict[str, Any] = field(repr=False, compare=False)

    def load(self, task: str | None = None) -> Result:
        """Its result; see `extractor.load`."""
        from extractor.results.result import load

        return load(self.id, task)

    @property
    def result(self) -> Result:
        """Its result, of its only task or of the first by name."""
        return self.load()

    if not TYPE_CHECKING:  # for which every name would exist

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name, _INSTEAD)

    def __repr__(self) -> str:
        why = f"; {printable(self.error)}" if self.error else ""
        return f"ListedJob({'  '.join(filter(None, _cells(self)))}{why})"


class ListedJobs(list[ListedJob]):
    """Jobs, newest first. `jobs[0]` is the newest, `jobs["k3v9x2mq"]` the one with this id."""

    @overload
    def __getitem__(self, wanted: SupportsIndex | str) -> ListedJob: ...
    @overload
    def __getitem__(self, wanted: slice) -> ListedJobs: ...
    def __getitem__(self, wanted: SupportsIndex | str | slice) -> ListedJob | ListedJobs:
        if isinstance(wanted, slice):
            return ListedJobs(super().__getitem__(wanted))
        if not isinstance(wanted, str):
            return super().__getitem__(wanted)
        found = next((job for job in self if job.id == wanted), None)
        if found is None:
            raise NotFound(f"job {wanted!r} is not among these {len(self)}; extractor.jobs(limit=1000, all=True) lists more")
        return found

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name, _INSTEAD_OF_ALL)

    def __repr__(self) -> str:
        if not self:
            return "no jobs; queue one with `extract submit`"
        table = [_COLUMNS, *map(_cells, self[:_LINES])]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
        return "\n".join([*lines, *([f"and {len(self) - _LINES} more"] if len(self) > _LINES else [])])

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, map(_cells, self)) if self else "<p>no jobs; queue one with <code>extract submit</code></p>"

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each job. Raises ModuleNotFoundError where pandas is not installed."""
        import pandas

        columns = [*_COLUMNS, "error"]
        return pandas.DataFrame([[getattr(job, name) for name in columns] for job in self], columns=columns)


def jobs(limit: int = LIMIT, all: bool = False) -> ListedJobs:
    """The newest jobs of the service, as `extract list` shows them. Starts neither a worker nor a server.

    all   include the jobs of batches and sweeps
    Raises ServiceUnavailable where the server does not answer, UsageError for a limit below 1 or settings that are wrong.
    """
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise UsageError(f"limit is the largest number of jobs, 1 or more, not {limit!r}; extractor.load(JOB) opens the result of a job")
    return ListedJobs(_listed(service().newest(limit, all)))


def _listed(described: Iterable[dict[str, Any]]) -> Iterable[ListedJob]:
    for facts in described:
        created = None if facts["created"] is None else _time(facts["created"])
        error = f"{facts['error']['type']}: {facts['error']['message']}" if facts["error"] else None
        yield ListedJob(facts["job"], facts["state"], facts["kind"], tuple(facts["tasks"]), facts["model"], created, error, facts)


def _time(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds).astimezone()
    except (OverflowError, ValueError, OSError):  # of a damaged record
        return None


def _cells(job: ListedJob) -> tuple[str, ...]:
    tasks = ", ".join(job.tasks[:_SHOWN_TASKS]) + (f" and {len(job.tasks) - _SHOWN_TASKS} more" if len(job.tasks) > _SHOWN_TASKS else "")
    model = Path(job.model).name if job.model else ""
    created = f"{job.created:%Y-%m-%d %H:%M}" if job.created else ""
    return tuple(map(printable, (job.id, job.state, job.kind, tasks, model, created)))
