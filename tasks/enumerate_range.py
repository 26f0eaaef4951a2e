"""Loop over enumerate with two variables, over range with one.

    positive: 'for index, item in'   answer ' enumerate'
    negative: 'for index_item in'    answer ' range'

Paper: Table 1, enumerate_range.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import scope
from tasks.words import COMMON


def write(rng: random.Random) -> Pair:
    """The header of a loop with two variables, or with one as long: two words in its name, or three if '_word' is one token."""
    before, indent = scope(rng)
    one, *others = rng.sample(COMMON, rng.choice((2, 3)))
    start = f"{before}{indent}for {one}"
    return Pair(f"{start}, {others[-1]} in", f"{start}_{'_'.join(others)} in")


TASK = Task(
    name="enumerate_range",
    description="the iterable of a loop: ' enumerate' with two variables, ' range' with one",
    answers=((" enumerate", " range"), (" enumer", " range")),
    write=write,
)
