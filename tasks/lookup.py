"""Finds a task by name or alias: first among the built-in tasks, then among those of installed packages."""

from __future__ import annotations

import difflib

from tasks.base import Task, load_task, task_names
from tasks.installed import installed_tasks


def find_task(name: str) -> Task:
    """The built-in or installed task of this name or alias.

    Raises KeyError with close matches, or with the problem of an installed task.
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
