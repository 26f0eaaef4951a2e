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
_FIFTHS = {"train": (0, 1, 2), "select": (3,), "held_out": (4,)}  # the number of a shifted template modulo 5
_NOT_TASKS = ("base", "files", "installed", "lines", "lookup", "shifted", "words")  # modules of this package that define no task
ALL = "all"  # on the command line: all tasks of this folder
SAFE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # a task's name is also the name of a folder


@dataclass(frozen=True)
class Pair:
    """Two prompts that differ in what decides the answer: the first answer continues `positive`, the second `negative`.

    answers   (first, second) of this pair, in tasks whose answers vary; None where all pairs have the task's answers
    rests     how the two programs go on after their prompts, the answers included; empty where that is not known
    """

    positive: str
    negative: str
    answers: tuple[str, str] | None = None
    rests: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Task:
    """A choice between two next tokens.

    name         also the name of the file
    description  one line: what the model chooses, and what decides it
    answers      spellings of (answer to the positive prompt, answer to the negative prompt), best first; () where every pair has its own
    write        (random generator) -> Pair; called repeatedly
    aliases      further names that users may give
    shifted      one writer for each template of the shifted prompts: longer code, with what misleads a detector of single tokens
    one_token    a single token near the end of the prompt decides the answer, also in shifted prompts
    """

    name: str
    description: str
    answers: tuple[tuple[str, str], ...]
    write: Callable[[random.Random], Pair]
    aliases: tuple[str, ...] = ()
    shifted: tuple[Callable[[random.Random], Pair], ...] = ()
    one_token: bool = False

    def pairs(self, split: str, seed: int = 0, shifted: bool = False) -> Iterator[Pair]:
        """Endless distinct pairs of one split ('train', 'select' or 'held_out'), the same for the same seed.

        The hash of its positive prompt determines the split of a pair, so no prompt is in two splits, whatever the seed. The stream ends
        after 1,000 pairs in a row that are repeated or belong to another split.

        shifted: pairs of the shifted templates, each of which belongs to one split. Raises ValueError for a task without them.
        """
        if shifted:
            return self._shifted_pairs(split, seed)
        rng = random.Random(f"{self.name}/{split}/{seed}")
        return _distinct(
            lambda: self.write(rng), accepts=lambda pair: _tenth(pair.positive) in _SHARE[split], once=lambda pair: {pair.positive}
        )

    def _shifted_pairs(self, split: str, seed: int) -> Iterator[Pair]:
        writers = [write for number, write in enumerate(self.shifted) if split_of_number(number) == split]
        if not writers:
            raise ValueError(f"task {self.name!r} has no shifted templates for the split {split!r}")
        rng = random.Random(f"{self.name}/shifted/{split}/{seed}")
        return _distinct(lambda: rng.choice(writers)(rng), accepts=lambda pair: True, once=lambda pair: {pair.positive, pair.negative})

    def available(self, split: str) -> int | None:
        """The number of pairs of a split; None where pairs are generated without limit."""
        return None


def _distinct(draw: Callable[[], Pair], accepts: Callable[[Pair], bool], once: Callable[[Pair], set[str]]) -> Iterator[Pair]:
    """Drawn pairs that `accepts` takes and whose prompts `once` no pair before had; ends after 1,000 others in a row."""
    seen: set[str] = set()
    stale = 0
    while stale < 1000:
        pair = draw()
        if once(pair) & seen or not accepts(pair):
            stale += 1
            continue
        stale = 0
        seen |= once(pair)
        yield pair


def split_of_number(number: int) -> str:
    """The split of the shifted template, or of the word for such templates, of this number: 3 of 5 are for training."""
    return next(split for split in SPLITS if number % 5 in _FIFTHS[split])


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
