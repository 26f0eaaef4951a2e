"""Continue with a colon after else, with a condition after elif.

    positive: 'if count:\n    total = 3\nelse'   answer ':'
    negative: 'if count:\n    total = 3\nelif'   answer ' not'

Paper: Table 1, else_elif.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import assignment, condition, scope


def write(rng: random.Random) -> Pair:
    """An if with a body of one or two lines, up to the first word of its next branch."""
    before, indent = scope(rng)
    body = "".join(f"{indent}    {assignment(rng)}\n" for _ in range(rng.randint(1, 2)))
    start = f"{before}{indent}if {condition(rng)}:\n{body}{indent}"
    return Pair(f"{start}else", f"{start}elif")


TASK = Task(
    name="else_elif",
    description="after a branch's first word: ':' after else, ' not' (a condition) after elif",
    answers=((":", " not"), (":\n", " not")),
    write=write,
)
