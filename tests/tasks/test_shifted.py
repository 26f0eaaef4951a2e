"""Shifted prompts: templates that no two splits share, complete programs, and no answer that a few tokens give away."""

from __future__ import annotations

import ast
import hashlib
import itertools
import random
from functools import cache

import pytest
import torch

from extractor.data.prompts import encode_pair, tokenize_task
from extractor.models.reference import open_model
from extractor.models.tokenizer import load_tokenizer
from tasks import Pair, Task, find_task, task_names
from tasks.base import SPLITS, split_of_number
from tasks.files import FileTask
from tasks.shifted import WORDS, Template, templates
from tasks.words import NOUNS, VERBS

every_task = pytest.mark.parametrize("name", task_names())
PAIRS = 300
LONGEST = 100  # tokens of a prompt
FITTING = 0.8
SOLVED = 0.8  # accuracy from which on a bag of tokens decides a task
PLAIN = {  # digests of the first 50 plain pairs of every split, from before there were shifted ones
    "bracket_brace": "e294b1bc10b7bcc9",
    "bracket_counting": "8e9cc8129e1307ec",
    "class_init": "78b7c3193bc236eb",
    "else_elif": "b5d35ada4b6f4c37",
    "enumerate_range": "13ceff443f8ddcec",
    "final_kwarg": "868e4f5f62c1a78f",
    "for_while": "1a27e549ad791284",
    "fstring_brace": "043f2deab4c17a87",
    "if_equals": "9d105ee8958101d0",
    "if_ternary": "28ab0b17f238a7b5",
    "indent_for": "7a68126651ceb6d5",
    "lambda_func": "2abd03459d76adc1",
    "quote_close": "569a2e507696e193",
    "set_or_string": "6e3d3afce9447146",
    "set_or_string_fixedvarname": "eafaf0f8b706ee0b",
    "var_if": "14a711ed49d9d7d5",
    "var_swap": "b204ead111a3498c",
    "while_return_true": "486fc1066ed3fc79",
    "with_as": "1ad344d7ea60ab21",
    "with_open": "c4593ec0d38edae3",
}


@pytest.fixture(scope="module")
def bundled():
    return load_tokenizer(open_model("python-tiny").path)


@cache
def shifted(name: str, split: str, seed: int = 0, pairs: int = PAIRS) -> list[Pair]:
    return list(itertools.islice(find_task(name).pairs(split, seed, shifted=True), pairs))


@every_task
def test_plain_pairs_are_what_they_were_before_there_were_shifted_ones(name: str):
    digest = hashlib.sha256()
    for split in SPLITS:
        for pair in itertools.islice(find_task(name).pairs(split), 50):
            digest.update(repr((pair.positive, pair.negative, pair.answers)).encode())
    assert digest.hexdigest()[:16] == PLAIN[name]


@every_task
def test_no_two_templates_of_a_task_are_the_same_and_each_belongs_to_one_split(name: str):
    writers = find_task(name).shifted
    assert len({writer.text for writer in writers}) == len(writers) >= 10
    assert [writer.split for writer in writers[:10]] == [*["train"] * 3, "select", "held_out"] * 2
    assert [writer.split for writer in writers] == [split_of_number(number) for number in range(len(writers))]


@every_task
def test_every_template_makes_many_pairs(name: str):
    for writer in find_task(name).shifted:
        rng = random.Random(0)
        assert len({writer(rng).positive for _ in range(PAIRS + 100)}) >= PAIRS, writer.text


@every_task
def test_every_split_has_many_distinct_pairs_that_repeat_under_a_seed_and_no_prompt_twice(name: str):
    seen: set[str] = set()
    for split in SPLITS:
        pairs = shifted(name, split)
        assert pairs == list(itertools.islice(find_task(name).pairs(split, shifted=True), PAIRS))
        assert pairs[:20] != shifted(name, split, seed=1, pairs=20)
        prompts = {prompt for pair in pairs for prompt in (pair.positive, pair.negative)}
        assert len(prompts) == 2 * PAIRS
        assert not prompts & seen
        seen |= prompts


@every_task
def test_prompts_have_three_to_ten_lines(name: str):
    lines = {prompt.count("\n") + 1 for split in SPLITS for pair in shifted(name, split) for prompt in (pair.positive, pair.negative)}
    assert lines <= set(range(3, 11))


@every_task
def test_pairs_have_answers_of_their_own_where_the_task_has_none(name: str):
    task = find_task(name)
    assert all((pair.answers is None) == bool(task.answers) for split in SPLITS for pair in shifted(name, split))


@every_task
def test_a_prompt_its_answer_and_the_rest_are_a_program(name: str):
    """The completed prompt is valid Python; the other member's answer is another text."""
    task = find_task(name)
    for writer in task.shifted:
        for seed in range(5):
            programs = writer.programs(random.Random(seed))
            for prompt, rest in programs:
                ast.parse(prompt + rest)
            spellings = task.answers or (writer(random.Random(seed)).answers,)
            assert any(all(rest.startswith(answer) for (_, rest), answer in zip(programs, both, strict=True)) for both in spellings)


@every_task
def test_programs_go_on_with_the_token_of_the_answer(name: str, bundled):
    """What a model reads of a template trains it for the prompts: there the rest of the program does not merge with the answer."""
    for writer in find_task(name).shifted:
        pair, programs = writer(random.Random(0)), writer.programs(random.Random(0))
        wanted = [both for both in find_task(name).answers or (pair.answers,) if all(map(str.startswith, (r for _, r in programs), both))]

        def next_tokens(rests, programs=programs):
            return [
                bundled.encode(prompt + rest).ids[len(bundled.encode(prompt).ids)]
                for (prompt, _), rest in zip(programs, rests, strict=True)
            ]

        assert next_tokens([rest for _, rest in programs]) in [next_tokens(both) for both in wanted], writer.text


@every_task
def test_most_pairs_fit_the_bundled_tokenizer(name: str, bundled):
    expression = tokenize_task(find_task(name), bundled)
    for split in SPLITS:
        encoded = [encode_pair(pair, expression, bundled) for pair in shifted(name, split, pairs=100)]
        assert sum(one is not None and len(one.positive) <= LONGEST for one in encoded) >= FITTING * 100


def bag(ids: list[int], size: int) -> torch.Tensor:
    """How often each token occurs."""
    return torch.bincount(torch.tensor(ids), minlength=size).float()


FEATURES = {
    "prompt": bag,
    "last eight tokens": lambda ids, size: bag(ids[-8:], size),
    "last two tokens": lambda ids, size: torch.cat([bag(ids[-1:], size), bag(ids[-2:-1], size)]),
}


def regression_accuracy(train: torch.Tensor, test: torch.Tensor) -> float:
    """The accuracy on `test` of a logistic regression trained on `train`; rows are positive and negative prompts in turn.

    A prompt without a preference counts as half: it is where the two prompts of every pair have the same features.
    """
    signs = torch.tensor([1.0, -1.0])
    weight = torch.zeros(train.shape[1], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=40, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        fit = torch.nn.functional.softplus(-signs.repeat(len(train) // 2) * (train @ weight + bias)).mean()
        total = fit + 1e-3 * weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    score = signs.repeat(len(test) // 2) * (test @ weight + bias)
    return ((score > 0).double() + 0.5 * (score == 0).double()).mean().item()


def accuracies(name: str, tokenizer) -> dict[str, float]:
    """Of a regression on each kind of features, trained on the training templates and tested on the held-out ones."""
    size = tokenizer.get_vocab_size()
    ids = {
        split: [tokenizer.encode(prompt).ids for pair in shifted(name, split) for prompt in (pair.positive, pair.negative)]
        for split in ("train", "held_out")
    }
    found = {}
    for kind, features in FEATURES.items():
        train, test = (torch.stack([features(row, size) for row in ids[split]]) for split in ("train", "held_out"))
        found[kind] = regression_accuracy(train, test)
    return found


@every_task
def test_no_few_tokens_tell_the_answer_unless_the_task_says_so(name: str, bundled):
    task = find_task(name)
    found = accuracies(name, bundled)
    assert found["prompt"] < SOLVED, "the distractors balance the tokens of the whole prompt"
    assert task.one_token == any(accuracy >= SOLVED for accuracy in found.values()), found
    assert task.one_token == task.description.endswith("; one token decides")


def test_the_regression_solves_a_task_that_a_token_decides():
    rows = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]).repeat(20, 1)
    assert regression_accuracy(rows, rows) == 1.0
    assert regression_accuracy(rows[:, 2:], rows[:, 2:]) == 0.5


def test_a_template_is_the_text_of_two_programs():
    (template,) = templates("$Noun1 = «f|g»($noun1, $noun2, ${number1}0)§« ==| =» $noun2")
    (positive, first), (negative, second) = template.programs(random.Random(0))
    assert positive.replace(" = f(", " = g(") == negative
    assert first.replace(" ==", " =") == second
    name = positive.split()[0]
    one, two = name.lower(), first.split()[1]
    assert one != two
    assert positive == f"{one.capitalize()} = f({one}, {two}, {positive.split()[-1]}"
    assert template(random.Random(0)) == Pair(positive, negative, None, (first, second))


def test_words_of_two_splits_differ():
    texts = "\n---\n".join("$noun1 $thing1 $action1 $long1 $module1§" for _ in range(5))
    seen = {split: set() for split in SPLITS}
    for writer in templates(texts):
        rng = random.Random(0)
        seen[writer.split] |= {word for _ in range(200) for word in writer(rng).positive.split()}
    for one, two in itertools.combinations(SPLITS, 2):
        assert not seen[one] & seen[two]


@pytest.mark.parametrize("kind", ["thing", "action", "module"])
def test_shifted_prompts_have_words_that_plain_ones_lack(kind: str):
    ((_, (words,)),) = [WORDS[kind]]
    assert len(set(words)) == len(words)
    assert len(set(words) & {*NOUNS, *VERBS}) <= 0.05 * len(words)


def test_a_task_without_shifted_templates_says_so():
    writer = Template("$noun1§", "train")
    for task in (
        Task("mine", "mine", (), writer),
        Task("mine", "mine", (), writer, shifted=(writer,)),
        FileTask("mine", "mine", (), writer),
    ):
        with pytest.raises(ValueError, match="task 'mine' has no shifted templates"):
            task.pairs("held_out", shifted=True)


def test_a_shifted_stream_ends_when_its_templates_have_no_more_pairs():
    task = Task("mine", "mine", (), Template("", "train"), shifted=templates("for $noun1§"))
    assert 0 < len(list(task.pairs("train", shifted=True))) == len({pair.positive for pair in task.pairs("train", shifted=True)}) < 100
