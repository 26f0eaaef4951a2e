"""Close all open brackets.

    positive: 'total = [3, 14, 1'    answer ']'
    negative: 'total = [[3, 14, 1'   answer ']]'

Paper: Table 1, bracket_counting.
"""

import random

from tasks.base import Pair, Task
from tasks.words import NOUNS


def write(rng: random.Random) -> Pair:
    """A list display, flat in one prompt and nested in the other."""
    name = rng.choice(NOUNS)
    if rng.random() < 0.5:
        items = ", ".join(str(rng.randrange(100)) for _ in range(rng.randint(1, 4)))
    else:
        items = ", ".join(rng.choice(NOUNS) for _ in range(rng.randint(1, 4)))
    return Pair(f"{name} = [{items}", f"{name} = [[{items}")


TASK = Task(
    name="bracket_counting",
    description="close a list at the depth at which it was opened: ] or ]]",
    answers=(("]", "]]"), ("]\n", "]]\n")),
    write=write,
)
