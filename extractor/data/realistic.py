"""Programs written from the shifted templates of tasks/: longer code, in which other code stands between what decides and what follows.

A program varies its templates: statements are inserted, names become other expressions, parameters are added, a block is put around it.
Only the templates and the words of the train split are used, so that no program shows a prompt of another split.
"""

from __future__ import annotations

import ast
import random
import warnings
from collections.abc import Iterator
from functools import cache

from extractor.data.programs import Lines, Writer, programs
from tasks import find_task, task_names
from tasks.shifted import Template

PLAIN = 4  # one program of so many is a plain one
REPLACED = 0.15  # probability that a name or number is replaced
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
        lines = with_other_expressions((prompt + rest).rstrip("\n").split("\n"), rng)
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


def with_other_expressions(lines: Lines, rng: random.Random) -> Lines:
    """The lines of a program with other expressions in place of some names and numbers, and further parameters of functions.

    Assignments to several targets or to attributes stay as they are: there the names themselves are what tasks ask for.
    """
    for row, start, end, text in reversed(_replaceable(lines, rng)):
        line = lines[row]
        longer = [*lines[:row], line[:start] + text + line[end:], *lines[row + 1 :]]
        if _is_program(longer):
            lines = longer
    return lines


def _replaceable(lines: Lines, rng: random.Random) -> list[tuple[int, int, int, str]]:
    """(row, first column, last column, replacement) of randomly chosen pieces of ASCII lines, in order."""
    found = []
    for node in _expressions(ast.parse("\n".join(lines))):
        row, line = node.lineno - 1, lines[node.lineno - 1]
        if node.end_lineno != node.lineno or node.end_col_offset is None or not line.isascii() or rng.random() >= REPLACED:
            continue
        piece = line[node.col_offset : node.end_col_offset]
        found.append((row, node.col_offset, node.end_col_offset, _other(piece, isinstance(node, ast.arg), rng)))
    return sorted(found)


def _expressions(tree: ast.AST) -> Iterator[ast.expr | ast.arg]:
    """Names of variables that are read, numbers, and the last parameters without a default."""
    for node in ast.iter_child_nodes(tree):
        targets = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(targets, (ast.Tuple, ast.Attribute)):
            continue
        if isinstance(node, ast.arguments):
            yield from node.args[: len(node.args) - len(node.defaults)][-1:]
        is_called = isinstance(tree, ast.Call) and node is tree.func
        if isinstance(node, ast.Name):
            yield from [node] if isinstance(node.ctx, ast.Load) and node.id.islower() and not is_called else []
        elif isinstance(node, ast.Constant):
            yield from [node] if type(node.value) is int else []
        elif not isinstance(node, ast.arg):  # an annotation is no value
            yield from _expressions(node)


def _other(piece: str, is_parameter: bool, rng: random.Random) -> str:
    """What stands in place of a piece: a parameter and one more before it, or an expression that uses the piece."""
    writer = Writer(rng)
    name, verb, number = writer.noun(), writer.verb(), writer.number()
    if is_parameter:
        return piece if piece in ("self", "cls") else f"{name}, {piece}"
    return rng.choice(
        (
            f"{piece}.{name}" if not piece[0].isdigit() else f"-{piece}",
            f"{piece}[{number}]" if not piece[0].isdigit() else name,
            f"{verb}({piece})",
            f"{name}.{verb}({piece})",
            f"self.{piece}" if not piece[0].isdigit() else f"{name}.{verb}()",
            f"len({piece})",
            f"{piece} + {number}",
            f"{piece} % {name}",
        )
    )


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
    """Whether Python reads the lines, and without a warning, such as one of `3if`."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", SyntaxWarning)
        try:
            ast.parse("\n".join(lines))
        except SyntaxError:
            return False
    return True
