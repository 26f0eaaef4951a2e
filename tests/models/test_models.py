"""What a reference to a model on this machine means, and what is refused; test_hub.py asks the same of the hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from extractor.errors import BrokenArtifact, ModelNotFound, SpecError, UnsupportedModel
from extractor.models.dense.base import dense_types
from extractor.models.load import load_dense, load_model
from extractor.models.reference import ModelFolder, inspect_folder, open_model, resolve_pair


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


def test_a_tokenizer_file_that_is_a_link_to_another_place_is_refused(gpt2_folder: Path, tmp_path: Path):
    folder = Path(shutil.copytree(gpt2_folder, tmp_path / "model"))
    (tmp_path / "secret.json").write_text('{"auths": "token"}')
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    (folder / "special_tokens_map.json").symlink_to(tmp_path / "secret.json")
    assert "special_tokens_map.json is a link out of this folder; copy the file itself" in refused(
        resolve_pair, str(folder), BrokenArtifact
    )
    blobs = tmp_path / "hub" / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (folder / "special_tokens_map.json").unlink()
    (folder / "tokenizer.json").rename(blobs / "0123")
    (folder / "tokenizer.json").symlink_to(blobs / "0123")
    assert resolve_pair(str(folder))[0] == str(folder), "the hub's cache is made of links"


def test_a_bundled_name_stays_a_name():
    assert resolve_pair("python-tiny") == ("python-tiny", None)
    assert open_model("python-tiny").model_type == "gpt2"
    assert not open_model("python-tiny").is_sparse


def test_a_folder_becomes_absolute(copy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(copy.parent)
    assert resolve_pair("model") == resolve_pair("./model") == (str(copy), None)
    assert open_model(str(copy)).path == copy


def test_a_result_folder_means_the_model_in_it(copy: Path):
    assert resolve_pair(str(copy.parent)) == (str(copy), None)
    assert open_model(str(copy.parent)).path == copy


def test_a_folder_in_the_home_is_found(copy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(copy.parent))
    assert resolve_pair("~/model") == (str(copy), None)


def test_a_sparse_model_is_known_as_one(tmp_path: Path):
    from test_sparse_model import small_model

    small_model().save_pretrained(tmp_path)
    change_config(tmp_path, auto_map={"AutoModelForCausalLM": "modeling_sparse_gpt.SparseGPTForCausalLM"})
    assert open_model(str(tmp_path)).is_sparse
    change_config(tmp_path, attn_implementation="someone/kernels")
    assert "kernels from the hub" in refused(open_model, str(tmp_path))


@pytest.mark.parametrize(
    "reference",
    ["/nowhere/at/all", "./nowhere", "~/nowhere", "~nobody-here/x", "a" * 5000 + "!", "", "a b", "a/b/c", "../no-such-folder", "-rf"],
)
def test_a_reference_that_leads_nowhere_is_not_found(reference: str):
    assert "not found" in refused(resolve_pair, reference, ModelNotFound)


def test_a_bundled_name_cannot_lead_out_of_the_package():
    refused(resolve_pair, "../../extractor/bundled/python-tiny/nothing", ModelNotFound)


def test_a_folder_that_is_gone_when_the_job_runs_is_not_found(tmp_path: Path):
    assert "not on this machine" in refused(open_model, str(tmp_path / "gone"), ModelNotFound)


def test_a_file_is_no_model(copy: Path):
    assert "is a file; name the folder" in refused(resolve_pair, str(copy / "model.safetensors"))


def test_a_folder_without_a_config_is_no_model(tmp_path: Path):
    assert "has no config.json" in refused(resolve_pair, str(tmp_path))


@pytest.mark.parametrize("text", ["{", "", "\xff"])
def test_a_config_that_does_not_parse_is_broken(copy: Path, text: str):
    (copy / "config.json").write_text(text, encoding="latin-1")
    assert "not readable JSON" in refused(resolve_pair, str(copy), BrokenArtifact)


@pytest.mark.parametrize("text", ["[]", "3", '"gpt2"'])
def test_a_config_that_is_no_object_is_broken(copy: Path, text: str):
    (copy / "config.json").write_text(text)
    assert "expected a JSON object" in refused(resolve_pair, str(copy), BrokenArtifact)


@pytest.mark.parametrize("name", ["bert", "t5", "gptj", None])
def test_other_families_are_named_and_refused(copy: Path, name: str | None):
    change_config(copy, model_type=name, architectures=["BertForMaskedLM"])
    text = refused(resolve_pair, str(copy))
    assert f"of type {str(name)!r}: " in text
    assert all(known in text for known in (*dense_types(), "sparse_gpt"))


@pytest.mark.parametrize("architecture", ["GPT2Model", "GPT2DoubleHeadsModel", "GPT2ForSequenceClassification"])
def test_a_gpt2_without_a_language_model_head_is_refused(copy: Path, architecture: str):
    change_config(copy, architectures=[architecture])
    assert f"is a {architecture}: it has no language-model head" in refused(resolve_pair, str(copy))


@pytest.mark.parametrize("architectures", [None, [], ["GPT2LMHeadModel"], ["MyForCausalLM"], "GPT2LMHeadModel"])
def test_a_language_model_head_under_any_name_will_do(copy: Path, architectures: object):
    change_config(copy, architectures=architectures)
    assert resolve_pair(str(copy)) == (str(copy), None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "is quantized (gptq)"),
        ({"quantization_config": True}, "is quantized (unnamed)"),
        ({"attn_implementation": "someone/kernels"}, "kernels from the hub (attn_implementation in config.json)"),
        ({"_attn_implementation": {"": "someone/kernels"}}, "kernels from the hub (_attn_implementation in config.json)"),
        ({"auto_map": {"AutoConfig": "mine.Config"}}, "brings code of its own (auto_map in config.json)"),
    ],
)
def test_what_needs_code_or_kernels_of_its_own_is_refused(copy: Path, changes: dict, said: str):
    change_config(copy, **changes)
    assert said in refused(resolve_pair, str(copy))


@pytest.mark.parametrize(("limit", "fits"), [("", True), ("2e9", True), ("30000", False), ("1e5", True)])
def test_a_model_has_a_limited_number_of_parameters(copy: Path, monkeypatch: pytest.MonkeyPatch, limit: str, fits: bool):
    monkeypatch.setenv("EXTRACT_MAX_PARAMETERS", limit)
    if fits:
        assert resolve_pair(str(copy)) == (str(copy), None)
    else:
        text = refused(resolve_pair, str(copy))
        assert "has about 4" in text
        assert "more than the 30,000 allowed" in text
        assert "set EXTRACT_MAX_PARAMETERS higher" in text
    assert open_model(str(copy)).model_type == "gpt2"


@pytest.mark.parametrize("limit", ["many", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch, limit: str):
    monkeypatch.setenv("EXTRACT_MAX_PARAMETERS", limit)
    assert f"EXTRACT_MAX_PARAMETERS is '{limit}'" in refused(resolve_pair, str(copy), SpecError)


def test_half_precision_counts_two_bytes_a_parameter(copy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EXTRACT_MAX_PARAMETERS", "60000")
    assert resolve_pair(str(copy)) == (str(copy), None)
    change_config(copy, dtype="bfloat16")
    refused(resolve_pair, str(copy))


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "weights.bin", "gone.safetensors"])
def test_an_index_leads_to_files_of_its_folder_only(copy: Path, name: str):
    (copy / "model.safetensors").rename(copy / "model-00001-of-00001.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"transformer.wte.weight": name}}))
    said = "is missing" if name.startswith("gone") else "no safetensors file of its folder"
    assert said in refused(inspect_folder, copy, BrokenArtifact)
    assert said in refused(resolve_pair, str(copy), BrokenArtifact)


def test_a_model_in_several_files_is_loaded_whole(copy: Path):
    whole = load_dense(open_model(str(copy)))
    (copy / "model.safetensors").unlink()
    whole.model.save_pretrained(copy, max_shard_size="50KB")
    assert not (copy / "model.safetensors").exists()
    again = load_dense(open_model(str(copy)))
    assert again.facts["sha256"] != whole.facts["sha256"]
    for name, tensor in whole.model.state_dict().items():
        assert again.model.state_dict()[name].equal(tensor)


def test_a_dense_model_is_frozen_and_known_by_its_files(copy: Path):
    found = load_dense(open_model(str(copy)))
    assert not found.model.training
    assert not any(p.requires_grad for p in found.model.parameters())
    assert found.name == found.facts["model"] == str(copy)
    assert (found.facts["adapter"], found.facts["adapter_sha256"], found.facts["merged"]) == (None, None, False)
    assert load_dense(open_model(str(copy))).facts == found.facts
    change_config(copy, layer_norm_epsilon=1e-3)
    assert load_dense(open_model(str(copy))).facts["sha256"] != found.facts["sha256"]


def test_a_sparse_model_is_not_loaded_as_a_dense_one(tmp_path: Path):
    from test_sparse_model import small_model

    small_model().save_pretrained(tmp_path)
    assert type(load_model(open_model(str(tmp_path)))).__name__ == "SparseGPTForCausalLM"
    assert "is a sparse model" in refused(lambda folder: load_dense(open_model(folder)), str(tmp_path))


def test_pickled_weights_are_never_loaded(copy: Path):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"anything")
    text = refused(resolve_pair, str(copy))
    assert "only pickled weights (pytorch_model.bin)" in text
    assert "safetensors" in text


def test_a_folder_without_weights_is_refused(copy: Path):
    (copy / "model.safetensors").unlink()
    assert "has no weights; save" in refused(inspect_folder, copy)
    (copy / "tf_model.h5").write_bytes(b"")
    assert "has no weights that can be used (tf_model.h5)" in refused(inspect_folder, copy)


def test_a_folder_without_a_fast_tokenizer_is_refused(copy: Path):
    (copy / "tokenizer.json").rename(copy / "tokenizer.model")
    text = refused(resolve_pair, str(copy))
    assert "has no tokenizer.json (found tokenizer.model, tokenizer_config.json)" in text
    assert "a fast tokenizer is needed" in text


def test_truncated_weights_are_broken(copy: Path):
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "cannot be loaded" in refused(lambda folder: load_model(open_model(folder)), str(copy), BrokenArtifact)


def test_weights_of_another_shape_are_refused(copy: Path):
    change_config(copy, n_embd=64, n_inner=None)
    with pytest.raises((UnsupportedModel, BrokenArtifact)) as caught:
        load_model(open_model(str(copy)))
    assert "\n" not in str(caught.value)


def test_missing_tensors_are_counted(copy: Path):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    text = refused(lambda folder: load_model(open_model(folder)), str(copy))
    assert "1 tensors are missing, first transformer.h.1.mlp.c_fc.weight" in text


def test_a_model_without_a_tokenizer_is_refused(copy: Path):
    from extractor.models.tokenizer import load_tokenizer

    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    assert "has no tokenizer.json" in refused(load_tokenizer, copy)
    (copy / "tokenizer.json").write_text("{")
    assert "tokenizer.json is not readable JSON" in refused(load_tokenizer, copy, BrokenArtifact)


def test_gpt2s_older_tokenizer_files_do_too(copy: Path, tokenizer):
    from extractor.models.tokenizer import load_tokenizer

    tokenizer.model.save(str(copy))
    (copy / "tokenizer.json").unlink()
    text = "for item in range(10):\n    print('hello')\n"
    assert load_tokenizer(copy).encode(text).ids == tokenizer.encode(text).ids
    assert load_tokenizer(copy).decode(tokenizer.encode(text).ids) == text


def test_code_beside_a_model_is_never_run(copy: Path):
    (copy / "evil.py").write_text("raise SystemExit('the code ran')")
    change_config(copy, auto_map={"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Config"})
    refused(open_model, str(copy))
    assert type(load_model(ModelFolder(copy, "gpt2"))).__name__ == "GPT2LMHeadModel"
