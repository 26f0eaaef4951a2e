"""From a task's name or alias to the task: those of this folder first, then those of installed packages."""

from __future__ import annotations

import difflib

from tasks.base import Task, load_task, task_names
from tasks.installed import installed_tasks


def find_task(name: str) -> Task:
    """The task of that name or alias, of this folder or of an installed package.

    Raises KeyError with the nearest names, or with what is wrong with the package's task.
    """
    names = task_names()
    if name in names:
        return load_task(name)
    for task in map(load_task, names):
        if name in task.aliases:
            return task
    offers = installed_tasks()
    for offer in offers:
        if name == offer.name:
            return offer.load()
    for offer in offers:
        if offer.problem is None and name in offer.load().aliases:
            return offer.load()
    every = [*names, *(offer.name for offer in offers)]
    near = difflib.get_close_matches(name, every, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise KeyError(f"task {name!r} not found in tasks/; {hint}available: {', '.join(every)}")
