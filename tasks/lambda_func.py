"""End a lambda's arguments with a colon; open a function's with a bracket.

    positive: 'total = map(lambda item'   answer ':'
    negative: 'total = map\ndef item'     answer '('

Paper: Table 1, lambda_func.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import earlier
from tasks.words import COMMON, VERBS


def write(rng: random.Random) -> Pair:
    """A call whose argument is a lambda, or an assignment and then a function; in two forms, as tokenizers differ in what they merge."""
    name, target, key = rng.sample(COMMON, 3)
    before = f"{earlier(rng)}{target} = {rng.choice((rng.choice(VERBS), key))}"
    if rng.random() < 0.4:
        return Pair(f"{before}({key}, lambda {name}", f"{before}({key})\ndef {name}")
    return Pair(f"{before}(lambda {name}", f"{before}\ndef {name}")


TASK = Task(
    name="lambda_func",
    description="after a name: ':' when it is a lambda's argument, '(' when it is a function's name",
    answers=((":", "("),),
    write=write,
)
