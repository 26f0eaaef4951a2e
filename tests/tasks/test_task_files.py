"""Tasks of the user's own: JSONL files, and entry points of installed packages."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from made_packages import made_site, put_package

from extractor.data.prompts import get_task, task_batch, tokenize_task
from extractor.data.task_choice import choose, open_tasks
from extractor.errors import ExtractorError, NotFound, SpecError, TaskNotExpressible, UnknownTask
from extractor.jobs.request import circuit_job, train_job
from extractor.models.reference import BUNDLED
from extractor.models.tokenizer import load_tokenizer
from extractor.spec.schema import parse_job, to_json
from tasks import find_task, task_names
from tasks.base import SPLITS
from tasks.files import TaskFileError, read_task
from tasks.installed import installed_tasks

NOUNS = "name value item key data line word text path file user count total index number result message list node point".split()
ANSWERS = ['")', "')"]


def quotes(count: int = 60) -> list[dict]:
    """Lines as of quote_close, under python-tiny each of one length and answered by single tokens."""
    pairs = [(one, two) for one in NOUNS for two in NOUNS if one != two][:count]
    return [{"positive": f'{a} = get("{b}', "negative": f"{a} = get('{b}", "answers": ANSWERS} for a, b in pairs]


def write(path: Path, lines: Sequence[dict | str | bytes]) -> Path:
    raw = (line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode() for line in lines)
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "my_quotes.jsonl", quotes())


@pytest.fixture(scope="module")
def bundled():
    return load_tokenizer(BUNDLED / "python-tiny")


def test_a_file_whose_lines_share_their_answers_is_an_ordinary_task(file: Path, bundled):
    task = read_task(file)
    assert (task.name, task.answers) == ("my_quotes", (tuple(ANSWERS),))
    assert task.description == "60 pairs of my_quotes.jsonl, answered by '\")' or \"')\""
    assert all(pair.answers is None for _, pair in task.listed)
    assert tokenize_task(task, bundled).answers == tuple(ANSWERS)


def test_answers_may_vary_from_pair_to_pair(tmp_path: Path, bundled):
    lines = quotes()
    for line in lines[::2]:
        line["answers"] = ['"', "'"]
    task = read_task(write(tmp_path / "mixed.jsonl", lines))
    assert task.answers == ()
    assert {pair.answers for _, pair in task.listed} == {tuple(ANSWERS), ('"', "'")}
    batch = task_batch(tokenize_task(task, bundled), bundled, "train", task.available("train"), 0, 64)
    assert len({int(token) for token in batch.correct}) == 4


def test_each_pair_is_in_one_split_and_comes_once_in_an_order_that_follows_the_seed(file: Path):
    task = read_task(file)
    streams = {split: list(task.pairs(split)) for split in SPLITS}
    assert {split: task.available(split) for split in SPLITS} == {split: len(pairs) for split, pairs in streams.items()}
    assert sorted(pair.positive for pairs in streams.values() for pair in pairs) == sorted(line["positive"] for line in quotes())
    for split, pairs in streams.items():
        assert list(task.pairs(split)) == pairs
        other = list(task.pairs(split, seed=1))
        assert other != pairs
        assert set(other) == set(pairs)


def test_a_pair_stays_in_its_split_when_the_file_grows(file: Path, tmp_path: Path):
    more = read_task(write(tmp_path / "more.jsonl", quotes(200)))
    for split in SPLITS:
        assert set(read_task(file).pairs(split)) <= set(more.pairs(split))


def test_empty_lines_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path):
    content = b"\xef\xbb\xbf" + b"\r\n\r\n".join(json.dumps(line).encode() for line in quotes(40)) + b"\r\n"
    (tmp_path / "mine.jsonl").write_bytes(content)
    assert [line for line, _ in read_task(tmp_path / "mine.jsonl").listed] == list(range(1, 80, 2))


GOOD = quotes()[3]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"positive": "caf\xe9"}', "not UTF-8 (byte 18 is 0xe9)"),
        ("{", "not JSON (Expecting property name enclosed in double quotes at column 2)"),
        ("[" * 100_000, "JSON that cannot be parsed"),
        ("[1, 2]", "a JSON list, not an object"),
        ({"positive": "a", "negative": "b"}, "lacks answers"),
        (GOOD | {"weight": 3}, "has the unknown field 'weight'"),
        (GOOD | {"positive": 3}, "positive is 3, not a text"),
        (GOOD | {"negative": None}, "negative is None, not a text"),
        (GOOD | {"negative": ""}, "negative is empty"),
        (GOOD | {"answers": "ab"}, "answers is 'ab', not a list of two texts"),
        (GOOD | {"answers": ["a", "b", "c"]}, "answers is ['a', 'b', 'c'], not a list of two texts"),
        (GOOD | {"answers": ["a", 1]}, "the second answer is 1, not a text"),
        (GOOD | {"answers": ["", "b"]}, "the first answer is empty"),
        (GOOD | {"answers": ["a", "a"]}, "both answers are 'a'"),
        (GOOD | {"negative": GOOD["positive"]}, "both prompts are"),
        (GOOD | {"positive": quotes()[0]["positive"]}, "also occurs in line 1"),
        (GOOD | {"positive": quotes()[0]["negative"]}, "also occurs in line 1"),
        (GOOD | {"positive": "half \ud800"}, "positive has half of a surrogate pair"),
        ('{"positive": "a", "positive": "b", "negative": "c", "answers": ["a", "b"]}', "the field 'positive' occurs twice"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 60 else "",
)
def test_a_line_that_is_no_pair_is_told_with_its_file_and_number(tmp_path: Path, line: dict | str | bytes, said: str):
    path = write(tmp_path / "mine.jsonl", [*quotes()[:3], line, *quotes()[4:]])
    with pytest.raises(TaskFileError) as caught:
        read_task(path)
    assert str(caught.value).startswith(f"{path}, line 4: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_faulty_lines_of_a_file_are_listed_at_once(tmp_path: Path):
    lines = [line if index % 4 else {"positive": "a"} for index, line in enumerate(quotes(60), 1)]
    with pytest.raises(TaskFileError) as caught:
        read_task(write(tmp_path / "mine.jsonl", lines))
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}/mine.jsonl, line 4: lacks negative, answers; write ")
    assert said.endswith("; 14 more such lines: 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, ...")
    repeated = [*quotes(40), *quotes(3)]
    with pytest.raises(TaskFileError, match=r"line 41: the prompt .* also occurs in line 1; .*; 2 more such lines: 42, 43$"):
        read_task(write(tmp_path / "mine.jsonl", repeated))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps(quotes(40), indent=1).encode(), "a JSON list over several lines; write one object a line"),
        (json.dumps(quotes(40)[0], indent=1).encode(), "an object over several lines); write every pair on one line"),
        ("\n".join(json.dumps(line) for line in quotes(40)).encode("utf-16"), "it is UTF-16); save the file as UTF-8"),
    ],
    ids=["list", "object", "utf16"],
)
def test_a_file_of_another_format_is_told_which_one_it_is(tmp_path: Path, content: bytes, said: str):
    (tmp_path / "mine.jsonl").write_bytes(content)
    with pytest.raises(TaskFileError) as caught:
        read_task(tmp_path / "mine.jsonl")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_task_file_that_is_no_regular_file_or_too_large_is_not_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "device.jsonl").symlink_to("/dev/zero")
    with open(tmp_path / "large.jsonl", "wb") as file:
        file.truncate(10**10)
    for name in ("pipe", "device"):
        assert "cannot be read (it is a pipe, a socket or a device; save" in refused(SpecError, str(tmp_path / f"{name}.jsonl"))
    assert "10,000,000,000 bytes, more than the 268,435,456" in refused(SpecError, str(tmp_path / "large.jsonl"))


def test_too_few_pairs_in_all_or_in_a_split_are_refused(tmp_path: Path):
    with pytest.raises(TaskFileError, match="has 31 pairs, at least 32 are needed"):
        read_task(write(tmp_path / "few.jsonl", quotes(31)))
    with pytest.raises(TaskFileError, match="has 0 pairs"):
        read_task(write(tmp_path / "none.jsonl", []))
    everything = read_task(write(tmp_path / "all_of_them.jsonl", quotes(300)))
    of_train = {pair.positive for pair in everything.pairs("train")}
    one_sided = write(tmp_path / "one_sided.jsonl", [line for line in quotes(300) if line["positive"] in of_train])
    with pytest.raises(TaskFileError, match=r"0 of its .* pairs fall into the split 'select'.*at least 4 are needed"):
        read_task(one_sided)


@pytest.mark.parametrize("name", ["my quotes.jsonl", "é.jsonl", "all.jsonl", f"{'x' * 65}.jsonl", ".jsonl", "a.b.jsonl"])
def test_a_stem_that_cannot_name_a_folder_is_refused(tmp_path: Path, name: str):
    with pytest.raises(TaskFileError, match=r"cannot be a task's name.*rename the file"):
        read_task(write(tmp_path / name, quotes()))


def refused(kind: type[ExtractorError], *tasks: str, model: str = "python-tiny") -> str:
    with pytest.raises(kind) as caught:
        circuit_job(model, tasks)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_spec_pins_the_file_by_place_and_digest(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(file.parent)
    made = circuit_job("python-tiny", ("quote_close", file.name))
    assert made.tasks == ("quote_close", "my_quotes")
    (pinned,) = made.task_files
    assert (pinned.name, pinned.path) == ("my_quotes", str(file))
    assert parse_job(to_json(made)) == made
    assert train_job(corpus=("generated",), tasks=(f"./{file.name}",)).task_files == (pinned,)
    tasks = open_tasks(made.tasks, made.task_files)
    assert list(tasks) == ["quote_close", "my_quotes"]
    assert list(tasks["my_quotes"].pairs("train")) == list(read_task(file).pairs("train"))
    file.write_text(file.read_text() + "\n")
    with pytest.raises(SpecError, match=f"{file} was changed since the job was made"):
        open_tasks(made.tasks, made.task_files)
    file.unlink()
    with pytest.raises(NotFound, match=f"{file} is not on this machine"):
        open_tasks(made.tasks, made.task_files)


def test_names_that_clash_and_files_that_are_none_are_refused(file: Path, tmp_path: Path):
    assert "line 1: not JSON" in refused(SpecError, str(write(tmp_path / "bad.jsonl", ["x"])))
    assert "is not on this machine" in refused(NotFound, str(tmp_path / "nowhere.jsonl"))
    assert "cannot be read" in refused(SpecError, f"{tmp_path}/")
    for name in ("quote_close", "single_double_quote"):
        clash = write(tmp_path / f"{name}.jsonl", quotes())
        assert "is the name of a built-in task; rename the file" in refused(SpecError, str(clash))
    (tmp_path / "other").mkdir()
    namesake = write(tmp_path / "other" / file.name, quotes(50))
    assert "have one name, 'my_quotes'" in refused(SpecError, str(file), str(namesake))
    assert choose([str(file), str(file)]).names == ("my_quotes",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": ["this one", ":"]}, "the answer 'this one' is "),
        ({"positive": "name = get(word, 12, 13"}, "the positive prompt is "),
        (
            {"positive": "x" * 200, "negative": "y" * 200},
            "the model reads 128 at most: shorten them, or for a bridging set bridge.optim.context",
        ),
    ],
)
def test_a_file_with_lines_that_the_tokenizer_cannot_ask_is_refused_with_the_first_and_their_number(
    tmp_path: Path, change: dict, said: str, bundled
):
    lines = quotes()
    lines[6] |= change
    if "answers" not in change:
        lines[9] |= {name: text + "!" for name, text in change.items()}
    path = write(tmp_path / "mine.jsonl", lines)
    message = refused(TaskNotExpressible, str(path))
    assert message.startswith(f"task file {path}, line 7: ")
    assert said in message
    assert f"; {1 if 'answers' in change else 2} of 60 pairs cannot be asked" in message


def test_an_answer_that_merges_with_its_prompt_is_shown(tmp_path: Path):
    lines = quotes()
    lines[2] |= {"positive": 'name = get("data"', "negative": "name = get('data'", "answers": [")", "]"]}
    message = refused(TaskNotExpressible, str(write(tmp_path / "mine.jsonl", lines)))
    assert "line 3: after its prompt the answer ')' is not a token of its own: together they end in" in message


# A package with entry points, as pip would leave it: a module and a dist-info, no network.

MODULE = """
import random
from tasks.base import Pair, Task

def write(rng: random.Random) -> Pair:
    number = rng.randrange(10**6)
    return Pair(f"for x{number}", f"while x{number}")

TASK = Task("loops", "what follows a loop's first words", ((" in", ":"),), write, aliases=("loopy",))
OTHER = Task("elsewhere", "as loops", ((" in", ":"),), write)
CLASH = Task("for_while", "as loops", ((" in", ":"),), write)
SILENT = Task("silent", "writes nothing right", ((" in", ":"),), lambda rng: ("a", "b"))
WORDY = Task("wordy", "answers of the wrong kind", (("in",),), write)
NUMBER = 3

def __getattr__(name):
    if name == "LEAVES":
        raise SystemExit("goodbye")
    raise AttributeError(name)
"""
ENTRIES = {
    "loops": "offered_loops",
    "elsewhere": "offered_loops:OTHER",
    "for_while": "offered_loops:CLASH",
    "silent": "offered_loops:SILENT",
    "wordy": "offered_loops:WORDY",
    "number": "offered_loops:NUMBER",
    "misnamed": "offered_loops:OTHER",
    "gone": "offered_nowhere",
    "leaves": "offered_loops:LEAVES",
    "not safe": "offered_loops:OTHER",
}
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a package into a folder on sys.path."""
    site = made_site(tmp_path, monkeypatch, "offered_loops")

    def package(name: str = "loop-tasks", version: str = "1.2", entries: dict[str, str] = ENTRIES, code: str = MODULE) -> Path:
        put_package(site, "offered_loops", code, "extractor.tasks", entries, name, version)
        return site

    return package


def test_a_task_of_an_installed_package_is_found_by_name_and_alias_and_goes_into_a_spec_by_name(install: Install):
    install()
    assert find_task("loops") is find_task("loopy")
    assert find_task("loops").description == "what follows a loop's first words"
    assert find_task("elsewhere").name == "elsewhere"
    assert circuit_job("python-tiny", ("loopy",)).tasks == ("loops",)
    assert "loops" not in task_names(), "'all' stands for the built-in ones"
    with pytest.raises(UnknownTask, match="did you mean loops"):
        get_task("loop")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("silent", "it writes a tuple, not a tasks.base.Pair"),
        ("wordy", "its answers are not pairs of non-empty texts"),
        ("number", "offered_loops:NUMBER is a int, not a tasks.base.Task"),
        ("misnamed", "the task's own name is 'elsewhere'"),
        ("gone", "ModuleNotFoundError: No module named 'offered_nowhere'"),
        ("leaves", "SystemExit: goodbye"),
        ("not safe", "a task's name has at most 64"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_one_line_when_it_is_asked_for(install: Install, name: str, said: str):
    install()
    with pytest.raises(UnknownTask) as caught:
        get_task(name)
    assert str(caught.value).startswith(f"task {name!r} of loop-tasks 1.2 cannot be used: {said}")
    assert "\n" not in str(caught.value)
    assert get_task("loops").name == "loops"


def test_a_built_in_name_stays_the_built_in_task_and_the_clash_is_noted(install: Install):
    install()
    assert find_task("for_while").description != "as loops"
    (clash,) = [offer for offer in installed_tasks() if offer.name == "for_while"]
    assert clash.problem == "a built-in task has this name"


def test_two_packages_with_one_task_name_are_both_named(install: Install):
    site = install(entries={"loops": "offered_loops"})
    install("other-tasks", "3.0", {"loops": "offered_loops", "elsewhere": "offered_loops:OTHER"})
    with pytest.raises(UnknownTask, match=r"of loop-tasks 1\.2 cannot be used: other-tasks 3\.0 also has a task of this name"):
        get_task("loops")
    assert get_task("elsewhere").name == "elsewhere"
    with pytest.raises(SpecError, match="is the name of a task of loop-tasks"):
        choose([str(write(site / "loops.jsonl", quotes()))])


def test_a_package_whose_module_does_not_parse_breaks_nothing_else(install: Install):
    install(code="def (", entries={"loops": "offered_loops", "second": "offered_loops:OTHER"})
    assert all(offer.problem is not None and offer.problem.startswith("SyntaxError") for offer in installed_tasks())
    assert get_task("quote_close").name == "quote_close"
