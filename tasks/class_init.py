"""Assign the parameter of the same name to an attribute.

    positive: 'class Item:\n    def __init__(self, name, size, path):\n        self.name = name\n        self.size ='   answer ' size'
    negative: 'class Item:\n    def __init__(self, name, size, path):\n        self.name = name\n        self.path ='   answer ' path'

Paper: Table 1, class_init.
"""

import random

from tasks.base import Pair, Task
from tasks.words import COMMON


def write(rng: random.Random) -> Pair:
    """An __init__ with three to five parameters, up to the assignment of one of two remaining parameters."""
    kind, *names = rng.sample(COMMON, rng.randint(4, 6))
    done = rng.randint(0, min(3, len(names) - 2))
    one, other = rng.sample(names[done:], 2)
    lines = [
        f"class {kind.title()}:",
        f"    def __init__(self, {', '.join(names)}):",
        *[f"        self.{name} = {name}" for name in names[:done]],
    ]
    start = "\n".join(lines) + "\n        self."
    return Pair(f"{start}{one} =", f"{start}{other} =", (f" {one}", f" {other}"))


TASK = Task(
    name="class_init",
    description="in a class's __init__, the parameter that an attribute is assigned: the one of the same name",
    answers=(),
    write=write,
)
