"""A LoRA on a dense model: found beside its base or by itself, refused where it cannot be merged, merged to the same logits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from local_hub import LocalHub, Repository, serve
from safetensors.torch import load_file, save_file
from worlds import python, random_gpt2

from extractor.errors import BrokenArtifact, ExtractorError, ModelNotFound, UnsupportedModel
from extractor.models.load import load_dense
from extractor.models.reference import open_adapter, open_model, resolve_pair
from extractor.spec.schema import parse_job

SHA = "0123456789abcdef0123456789abcdef01234567"
OLD = "89abcdef0123456789abcdef0123456789abcdef"
QKV = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"


def write_lora(folder: Path, base: str | None, model=None, **options: object) -> None:
    """A LoRA with random A and B, as if it had been trained on `base`."""
    from peft import LoraConfig, get_peft_model

    chosen = {"r": 4, "target_modules": ["c_attn", "c_proj"], "task_type": "CAUSAL_LM", "fan_in_fan_out": True} | options
    tuned = get_peft_model(model or random_gpt2(), LoraConfig(**chosen))
    torch.manual_seed(1)
    for name, parameter in tuned.named_parameters():
        if any(part in name for part in ("lora_B", "lora_embedding", "magnitude")):
            torch.nn.init.normal_(parameter, std=0.2)
    tuned.save_pretrained(folder)
    change(folder, base_model_name_or_path=base)


def change(folder: Path, **changes: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture(scope="module")
def trained(gpt2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    write_lora(folder, str(gpt2_folder))
    return folder


@pytest.fixture
def lora(trained: Path, tmp_path: Path) -> Path:
    """A copy of the adapter that a test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "lora"))


def merged(base: Path, adapter: Path):
    return load_dense(open_model(str(base)), open_adapter(str(adapter)))


def refused(call: Callable[..., object], *arguments: object, kind: type[ExtractorError] = UnsupportedModel) -> str:
    with pytest.raises(kind) as caught:
        call(*arguments)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "lora_alpha": 32},
        {"use_dora": True},
        {"bias": "lora_only"},
        {"target_modules": "all-linear"},
        {"target_modules": ["c_attn"], "modules_to_save": ["ln_f"]},
        {"fan_in_fan_out": False},
    ],
    ids=str,
)
def test_merged_it_says_what_it_says_beside_its_base(gpt2_folder: Path, tmp_path: Path, options: dict):
    from peft import PeftModel

    write_lora(tmp_path, None, **options)
    ids = torch.randint(0, 400, (3, 40), generator=torch.Generator().manual_seed(0))
    dense = merged(gpt2_folder, tmp_path)
    base = load_dense(open_model(str(gpt2_folder)))
    names = base.model.state_dict().keys()
    with torch.no_grad():
        alone = base.model(ids).logits
        within = dense.model(ids).logits
        beside = PeftModel.from_pretrained(base.model, tmp_path).eval()(input_ids=ids).logits
    assert (within - beside).abs().max() < 1e-5 * beside.abs().max()
    assert (within - alone).abs().max() > 0.1
    assert type(dense.model).__name__ == "GPT2LMHeadModel"
    assert dense.model.lm_head.weight is dense.model.transformer.wte.weight
    assert not dense.model.training
    assert not any(parameter.requires_grad for parameter in dense.model.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in dense.model.parameters())
    assert dense.model.state_dict().keys() == names


def test_it_is_known_by_both_files(gpt2_folder: Path, lora: Path, tmp_path: Path):
    base = Path(shutil.copytree(gpt2_folder, tmp_path / "base"))
    first = merged(base, lora)
    assert first.name == f"{base} with {lora}"
    assert (first.facts["model"], first.facts["adapter"], first.facts["merged"]) == (str(base), str(lora), True)
    assert merged(base, lora).facts == first.facts
    scaled = {name: 2 * tensor for name, tensor in load_file(lora / "adapter_model.safetensors").items()}
    save_file(scaled, lora / "adapter_model.safetensors", {"format": "pt"})
    second = merged(base, lora).facts
    assert (second["sha256"], second["adapter_sha256"] == first.facts["adapter_sha256"]) == (first.facts["sha256"], False)
    change(lora, lora_alpha=99)
    third = merged(base, lora).facts
    assert len({first.facts["adapter_sha256"], second["adapter_sha256"], third["adapter_sha256"]}) == 3
    random_gpt2(seed=5).save_pretrained(base)
    fourth = merged(base, lora).facts
    assert (fourth["sha256"] == third["sha256"], fourth["adapter_sha256"]) == (False, third["adapter_sha256"])


def test_it_is_found_by_itself_or_beside_a_base(gpt2_folder: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base = str(gpt2_folder)
    assert resolve_pair(base) == (base, None)
    assert resolve_pair(str(lora)) == resolve_pair(base, str(lora)) == (base, str(lora))
    monkeypatch.chdir(tmp_path)
    assert resolve_pair("lora") == resolve_pair(base, "./lora") == (base, str(lora))
    change(lora, base_model_name_or_path="python-tiny")
    assert resolve_pair("lora") == ("python-tiny", str(lora))
    assert resolve_pair(base, "lora") == (base, str(lora))
    (lora / "config.json").write_text((gpt2_folder / "config.json").read_text())
    assert resolve_pair("lora") == ("python-tiny", str(lora))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "is of type IA3; only LORA is supported"),
        ({"peft_type": None}, "is of type None; only LORA"),
        ({"task_type": "SEQ_CLS"}, "is for SEQ_CLS; only CAUSAL_LM is supported"),
        ({"megatron_config": {"x": 1}, "megatron_core": "evil"}, "is for Megatron layers (megatron_config)"),
    ],
)
def test_other_adapters_are_named_and_refused(gpt2_folder: Path, lora: Path, changes: dict, said: str):
    change(lora, **changes)
    assert said in refused(resolve_pair, str(gpt2_folder), str(lora))
    assert said in refused(resolve_pair, str(lora))
    assert said in refused(open_adapter, str(lora))


def test_a_real_ia3_is_refused(gpt2_folder: Path, tmp_path: Path):
    from peft import IA3Config, get_peft_model

    config = IA3Config(target_modules=["c_attn"], feedforward_modules=[], task_type="CAUSAL_LM", fan_in_fan_out=True)
    get_peft_model(random_gpt2(), config).save_pretrained(tmp_path)
    assert "is of type IA3" in refused(resolve_pair, str(gpt2_folder), str(tmp_path))


def test_pickled_missing_and_broken_files_are_refused(gpt2_folder: Path, lora: Path):
    base = str(gpt2_folder)
    (lora / "adapter_model.safetensors").rename(lora / "adapter_model.bin")
    assert "has only pickled weights (adapter_model.bin)" in refused(resolve_pair, base, str(lora))
    assert "has only pickled weights (adapter_model.bin)" in refused(open_adapter, str(lora))
    (lora / "adapter_model.bin").unlink()
    assert "has no weights; save it with safetensors, as adapter_model.safetensors" in refused(resolve_pair, base, str(lora))
    (lora / "adapter_config.json").write_text("[]")
    assert "expected a JSON object" in refused(resolve_pair, base, str(lora), kind=BrokenArtifact)
    (lora / "adapter_config.json").write_text("{")
    assert "is not readable JSON" in refused(resolve_pair, base, str(lora), kind=BrokenArtifact)
    (lora / "adapter_config.json").unlink()
    assert "has no adapter_config.json; found README.md" in refused(resolve_pair, base, str(lora))
    assert "has no config.json; found README.md" in refused(resolve_pair, str(lora))
    assert "not on this machine" in refused(open_adapter, str(lora / "gone"), kind=ModelNotFound)
    assert "not found" in refused(resolve_pair, base, str(lora / "gone"), kind=ModelNotFound)
    assert "is a file" in refused(resolve_pair, base, str(lora / "README.md"))


def test_truncated_weights_are_broken(gpt2_folder: Path, lora: Path):
    content = (lora / "adapter_model.safetensors").read_bytes()
    (lora / "adapter_model.safetensors").write_bytes(content[: len(content) // 2])
    assert "is not a readable safetensors file" in refused(merged, gpt2_folder, lora, kind=BrokenArtifact)


@pytest.mark.parametrize(
    ("change_tensors", "said"),
    [
        (lambda t: t.update({QKV: torch.zeros(4, 48)}), f"{QKV} has shape (4, 48), where the model needs (4, 32)"),
        (lambda t: t.update({QKV: torch.zeros(2, 32)}), f"{QKV} has shape (2, 32), where the model needs (4, 32)"),
        (lambda t: t.pop(QKV), f"{QKV} is missing from adapter_model.safetensors"),
        (lambda t: t.update({QKV.replace("h.0", "h.7"): t[QKV].clone()}), f"{QKV.replace('h.0', 'h.7')} has no place in the model"),
        (lambda t: t.clear(), "holds no tensors"),
        (lambda t: t.update({k: torch.zeros_like(v) for k, v in t.items() if "lora_B" in k}), "changes no weight of the model"),
        (lambda t: t.update({QKV: torch.full((4, 32), float("nan"))}), "c_attn.lora_A.default.weight are NaN"),
    ],
)
def test_tensors_that_do_not_fit_are_named(gpt2_folder: Path, lora: Path, change_tensors: Callable[[dict], object], said: str):
    tensors = load_file(lora / "adapter_model.safetensors")
    change_tensors(tensors)
    save_file(tensors, lora / "adapter_model.safetensors", {"format": "pt"})
    kind = BrokenArtifact if "no tensors" in said or "are NaN" in said else UnsupportedModel
    assert said in refused(merged, gpt2_folder, lora, kind=kind)


def test_an_adapter_of_another_shape_of_model_is_refused(gpt2_folder: Path, tmp_path: Path):
    write_lora(tmp_path / "deep", None, random_gpt2(n_layer=3))
    assert "transformer.h.2.attn.c_attn.lora_A.weight has no place" in refused(merged, gpt2_folder, tmp_path / "deep")
    write_lora(tmp_path / "shallow", None, random_gpt2(n_layer=1))
    assert "transformer.h.1.attn.c_attn.lora_A.weight is missing" in refused(merged, gpt2_folder, tmp_path / "shallow")
    write_lora(tmp_path / "other", None)
    change(tmp_path / "other", target_modules=["q_proj"])
    text = refused(merged, gpt2_folder, tmp_path / "other")
    assert "does not fit the GPT2LMHeadModel, first tensor base_model.model.transformer.h.0.attn.c_attn.lora_A.weight" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_modules": ["wte"]}, "the logits change by"),  # they are tied
        ({"alora_invocation_tokens": [5, 6]}, "aLoRA does not support safe merging"),
    ],
    ids=str,
)
def test_what_would_say_something_else_merged_is_refused(gpt2_folder: Path, tmp_path: Path, options: dict, said: str):
    write_lora(tmp_path, None, **options)
    assert said in refused(merged, gpt2_folder, tmp_path)


def test_bases_that_do_not_serve_are_refused(gpt2_folder: Path, lora: Path, tmp_path: Path):
    from test_sparse_model import small_model

    small_model().save_pretrained(tmp_path / "sparse")
    shutil.copy(gpt2_folder / "tokenizer.json", tmp_path / "sparse")
    assert "is a sparse_gpt; an adapter goes on a dense model" in refused(resolve_pair, str(tmp_path / "sparse"), str(lora))
    assert "is an adapter (adapter_config.json); give its base" in refused(resolve_pair, str(lora), str(lora))
    both = Path(shutil.copytree(gpt2_folder, tmp_path / "both"))
    shutil.copy(lora / "adapter_config.json", both)
    assert "also holds an adapter" in refused(resolve_pair, str(both))
    for base, said in ((None, "names nothing as its base"), ("/gone/far", "names '/gone/far' as its base"), (str(lora), "is an adapter")):
        change(lora, base_model_name_or_path=base)
        text = refused(resolve_pair, str(lora))
        assert said in text
        assert "name a base with --model and this with --adapter" in text


def test_nothing_is_fetched_while_loading(gpt2_folder: Path, lora: Path, tmp_path: Path):
    change(lora, base_model_name_or_path="some/where-else", revision="main")
    code = (
        "import socket, sys\ndef deny(*_): raise SystemExit('the network was used')\n"
        "socket.socket.connect = socket.getaddrinfo = deny\n"
        "from extractor.models.load import load_dense\nfrom extractor.models.reference import open_adapter, open_model\n"
        "print(load_dense(open_model(sys.argv[1]), open_adapter(sys.argv[2])).facts['merged'])"
    )
    assert python(code, str(gpt2_folder), str(lora), env={"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}).split() == ["True"]


SUBMIT = """
import contextlib, io, json, sys
from worker.cli import main
found = []
for line in sys.argv[1:]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(["submit", *line.split(), "--task", "quote_close", "--print-spec"])
        except SystemExit as end:
            found.append([end.code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""
MERGE = """
import sys
from extractor.models.load import load_dense
from extractor.models.reference import open_adapter, open_model
dense = load_dense(open_model(sys.argv[1]), open_adapter(sys.argv[2]))
print(dense.name, dense.facts["merged"], sep=chr(10))
"""


SUBMITTED: dict[str, tuple[str | None, str | None] | int] = {  # options -> what the spec holds, or the exit code
    "--model some/base --adapter some/lora": (f"some/base@{SHA}", f"some/lora@{SHA}"),
    "--model some/lora": (f"some/base@{SHA}", f"some/lora@{SHA}"),
    "--model some/old": (f"some/base@{OLD}", f"some/old@{SHA}"),
    f"--model some/base@{OLD} --adapter some/path": (f"some/base@{OLD}", f"some/path@{SHA}"),
    "--model python-tiny --adapter some/path": ("python-tiny", f"some/path@{SHA}"),
    "--model some/bundled": ("python-tiny", f"some/bundled@{SHA}"),
    "--model some/base": (f"some/base@{SHA}", None),
    "--model some/path": 2,
    "--model some/lost": 3,
    "--model some/base --adapter some/nothing": 3,
    "--model some/base --adapter some/base": 2,
    "--model some/lora --adapter some/old": 2,
}


@pytest.mark.slow
def test_base_and_adapter_on_the_hub_are_pinned_downloaded_and_merged(gpt2_folder: Path, lora: Path, tmp_path: Path):
    base = {path.name: path.read_bytes() for path in gpt2_folder.iterdir()}

    def adapter(**changes: object) -> Repository:
        change(lora, **changes)
        weights = {"training_args.bin": b"pickled", "tokenizer.json": base["tokenizer.json"]}
        return Repository({SHA: {path.name: path.read_bytes() for path in lora.iterdir()} | weights})

    models = {
        "some/base": Repository({OLD: base, SHA: base}),
        "some/lora": adapter(base_model_name_or_path="some/base"),
        "some/old": adapter(base_model_name_or_path="some/base", revision=OLD),
        "some/path": adapter(base_model_name_or_path=str(gpt2_folder), revision=None),
        "some/bundled": adapter(base_model_name_or_path="python-tiny"),
        "some/lost": adapter(base_model_name_or_path="some/nothing"),
    }
    with serve(LocalHub(models=models)) as hub:
        found = json.loads(python(SUBMIT, *SUBMITTED, env=hub.environment(tmp_path / "home")))
        for (line, expected), (code, out, err) in zip(SUBMITTED.items(), found, strict=True):
            if isinstance(expected, tuple):
                assert code == 0, err
                spec = parse_job(out)
                assert (spec.model, spec.adapter) == expected, line
            else:
                assert (code, out, err.count("\n")) == (expected, "", 1), line
        assert {file for _, file in hub.fetched} == {"config.json", "adapter_config.json"}

        hub.fetched.clear()
        out = python(MERGE, f"some/base@{SHA}", f"some/lora@{SHA}", env=hub.environment(tmp_path / "home"))
        assert out.split("\n")[:2] == [f"some/base@{SHA} with some/lora@{SHA}", "True"]
        assert {file for _, file in hub.fetched} == base.keys() | {"adapter_config.json", "adapter_model.safetensors"}
