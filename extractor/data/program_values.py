"""Names, values, conditions and calls of generated programs, see `extractor.data.programs`."""

from __future__ import annotations

import random

from tasks.words import COMMON, NOUNS, VERBS, WORDS

_READ = ("input", "in", "source", "read", "load")
_WRITTEN = ("output", "out", "target", "write", "save")


class Values:
    """Draws pieces of one line. A program prefers one kind of quote."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.quote = rng.choice("\"'")

    def noun(self) -> str:
        return self.rng.choice(COMMON if self.rng.random() < 0.6 else NOUNS)

    def nouns(self, count: int) -> list[str]:
        """Different ones."""
        return self.rng.sample(COMMON if self.rng.random() < 0.6 else NOUNS, count)

    def verb(self) -> str:
        return self.rng.choice(VERBS)

    def number(self) -> str:
        return str(self.rng.choice((0, 1, 2, 10, self.rng.randrange(100), self.rng.randrange(100))))

    def flag(self) -> str:
        return self.rng.choice(("True", "True", "True", "False", "None"))

    def text(self) -> str:
        return " ".join(self.rng.choice(NOUNS + WORDS) for _ in range(self.rng.randint(1, 3)))

    def string(self) -> str:
        quote = self.quote if self.rng.random() < 0.6 else self.rng.choice("\"'")
        return f"{quote}{self.text()}{quote}"

    def prefixed(self) -> str:
        """A string with the prefix f, which substitutes a name, or with b or r."""
        quote, text = self.rng.choice('""\''), " ".join(self.rng.choice(NOUNS + WORDS) for _ in range(self.rng.randint(1, 2)))
        if self.rng.random() < 0.5:
            return f"f{quote}{text} {{{self.noun()}}}{self.rng.choice(('', '', ' ' + self.noun()))}{quote}"
        return f"{self.rng.choice('br')}{quote}{text}{quote}"

    def flat_list(self) -> str:
        kind = self.rng.choice((self.number, self.noun, self.string))
        return "[" + ", ".join(kind() for _ in range(self.rng.randint(1, 5))) + "]"

    def nested_list(self) -> str:
        kind = self.rng.choice((self.number, self.noun))
        rows = [", ".join(kind() for _ in range(self.rng.randint(1, 4))) for _ in range(self.rng.choice((1, 1, 2, 3)))]
        return "[[" + "], [".join(rows) + "]]"

    def mixed(self) -> str:
        """A dictionary from names to numbers, or a list of both, on one line."""
        keys = [self.noun() for _ in range(self.rng.randint(1, 4))]
        if self.rng.random() < 0.5:
            return "{" + ", ".join(f"{key}: {self.number()}" for key in keys) + "}"
        return "[" + ", ".join(f"{key}, {self.number()}" for key in keys) + "]"

    def value(self) -> str:
        kinds = (self.number, self.number, self.noun, self.string, self.flat_list, self.nested_list, self.attribute, self.call)
        return self.rng.choice(kinds)()

    def attribute(self) -> str:
        return f"self.{self.noun()}" if self.rng.random() < 0.5 else f"{self.noun()}.{self.noun()}"

    def function_name(self) -> str:
        return self.rng.choice((self.verb(), "print", "len", "str", f"{self.noun()}.{self.verb()}", f"self.{self.verb()}"))

    def call(self) -> str:
        argument = self.rng.choice((self.string, self.string, self.string, self.prefixed, self.noun, self.number))()
        return f"{self.function_name()}({argument})"

    def opening(self) -> str:
        """A call of open: of a named file, or of a variable that says whether it is read or written."""
        quote = self.rng.choice("\"'")
        if self.rng.random() < 0.4:
            path = self.rng.choice((self.noun(), f"{self.noun()}_{self.noun()}", f"{quote}{self.text()}{quote}"))
            mode = self.rng.choice(("", "", f", {quote}{self.rng.choice('rw')}{quote}"))
            return f"open({path}{mode})"
        side, mode = self.rng.choice(((_READ, "r"), (_WRITTEN, "w")))
        return f"open({self.rng.choice(side)}_{self.noun()}, {quote}{mode}{quote})"

    def condition(self) -> str:
        left = self.noun() if self.rng.random() < 0.8 else f"{self.noun()} and {self.noun()}"
        right = self.rng.choice((self.number, self.noun, self.string, self.flag, self.flag))()
        choices = (f"{left} == {right}", f"{left} == {right}", f"{left} != {right}", f"{left} > {self.number()}", f"not {left}", left)
        return self.rng.choice(choices)

    def parameters(self, method: bool) -> str:
        names = self.nouns(self.rng.randint(1, 5))
        listed = [f"{name}=None" for name in names] if self.rng.random() < 0.4 else names
        return ", ".join((["self"] if method else []) + listed)
