"""Give the last parameter a default if earlier ones have defaults, else end the list.

    positive: 'def load(path=None, size'   answer '='
    negative: 'def load(path, mode, size'  answer '):'

Paper: Table 1, final_kwarg.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import earlier
from tasks.words import COMMON, VERBS


def write(rng: random.Random) -> Pair:
    """A function header of equal length with and without defaults: 1 for 2 parameters, or 2 for 3 if '=None' is one token."""
    with_default, without = rng.choice(((1, 2), (2, 4), (2, 3), (2, 3)))
    *others, last = names = rng.sample(COMMON, without + 1)
    first = ", ".join(f"{name}=None" for name in others[:with_default])
    header = f"{earlier(rng)}def {rng.choice(VERBS)}{rng.choice(('', '_' + rng.choice(COMMON)))}("
    return Pair(f"{header}{first}, {last}", f"{header}{', '.join(names)}")


TASK = Task(
    name="final_kwarg",
    description="the last parameter: '=' (None) after parameters with defaults, '):' after parameters without",
    answers=(("=None", "):"), ("=None", "):\n"), ("=", "):"), ("=", ")")),
    write=write,
)
