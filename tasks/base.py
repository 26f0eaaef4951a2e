"""What a task is: a seeded stream of contrasting prompt pairs, cut into three splits that share no prompt.

A task knows nothing of tokenizers. It offers its two answers in several spellings, best first; the engine takes the first
spelling that a given tokenizer writes as single tokens (`extractor.data.prompts`). Where the answers vary, every pair brings its own.
Paper: Sec. 2.2 and Table 1.
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
_SHARE = {"train": range(0, 6), "select": range(6, 8), "held_out": range(8, 10)}  # tenths of all prompts
_NOT_TASKS = ("base", "files", "installed", "lines", "lookup", "words")  # modules beside those that are tasks
ALL = "all"  # stands for all tasks of this folder where users name tasks
SAFE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # of tasks: they become names of folders


@dataclass(frozen=True)
class Pair:
    """Two prompts that differ in what matters. `positive` is continued by the first answer, `negative` by the second.

    answers   this pair's own (first, second), for tasks whose answers vary; None where the task has the same two for all pairs
    """

    positive: str
    negative: str
    answers: tuple[str, str] | None = None


@dataclass(frozen=True)
class Task:
    """One behaviour.

    name         the paper's name, or ours; the name of the file
    description  one line: what has to be chosen, by what
    answers      spellings of (answer to the positive prompt, answer to the negative prompt), best first; () where every pair has its own
    write        (random generator) -> Pair; called again and again
    aliases      other names users may type
    """

    name: str
    description: str
    answers: tuple[tuple[str, str], ...]
    write: Callable[[random.Random], Pair]
    aliases: tuple[str, ...] = ()

    def pairs(self, split: str, seed: int = 0) -> Iterator[Pair]:
        """Endless distinct pairs of one split ('train', 'select' or 'held_out'), the same for the same seed.

        A pair belongs to the split that the hash of its positive prompt says, so no prompt is in two splits whatever the seed.
        The stream ends when the task has nothing new to write (1,000 repeats in a row).
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
        """How many pairs a split holds; None where they are written as long as they are asked for."""
        return None


def split_of(positive: str) -> str:
    """The split that a pair belongs to, by its positive prompt."""
    tenth = _tenth(positive)
    return next(split for split in SPLITS if tenth in _SHARE[split])


def _tenth(text: str) -> int:
    return hashlib.sha256(text.encode()).digest()[0] * 10 // 256


def task_names() -> list[str]:
    """Names of all tasks, from the files of this folder, without importing them."""
    package = importlib.import_module("tasks")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in _NOT_TASKS)


def load_task(name: str) -> Task:
    """The task defined by tasks/NAME.py."""
    task: Task = importlib.import_module(f"tasks.{name}").TASK
    return task
