"""A task from a user's file: JSONL, one prompt pair per line.

    {"positive": "The capital of France is", "negative": "The capital of Spain is", "answers": [" Paris", " Madrid"]}

The file's name without its suffix is the task's name. If all lines have the same answers, they become the task's, otherwise every pair has
its own. As in every task, the hash of the positive prompt determines the split of a pair.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.base import ALL, SAFE_NAME, SPLITS, Pair, Task, split_of

FIELDS = ("positive", "negative", "answers")
MIN_PAIRS = 32
MIN_PAIRS_IN_SPLIT = 4
_MAX_QUOTED = 40  # characters of a value that a message quotes
_EXAMPLE = '{"positive": TEXT, "negative": TEXT, "answers": [TEXT, TEXT]}'


class TaskFileError(ValueError):
    """A file that is not a valid task. The message is one line: file, line number where known, reason."""


@dataclass(frozen=True)
class FileTask(Task):
    """A task with a fixed list of pairs. listed: (line number, pair); path: the file."""

    path: str = ""
    listed: tuple[tuple[int, Pair], ...] = ()

    def pairs(self, split: str, seed: int = 0) -> Iterator[Pair]:
        """Each pair of a split once, in an order that depends on the seed."""
        found = [pair for _, pair in self.listed if split_of(pair.positive) == split]
        random.Random(f"{self.name}/{split}/{seed}").shuffle(found)
        yield from found

    def available(self, split: str) -> int:
        return sum(split_of(pair.positive) == split for _, pair in self.listed)


def read_task(path: Path, content: bytes | None = None) -> FileTask:
    """The task of a file. content: the file's bytes if already read. Raises TaskFileError, OSError."""
    name = path.stem
    if not SAFE_NAME.fullmatch(name) or name == ALL:
        raise TaskFileError(
            f"task file {path}: {name!r} cannot be a task's name, which has at most 64 letters, digits, '_' and '-', and is not 'all'; "
            "rename the file"
        )
    listed = tuple(_lines(path, path.read_bytes() if content is None else content))
    _check_counts(path, listed)
    spellings = tuple({pair.answers: None for _, pair in listed if pair.answers is not None})
    described = "each with its own answers"
    if len(spellings) == 1:
        described = f"answered by {spellings[0][0]!r} or {spellings[0][1]!r}"
        listed = tuple((line, Pair(pair.positive, pair.negative)) for line, pair in listed)
    every = [pair for _, pair in listed]
    return FileTask(
        name=name,
        description=f"{len(listed)} pairs of {path.name}, {described}",
        answers=spellings if len(spellings) == 1 else (),
        write=lambda rng: rng.choice(every),
        path=str(path),
        listed=listed,
    )


def _lines(path: Path, content: bytes) -> Iterator[tuple[int, Pair]]:
    """(number, pair) of every line; skips empty lines."""
    seen: dict[str, int] = {}
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not raw.strip():
            continue
        place = f"{path}, line {number}"
        pair = _pair(place, _object(place, raw))
        for prompt in (pair.positive, pair.negative):
            if prompt in seen:
                raise TaskFileError(f"{place}: the prompt {_short(prompt)} also occurs in line {seen[prompt]}; remove one of them")
        seen |= {pair.positive: number, pair.negative: number}
        yield number, pair


def _object(place: str, raw: bytes) -> dict[str, Any]:
    """The JSON object of a line, with exactly the fields of a pair."""
    try:
        found = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise TaskFileError(f"{place}: not UTF-8 (byte {error.start + 1} is 0x{raw[error.start]:02x}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise TaskFileError(f"{place}: not JSON ({error.msg} at column {error.colno}); write {_EXAMPLE}") from None
    except (ValueError, RecursionError):  # numbers with thousands of digits, deeply nested brackets
        raise TaskFileError(f"{place}: JSON that cannot be parsed; write {_EXAMPLE}") from None
    if not isinstance(found, dict):
        raise TaskFileError(f"{place}: a JSON {type(found).__name__}, not an object; write {_EXAMPLE}")
    missing = [name for name in FIELDS if name not in found]
    extra = [name for name in found if name not in FIELDS]
    if missing or extra:
        what = f"lacks {', '.join(missing)}" if missing else f"has the unknown field {_short(extra[0])}"
        raise TaskFileError(f"{place}: {what}; write {_EXAMPLE}")
    return found


def _pair(place: str, found: dict[str, Any]) -> Pair:
    """The pair of a line's object. Raises TaskFileError for wrong values."""
    answers = found["answers"]
    if not isinstance(answers, list) or len(answers) != 2:
        raise TaskFileError(f"{place}: answers is {_short(answers)}, not a list of two texts, the answer to the positive prompt first")
    texts = {"positive": found["positive"], "negative": found["negative"], "the first answer": answers[0], "the second answer": answers[1]}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise TaskFileError(f"{place}: {name} is {_short(text)}, not a text")
        if not text:
            raise TaskFileError(f"{place}: {name} is empty")
        if not _is_text(text):
            raise TaskFileError(f"{place}: {name} has half of a surrogate pair, which is not valid text")
    if found["positive"] == found["negative"]:
        raise TaskFileError(f"{place}: both prompts are {_short(found['positive'])}; they must differ in what decides the answer")
    if answers[0] == answers[1]:
        raise TaskFileError(f"{place}: both answers are {_short(answers[0])}; they must differ")
    return Pair(found["positive"], found["negative"], (answers[0], answers[1]))


def _check_counts(path: Path, listed: tuple[tuple[int, Pair], ...]) -> None:
    if len(listed) < MIN_PAIRS:
        raise TaskFileError(f"task file {path} has {len(listed)} pairs, at least {MIN_PAIRS} are needed; write more")
    held = Counter(split_of(pair.positive) for _, pair in listed)
    for split in SPLITS:
        if held[split] < MIN_PAIRS_IN_SPLIT:
            raise TaskFileError(
                f"task file {path}: {held[split]} of its {len(listed)} pairs fall into the split {split!r}, by the hash of the positive "
                f"prompt; at least {MIN_PAIRS_IN_SPLIT} are needed; write more"
            )


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}..."
