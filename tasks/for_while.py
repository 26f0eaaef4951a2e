"""Continue a loop header by the kind of loop.

    positive: 'for item'     answer ' in'
    negative: 'while item'   answer ':'

Paper: Table 1, for_while.
"""

import random

from tasks.base import Pair, Task
from tasks.words import NOUNS, VERBS


def write(rng: random.Random) -> Pair:
    """A loop header up to its variable, at top level or inside a function, sometimes after an earlier line."""
    indent, before = "", ""
    if rng.random() < 0.5:
        indent = "    "
        before = f"def {rng.choice(VERBS)}({rng.choice(NOUNS)}):\n"
    if rng.random() < 0.5:
        before += f"{indent}{rng.choice(NOUNS)} = {rng.choice((str(rng.randrange(10)), '[]', rng.choice(NOUNS)))}\n"
    name = rng.choice(NOUNS)
    return Pair(f"{before}{indent}for {name}", f"{before}{indent}while {name}")


TASK = Task(
    name="for_while",
    description="continue a loop header by the kind of loop: ' in' after for, ':' after while",
    answers=((" in", ":"), (" in", ":\n")),
    write=write,
)
