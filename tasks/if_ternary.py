"""End the header of an if statement with a colon, continue a conditional expression with else.

    positive: 'total = count\nif ready'   answer ':'
    negative: 'total = (count if ready'   answer ' else'

Paper: Table 1, if_ternary.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import condition, scope
from tasks.words import COMMON


def write(rng: random.Random) -> Pair:
    """An assignment and an if on the next line or on the same one, where a token before the value makes up for the newline."""
    before, indent = scope(rng)
    name, value = rng.sample(COMMON, 2)
    asked = condition(rng)
    start = f"{before}{indent}{name} = "
    return Pair(f"{start}{value}\n{indent}if {asked}", f"{start}{rng.choice(('(', '[', '-', 'not '))}{value} if {asked}")


TASK = Task(
    name="if_ternary",
    description="after the condition of an if: ':' in a statement, ' else' in an expression",
    answers=((":", " else"), (":\n", " else")),
    write=write,
)
