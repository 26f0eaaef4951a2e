"""Continue with a colon after True in a while loop, with a newline after return.

    positive: 'def load(path):\n    while True'    answer ':'
    negative: 'def load(path):\n    return True'   answer '\\n'

Paper: Table 1, while_return_true.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import condition, earlier
from tasks.words import COMMON, VERBS


def write(rng: random.Random) -> Pair:
    """A function, sometimes with an if in it, up to True."""
    names = ", ".join(rng.sample(COMMON, rng.randint(1, 3)))
    before, indent = f"def {rng.choice(VERBS)}({names}):\n{earlier(rng, '    ')}", "    "
    if rng.random() < 0.4:
        before, indent = f"{before}    if {condition(rng)}:\n", indent + "    "
    return Pair(f"{before}{indent}while True", f"{before}{indent}return True")


TASK = Task(
    name="while_return_true",
    description="after True: ':' in a while header, a newline in a return",
    answers=((":", "\n"),),
    write=write,
)
