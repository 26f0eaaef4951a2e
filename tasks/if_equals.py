"""Compare in a condition, assign in a statement.

    positive: 'count = 3\nif name'      answer ' =='
    negative: 'count = 3\n\nname'       answer ' ='

Paper: Table 1, if_equals.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import asked_and_assigned
from tasks.words import COMMON


def write(rng: random.Random) -> Pair:
    """A name in a condition, or as the target of an assignment."""
    return Pair(*asked_and_assigned(rng, rng.choice(COMMON)))


TASK = Task(
    name="if_equals",
    description="after a name: ' ==' in a condition, ' =' in a statement",
    answers=((" ==", " ="),),
    write=write,
)
