"""Name the file that a with statement opens, end the line of an assignment or a return.

    positive: 'count = 3\n\nwith open(path)'   answer ' as'
    negative: 'count = 3\nitem = open(path)'   answer '\\n'

Paper: Table 1, with_as.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import assignment, earlier
from tasks.words import COMMON, NOUNS, VERBS, WORDS


def write(rng: random.Random) -> Pair:
    """A call of open in a with statement, and in an assignment or a return of equal token length."""
    path = rng.choice((rng.choice(NOUNS), f'"{rng.choice(NOUNS)} {rng.choice(WORDS)}"', f"{rng.choice(COMMON)}_{rng.choice(COMMON)}"))
    mode = rng.choice(("", ', "r"', ', "w"'))
    opened = f"open({path}{mode})"
    if rng.random() < 0.5:
        before = f"def {rng.choice(VERBS)}({rng.choice(NOUNS)}):\n{earlier(rng, '    ')}    "
        return Pair(f"{before}with {opened}", f"{before}return {opened}")
    before = earlier(rng) + assignment(rng)
    return Pair(f"{before}\n\nwith {opened}", f"{before}\n{rng.choice(COMMON)} = {opened}")


TASK = Task(
    name="with_as",
    description="after a file is opened: ' as' in a with statement, a newline in an assignment or a return",
    answers=((" as", "\n"),),
    write=write,
)
