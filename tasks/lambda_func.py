"""End the arguments of a lambda with a colon, open the parameters of a function with a bracket.

    positive: 'total = map(lambda item'   answer ':'
    negative: 'total = map\ndef item'     answer '('

Paper: Table 1, lambda_func.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import earlier
from tasks.words import COMMON, VERBS


def write(rng: random.Random) -> Pair:
    """A call with a lambda as argument, or an assignment and a function; in two forms, since tokenizers differ in their merges."""
    name, target, key = rng.sample(COMMON, 3)
    before = f"{earlier(rng)}{target} = {rng.choice((rng.choice(VERBS), key))}"
    if rng.random() < 0.4:
        return Pair(f"{before}({key}, lambda {name}", f"{before}({key})\ndef {name}")
    return Pair(f"{before}(lambda {name}", f"{before}\ndef {name}")


TASK = Task(
    name="lambda_func",
    description="after a name: ':' if it is a lambda's argument, '(' if it is a function's name",
    answers=((":", "("),),
    write=write,
)
