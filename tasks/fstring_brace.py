"""Open a replacement field in a string with prefix f, close a string with another prefix.

    positive: 'print(f"total'   answer ' {'
    negative: 'print(b"total'   answer '")'

Paper: Table 1, fstring_brace.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import scope
from tasks.words import COMMON, NOUNS, VERBS, WORDS


def write(rng: random.Random) -> Pair:
    """A call with an unfinished prefixed string: f in one prompt, b or r (of the same length) in the other."""
    before, indent = scope(rng)
    call = rng.choice(("print", rng.choice(VERBS), f"{rng.choice(COMMON)}.{rng.choice(VERBS)}", f"self.{rng.choice(VERBS)}"))
    text = " ".join(rng.choice(NOUNS + WORDS) for _ in range(rng.randint(1, 2)))
    return Pair(f'{before}{indent}{call}(f"{text}', f'{before}{indent}{call}({rng.choice("br")}"{text}')


TASK = Task(
    name="fstring_brace",
    description="inside a string: ' {' if its prefix is f, the closing quote if it is b or r",
    answers=((" {", '")'), (" {", '"'), ("{", '"')),
    write=write,
)
