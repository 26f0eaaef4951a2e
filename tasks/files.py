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
MAX_TASK_FILE_BYTES = 1 << 28
_BOM = b"\xef\xbb\xbf"
_MAX_LISTED = 10  # line numbers that a message lists
_MAX_QUOTED = 40  # characters of a value that a message quotes
_EXAMPLE = '{"positive": TEXT, "negative": TEXT, "answers": [TEXT, TEXT]}'


class TaskFileError(ValueError):
    """A file that is not a valid task. The message is one line: file, line number where known, reason."""


@dataclass(frozen=True)
class FileTask(Task):
    """A task with a fixed list of pairs. listed: (line number, pair); path: the file."""

    path: str = ""
    listed: tuple[tuple[int, Pair], ...] = ()

    def pairs(self, split: str, seed: int = 0, shifted: bool = False) -> Iterator[Pair]:
        """Each pair of a split once, in an order that depends on the seed. Raises ValueError for shifted ones: a file has none."""
        if shifted:
            return self._shifted_pairs(split, seed)
        found = [pair for _, pair in self.listed if split_of(pair.positive) == split]
        random.Random(f"{self.name}/{split}/{seed}").shuffle(found)
        return iter(found)

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
    """(number, pair) of every line; skips empty lines. Raises TaskFileError for the first faulty line, with the number of others."""
    _refuse_other_formats(path, content)
    seen: dict[str, int] = {}
    faults: list[tuple[int, str]] = []
    for number, raw in enumerate(content.removeprefix(_BOM).split(b"\n"), 1):
        if not raw.strip():
            continue
        try:
            pair = _pair(_object(raw))
            _refuse_repetition(pair, seen)
        except _Fault as fault:
            faults.append((number, str(fault)))
            continue
        seen |= {pair.positive: number, pair.negative: number}
        if not faults:
            yield number, pair
    if faults:
        number, what = faults[0]
        others = [str(other) for other, _ in faults[1:]]
        more = f"; {len(others)} more such lines: {', '.join(others[:_MAX_LISTED])}{', ...' if len(others) > _MAX_LISTED else ''}"
        raise TaskFileError(f"{path}, line {number}: {what}{more if others else ''}")


class _Fault(Exception):
    """What is wrong with a line, and what to do."""


def _refuse_other_formats(path: Path, content: bytes) -> None:
    """Raise TaskFileError for files that hold no JSON lines as a whole."""
    start = content.removeprefix(_BOM).lstrip()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise TaskFileError(f"{path}, line 1: not UTF-8 (byte 1 is 0x{content[0]:02x}: it is UTF-16); save the file as UTF-8")
    if start.startswith(b"[") and start.split(b"\n", 1)[0].strip() in (b"[", b"[{"):
        raise TaskFileError(f"{path}, line 1: a JSON list over several lines; write one object a line, without brackets around them")
    if start.split(b"\n", 1)[0].strip() == b"{":
        raise TaskFileError(f"{path}, line 1: not JSON (an object over several lines); write every pair on one line: {_EXAMPLE}")


def _refuse_repetition(pair: Pair, seen: dict[str, int]) -> None:
    for prompt in (pair.positive, pair.negative):
        if prompt in seen:
            raise _Fault(f"the prompt {_short(prompt)} also occurs in line {seen[prompt]}; remove one of them")


def _object(raw: bytes) -> dict[str, Any]:
    """The JSON object of a line, with exactly the fields of a pair. Raises _Fault."""
    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=_distinct)
    except UnicodeDecodeError as error:
        raise _Fault(f"not UTF-8 (byte {error.start + 1} is 0x{raw[error.start]:02x}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise _Fault(f"not JSON ({error.msg} at column {error.colno}); write {_EXAMPLE}") from None
    except (ValueError, RecursionError):  # numbers with thousands of digits, deeply nested brackets
        raise _Fault(f"JSON that cannot be parsed; write {_EXAMPLE}") from None
    if not isinstance(found, dict):
        raise _Fault(f"a JSON {type(found).__name__}, not an object; write {_EXAMPLE}")
    missing = [name for name in FIELDS if name not in found]
    extra = [name for name in found if name not in FIELDS]
    if missing or extra:
        what = f"lacks {', '.join(missing)}" if missing else f"has the unknown field {_short(extra[0])}"
        raise _Fault(f"{what}; write {_EXAMPLE}")
    return found


def _distinct(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's fields; JSON readers differ in which of two equal ones they take."""
    names = [name for name, _ in fields]
    if len(set(names)) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise _Fault(f"the field {_short(twice)} occurs twice; remove one of them")
    return dict(fields)


def _pair(found: dict[str, Any]) -> Pair:
    """The pair of a line's object. Raises _Fault for wrong values."""
    answers = found["answers"]
    if not isinstance(answers, list) or len(answers) != 2:
        raise _Fault(f"answers is {_short(answers)}, not a list of two texts, the answer to the positive prompt first")
    texts = {"positive": found["positive"], "negative": found["negative"], "the first answer": answers[0], "the second answer": answers[1]}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise _Fault(f"{name} is {_short(text)}, not a text")
        if not text:
            raise _Fault(f"{name} is empty")
        if not _is_text(text):
            raise _Fault(f"{name} has half of a surrogate pair, which is not valid text")
    if found["positive"] == found["negative"]:
        raise _Fault(f"both prompts are {_short(found['positive'])}; they must differ in what decides the answer")
    if answers[0] == answers[1]:
        raise _Fault(f"both answers are {_short(answers[0])}; they must differ")
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
