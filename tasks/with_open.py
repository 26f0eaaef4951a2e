"""Open a file for reading or writing, by the name of its variable.

    positive: 'with open(input_path, "'    answer 'r'
    negative: 'with open(output_path, "'   answer 'w'

Paper: Table 1, with_open.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import scope
from tasks.words import COMMON

_SIDES = (("input", "output"), ("in", "out"), ("source", "target"), ("read", "write"), ("load", "save"))


def write(rng: random.Random) -> Pair:
    """A call of open up to the mode; the name of the variable shows the purpose."""
    before, indent = scope(rng)
    quote = rng.choice("\"'")
    rest = f"_{rng.choice(COMMON)}, {quote}"
    start = f"{before}{indent}{rng.choice(('with ', f'{rng.choice(COMMON)} = '))}open("
    one, other = rng.choice(_SIDES)
    return Pair(f"{start}{one}{rest}", f"{start}{other}{rest}")


TASK = Task(
    name="with_open",
    description="the mode of a file: r or w, by the name of its variable",
    answers=(("r", "w"),),
    write=write,
)
