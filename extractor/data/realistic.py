"""Programs written from the shifted templates of tasks/: longer code, in which other code stands between what decides and what follows.

Only the templates and the words of the train split are used, so that no program shows a prompt of another split.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from functools import cache

from extractor.data.programs import Lines, Writer, programs
from tasks import find_task, task_names
from tasks.shifted import Template

PLAIN = 4  # one program of so many is a plain one
INSERTED = 0.25  # probability that a statement is inserted before a line
IN_BLOCK = 0.3  # probability that a program is the body of a block
_CONTINUES = ("else", "elif", "except", "finally")  # begin a line that belongs to the one before


@cache
def train_templates() -> tuple[Template, ...]:
    """The shifted templates of the train split, of all tasks."""
    writers = (writer for name in task_names() for writer in find_task(name).shifted)
    return tuple(writer for writer in writers if isinstance(writer, Template) and writer.split == "train")


def generated_programs(count: int, seed: int) -> Iterator[str]:
    """`count` programs, one of `PLAIN` plain and the others realistic; each is a pure function of (seed, index)."""
    for index, plain in enumerate(programs(count, seed)):
        yield realistic_program(random.Random(f"realistic/{seed}/{index}")) if index % PLAIN else plain


def realistic_program(rng: random.Random) -> str:
    """One to three templates' programs below each other: some in a block, with statements inserted between their lines."""
    parts = []
    for template in rng.sample(train_templates(), rng.choice((1, 2, 2, 3))):
        prompt, rest = rng.choice(template.programs(rng))
        lines = (prompt + rest).rstrip("\n").split("\n")
        parts += with_insertions(_in_block(lines, rng) if rng.random() < IN_BLOCK else lines, rng)
        parts += [""] * rng.choice((0, 0, 1))
    return "\n".join(parts).rstrip("\n") + "\n"


def with_insertions(lines: Lines, rng: random.Random) -> Lines:
    """The lines of a program with statements before some of them, where they stay a program."""
    for index in range(len(lines) - 1, 0, -1):
        if rng.random() < INSERTED:
            longer = [*lines[:index], *_inserted(lines[index], rng), *lines[index:]]
            if _is_program(longer):
                lines = longer
    return lines


def _in_block(lines: Lines, rng: random.Random) -> Lines:
    """The lines as the body of a function, a loop, or another block."""
    writer = Writer(rng)
    header = rng.choice((writer.function, writer.function, writer.for_loop, writer.while_loop, writer.if_block, writer.with_block))(2)[0]
    longer = [header, *("    " + line if line else "" for line in lines)]
    return longer if _is_program(longer) else lines


def _inserted(before: str, rng: random.Random) -> Lines:
    """A statement with the indentation of the line before which it is to stand; none where that line cannot begin a statement."""
    text = before.lstrip()
    if not text or text.startswith(_CONTINUES):
        return []
    indent = before[: len(before) - len(text)]
    return [indent + line if line else "" for line in Writer(rng).statement(3)]


def _is_program(lines: Lines) -> bool:
    try:
        ast.parse("\n".join(lines))
    except SyntaxError:
        return False
    return True
