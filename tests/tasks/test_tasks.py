"""The contract of a task, for every file in tasks/, under the tokenizer of the bundled model."""

from __future__ import annotations

import importlib
import itertools
import math
import random
import re

import pytest
import torch

from extractor.data.encoding import token_texts
from extractor.data.prompts import (
    PROBED_PAIRS,
    accuracy,
    encode_pair,
    fitting_pairs,
    get_task,
    logit_diff,
    task_batch,
    task_loss,
    tokenize_task,
)
from extractor.errors import TaskNotExpressible, UnknownTask
from extractor.models.reference import open_model
from extractor.models.tokenizer import load_tokenizer, train_tokenizer
from tasks import Pair, Task, find_task, task_names
from tasks.base import SPLITS

every_task = pytest.mark.parametrize("name", task_names())
TABLE_1 = """
single_double_quote bracket_counting for_while final_kwarg set_or_string set_or_string_fixedvarname class_init with_as bracket_brace
with_open else_elif fstring_brace if_ternary var_swap indent_for lambda_func if_equals enumerate_range var_if while_return_true
""".split()
VARYING = ("class_init", "var_swap")


@pytest.fixture(scope="module")
def bundled():
    return load_tokenizer(open_model("python-tiny").path)


def prompts(name: str, split: str, seed: int, pairs: int = 200) -> list[str]:
    return [p for pair in itertools.islice(find_task(name).pairs(split, seed), pairs) for p in (pair.positive, pair.negative)]


def test_the_papers_twenty_tasks_are_there():
    assert len(TABLE_1) == 20
    assert sorted(get_task(name).name for name in TABLE_1) == task_names()


@every_task
def test_a_task_is_named_after_its_file_and_describes_itself_in_one_line(name: str):
    task = find_task(name)
    assert task.name == name
    assert task.description
    assert "\n" not in task.description


@every_task
def test_a_tasks_docstring_names_the_papers_and_shows_a_pair(name: str):
    text = importlib.import_module(f"tasks.{name}").__doc__
    assert "Paper: Table 1, " in text
    assert text.split("Paper: Table 1, ")[1].rstrip(".\n ") in TABLE_1
    assert all(f"    {member}: " in text for member in ("positive", "negative"))


@every_task
def test_either_the_task_has_answers_or_every_pair_has(name: str):
    task = find_task(name)
    pairs = list(itertools.islice(task.pairs("train"), 100))
    assert (task.answers == ()) == (name in VARYING)
    assert all((pair.answers is None) == bool(task.answers) for pair in pairs)
    if not task.answers:
        assert len({pair.answers for pair in pairs}) > 50


@every_task
def test_answers_are_single_different_tokens(name: str, bundled):
    expression = tokenize_task(find_task(name), bundled)
    assert [bundled.encode(a).ids for a in expression.answers] == [[i] for i in expression.answer_ids]
    assert len(set(expression.answer_ids)) == (0 if name in VARYING else 2)
    batch = task_batch(expression, bundled, "select", 64, 0, 128)
    assert (batch.first != batch.second).all()
    if name not in VARYING:
        assert {(f, s) for f, s in zip(batch.first.tolist(), batch.second.tolist(), strict=True)} == {expression.answer_ids}


@every_task
def test_prompts_of_a_pair_have_equal_length_and_differ(name: str, bundled):
    batch = task_batch(tokenize_task(find_task(name), bundled), bundled, "held_out", 64, 0, 128)
    assert torch.equal(batch.last[0::2], batch.last[1::2])
    assert (batch.ids[0::2] != batch.ids[1::2]).any(1).all()
    assert batch.sign.tolist() == [1.0, -1.0] * 64
    assert torch.equal(batch.correct[0::2], batch.wrong[1::2])
    assert torch.equal(batch.first, batch.correct[0::2].repeat_interleave(2))
    assert torch.equal(batch.second, batch.wrong[0::2].repeat_interleave(2))


@every_task
def test_a_prompt_goes_on_with_its_answer_as_its_own_token(name: str, bundled):
    expression = tokenize_task(find_task(name), bundled)
    batch = task_batch(expression, bundled, "train", 8, 0, 128)
    for row in range(16):
        ids = batch.ids[row, : int(batch.last[row]) + 1].tolist()
        text = bundled.decode(ids) + bundled.decode([int(batch.correct[row])])
        assert bundled.encode(text).ids == [*ids, int(batch.correct[row])]


@every_task
def test_pairs_repeat_under_a_seed_and_differ_between_seeds(name: str):
    assert prompts(name, "train", 0) == prompts(name, "train", 0)
    assert prompts(name, "train", 0) != prompts(name, "train", 1)


@every_task
def test_no_prompt_is_in_two_splits_whatever_the_seed(name: str):
    seen = {split: {p for seed in (0, 1) for p in prompts(name, split, seed, 400)} for split in SPLITS}
    for one, two in itertools.combinations(SPLITS, 2):
        assert not seen[one] & seen[two]


@every_task
def test_pairs_of_a_stream_are_distinct(name: str):
    positive = prompts(name, "select", 3, 400)[0::2]
    assert len(set(positive)) == len(positive)


@pytest.mark.slow
@every_task
def test_every_split_holds_what_the_tiny_preset_asks_for(name: str, bundled):
    from extractor.jobs.find_circuit import TRAIN_POOL
    from extractor.spec.presets import prune_spec

    spec, expression = prune_spec("tiny"), tokenize_task(find_task(name), bundled)
    for split, pairs in (("train", TRAIN_POOL), ("select", spec.select_pairs), ("held_out", spec.held_out_pairs)):
        assert task_batch(expression, bundled, split, pairs, 0, 64).pairs == pairs


def test_the_papers_name_for_quote_close_works_too():
    assert get_task("single_double_quote") is get_task("quote_close")


def test_an_unknown_task_is_answered_with_the_nearest_and_all_names():
    with pytest.raises(UnknownTask) as caught:
        get_task("quote_closer")
    assert "did you mean quote_close?" in str(caught.value)
    assert all(name in str(caught.value) for name in task_names())


@pytest.fixture(scope="module")
def plain():
    """A tokenizer that has merged no bracket and no quote with anything."""
    return train_tokenizer(["plain words without any of it"] * 4, 280)


def test_quote_close_falls_back_to_the_quote_alone(plain):
    assert tokenize_task(find_task("quote_close"), plain).answers == ('"', "'")


@pytest.mark.parametrize("name", ["bracket_counting", "for_while", "if_ternary", "with_as", "enumerate_range"])
def test_a_tokenizer_that_splits_the_answers_is_refused_with_the_pieces(name: str, plain):
    task = find_task(name)
    with pytest.raises(TaskNotExpressible) as caught:
        tokenize_task(task, plain)
    text = str(caught.value)
    assert name in text
    assert "\n" not in text
    split = next(a for a in task.answers[0] if len(plain.encode(a).ids) > 1)
    assert repr(split) in text
    assert str(token_texts(plain, plain.encode(split).ids)) in text


@pytest.mark.parametrize("name", VARYING)
def test_varying_answers_that_a_tokenizer_splits_are_refused_with_an_example(name: str, plain):
    with pytest.raises(TaskNotExpressible) as caught:
        tokenize_task(find_task(name), plain)
    text = str(caught.value)
    assert re.search(rf"task '{name}' cannot .*: only \d+ of 64 pairs .*: the answer ' \w+' is \d+ tokens \[", text)
    assert text.endswith("choose another model or task")


def written(pair: Pair) -> Task:
    """A task without answers of its own that writes this pair, under ever new lines before it."""

    def write(rng: random.Random) -> Pair:
        before = f"count = {rng.random()}\n"
        return Pair(before + pair.positive, before + pair.negative, pair.answers)

    return Task("mine", "mine", (), write)


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        (Pair("for item", "while item"), "has no answer"),
        (Pair("for item", "while item", (" in", " in")), "' in' and ' in' are the same token"),
        (Pair("for item", "while item, name", (" in", ":")), "differ in length"),
        (Pair("get(", "set(", (")", ":")), "after its prompt the answer ')' is not a token of its own: together they end in ["),
    ],
)
def test_pairs_that_do_not_fit_are_told_by_what_is_wrong_with_one(pair: Pair, told: str, bundled):
    with pytest.raises(TaskNotExpressible) as caught:
        tokenize_task(written(pair), bundled)
    assert f"only 0 of {PROBED_PAIRS} pairs have equal length and unsplit answers: " in str(caught.value)
    assert told in str(caught.value)


def test_a_pairs_own_answers_are_its_rows_answers(bundled):
    task = written(Pair("for item", "while item", (" in", ":")))
    batch = task_batch(tokenize_task(task, bundled), bundled, "train", 4, 0, 128)
    ids = [bundled.encode(a).ids[0] for a in (" in", ":")]
    assert batch.correct.tolist() == ids * 4
    assert batch.wrong.tolist() == ids[::-1] * 4


def test_pairs_that_are_left_out_are_counted(bundled):
    notes: list[str] = []
    for name in ("quote_close", "with_open"):
        expression = tokenize_task(find_task(name), bundled)
        drawn = list(itertools.islice(expression.task.pairs("train", 0), 1000))
        batch = task_batch(expression, bundled, "train", 50, 0, 128, notes.append)
        fits = [encode_pair(pair, expression, bundled) is not None for pair in drawn]
        needed = next(n for n in range(1000) if sum(fits[:n]) == batch.pairs)
        if needed == 50:
            assert notes == [], "nothing is left out"
    assert notes[0].startswith(f"task with_open, split train: {needed - 50} of {needed} pairs are left out: ")


@pytest.mark.timeout(5)
@every_task
def test_prompts_too_long_for_the_context_are_refused_and_not_looked_for_for_ever(name: str, bundled):
    with pytest.raises(TaskNotExpressible, match="of at most 1 tokens in split 'train', 10 were asked for"):
        task_batch(tokenize_task(find_task(name), bundled), bundled, "train", 10, 0, 1)


def test_task_loss_is_the_cross_entropy_of_the_two_answers():
    diff, sign = torch.tensor([2.0, -1.0]), torch.tensor([1.0, -1.0])
    by_hand = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2  # 0.220095
    assert task_loss(diff, sign).item() == pytest.approx(by_hand, abs=1e-6)
    assert task_loss(torch.zeros(2), sign).item() == pytest.approx(math.log(2), abs=1e-6)
    assert accuracy(diff, sign) == 1.0
    assert accuracy(diff, -sign) == 0.0


@every_task
def test_task_loss_equals_the_softmax_over_the_two_logits(name: str, bundled):
    batch = task_batch(tokenize_task(find_task(name), bundled), bundled, "select", 8, 0, 128)
    logits = torch.randn(16, bundled.get_vocab_size(), generator=torch.Generator().manual_seed(0))
    rows = torch.arange(16)
    both = torch.stack([logits[rows, batch.correct], logits[rows, batch.wrong]], dim=1)
    expected = torch.nn.functional.cross_entropy(both, torch.zeros(16, dtype=torch.long))
    assert torch.allclose(task_loss(logit_diff(logits, batch), batch.sign), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["for_while", "class_init"])
def test_a_models_own_answers_change_sides_and_stay_first_and_second(name: str, bundled):
    batch = task_batch(tokenize_task(find_task(name), bundled), bundled, "select", 8, 0, 128)
    diff = torch.randn(16, generator=torch.Generator().manual_seed(0))
    told = batch.as_answered(diff)
    assert torch.equal(told.first, batch.first)
    assert torch.equal(told.second, batch.second)
    assert torch.equal(told.correct, torch.where(diff > 0, batch.first, batch.second))
    assert accuracy(diff, told.sign) == 1.0


def test_picking_pairs_keeps_both_members_and_cuts_the_padding(bundled):
    batch = task_batch(tokenize_task(find_task("quote_close"), bundled), bundled, "train", 32, 0, 128)
    shortest = int(batch.last[0::2].argmin())
    one = batch.pick(torch.tensor([shortest]))
    assert one.ids.shape == (2, int(batch.last[2 * shortest]) + 1)
    assert torch.equal(one.ids, batch.ids[2 * shortest : 2 * shortest + 2, : one.ids.shape[1]])
    assert one.sign.tolist() == [1.0, -1.0]


def test_only_so_many_pairs_are_looked_at(bundled):
    expression = tokenize_task(find_task("with_open"), bundled)
    every, _ = fitting_pairs(expression, bundled, "train", 50, 0, 64, False)
    some, left_out = fitting_pairs(expression, bundled, "train", 50, 0, 64, False, scanned=20)
    assert some == every[: len(some)]
    assert len(some) + left_out == 20
