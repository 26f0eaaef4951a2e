"""Continue with a colon in a dictionary, with a comma in a list.

    positive: 'sizes = {left: 3, right'   answer ':'
    negative: 'sizes = [left, 3, right'   answer ','

Paper: Table 1, bracket_brace.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import earlier
from tasks.words import COMMON


def write(rng: random.Random) -> Pair:
    """A dictionary or list up to its first, second or third key, on one line."""
    name, *keys = rng.sample(COMMON, rng.randint(2, 4))
    *done, last = keys
    values = [str(rng.randrange(100)) for _ in done]
    before = f"{earlier(rng)}{name} = "
    pairs = "".join(f"{key}: {value}, " for key, value in zip(done, values, strict=True))
    items = "".join(f"{key}, {value}, " for key, value in zip(done, values, strict=True))
    return Pair(f"{before}{{{pairs}{last}", f"{before}[{items}{last}")


TASK = Task(
    name="bracket_brace",
    description="after a key or item: ':' in a dictionary, ',' in a list",
    answers=((":", ","),),
    write=write,
)
