"""Close a string with the quote that opened it.

    positive: 'print("hello'   answer '")'
    negative: "print('hello"   answer "')"

Paper: Table 1, single_double_quote.
"""

import random

from tasks.base import Pair, Task
from tasks.words import NOUNS, VERBS, WORDS

_CALLS = ("print", "open", "len", "str", "add", "append", "get", "find", "split", "join", "startswith", "ValueError", "KeyError")


def write(rng: random.Random) -> Pair:
    """One call with an unfinished string argument, sometimes after an earlier line."""
    before = rng.choice(("", f"{rng.choice(NOUNS)} = {rng.randrange(100)}\n", f"{rng.choice(NOUNS)} = {rng.choice(NOUNS)}\n"))
    call = rng.choice((rng.choice(_CALLS), f"{rng.choice(NOUNS)}.{rng.choice(VERBS)}", f"self.{rng.choice(VERBS)}"))
    text = " ".join(rng.choice(NOUNS + WORDS) for _ in range(rng.randint(1, 3)))
    return Pair(f'{before}{call}("{text}', f"{before}{call}('{text}")


TASK = Task(
    name="quote_close",
    description="close a string with the quote that opened it: \") or ')",
    answers=(('")', "')"), ('")\n', "')\n"), ('"', "'")),
    write=write,
    aliases=("single_double_quote",),
)
