"""A seeded generator of simple idiomatic Python programs: the generated half of the default corpus.

The standard library shows how Python is written; these programs repeat, in simple form, the choices that the tasks of
tasks/ test (which quote closes, how deep a list is, what follows a loop variable, ...). Program `i` under a seed is a pure function
of (seed, i).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from extractor.data.program_values import Values

Lines = list[str]
GENERATOR_VERSION = 5  # part of a corpus's identity: raise it when the programs change


def programs(count: int, seed: int) -> Iterator[str]:
    """`count` programs, each a text of 5 to 60 lines."""
    for index in range(count):
        yield Writer(random.Random(f"program/{seed}/{index}")).program()


class Writer(Values):
    """Writes one program. Every method returns lines without indentation; blocks indent what they hold."""

    # simple statements

    def assign(self) -> Lines:
        return [f"{self.noun()} = {self.value()}"]

    def assign_flag(self) -> Lines:
        return [f"{self.noun()} = {self.rng.choice(('True', 'True', 'False', 'None'))}"]

    def assign_attribute(self) -> Lines:
        name = self.noun()
        return [f"self.{name} = {name}" if self.rng.random() < 0.5 else f"{self.attribute()} = {self.value()}"]

    def expression(self) -> Lines:
        return [self.call()]

    def show(self) -> Lines:
        return [f"print({self.string()})"]

    def show_prefixed(self) -> Lines:
        return [f"{self.function_name()}({self.prefixed()})"]

    def lists(self) -> Lines:
        return [f"{self.noun()} = {self.nested_list() if self.rng.random() < 0.52 else self.flat_list()}"]

    def dictionary_or_list(self) -> Lines:
        if self.rng.random() < 0.7:
            return [f"{self.noun()} = {self.mixed()}"]
        if self.rng.random() < 0.5:
            rows = [f"    {self.string()}: {self.value()}," for _ in range(self.rng.randint(1, 4))]
            return [f"{self.noun()} = {{", *rows, "}"]
        return [f"{self.noun()} = [", *[f"    {self.string()}," for _ in range(self.rng.randint(1, 4))], "]"]

    def ternary(self) -> Lines:
        value = f"{self.rng.choice(('', '', '-', 'not '))}{self.noun()} if {self.condition()} else {self.value()}"
        return [f"{self.noun()} = {self.rng.choice((value, value, f'({value})', f'[{value}]'))}"]

    def swap(self) -> Lines:
        one, two = self.nouns(2)
        line = f"{one}, {two} = {two}, {one}"
        return [line] if self.rng.random() < 0.6 else [f"if {self.rng.choice((self.condition(), f'{one} > {two}'))}:", f"    {line}"]

    def function_value(self) -> Lines:
        name = self.noun()
        body = self.rng.choice((f"{name}.{self.noun()}", f"{name} + {self.number()}", f"{self.verb()}({name})"))
        function = self.rng.choice((self.verb(), "map", "sorted", self.noun()))
        value = self.rng.choice((f"lambda {name}: {body}", *[f"{function}(lambda {name}: {body})"] * 2))
        return [f"{self.noun()} = {value}"]

    def set_or_string(self) -> Lines:
        name, other, source = self.nouns(3)
        name = "result" if self.rng.random() < 0.25 else name
        string = self.rng.choice(('""', '""', "str()"))
        start, grow = self.rng.choice((("set()", f"{name}.add({other})"), (string, f"{name} += {other}")))
        between = self.rng.choice(([], [], [""], self.assign()))
        return [f"{name} = {start}", *between, f"for {other} in {source}:", f"    {grow}"]

    def opened_file(self) -> Lines:
        return [f"{self.noun()} = {self.opening()}"]

    def if_in_a_line(self) -> Lines:
        name = self.noun()
        return [f"if {self.noun()}: {name} = {self.rng.choice((self.value, lambda: 'True', self.number))()}"]

    # blocks

    def body(self, depth: int, extra: Lines | None = None) -> Lines:
        inner: Lines = []
        for _ in range(self.rng.randint(1, 3)):
            inner += self.statement(depth + 1)
        return ["    " + line for line in inner + (extra or [])]

    def for_loop(self, depth: int) -> Lines:
        name, other = self.nouns(2)
        over = self.rng.choice((other, other, self.attribute(), f"range({self.number()})", f"range(len({other}))", self.flat_list()))
        return [f"for {name} in {over}:", *self.body(depth)]

    def counting_loop(self, depth: int) -> Lines:
        name, other, source = self.nouns(3)
        if self.rng.random() < 0.5:
            over = self.rng.choice((f"enumerate({source})", f"enumerate({source})", f"enumerate({self.attribute()})", f"{source}.items()"))
            return [f"for {name}, {other} in {over}:", *self.body(depth)]
        over = self.rng.choice((f"range({self.number()})", f"range({source})", f"range(len({source}))", source))
        return [f"for {name}_{other} in {over}:", *self.body(depth)]

    def while_loop(self, depth: int) -> Lines:
        name = self.noun()
        header = self.rng.choice((name, name, name, "True", f"not {name}", self.condition()))
        return [f"while {header}:", *self.body(depth, ["break"] if header == "True" else None)]

    def if_block(self, depth: int) -> Lines:
        lines = [f"if {self.condition()}:", *self.body(depth)]
        if self.rng.random() < 0.4:
            lines += [f"elif {self.condition()}:", *self.body(depth)]
        if self.rng.random() < 0.5:
            lines += ["else:", *self.body(depth)]
        return lines

    def with_block(self, depth: int) -> Lines:
        name = self.rng.choice(("file", "file", self.noun()))
        return [f"with {self.opening()} as {name}:", *self.body(depth)]

    def function(self, depth: int, method: bool = False) -> Lines:
        name = self.rng.choice((f"{self.verb()}_{self.noun()}", self.verb(), self.noun()))
        early = [f"if {self.condition()}:", f"    return {self.flag()}"] if self.rng.random() < 0.3 else []
        end = self.rng.choice(
            (
                "",
                f"return {self.opening()}",
                f"return {self.noun()}",
                f"return {self.noun()}",
                f"return {self.flag()}",
                f"return {self.value()}",
            )
        )
        return [f"def {name}({self.parameters(method)}):", *self.body(depth, early + ([end] if end else []))]

    def class_block(self, depth: int) -> Lines:
        names = self.nouns(self.rng.randint(2, 5))
        order = self.rng.sample(names, len(names)) if self.rng.random() < 0.4 else names
        stored = [f"        self.{name} = {name}" for name in order]
        methods: Lines = []
        for _ in range(self.rng.randint(0, 2)):
            methods += ["", *["    " + line for line in self.function(depth + 1, method=True)]]
        return [f"class {self.noun().title()}:", f"    def __init__(self, {', '.join(names)}):", *stored, *methods]

    def statement(self, depth: int) -> Lines:
        """One statement; blocks become rarer with depth."""
        write: Callable[..., Lines]
        if self.rng.random() < (0.6, 0.3, 0.12)[min(depth, 2)]:
            loops = [self.for_loop] * 4 + [self.counting_loop] * 2 + [self.while_loop] * 4
            write = self.rng.choice((*loops, self.if_block, self.if_block, self.with_block, self.function))
            return write(depth)
        strings = [self.expression] * 3 + [self.show] * 4 + [self.show_prefixed, self.opened_file]
        lists = [self.lists] * 4 + [self.dictionary_or_list]
        names = [self.assign, self.assign_flag, self.assign_attribute, self.if_in_a_line, self.swap, self.swap]
        return self.rng.choice((*strings, *lists, *names, self.ternary, self.function_value, self.set_or_string, self.set_or_string))()

    def program(self) -> str:
        """A program: a few statements, functions and classes, some of them followed by a blank line."""
        lines: Lines = []
        for _ in range(self.rng.randint(3, 6)):
            kind = self.rng.random()
            if kind < 0.12:
                lines += [*self.class_block(0), ""]
            elif kind < 0.27:
                lines += self.function(0) + ([""] if self.rng.random() < 0.7 else [])
            else:
                lines += self.statement(0) + ([""] if self.rng.random() < 0.3 else [])
        return "\n".join(lines).rstrip() + "\n"
