"""Complete the swap of two variables.

    positive: 'left, right = right,'   answer ' left'
    negative: 'right, left = left,'    answer ' right'

Paper: Table 1, var_swap.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import condition, scope
from tasks.words import COMMON


def write(rng: random.Random) -> Pair:
    """A swap up to its last name, sometimes under an if."""
    before, indent = scope(rng)
    if rng.random() < 0.5:
        before, indent = f"{before}{indent}if {condition(rng)}:\n", indent + "    "
    one, other = sorted(rng.sample(COMMON, 2))  # no pair's negative prompt is another's positive one
    start = before + indent
    return Pair(f"{start}{one}, {other} = {other},", f"{start}{other}, {one} = {one},", (f" {one}", f" {other}"))


TASK = Task(
    name="var_swap",
    description="the last name of a swap: x in 'x, y = y, x'",
    answers=(),
    write=write,
)
