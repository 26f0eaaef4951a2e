"""Random lines of code before a prompt, so that prompts differ in length and content."""

import random

from tasks.words import COMMON, NOUNS, VERBS


def assignment(rng: random.Random) -> str:
    """A simple assignment without indentation and newline: 'count = 3'."""
    return f"{rng.choice(NOUNS)} = {rng.choice((str(rng.randrange(100)), '[]', 'None', rng.choice(NOUNS)))}"


def earlier(rng: random.Random, indent: str = "") -> str:
    """No, one or two assignments, each with indentation and newline."""
    return "".join(f"{indent}{assignment(rng)}\n" for _ in range(rng.choice((0, 1, 1, 2))))


def scope(rng: random.Random) -> tuple[str, str]:
    """(lines before, indentation of the next line), at top level or in a function."""
    if rng.random() < 0.5:
        return earlier(rng), ""
    return f"def {rng.choice(VERBS)}({rng.choice(NOUNS)}):\n" + earlier(rng, "    "), "    "


def condition(rng: random.Random) -> str:
    """The condition of an if: 'count', 'not count', 'count == total', 'count > 3'."""
    name = rng.choice(COMMON)
    return rng.choice((name, f"not {name}", f"{name} == {rng.choice(NOUNS)}", f"{name} > {rng.randrange(100)}"))


def asked_and_assigned(rng: random.Random, name: str) -> tuple[str, str]:
    """Two beginnings of equal length, of a condition on `name` and of an assignment to it; a blank line makes up for the 'if'."""
    before, indent = scope(rng)
    if rng.random() < 0.5:
        other = rng.choice(COMMON)
        return f"{before}{indent}if {other} and {name}", f"{before}{indent}if {other}: {name}"
    before = earlier(rng) + assignment(rng)
    return f"{before}\nif {name}", f"{before}\n\n{name}"


def set_and_string(rng: random.Random, name: str, loop: str) -> tuple[str, str]:
    """`loop` after `name = set()`, and after an empty string of equal length: 'str()', or '""' with a blank line."""
    before, between = earlier(rng), rng.choice(("", earlier(rng)))
    blank = rng.choice(("", "\n"))
    if rng.random() < 0.3:
        one, other = f"{before}{blank}{name} = set()\n", f"{before}{blank}{name} = str()\n"
    elif rng.random() < 0.5:
        one, other = f"{before}{blank}{name} = set()\n", f'{before}{blank}\n{name} = ""\n'
    else:
        one, other = f"{before}{name} = set()\n{blank}", f'{before}{name} = ""\n{blank}\n'
    return f"{one}{between}{loop}", f"{other}{between}{loop}"
