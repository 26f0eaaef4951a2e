"""Indent the body of a for loop one step deeper than its header.

    positive: 'def load(path):\n    total = 3\nfor item in data:'       answer '\\n    ' (three or four spaces, as the tokenizer cuts)
    negative: 'def load(path):\n    total = 3\n    for item in data:'   answer '\\n        '

Paper: Table 1, indent_for.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import assignment, condition
from tasks.words import COMMON, VERBS


def write(rng: random.Random) -> Pair:
    """A block of one or two lines, then the header of a loop: after the block in one prompt, inside it in the other."""
    name, item, source = rng.sample(COMMON, 3)
    header = rng.choice((f"def {rng.choice(VERBS)}({name}):", f"if {condition(rng)}:", f"while {name}:"))
    block = "".join(f"\n    {assignment(rng)}" for _ in range(rng.randint(1, 2)))
    loop = f"for {item} in {rng.choice((source, f'range({rng.randrange(100)})'))}:"
    return Pair(f"{header}{block}\n{loop}", f"{header}{block}\n    {loop}")


TASK = Task(
    name="indent_for",
    description="the indentation after a for header: one step at top level, two steps inside a block",
    answers=(("\n   ", "\n       "), ("\n    ", "\n        ")),
    write=write,
)
