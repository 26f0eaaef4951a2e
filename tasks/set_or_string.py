"""Add to a set or append to a string, by the initial value of the variable.

    positive: 'names = set()\nfor item in data:\n    names'   answer '.' (add)
    negative: 'names = ""\nfor item in data:\n    names'      answer ' +='

Paper: Table 1, set_or_string.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import set_and_string
from tasks.words import COMMON


def write(rng: random.Random) -> Pair:
    """A variable with an empty initial value and a loop that extends it, with or without lines between."""
    name, item, source = rng.sample(COMMON, 3)
    return Pair(*set_and_string(rng, name, f"for {item} in {source}:\n    {name}"))


TASK = Task(
    name="set_or_string",
    description="extend a variable by its initial value: '.' (add) for set(), ' +=' for an empty string",
    answers=((".add", " +="), (".", " +=")),
    write=write,
)
