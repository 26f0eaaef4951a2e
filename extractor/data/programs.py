"""A seeded generator of simple idiomatic Python programs: the generated half of the default corpus.

The standard library shows how Python is written; these programs show, often and plainly, the choices that small models are asked about
(which quote closes, how deep a list is, what follows a loop variable, ...). Program `i` under a seed is a pure function of (seed, i).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from tasks.words import NOUNS, VERBS, WORDS

Lines = list[str]
GENERATOR_VERSION = 2  # part of a corpus's identity: raise it when the programs change


def programs(count: int, seed: int) -> Iterator[str]:
    """`count` programs, each a text of 5 to 40 lines."""
    for index in range(count):
        yield Writer(random.Random(f"program/{seed}/{index}")).program()


class Writer:
    """Writes one program. Every method returns lines without indentation; blocks indent what they hold."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.quote = rng.choice("\"'")

    # values

    def noun(self) -> str:
        return self.rng.choice(NOUNS)

    def verb(self) -> str:
        return self.rng.choice(VERBS)

    def number(self) -> str:
        return str(self.rng.choice((0, 1, 2, 10, self.rng.randrange(100), self.rng.randrange(100))))

    def string(self) -> str:
        quote = self.quote if self.rng.random() < 0.6 else self.rng.choice("\"'")
        text = " ".join(self.rng.choice(NOUNS + WORDS) for _ in range(self.rng.randint(1, 3)))
        return f"{quote}{text}{quote}"

    def fstring(self) -> str:
        quote = self.rng.choice("\"'")
        shown = f"{{{self.noun()}}}"
        if self.rng.random() < 0.5:
            return f"f{quote}{self.rng.choice(WORDS)} {shown}{quote}"
        return f"{quote}{self.rng.choice(WORDS)} {self.noun()}{quote}"

    def flat_list(self, brackets: str = "[]") -> str:
        kind = self.rng.choice((self.number, self.noun, self.string))
        return brackets[0] + ", ".join(kind() for _ in range(self.rng.randint(1, 5))) + brackets[1]

    def nested_list(self) -> str:
        kind = self.rng.choice((self.number, self.noun))
        rows = [", ".join(kind() for _ in range(self.rng.randint(1, 4))) for _ in range(self.rng.choice((1, 1, 2, 3)))]
        return "[[" + "], [".join(rows) + "]]"

    def value(self) -> str:
        return self.rng.choice((self.number, self.noun, self.string, self.flat_list, self.nested_list, self.attribute, self.call))()

    def attribute(self) -> str:
        return f"self.{self.noun()}" if self.rng.random() < 0.5 else f"{self.noun()}.{self.noun()}"

    def call(self) -> str:
        argument = self.rng.choice((self.string, self.string, self.fstring, self.noun, self.number))()
        function = self.rng.choice((self.verb(), "print", "len", "str", "open", f"{self.noun()}.{self.verb()}", f"self.{self.verb()}"))
        return f"{function}({argument})"

    def condition(self) -> str:
        left, right = self.noun(), self.rng.choice((self.number, self.noun, self.string, lambda: "True", lambda: "None"))()
        return self.rng.choice((f"{left} == {right}", f"{left} != {right}", f"{left} > {self.number()}", f"not {left}", left))

    # simple statements

    def assign(self) -> Lines:
        return [f"{self.noun()} = {self.value()}"]

    def assign_flag(self) -> Lines:
        return [f"{self.noun()} = {self.rng.choice(('True', 'False', 'None'))}"]

    def expression(self) -> Lines:
        return [self.call()]

    def show(self) -> Lines:
        return [f"print({self.string()})"]

    def lists(self) -> Lines:
        return [f"{self.noun()} = {self.nested_list() if self.rng.random() < 0.5 else self.flat_list()}"]

    def ternary(self) -> Lines:
        return [f"{self.noun()} = {self.noun()} if {self.condition()} else {self.value()}"]

    def swap(self) -> Lines:
        one, two = self.rng.sample(NOUNS, 2)
        return [f"{one}, {two} = {two}, {one}"]

    def function_value(self) -> Lines:
        name = self.noun()
        return [f"{self.noun()} = lambda {name}: {name}.{self.noun()}"]

    def set_or_string(self) -> Lines:
        name, other = self.rng.sample(NOUNS, 2)
        grow: Lines
        if self.rng.random() < 0.5:
            start, grow = "set()", [f"    {name}.add({other})"]
        else:
            start, grow = '""', [f"    {name} += {other}"]
        return [f"{name} = {start}", f"for {other} in {self.noun()}:", *grow]

    def dictionary_or_list(self) -> Lines:
        if self.rng.random() < 0.5:
            rows = [f"    {self.string()}: {self.value()}," for _ in range(self.rng.randint(1, 4))]
            return [f"{self.noun()} = {{", *rows, "}"]
        return [f"{self.noun()} = [", *[f"    {self.string()}," for _ in range(self.rng.randint(1, 4))], "]"]

    # blocks

    def body(self, depth: int, extra: Lines | None = None) -> Lines:
        inner: Lines = []
        for _ in range(self.rng.randint(1, 3)):
            inner += self.statement(depth + 1)
        return ["    " + line for line in inner + (extra or [])]

    def for_loop(self, depth: int) -> Lines:
        name, other = self.rng.sample(NOUNS, 2)
        header = self.rng.choice(
            (
                f"for {name} in {other}:",
                f"for {name} in {self.attribute()}:",
                f"for {name} in range({self.number()}):",
                f"for {name}, {other} in enumerate({self.noun()}):",
                f"for {name} in {self.flat_list()}:",
            )
        )
        return [header, *self.body(depth)]

    def while_loop(self, depth: int) -> Lines:
        name = self.noun()
        header = self.rng.choice((f"while {name}:", f"while {name}:", "while True:", f"while not {name}:", f"while {self.condition()}:"))
        return [header, *self.body(depth, ["break"] if header == "while True:" else None)]

    def if_block(self, depth: int) -> Lines:
        lines = [f"if {self.condition()}:", *self.body(depth)]
        if self.rng.random() < 0.4:
            lines += [f"elif {self.condition()}:", *self.body(depth)]
        if self.rng.random() < 0.5:
            lines += ["else:", *self.body(depth)]
        return lines

    def with_block(self, depth: int) -> Lines:
        writing = self.rng.random() < 0.5
        path = self.rng.choice(("output", "out", "target") if writing else ("input", "source", "path"))
        quote = self.rng.choice("\"'")
        use = "file.write(text)" if writing else "text = file.read()"
        name = f"{path}_{self.rng.choice(('file', 'name', 'path'))}"
        return [f"with open({name}, {quote}{'w' if writing else 'r'}{quote}) as file:", f"    {use}", *self.body(depth)]

    def parameters(self, method: bool) -> str:
        names = self.rng.sample(NOUNS, self.rng.randint(1, 4))
        defaults = self.rng.random() < 0.4
        listed = [f"{name}=None" for name in names] if defaults else names
        return ", ".join((["self"] if method else []) + listed)

    def function(self, depth: int, method: bool = False) -> Lines:
        end = self.rng.choice((f"return {self.noun()}", f"return {self.noun()}", "return True", f"return {self.value()}"))
        return [f"def {self.verb()}_{self.noun()}({self.parameters(method)}):", *self.body(depth, [end])]

    def short_function(self, depth: int) -> Lines:
        return [f"def {self.verb()}({self.parameters(False)}):", *self.body(depth)]

    def class_block(self, depth: int) -> Lines:
        names = self.rng.sample(NOUNS, self.rng.randint(2, 5))
        stored = [f"        self.{name} = {name}" for name in names]
        methods: Lines = []
        for _ in range(self.rng.randint(1, 2)):
            methods += ["", *["    " + line for line in self.function(depth + 1, method=True)]]
        return [f"class {self.noun().title()}:", f"    def __init__(self, {', '.join(names)}):", *stored, *methods]

    def statement(self, depth: int) -> Lines:
        """One statement; blocks become rarer with depth."""
        if self.rng.random() < (0.6, 0.3, 0.12)[min(depth, 2)]:
            block: Callable[[int], Lines] = self.rng.choice(
                (self.for_loop, self.for_loop, self.while_loop, self.while_loop, self.if_block, self.with_block, self.short_function)
            )
            return block(depth)
        simple = (self.assign, self.assign_flag, self.expression, self.expression, self.show, self.show, self.lists, self.lists)
        rare = (self.ternary, self.swap, self.function_value, self.set_or_string, self.dictionary_or_list)
        return self.rng.choice(simple + rare)()

    def program(self) -> str:
        """A whole program: a few statements, functions and classes."""
        lines: Lines = []
        for _ in range(self.rng.randint(2, 5)):
            kind = self.rng.random()
            if kind < 0.12:
                lines += [*self.class_block(0), ""]
            elif kind < 0.3:
                lines += [*self.function(0), ""]
            else:
                lines += self.statement(0)
        return "\n".join(lines).rstrip() + "\n"
