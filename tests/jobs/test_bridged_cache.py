"""The cache of bridged models: what an address depends on; a kept one is complete or not there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import tokenizer_zoo

from extractor import files
from extractor.jobs import bridged_cache
from extractor.models.reference import BUNDLED
from extractor.models.tokenizer import load_tokenizer
from extractor.models.tokenizer_files import TOKENIZER_FILES, read_tokenizer_files
from extractor.spec.schema import BridgeSpec, CorpusSpec, JobSpec, OptimSpec, PruneSpec, TaskFileSpec, TrainSpec

SPEC = JobSpec(kind="circuit", model="python-tiny", tasks=("quote_close",), bridge=BridgeSpec(), prune=PruneSpec())
TUNED = SPEC.bridge.model_copy(update={"optim": OptimSpec(steps=7)})


@pytest.mark.parametrize(
    ("changes", "is_another"),
    [
        ({"tasks": ("for_while",)}, False),
        ({"target_loss": 0.3}, False),
        ({"prune": PruneSpec(steps=3)}, False),
        ({"labels": "model"}, False),
        ({"seed": 1}, True),
        ({"bridge": TUNED}, True),
        ({"corpus": CorpusSpec(sources=("generated",))}, True),
        ({"model": "org/name@" + 40 * "a"}, True),
        ({"adapter": "org/lora@" + 40 * "a"}, True),
    ],
)
def test_its_address_is_what_the_bridging_depends_on(changes: dict, is_another: bool):
    assert (bridged_cache.address(SPEC.model_copy(update=changes), 1) != bridged_cache.address(SPEC, 1)) == is_another


def test_with_a_focus_it_depends_on_the_jobs_own_tasks_too():
    """All tasks of tasks/ are part of every bridging with a focus, so that jobs of any of them share it."""
    focused = SPEC.model_copy(update={"bridge": SPEC.bridge.model_copy(update={"focus": 0.5})})
    own = TaskFileSpec(name="mine", path="/mine.jsonl", sha256=64 * "a")
    others = [{"tasks": ("for_while",)}, {"tasks": ("mine",), "task_files": (own,)}, {"tasks": ("mine",)}]
    addresses = [bridged_cache.address(spec.model_copy(update=c), 1) for spec in (focused, SPEC) for c in ({}, *others)]
    assert addresses[0] == addresses[1]
    assert len({*addresses[1:4]}) == 3
    assert len({*addresses[4:]}) == 1


def test_other_threads_round_otherwise():
    assert bridged_cache.address(SPEC, 1) != bridged_cache.address(SPEC, 2)


def test_a_folder_is_what_its_files_hold(tmp_path: Path):
    shutil.copytree(BUNDLED / "python-tiny", tmp_path / "model")
    spec = SPEC.model_copy(update={"model": str(tmp_path / "model")})
    before = bridged_cache.address(spec, 1)
    tokenizer = tmp_path / "model" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert bridged_cache.address(spec, 1) != before


@pytest.mark.parametrize("name", tokenizer_zoo.ZOO)
def test_a_folder_is_all_that_its_tokenizer_is_made_from(tmp_path: Path, name: str):
    """A change of any file that changes a token changes the address; a plain tokenizer keeps the address that it always had."""
    shutil.copyfile(BUNDLED / "python-tiny" / "model.safetensors", tmp_path / "model.safetensors")
    tokenizer_zoo.ZOO[name](tmp_path)
    found = read_tokenizer_files(tmp_path)
    before, ids = found.identity, load_tokenizer(tmp_path).encode("x [SEP] y").ids
    for path in sorted(tmp_path.iterdir()):
        if path.name in TOKENIZER_FILES:
            old = path.read_bytes()
            path.write_bytes(old + b"\n")
            digest = files.digest(tmp_path, "tokenizer*")
            now = read_tokenizer_files(tmp_path).identity
            path.write_bytes(old)
            assert (now, digest) != (before, files.digest(tmp_path, "tokenizer*")) or found.is_plain, path.name
    tokenizer_zoo.write(tmp_path, "added_tokens.json", {"[SEP]": len(load_tokenizer(tmp_path).get_vocab())})
    if load_tokenizer(tmp_path).encode("x [SEP] y").ids != ids:
        assert read_tokenizer_files(tmp_path).identity not in (None, before)


def test_the_merges_of_a_tokenizer_without_tokenizer_json_count(tmp_path: Path):
    shutil.copyfile(BUNDLED / "python-tiny" / "model.safetensors", tmp_path / "model.safetensors")
    tokenizer_zoo.halves(tmp_path)
    spec = SPEC.model_copy(update={"model": str(tmp_path)})
    before, merges = bridged_cache.address(spec, 1), tmp_path / "merges.txt"
    assert before == bridged_cache.address(spec, 1)
    merges.write_text("\n".join(merges.read_text().splitlines()[:-200]) + "\n")
    assert bridged_cache.address(spec, 1) != before


def test_the_address_of_a_plain_folder_is_that_of_the_last_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And one that last release read otherwise has another: padding, tokens around a text, tokens of other files."""

    def facts(name: str) -> list:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copyfile(BUNDLED / "python-tiny" / "model.safetensors", folder / "model.safetensors")
        tokenizer_zoo.ZOO[name](folder)
        seen: list = []
        monkeypatch.setattr(bridged_cache.json, "dumps", lambda value, **_: seen.append(value) or "")
        bridged_cache.address(SPEC.model_copy(update={"model": str(folder)}), 1)
        monkeypatch.undo()
        return [seen[-1][3], files.digest(folder, "config.json", "*.safetensors", "tokenizer*")]

    for name in ("plain", "gpt2_class", "prefix_space", "added_token", "metaspace_first", "nfkc"):
        now, then = facts(name)
        assert now == then, name
    for name in ("padding_fixed", "truncation", "dropout", "llama_of_bytes", "unigram", "halves_alone", "added_tokens_decoder"):
        now, then = facts(name)
        assert now != then, name


def test_text_is_its_content_whatever_its_size_and_time(tmp_path: Path):
    path = tmp_path / "a.txt"
    spec = SPEC.model_copy(update={"corpus": CorpusSpec(sources=(str(path),))})

    def address(text: str) -> str | None:
        path.write_text(text)
        os.utime(path, (1, 1))
        return bridged_cache.address(spec, 1)

    assert address("one = 1") == address("one = 1")
    assert address("one = 1") != address("two = 2")


def test_files_with_the_names_of_built_in_sources_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = bridged_cache.address(SPEC, 1)
    (tmp_path / "stdlib").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert bridged_cache.address(SPEC, 1) == before


def test_jobs_that_bridge_nothing_have_no_address(tmp_path: Path):
    assert bridged_cache.address(JobSpec(kind="train", train=TrainSpec()), 1) is None
    assert bridged_cache.address(SPEC.model_copy(update={"subject": "dense"}), 1) is None


@pytest.fixture
def made(tmp_path: Path) -> Path:
    out = tmp_path / "made"
    (out / "model").mkdir(parents=True)
    files.write_text(out / "model" / "config.json", "{}")
    files.write_text(out / "metrics.jsonl", "one line\n")
    return out


def test_what_was_kept_is_fetched(made: Path, tmp_path: Path):
    (tmp_path / "other").mkdir()
    assert not bridged_cache.load(tmp_path / "kept", tmp_path / "other")
    bridged_cache.store(made, tmp_path / "kept")
    assert bridged_cache.load(tmp_path / "kept", tmp_path / "other")
    assert (tmp_path / "other" / "model" / "config.json").read_text() == "{}"
    assert (tmp_path / "other" / "metrics.jsonl").read_text() == "one line\n"


def test_the_first_to_keep_it_wins(made: Path, tmp_path: Path):
    bridged_cache.store(made, tmp_path / "kept")
    files.write_text(made / "model" / "config.json", "[]")
    bridged_cache.store(made, tmp_path / "kept")
    assert (tmp_path / "kept" / "model" / "config.json").read_text() == "{}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "made"]


@pytest.mark.parametrize("harm", ["altered", "half"])
def test_a_damaged_one_is_thrown_away(made: Path, tmp_path: Path, harm: str):
    bridged_cache.store(made, tmp_path / "kept")
    if harm == "altered":
        (tmp_path / "kept" / "model" / "config.json").write_text("{ }")
    else:
        (tmp_path / "kept" / "manifest.json").unlink()
    assert not bridged_cache.load(tmp_path / "kept", made)
    assert not (tmp_path / "kept").exists()
