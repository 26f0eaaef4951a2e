"""Add to a set or append to a string, by the initial value of the variable, which always has the same name.

    positive: 'result = set()\nfor item in data:\n    result'   answer '.' (add)
    negative: 'result = ""\nfor item in data:\n    result'      answer ' +='

Paper: Table 1, set_or_string_fixedvarname.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import set_and_string
from tasks.words import COMMON

NAME = "result"


def write(rng: random.Random) -> Pair:
    """A variable with an empty initial value and a loop that extends it, with or without lines between."""
    item, source = rng.sample([noun for noun in COMMON if noun != NAME], 2)
    return Pair(*set_and_string(rng, NAME, f"for {item} in {source}:\n    {NAME}"))


TASK = Task(
    name="set_or_string_fixedvarname",
    description="extend a variable by its initial value: '.' (add) for set(), ' +=' for an empty string; one variable name",
    answers=((".add", " +="), (".", " +=")),
    write=write,
)
