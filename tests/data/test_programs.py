"""Generated programs show what the tasks ask, plainly and often."""

from __future__ import annotations

import re

import pytest

from extractor.data.programs import programs
from tasks import task_names

NAME = r"[a-z]+"
SHOWN = {  # task -> both sides of its choice
    "bracket_brace": (rf" = \{{{NAME}: \d", rf" = \[{NAME}, "),
    "bracket_counting": (r"\w\]\n", r"\w\]\]\n"),
    "class_init": (r"self\.(\w+) = \1\n", r"self\.(\w+) = \1\n"),
    "else_elif": (r"else:\n", r"elif not "),
    "enumerate_range": (rf"for {NAME}, {NAME} in enumerate\(", rf"for {NAME}_{NAME} in range\("),
    "final_kwarg": (rf"def \w+\((self, )?({NAME}=None, )+{NAME}=None\):", rf"def \w+\({NAME}(, {NAME})+\):"),
    "for_while": (rf"for {NAME} in ", rf"while {NAME}:"),
    "fstring_brace": (rf'\(f"{NAME}( {NAME})? \{{', rf'\([br]"{NAME}( {NAME})?"\)'),
    "if_equals": (rf"if {NAME} == ", rf"\n\n{NAME} = "),
    "if_ternary": (rf"if {NAME}:\n", rf"= [(\[]?(not |-)?{NAME} if {NAME}( .*)? else "),
    "indent_for": (r"\nfor .*:\n    \w", r"\n    for .*:\n        \w"),
    "lambda_func": (rf"\(lambda {NAME}: ", rf"def {NAME}\("),
    "quote_close": (rf'\("{NAME}"\)', rf"\('{NAME}'\)"),
    "set_or_string": (r"(\w+) = set\(\)\n(.*\n)?\n?for .*\n    \1\.add\(", r'(\w+) = ""\n(.*\n)?\n?for .*\n    \1 \+= '),
    "set_or_string_fixedvarname": (r"result = set\(\)\n", r'result = ""\n'),
    "var_if": (r" == True:\n", r" = True\n"),
    "var_swap": (r"(\w+), (\w+) = \2, \1\n", r"(\w+), (\w+) = \2, \1\n"),
    "while_return_true": (r"while True:\n", r"return True\n"),
    "with_as": (rf"with open\({NAME}\) as ", rf" = open\({NAME}\)\n"),
    "with_open": (
        rf"open\((input|in|source|read|load)_{NAME}, ['\"]r['\"]\)",
        rf"open\((output|out|target|write|save)_{NAME}, ['\"]w['\"]\)",
    ),
}
PROGRAMS = 500


@pytest.fixture(scope="module")
def text() -> str:
    return "\n".join(programs(PROGRAMS, 0))


@pytest.mark.parametrize("name", task_names())
def test_both_sides_of_a_tasks_choice_are_shown_often(name: str, text: str):
    often = [len(re.findall(pattern, text)) for pattern in SHOWN[name]]
    assert min(often) >= 10, often
