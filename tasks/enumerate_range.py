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
    """A loop's header over two variables, or over one whose name has two words, or three where '_word' is one token."""
    before, indent = scope(rng)
    one, *others = rng.sample(COMMON, rng.choice((2, 3)))
    start = f"{before}{indent}for {one}"
    return Pair(f"{start}, {others[-1]} in", f"{start}_{'_'.join(others)} in")


TASK = Task(
    name="enumerate_range",
    description="what a loop runs over: ' enumerate' with two variables, ' range' with one",
    answers=((" enumerate", " range"), (" enumer", " range")),
    write=write,
)
