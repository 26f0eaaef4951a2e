"""The cache of bridged models: what an address depends on; a kept one is complete or not there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from extractor import files
from extractor.jobs import bridged_cache
from extractor.models.reference import BUNDLED
from extractor.spec.schema import BridgeSpec, CorpusSpec, JobSpec, OptimSpec, PruneSpec, TrainSpec

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


def test_other_threads_round_otherwise():
    assert bridged_cache.address(SPEC, 1) != bridged_cache.address(SPEC, 2)


def test_a_folder_is_what_its_files_hold(tmp_path: Path):
    shutil.copytree(BUNDLED / "python-tiny", tmp_path / "model")
    spec = SPEC.model_copy(update={"model": str(tmp_path / "model")})
    before = bridged_cache.address(spec, 1)
    tokenizer = tmp_path / "model" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert bridged_cache.address(spec, 1) != before


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
