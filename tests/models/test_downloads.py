"""What a hub model downloads: bounded in bytes, only what its weights need; and from the cache where the hub does not answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from local_hub import LocalHub, Repository, serve
from worlds import python, random_gpt2

SHA = "0123456789abcdef0123456789abcdef01234567"
OTHER = "89abcdef0123456789abcdef0123456789abcdef"
GB = 10**9
SCRIPT = """
import sys
from extractor.errors import ExtractorError
from extractor.models.reference import open_model, resolve_pair
from extractor.models.hub import inspect
for name in sys.argv[2:]:
    try:
        print(resolve_pair(name) if sys.argv[1] == 'resolve' else open_model(name).path)
    except ExtractorError as error:
        print(type(error).__name__, error)
"""
SUBMIT = "import sys; from worker.cli import main; main(['submit', '--task', 'quote_close', '--print-spec', '--model', *sys.argv[1:]])"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def shards(gpt2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The tiny GPT-2 in several weight files."""
    folder = tmp_path_factory.mktemp("shards") / "model"
    shutil.copytree(gpt2_folder, folder)
    (folder / "model.safetensors").unlink()
    random_gpt2().save_pretrained(folder, max_shard_size="50KB")
    return contents(folder)


def test_everything_that_a_job_downloads_is_bounded(gpt2_folder: Path, shards: dict[str, bytes], tmp_path: Path):
    files, padding = contents(gpt2_folder), "tokenizer_padding.bin"
    names = sorted(name for name in shards if name.startswith("model-"))
    lora = {"adapter_config.json": b'{"peft_type": "LORA", "base_model_name_or_path": "python-tiny"}', "adapter_model.safetensors": b""}
    missing = {name: content for name, content in shards.items() if name != names[-1]}
    models = {
        "tokenizer": (Repository({SHA: files}, sizes={"tokenizer.json": 500 * GB}), "tokenizer.json has 500,000,000,000 bytes"),
        "padding": (Repository({SHA: files | {padding: b""}}, sizes={padding: 500 * GB}), SHA),
        "merges": (Repository({SHA: files | {"merges.txt": b""}}, sizes={"merges.txt": 500 * GB}), "merges.txt has 500,000,000,000 bytes"),
        "counted": (Repository({SHA: files}, parameters=1000, sizes={"model.safetensors": 900 * GB}), "900,000,000,000 bytes of weights"),
        "shard": (Repository({SHA: shards}, parameters=1000, sizes={names[0]: 900 * GB}), "bytes of weights, more than the 10,000,000,000"),
        "missing": (Repository({SHA: missing}), f"{names[-1]} is missing"),
        "lora": (Repository({SHA: lora}, sizes={"adapter_model.safetensors": 900 * GB}), "adapter 'lab/lora' on the hub has 900,000,000,"),
        "leading out": (Repository({SHA: shards | {"model.safetensors.index.json": b'{"weight_map": {"a": "../x"}}'}}), "names '../x'"),
        "fine": (Repository({SHA: files}), SHA),
        "whole": (Repository({SHA: shards}), SHA),
    }
    hub = LocalHub({f"lab/{name.replace(' ', '-')}": repository for name, (repository, _) in models.items()})
    with serve(hub):
        lines = python(SCRIPT, "resolve", *hub.models, env=hub.environment(tmp_path)).splitlines()
    assert [said in line for line, (_, said) in zip(lines, models.values(), strict=True)] == [True] * len(models), lines
    assert {file for _, file in hub.fetched} <= {"config.json", "adapter_config.json", "model.safetensors.index.json"}


def test_only_the_weights_that_are_read_are_downloaded(gpt2_folder: Path, shards: dict[str, bytes], tmp_path: Path):
    further = {"model-00009-of-00009.safetensors": b"more", "model.fp16.safetensors": b"more", "tokenizer.model.old": b"x"}
    hub = LocalHub({"lab/one": Repository({SHA: contents(gpt2_folder) | further}), "lab/many": Repository({SHA: shards | further})})
    with serve(hub):
        lines = python(SCRIPT, "open", *(f"{name}@{SHA}" for name in hub.models), env=hub.environment(tmp_path)).splitlines()
    assert all(Path(line).is_dir() for line in lines), lines
    fetched = {file for _, file in hub.fetched}
    assert {"model.safetensors"} | {name for name in shards if name.endswith(".safetensors")} <= fetched
    assert not fetched & {"model-00009-of-00009.safetensors", "model.fp16.safetensors"}


# The cache


def cached(home: Path, name: str, folder: Path, sha: str = SHA, ref: str = "main") -> Path:
    """A snapshot of a hub model in the hub's cache, as downloads leave it."""
    top = home / "hub" / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, top / "snapshots" / sha)
    if ref:
        (top / "refs").mkdir(exist_ok=True)
        (top / "refs" / ref).write_text(sha)
    return top / "snapshots" / sha


NO_NETWORK = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}


@pytest.mark.parametrize("silent", [NO_NETWORK, NO_NETWORK | {"HF_HUB_OFFLINE": "1"}], ids=["no network", "offline"])
def test_where_the_hub_does_not_answer_the_cache_does(silent: dict[str, str], gpt2_folder: Path, tmp_path: Path):
    env = silent | {"HF_HOME": str(tmp_path), "EXTRACT_STATE_DIR": str(tmp_path / "state")}
    cached(tmp_path, "lab/tiny", gpt2_folder)
    cached(tmp_path, "lab/tiny", gpt2_folder, OTHER, "v2")
    asked = ["lab/tiny", "lab/tiny@main", "lab/tiny@v2", f"lab/tiny@{OTHER}"]
    lines = python(SCRIPT, "resolve", *asked, env=env).splitlines()
    assert lines == [str((f"lab/tiny@{sha}", None)) for sha in (SHA, SHA, OTHER, OTHER)]
    opened = python(SCRIPT, "open", f"lab/tiny@{SHA}", env=env).strip()
    assert opened == str(tmp_path / "hub" / "models--lab--tiny" / "snapshots" / SHA)
    spec = json.loads(python(SUBMIT, "lab/tiny", env=env))
    assert (spec["model"], spec["adapter"]) == (f"lab/tiny@{SHA}", None)


def test_what_the_cache_holds_is_checked_as_a_folder_is(gpt2_folder: Path, tmp_path: Path):
    env = NO_NETWORK | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    (cached(tmp_path, "lab/part", gpt2_folder) / "model.safetensors").unlink()
    cut = cached(tmp_path, "lab/cut", gpt2_folder) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:20_000])
    unnamed = cached(tmp_path, "lab/unnamed", gpt2_folder, ref="")
    asked = ["lab/part", "lab/cut", "lab/unnamed", "lab/nothing", f"lab/unnamed@{OTHER}"]
    lines = python(SCRIPT, "resolve", *asked, env=env).splitlines()
    assert lines[0].startswith("UnsupportedModel model 'lab/part' in ")
    assert "has no weights" in lines[0]
    assert "has 20,000 bytes of weights" in lines[1]
    assert lines[2].endswith(f"the cache has lab/unnamed@{unnamed.name}")
    assert lines[3].endswith(f"; the cache {tmp_path / 'hub'} does not have it either")
    assert lines[4].endswith(f"the cache has lab/unnamed@{SHA}")
    assert all("HF_HUB_OFFLINE is set" in line for line in lines[2:])


def test_an_adapter_and_its_base_may_be_in_the_cache_too(gpt2_folder: Path, tmp_path: Path):
    from test_lora import write_lora

    env = NO_NETWORK | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    write_lora(tmp_path / "lora", "lab/tiny")
    cached(tmp_path, "lab/tiny", gpt2_folder)
    cached(tmp_path, "lab/lora", tmp_path / "lora", OTHER)
    assert python(SCRIPT, "resolve", "lab/lora", env=env).strip() == str((f"lab/tiny@{SHA}", f"lab/lora@{OTHER}"))


def test_a_hub_that_answers_is_believed_whatever_the_cache_holds(gpt2_folder: Path, tmp_path: Path):
    cached(tmp_path, "lab/tiny", gpt2_folder, OTHER)
    cached(tmp_path, "lab/gone", gpt2_folder, OTHER)
    cached(tmp_path, "lab/down", gpt2_folder, OTHER)
    models = {"lab/tiny": Repository({SHA: contents(gpt2_folder)}), "lab/down": Repository({SHA: {}}, status=503)}
    with serve(LocalHub(models)) as hub:
        lines = python(SCRIPT, "resolve", "lab/tiny", "lab/gone", "lab/down", env=hub.environment(tmp_path)).splitlines()
    assert lines[0] == str((f"lab/tiny@{SHA}", None))
    assert lines[1].startswith("ModelNotFound model 'lab/gone' not found")
    assert lines[2] == str((f"lab/down@{OTHER}", None))
