"""The `extract` command itself: its help in groups, names that people type for others, and a command or a model without its option."""

from __future__ import annotations

import json

import pytest

from worker.cli import ALIASES, COMMANDS, main


def run(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_help_shows_every_command_once_in_its_group(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    shown = [line.split()[0] for line in out.partition("Find a circuit:")[2].splitlines() if line.startswith("  ")]
    assert sorted(shown) == sorted(COMMANDS)
    assert run(capsys, "help") == (0, out, "")
    assert run(capsys, "help", "result")[1] == run(capsys, "result", "--help")[1]


@pytest.mark.parametrize(("typed", "meant"), [("submt", "submit"), ("lst", "list"), ("lss", "list"), ("wach", "watch")])
def test_a_typing_error_is_answered_with_the_command_that_was_meant(capsys, typed: str, meant: str):
    assert run(capsys, typed) == (2, "", f"error: there is no command {typed!r}; did you mean `extract {meant}`?\n")


def test_a_word_that_is_like_no_command_is_refused(capsys):
    assert run(capsys, "zzz") == (2, "", "error: there is no command 'zzz'; see `extract --help`\n")


@pytest.mark.parametrize("alias", ALIASES)
def test_other_names_of_a_command_are_understood_and_not_listed(capsys, alias: str):
    code, out, _ = run(capsys, alias, "--help")
    assert code == 0
    assert out.split("\n", 1)[1] == run(capsys, ALIASES[alias], "--help")[1].split("\n", 1)[1]
    assert alias not in COMMANDS


def test_model_and_tasks_need_no_options(capsys):
    given = run(capsys, "submit", "python-tiny", "quote_close", "for_while", "--print-spec")
    assert given[0] == 0
    named = run(capsys, "submit", "--model", "python-tiny", "--task", "quote_close", "--task", "for_while", "--print-spec")
    assert given == named
    mixed = run(capsys, "submit", "--model", "python-tiny", "quote_close", "--task", "for_while", "--print-spec")
    assert json.loads(mixed[1])["tasks"] == ["quote_close", "for_while"]


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        ((), "--model"),
        (("python-tiny",), "--task"),
        (("--task", "quote_close"), "--model"),
        (("--model", "--task", "x"), "needs a value before '--task'"),
    ],
)
def test_a_submission_without_model_or_task_says_what_is_missing(capsys, words: tuple[str, ...], missing: str):
    code, _, err = run(capsys, "submit", *words)
    assert (code, missing in err) == (2, True)
