"""What can be known of tasks before a job: how a tokenizer writes them, how well a whole model does them; and the commands that say so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from local_hub import LocalHub, Repository, serve
from test_task_files import install, quotes, write
from worlds import python, random_gpt2

from extractor.data.prompts import accuracy, logit_diff, task_batch, task_loss, tokenize_task
from extractor.data.task_choice import choose
from extractor.errors import UnsupportedModel
from extractor.jobs.check_tasks import check_tasks, last_logit_diff, open_on_device, samples, tokenizer_of
from extractor.models.reference import BUNDLED
from extractor.models.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from extractor.sparse import SparseGPTConfig, SparseGPTForCausalLM
from tasks import find_task, task_names
from worker.cli import main

__all__ = ["install"]
Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def sparse_folder(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse GPT with random weights, saved with the shared tokenizer."""
    folder = tmp_path_factory.mktemp("sparse")
    torch.manual_seed(0)
    config = SparseGPTConfig(vocab_size=tokenizer.get_vocab_size(), n_layer=1, d_model=16, d_head=8, d_mlp=32, n_ctx=40)
    SparseGPTForCausalLM(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder, 40)
    return folder


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_margins_are_those_of_the_padded_pass(gpt2_folder: Path, sparse_folder: Path, kind: str):
    model, tokenizer = open_on_device(str(gpt2_folder if kind == "dense" else sparse_folder))
    batch = task_batch(tokenize_task(find_task("quote_close"), tokenizer), tokenizer, "held_out", 48, 0, 40)
    assert len(batch.last.unique()) > 1
    with torch.no_grad():
        logits = model(input_ids=batch.ids).logits
    expected = logit_diff(logits[torch.arange(len(batch.ids)), batch.last], batch)
    assert torch.allclose(last_logit_diff(model, batch), expected, atol=1e-4)


def test_a_row_says_how_the_whole_model_does_on_held_out_pairs(gpt2_folder: Path):
    model, tokenizer = open_on_device(str(gpt2_folder))
    (row,) = check_tasks(model, tokenizer, [find_task("quote_close")], target_loss=100.0, pairs=32)
    batch = task_batch(tokenize_task(find_task("quote_close"), tokenizer), tokenizer, "held_out", 32, 0, 64)
    diff = last_logit_diff(model, batch)
    assert (row.task, row.expressible, row.why, row.answers, row.pairs) == ("quote_close", True, None, ('")', "')"), 32)
    assert row.loss == pytest.approx(task_loss(diff, batch.sign).item())
    assert row.accuracy == accuracy(diff, batch.sign)
    assert row.meets_target
    (strict,) = check_tasks(model, tokenizer, [find_task("quote_close")], target_loss=1e-6, pairs=32)
    assert not strict.meets_target


def test_every_task_has_a_row_and_those_that_cannot_be_asked_their_reason():
    plain = train_tokenizer(["plain words without any of it"] * 4, 280)
    rows = list(check_tasks(random_gpt2(vocab_size=280), plain, map(find_task, task_names()), 0.15, pairs=4))
    assert [row.task for row in rows] == task_names()
    refused = {row.task: row for row in rows if not row.expressible}
    assert "for_while" in refused
    assert "quote_close" not in refused
    for row in refused.values():
        assert row.why
        assert (row.loss, row.accuracy, row.pairs, row.meets_target) == (None, None, None, False)


def test_a_file_is_checked_on_the_held_out_pairs_it_has(tmp_path: Path):
    (task,) = choose([str(write(tmp_path / "mine.jsonl", quotes()))]).tasks
    model, tokenizer = open_on_device("python-tiny")
    (row,) = check_tasks(model, tokenizer, [task], 0.15)
    assert row.pairs == task.available("held_out")
    assert row.meets_target


def test_samples_show_where_tokens_end():
    tokenizer = load_tokenizer(BUNDLED / "python-tiny")
    found = samples(tokenize_task(find_task("quote_close"), tokenizer), tokenizer, 5)
    assert len(found) == 5
    for pair in found:
        for side, answer in (("positive", '")'), ("negative", "')")):
            assert "".join(pair[side]["tokens"]) == pair[side]["text"]
            assert pair[side]["answer"] == answer
        assert len(pair["positive"]["tokens"]) == len(pair["negative"]["tokens"]) > 1


def test_an_adapter_does_not_go_on_a_sparse_model(sparse_folder: Path, tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedModel):
        open_on_device(str(sparse_folder), str(tmp_path))


def test_of_a_hub_model_only_the_tokenizer_is_downloaded(gpt2_folder: Path, tmp_path: Path):
    sha = "a" * 40
    files = {path.name: path.read_bytes() for path in gpt2_folder.iterdir() if path.is_file()}
    with serve(LocalHub(models={"org/small": Repository({sha: files})})) as hub:
        show = "import sys; from worker.cli import main; main(['tasks', 'show', 'quote_close', '--model', 'org/small', '--json'])"
        found = json.loads(python(show, env=hub.environment(tmp_path / "home")))
    assert found["expressible"]
    assert "tokenizer.json" in [name for _, name in hub.fetched]
    assert not [name for _, name in hub.fetched if name.endswith(".safetensors")]


def test_a_model_is_told_by_its_folder(gpt2_folder: Path):
    found, vocab_size = tokenizer_of(str(gpt2_folder))
    assert found.get_vocab_size() == load_tokenizer(gpt2_folder).get_vocab_size() == vocab_size


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Typed]:
    """A command of `extract tasks` in this process: exit code, stdout, stderr."""
    monkeypatch.setenv("EXTRACT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("EXTRACT_THREADS", "1")
    before = torch.are_deterministic_algorithms_enabled()

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["tasks", *arguments])
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    yield run
    torch.use_deterministic_algorithms(before)
    assert not (tmp_path / "state").exists(), "no service is needed"


def test_the_list_names_sources_and_notes_what_cannot_be_used(typed: Typed, install):
    before = json.loads(typed("--json")[1])
    assert [row["name"] for row in before] == task_names()
    assert {row["source"] for row in before} == {"built-in"}
    install()
    rows = {row["name"]: row for row in json.loads(typed("--json")[1])[len(before) :]}
    assert (rows["loops"]["source"], rows["loops"]["problem"], rows["loops"]["aliases"]) == ("loop-tasks 1.2", None, ["loopy"])
    assert rows["gone"]["problem"].startswith("ModuleNotFoundError")
    code, out, _ = typed("--example")
    lines = out.splitlines()
    assert code == 0
    assert [line for line in lines if line.startswith("loops ") and line.endswith("what follows a loop's first words  (loop-tasks 1.2)")]
    assert [line for line in lines if line.startswith("gone ") and "cannot be used: ModuleNotFoundError" in line]
    assert "built-in" not in out.replace("a built-in task has this name", "")


def test_show_prints_spelling_and_prompts_cut_into_tokens(typed: Typed, tmp_path: Path):
    code, out, err = typed("show", "single_double_quote", "--model", "python-tiny", "--pairs", "2")
    assert (code, err) == (0, "")
    assert "task:     quote_close" in out
    assert "aliases:  single_double_quote" in out
    assert "source:   built-in" in out
    assert out.count('│("│') + out.count("│('│") >= 4
    assert out.count("-> '\")'") == 2
    found = json.loads(typed("show", "quote_close", "--model", "python-tiny", "--json")[1])
    assert (len(found["pairs"]), found["spelling"], found["expressible"]) == (3, ['")', "')"], True)
    path = write(tmp_path / "mine.jsonl", quotes())
    assert json.loads(typed("show", str(path), "--model", "python-tiny", "--json")[1])["source"] == str(path)


def test_show_says_why_a_task_cannot_be_asked(typed: Typed, gpt2_folder: Path, tmp_path: Path):
    model = Path(shutil.copytree(gpt2_folder, tmp_path / "model"))
    train_tokenizer(["nothing"], 257).save(str(model / "tokenizer.json"))
    code, out, _ = typed("show", "for_while", "--model", str(model))
    assert code == 0
    assert "answers:  not expressible: task 'for_while' cannot be asked under this tokenizer: the answer ' in' is 3 tokens" in out
    assert json.loads(typed("show", "for_while", "--model", str(model), "--json")[1])["pairs"] == []


def test_check_is_a_table_over_tasks(typed: Typed, tmp_path: Path):
    own = write(tmp_path / "mine.jsonl", quotes())
    asked = ("check", "--model", "python-tiny", "--task", "quote_close", "--task", "lambda_func", "--task", str(own), "--pairs", "16")
    code, out, _ = typed(*asked)
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert " yes " in lines["quote_close"]
    assert "mine" in lines
    assert "below 0.15" in lines["task"]
    found = json.loads(typed(*asked, "--target-loss", "1e-9", "--json")[1])
    assert (found["model"], found["target_loss"], found["pairs"]) == ("python-tiny", 1e-9, 16)
    assert [row["task"] for row in found["tasks"]] == ["quote_close", "lambda_func", "mine"]
    assert not any(row["meets_target"] for row in found["tasks"])


def test_a_finished_jobs_model_and_a_sparse_one_are_checked_too(typed: Typed, sparse_folder: Path):
    found = json.loads(typed("check", "--model", str(sparse_folder), "--task", "quote_close", "--pairs", "4", "--json")[1])
    assert found["tasks"][0]["expressible"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("show", "for_whilst", "--model", "python-tiny"), 2, "did you mean for_while"),
        (("show", "for_while", "--model", "/nowhere"), 3, "not found"),
        (("show", "for_while"), 2, "--model"),
        (("show", "nowhere.jsonl", "--model", "python-tiny"), 3, "is not on this machine"),
        (("check", "--model", "/nowhere"), 3, "not found"),
        (("check", "--model", "python-tiny", "--target-loss", "-1"), 2, "positive number"),
        (("nonsense",), 2, "nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_mistakes_are_one_line(typed: Typed, arguments: tuple[str, ...], code: int, said: str):
    found, _, err = typed(*arguments)
    assert found == code
    assert said in err
    assert len(err.splitlines()) == 1


def test_the_list_needs_no_torch():
    script = "import sys; from worker.cli import main\ntry: main(['tasks'])\nfinally: assert not {'torch', 'pydantic'} & set(sys.modules)"
    assert "quote_close" in python(script)
    show = script.replace("['tasks']", "['tasks', 'show', 'for_while', '--model', 'python-tiny']").replace("'torch', 'pydantic'", "'torch'")
    assert "for│" in python(show)
