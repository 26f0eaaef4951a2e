"""Pair and Task: a task is a seeded stream of contrasting prompt pairs in three disjoint splits.

A task does not depend on a tokenizer. It has several spellings of its two answers, best first; the engine takes the first one that a
tokenizer encodes as single tokens (`extractor.data.prompts`). If the answers vary, every pair has its own. Paper: Sec. 2.2 and Table 1.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SPLITS = ("train", "select", "held_out")
_SHARE = {"train": range(0, 6), "select": range(6, 8), "held_out": range(8, 10)}  # tenths of the hash range
_NOT_TASKS = ("base", "files", "installed", "lines", "lookup", "words")  # modules of this package that define no task
ALL = "all"  # on the command line: all tasks of this folder
SAFE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # a task's name is also the name of a folder


@dataclass(frozen=True)
class Pair:
    """Two prompts that differ in what decides the answer: the first answer continues `positive`, the second `negative`.

    answers   (first, second) of this pair, in tasks whose answers vary; None where all pairs have the task's answers
    """

    positive: str
    negative: str
    answers: tuple[str, str] | None = None


@dataclass(frozen=True)
class Task:
    """A choice between two next tokens.

    name         also the name of the file
    description  one line: what the model chooses, and what decides it
    answers      spellings of (answer to the positive prompt, answer to the negative prompt), best first; () where every pair has its own
    write        (random generator) -> Pair; called repeatedly
    aliases      further names that users may give
    """

    name: str
    description: str
    answers: tuple[tuple[str, str], ...]
    write: Callable[[random.Random], Pair]
    aliases: tuple[str, ...] = ()

    def pairs(self, split: str, seed: int = 0) -> Iterator[Pair]:
        """Endless distinct pairs of one split ('train', 'select' or 'held_out'), the same for the same seed.

        The hash of its positive prompt determines the split of a pair, so no prompt is in two splits, whatever the seed. The stream ends
        after 1,000 pairs in a row that are repeated or belong to another split.
        """
        rng = random.Random(f"{self.name}/{split}/{seed}")
        seen: set[str] = set()
        stale = 0
        while stale < 1000:
            pair = self.write(rng)
            if pair.positive in seen or _tenth(pair.positive) not in _SHARE[split]:
                stale += 1
                continue
            stale = 0
            seen.add(pair.positive)
            yield pair

    def available(self, split: str) -> int | None:
        """The number of pairs of a split; None where pairs are generated without limit."""
        return None


def split_of(positive: str) -> str:
    """The split of a pair, by the hash of its positive prompt."""
    tenth = _tenth(positive)
    return next(split for split in SPLITS if tenth in _SHARE[split])


def _tenth(text: str) -> int:
    return hashlib.sha256(text.encode()).digest()[0] * 10 // 256


def task_names() -> list[str]:
    """Names of all built-in tasks, from the files of this folder, without importing them."""
    package = importlib.import_module("tasks")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in _NOT_TASKS)


def load_task(name: str) -> Task:
    """The task defined by tasks/NAME.py."""
    task: Task = importlib.import_module(f"tasks.{name}").TASK
    return task
