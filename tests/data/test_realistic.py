"""Realistic programs: valid Python from the train split's templates alone, the same for the same seed."""

from __future__ import annotations

import ast
import random
import re

import pytest

from extractor.data.programs import programs
from extractor.data.realistic import PLAIN, generated_programs, realistic_program, train_templates, with_insertions
from tasks import task_names
from tasks.base import split_of_number
from tasks.shifted import ACTIONS, THINGS
from tasks.shifted import WORDS as KINDS
from tasks.words import NOUNS, VERBS, WORDS

COUNT = 400


@pytest.fixture(scope="module")
def made() -> list[str]:
    return list(generated_programs(COUNT, 0))


def test_they_repeat_under_a_seed_and_do_not_depend_on_their_number(made: list[str]):
    assert list(generated_programs(20, 0)) == made[:20]
    assert list(generated_programs(20, 1)) != made[:20]
    assert len(set(made)) == COUNT


def test_each_is_a_program(made: list[str]):
    for text in made:
        ast.parse(text)
        assert text.endswith("\n")
        assert not text.endswith("\n\n")


def test_one_of_four_is_a_plain_program(made: list[str]):
    assert PLAIN == 4
    assert made[::PLAIN] == list(programs(COUNT, 0))[::PLAIN]


def test_the_templates_are_those_of_the_train_split_of_every_task():
    assert len(train_templates()) == 9 * len(task_names())
    assert {template.split for template in train_templates()} == {"train"}


def test_no_word_of_another_split_is_in_them(made: list[str]):
    """A held-out prompt has at least one such word, so that no prompt of another split is in the text."""
    known = {*NOUNS, *VERBS, *WORDS, *" ".join(KINDS["text"][1][0]).split()}
    others = {
        word for words in (THINGS, ACTIONS) for number, word in enumerate(words) if split_of_number(number) != "train" and word not in known
    }
    written = {word.lower() for text in made for word in re.findall("[A-Za-z]+", text)}
    fixed = {word.lower() for template in train_templates() for word in re.findall("[A-Za-z]+", template.text)}  # not drawn at random
    assert len(others) > 50
    assert not others & (written - fixed)


def test_a_statement_is_inserted_where_the_lines_stay_a_program_and_nowhere_else():
    lines = ["def get(", "    item,", "):", "    # a comment", "    if item:", "        return 1", "    else:", "        return 2"]
    longer = [with_insertions(lines, random.Random(seed)) for seed in range(50)]
    assert all(ast.parse("\n".join(some)) for some in longer)
    assert len({len(some) for some in longer}) > 3
    assert all([line for line in some if line in lines] == lines for some in longer)


def test_a_program_is_a_function_of_the_generator():
    assert realistic_program(random.Random(5)) == realistic_program(random.Random(5))
