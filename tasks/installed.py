"""Tasks of installed packages: entry points of the group `extractor.tasks`, each naming a `Task` or a module with a `TASK`.

    [project.entry-points."extractor.tasks"]
    date_order = "my_package.date_order"

An unusable entry point is listed with its problem and does not affect other tasks.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from tasks.base import ALL, SAFE_NAME, Pair, Task, load_task, task_names

GROUP = "extractor.tasks"


@dataclass(frozen=True)
class Offer:
    """One entry point; its module is imported on first use.

    others  other entry points with the same name
    """

    entry: EntryPoint
    others: tuple[EntryPoint, ...] = ()

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def source(self) -> str:
        """'PACKAGE VERSION'."""
        return _source(self.entry)

    @property
    def problem(self) -> str | None:
        """One line why the task cannot be used; None for a usable task."""
        found = self._found
        return found if isinstance(found, str) else None

    def load(self) -> Task:
        """The task. Raises KeyError with the problem."""
        found = self._found
        if isinstance(found, str):
            raise KeyError(f"task {self.name!r} of {self.source} cannot be used: {found}; repair or uninstall that package")
        return found

    @cached_property
    def _found(self) -> Task | str:
        if not SAFE_NAME.fullmatch(self.name) or self.name == ALL:
            return "a task's name has at most 64 letters, digits, '_' and '-', and is not 'all'"
        if self.name in reserved_names():
            return "a built-in task has this name"
        if self.others:
            return f"{' and '.join(map(_source, self.others))} also has a task of this name"
        try:
            value = self.entry.load()
            task = value.TASK if isinstance(value, ModuleType) else value
            if not isinstance(task, Task):
                return f"{self.entry.value} is a {type(task).__name__}, not a tasks.base.Task"
            if task.name != self.name:
                return f"the task's own name is {task.name!r}"
            flaw = _flaw(task)
        except (Exception, SystemExit) as error:  # code of a third party may raise anything
            return f"{type(error).__name__}: {' '.join(str(error).split())}"
        return flaw or task


def installed_tasks() -> list[Offer]:
    """The tasks of installed packages, sorted by name; imports none of them."""
    entries = sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, _source(entry)))
    return [Offer(entry, tuple(e for e in entries if e.name == entry.name and e is not entry)) for entry in entries]


def reserved_names() -> set[str]:
    """Names and aliases of the built-in tasks."""
    return {name for task in map(load_task, task_names()) for name in (task.name, *task.aliases)}


def _source(entry: EntryPoint) -> str:
    package = entry.dist
    return f"{package.name} {package.version}" if package is not None else "an unknown package"


def _flaw(task: Task) -> str | None:
    """What is wrong with a task's first pair or its answers, in one line; None for a valid task."""
    written: object = task.write(random.Random(0))
    if not isinstance(written, Pair):
        return f"it writes a {type(written).__name__}, not a tasks.base.Pair"
    pair = next(task.pairs("train", 0), None)
    if pair is None:
        return "it writes no pair for the split 'train'"
    spellings = task.answers or (pair.answers,)
    if not all(isinstance(both, tuple) and len(both) == 2 and all(isinstance(text, str) and text for text in both) for both in spellings):
        return "its answers are not pairs of non-empty texts"
    return None
