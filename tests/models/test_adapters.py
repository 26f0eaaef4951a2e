"""Adapters that bring embeddings, and adapter configs that ask for too much."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_lora import change, merged, refused, write_lora
from worlds import VOCABULARY, random_gpt2

from extractor.errors import BrokenArtifact
from extractor.models.load import load_dense
from extractor.models.reference import open_model, resolve_pair

EMBEDDINGS = "base_model.model.transformer.wte.weight"


def with_embeddings(folder: Path, base: Path, size: int = VOCABULARY) -> None:
    """A LoRA whose training changed the embeddings too, as PEFT saves it."""
    from peft import LoraConfig, get_peft_model

    model = random_gpt2()
    if size != VOCABULARY:
        model.resize_token_embeddings(size)
    tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["c_attn"], fan_in_fan_out=True))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
        tuned.base_model.model.transformer.wte.weight[5] += 1.0
    tuned.save_pretrained(folder, save_embedding_layers=True)
    change(folder, base_model_name_or_path=str(base))


@pytest.mark.parametrize("with_lm_head", [True, False])
def test_embeddings_of_the_models_shape_are_loaded_as_peft_does(gpt2_folder: Path, tmp_path: Path, with_lm_head: bool):
    from peft import PeftModel

    with_embeddings(tmp_path, gpt2_folder)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert EMBEDDINGS in tensors
    if not with_lm_head:
        save_file({k: v for k, v in tensors.items() if "lm_head" not in k}, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    dense = merged(gpt2_folder, tmp_path)
    ids = torch.randint(0, 400, (3, 40), generator=torch.Generator().manual_seed(0))
    beside = PeftModel.from_pretrained(load_dense(open_model(str(gpt2_folder))).model, tmp_path).eval()
    with torch.no_grad():
        assert (dense.model(ids).logits - beside(input_ids=ids).logits).abs().max() < 1e-4
    assert torch.equal(dense.model.transformer.wte.weight, tensors[EMBEDDINGS])
    assert dense.model.lm_head.weight is dense.model.transformer.wte.weight


def test_embeddings_of_another_vocabulary_are_refused_in_one_line(gpt2_folder: Path, tmp_path: Path):
    with_embeddings(tmp_path, gpt2_folder, VOCABULARY + 2)
    text = refused(merged, gpt2_folder, tmp_path)
    assert f"brings embeddings for a vocabulary of {VOCABULARY + 2:,}, the GPT2LMHeadModel has {VOCABULARY:,}; merge the two" in text
    assert "with its tokenizer as the model" in text


def test_embeddings_of_another_width_have_no_place(gpt2_folder: Path, tmp_path: Path):
    with_embeddings(tmp_path, gpt2_folder)
    tensors = load_file(tmp_path / "adapter_model.safetensors") | {EMBEDDINGS: torch.zeros(VOCABULARY, 48)}
    save_file(tensors, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    assert f"{EMBEDDINGS} has shape ({VOCABULARY}, 48), where the model needs ({VOCABULARY}, 32)" in refused(merged, gpt2_folder, tmp_path)


def test_embeddings_that_are_no_numbers_are_refused(gpt2_folder: Path, tmp_path: Path):
    with_embeddings(tmp_path, gpt2_folder)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for name in tensors:
        if name.endswith(("wte.weight", "lm_head.weight")):
            tensors[name][400, 0] = torch.inf
    save_file(tensors, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    text = refused(merged, gpt2_folder, tmp_path, kind=BrokenArtifact)
    assert "wte.weight are NaN or infinite" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"r": 10_000_000}, "has rank 10000000"),
        ({"r": 0}, "has rank 0"),
        ({"r": True}, "has rank True"),
        ({"r": "4"}, "has rank 4"),
        ({"rank_pattern": {"c_attn": 10**9}}, "has rank 1000000000"),
        ({"rank_pattern": ["c_attn"]}, "has no table of modules as rank_pattern"),
        ({"layer_replication": [[0, 10**9]]}, "repeats layers of its base"),
    ],
)
def test_ranks_and_layers_beyond_reason_are_refused_when_the_job_is_made(gpt2_folder: Path, tmp_path: Path, changes: dict, said: str):
    write_lora(tmp_path, str(gpt2_folder))
    change(tmp_path, **changes)
    assert said in refused(resolve_pair, str(tmp_path))
    assert said in refused(resolve_pair, str(gpt2_folder), str(tmp_path))


@pytest.mark.parametrize("changes", [{"r": 4096}, {"rank_pattern": {"c_attn": 4096}}], ids=str)
def test_a_rank_that_the_tensors_do_not_have_is_not_allocated(gpt2_folder: Path, tmp_path: Path, changes: dict):
    write_lora(tmp_path, str(gpt2_folder))
    change(tmp_path, **changes)
    assert "has rank 4,096 in its config, its tensors have 4" in refused(merged, gpt2_folder, tmp_path)


CATASTROPHE = r"(\w+\.?)+!"


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": CATASTROPHE},
        {"exclude_modules": CATASTROPHE},
        {"rank_pattern": {CATASTROPHE: 4}},
        {"alpha_pattern": {CATASTROPHE: 4}},
        {"modules_to_save": [CATASTROPHE]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_pattern_that_takes_for_ever_is_refused(gpt2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict):
    monkeypatch.setattr("extractor.models.lora.SECONDS", 1)
    write_lora(tmp_path, str(gpt2_folder))
    change(tmp_path, **changes)
    started = time.monotonic()
    assert "takes more than 1 s to match; write the modules' names" in refused(merged, gpt2_folder, tmp_path)
    assert time.monotonic() - started < 20


def test_a_pattern_that_is_none_is_refused(gpt2_folder: Path, tmp_path: Path):
    write_lora(tmp_path, str(gpt2_folder))
    change(tmp_path, target_modules="(c_attn")
    assert "is no regular expression" in refused(merged, gpt2_folder, tmp_path)


def test_ordinary_patterns_are_matched(gpt2_folder: Path, tmp_path: Path):
    write_lora(tmp_path, None, target_modules=r".*\.h\.\d+\.attn\.(c_attn|c_proj)", rank_pattern={r"h\.1\.attn\.c_attn": 2})
    assert merged(gpt2_folder, tmp_path).facts["merged"]
