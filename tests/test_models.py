"""What a model reference means, and what is refused; the hub is a small server on this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from local_hub import LocalHub, Repository, hub_environment, serve
from worlds import python

from extractor.errors import BrokenArtifact, ModelNotFound, UnsupportedModel
from extractor.extraction import load_dense
from extractor.models import inspect_folder, open_model, resolve

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copy(gpt2_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny GPT-2 that a test may damage."""
    return Path(shutil.copytree(gpt2_folder, tmp_path / "model"))


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def refused(call: Callable, reference: object, kind: type[Exception] = UnsupportedModel) -> str:
    with pytest.raises(kind) as caught:
        call(reference)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_bundled_name_stays_a_name():
    assert resolve("python-tiny") == "python-tiny"
    assert open_model("python-tiny").model_type == "gpt2"
    assert not open_model("python-tiny").is_sparse


def test_a_folder_becomes_absolute(copy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(copy.parent)
    assert resolve("model") == resolve("./model") == str(copy)
    assert open_model(str(copy)).path == copy


def test_a_result_folder_means_the_model_in_it(copy: Path):
    assert resolve(str(copy.parent)) == str(copy)
    assert open_model(str(copy.parent)).path == copy


def test_a_folder_in_the_home_is_found(copy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(copy.parent))
    assert resolve("~/model") == str(copy)


def test_a_sparse_model_is_known_as_one(tmp_path: Path):
    from test_sparse_model import small_model

    small_model().save_pretrained(tmp_path)
    assert open_model(str(tmp_path)).is_sparse


@pytest.mark.parametrize("reference", ["/nowhere/at/all", "./nowhere", "~/nowhere", "a b", "a/b/c", "../x", "-rf"])
def test_a_reference_that_leads_nowhere_is_not_found(reference: str):
    assert "not found" in refused(resolve, reference, ModelNotFound)


def test_a_bundled_name_cannot_lead_out_of_the_package():
    refused(resolve, "../../extractor/bundled/python-tiny/nothing", ModelNotFound)


def test_a_folder_that_is_gone_when_the_job_runs_is_not_found(tmp_path: Path):
    assert "not on this machine" in refused(open_model, str(tmp_path / "gone"), ModelNotFound)


def test_a_file_is_no_model(copy: Path):
    assert "is a file; name the folder" in refused(resolve, str(copy / "model.safetensors"))


def test_a_folder_without_a_config_is_no_model(tmp_path: Path):
    assert "has no config.json" in refused(resolve, str(tmp_path))


@pytest.mark.parametrize("text", ["{", "", "\xff"])
def test_a_config_that_does_not_parse_is_broken(copy: Path, text: str):
    (copy / "config.json").write_text(text, encoding="latin-1")
    assert "not readable JSON" in refused(resolve, str(copy), BrokenArtifact)


@pytest.mark.parametrize("text", ["[]", "3", '"gpt2"'])
def test_a_config_that_is_no_object_is_broken(copy: Path, text: str):
    (copy / "config.json").write_text(text)
    assert "expected a JSON object" in refused(resolve, str(copy), BrokenArtifact)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt_neox", None])
def test_other_families_are_named_and_refused(copy: Path, name: str | None):
    change_config(copy, model_type=name, architectures=["BertForMaskedLM"])
    text = refused(resolve, str(copy))
    assert f"of type {str(name)!r}; supported: gpt2, sparse_gpt" in text


@pytest.mark.parametrize("architecture", ["GPT2Model", "GPT2DoubleHeadsModel", "GPT2ForSequenceClassification"])
def test_a_gpt2_without_a_language_model_head_is_refused(copy: Path, architecture: str):
    change_config(copy, architectures=[architecture])
    assert f"is a {architecture}, not a GPT2LMHeadModel" in refused(resolve, str(copy))


def test_pickled_weights_are_never_loaded(copy: Path):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"anything")
    text = refused(resolve, str(copy))
    assert "only pickled weights (pytorch_model.bin)" in text
    assert "safetensors" in text


def test_a_folder_without_weights_is_refused(copy: Path):
    (copy / "model.safetensors").unlink()
    assert "has no weights" in refused(inspect_folder, copy)


def test_truncated_weights_are_broken(copy: Path):
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "cannot be loaded" in refused(lambda folder: load_dense(open_model(folder)), str(copy), BrokenArtifact)


def test_weights_of_another_shape_are_refused(copy: Path):
    change_config(copy, n_embd=64, n_inner=None)
    with pytest.raises((UnsupportedModel, BrokenArtifact)) as caught:
        load_dense(open_model(str(copy)))
    assert "\n" not in str(caught.value)


def test_missing_tensors_are_counted(copy: Path):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    text = refused(lambda folder: load_dense(open_model(folder)), str(copy))
    assert "1 tensors missing or misshapen, first transformer.h.1.mlp.c_fc.weight" in text


def test_a_model_without_a_tokenizer_is_refused(copy: Path):
    from extractor.data.tokenizer import load_tokenizer

    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    assert "has no tokenizer.json" in refused(load_tokenizer, copy)
    (copy / "tokenizer.json").write_text("{")
    assert "cannot be read" in refused(load_tokenizer, copy, BrokenArtifact)


def test_gpt2s_older_tokenizer_files_do_too(copy: Path, tokenizer):
    from extractor.data.tokenizer import load_tokenizer

    tokenizer.model.save(str(copy))
    (copy / "tokenizer.json").unlink()
    text = "for item in range(10):\n    print('hello')\n"
    assert load_tokenizer(copy).encode(text).ids == tokenizer.encode(text).ids
    assert load_tokenizer(copy).decode(tokenizer.encode(text).ids) == text


def test_code_beside_a_model_is_never_run(copy: Path):
    (copy / "evil.py").write_text("raise SystemExit('the code ran')")
    change_config(copy, auto_map={"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Config"})
    assert type(load_dense(open_model(str(copy)))).__name__ == "GPT2LMHeadModel"


@pytest.fixture(scope="module")
def hub(gpt2_folder: Path) -> Iterator[LocalHub]:
    files = {path.name: path.read_bytes() for path in gpt2_folder.iterdir()}
    whole = Repository({SHA: files | {"pytorch_model.bin": b"pickled", "run_me.py": b"raise SystemExit", "README.md": b"# tiny"}})
    pickled = Repository({SHA: {"config.json": b"{}", "pytorch_model.bin": b"x"}})
    models = {"some/tiny": whole, "tiny": whole, "some/pickled": pickled, "some/gated": Repository({}, gated=True)}
    with serve(LocalHub(models=models)) as served:
        yield served


ASK = """
import json, sys
from extractor.errors import ExtractorError
from extractor.models import open_model, resolve
found = []
for reference in sys.argv[1:]:
    try:
        found.append(['resolved', resolve(reference)])
    except ExtractorError as error:
        found.append([type(error).__name__, str(error)])
print(json.dumps(found))
"""


def ask(endpoint: str, home: Path, *references: str) -> list[list[str]]:
    found = json.loads(python(ASK, *references, env=hub_environment(endpoint, home)))
    assert all("\n" not in text for _, text in found)
    return found


def test_hub_references_are_pinned_or_refused_in_one_line(hub: LocalHub, tmp_path: Path):
    references = ("some/tiny", "some/tiny@main", f"some/tiny@{SHA}", "tiny", "some/tiny@v9", "some/pickled", "some/nothing", "some/gated")
    found = ask(hub.endpoint, tmp_path, *references)
    assert found[:4] == [["resolved", f"{name}@{SHA}"] for name in ("some/tiny", "some/tiny", "some/tiny", "tiny")]
    assert found[4] == ["ModelNotFound", "hub model 'some/tiny' has no such revision"]
    assert found[5][0] == "UnsupportedModel"
    assert "no safetensors weights" in found[5][1]
    assert found[6][0] == "ModelNotFound"
    assert "'some/nothing' not found: not bundled (python-tiny), no folder, and not on the hub" in found[6][1]
    assert found[7][0] == "ModelNotFound"
    assert "gated" in found[7][1]


def test_an_unreachable_hub_is_one_line(tmp_path: Path):
    ((kind, text),) = ask("http://127.0.0.1:9", tmp_path, "some/tiny")
    assert kind == "ModelNotFound"
    assert "the hub cannot be reached" in text


def test_a_pinned_model_is_downloaded_without_its_pickles_and_code(hub: LocalHub, tmp_path: Path, gpt2_folder: Path):
    hub.fetched.clear()
    out = python(
        "import sys\nfrom extractor.models import open_model\nsource = open_model(sys.argv[1])\nprint(source.model_type, source.path)",
        f"some/tiny@{SHA}",
        env=hub.environment(tmp_path),
    )
    kind, path = out.split()
    assert kind == "gpt2"
    assert SHA in path
    fetched = {file for _, file in hub.fetched}
    assert fetched == {p.name for p in gpt2_folder.iterdir()}
    assert (Path(path) / "model.safetensors").read_bytes() == (gpt2_folder / "model.safetensors").read_bytes()


def test_a_download_that_fails_is_not_found(hub: LocalHub, tmp_path: Path):
    code = (
        "import sys\nfrom extractor.errors import ModelNotFound\nfrom extractor.models import open_model\n"
        "try:\n    open_model(sys.argv[1])\nexcept ModelNotFound as error:\n    print(str(error))"
    )
    assert "not on the hub" in python(code, f"some/nothing@{SHA}", env=hub.environment(tmp_path))
