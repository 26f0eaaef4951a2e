"""Continue with a colon after True in a condition, with a newline after an assignment.

    positive: 'count = 3\nif name == True'   answer ':'
    negative: 'count = 3\n\nname = True'     answer '\\n'

Paper: Table 1, var_if.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import asked_and_assigned
from tasks.words import COMMON


def write(rng: random.Random) -> Pair:
    """A comparison with True or False, or an assignment of it."""
    asked, assigned = asked_and_assigned(rng, rng.choice(COMMON))
    value = rng.choice(("True", "True", "False"))
    return Pair(f"{asked} == {value}", f"{assigned} = {value}")


TASK = Task(
    name="var_if",
    description="after True: ':' in a condition, a newline in an assignment",
    answers=((":", "\n"),),
    write=write,
)
