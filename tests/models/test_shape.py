"""The sizes in a config.json are bounded before anything is computed, downloaded or built from them."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from local_hub import LocalHub, Repository, serve
from safetensors.torch import load_file, save_file
from simulated_hub import SHA, gpt2_files
from transformers.activations import ACT2CLS
from worlds import python, random_gpt2

from extractor.errors import BrokenArtifact, ExtractorError, UnsupportedModel
from extractor.jobs.cost.memory import bytes_needed
from extractor.jobs.request import circuit_job
from extractor.models.checks import ACTIVATIONS
from extractor.models.load import load_model
from extractor.models.reference import inspect_folder, open_model, resolve_pair
from extractor.models.shape import DenseShape, sparse_parameters

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_head": 2, "n_positions": 16, "vocab_size": 9}
LLAMA = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 9}
SPARSE = {"vocab_size": 60, "n_layer": 2, "d_model": 16, "d_head": 8, "d_mlp": 32, "n_ctx": 8, "bigram": "dense"}
ABSURD = [
    {"n_layer": 1_000_000_000},
    {"n_layer": -2},
    {"n_layer": 0},
    {"n_layer": "2"},
    {"n_layer": 2.0},
    {"n_embd": True},
    {"n_embd": 10**9},
    {"n_embd": 10**400},
    {"n_head": 0},
    {"n_head": -4},
    {"n_head": 3},
    {"n_inner": 10**12},
    {"vocab_size": 0},
    {"vocab_size": 10**12},
    {"n_positions": [16]},
    {"n_positions": 10**10},
    {"num_labels": 10**9},
    {"attention_types": [[["global", "local"], 10**9]]},
    {"attention_types": [["global"]]},
]


@pytest.fixture
def copy(gpt2_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(gpt2_folder, tmp_path / "model"))


def change(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("changes", ABSURD, ids=lambda changes: str(changes)[:40])
def test_absurd_sizes_are_refused_with_the_field(changes: dict):
    with pytest.raises(UnsupportedModel) as caught:
        DenseShape.of(GPT2 | changes)
    assert "in its config.json" in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 3},
        {"num_key_value_heads": 0},
        {"head_dim": 0},
        {"head_dim": 10**9},
        {"num_attention_heads": 3},
        {"vocab_size": None},
    ],
)
def test_so_are_those_of_rotary_models(changes: dict):
    with pytest.raises(UnsupportedModel, match=r"in its config\.json"):
        DenseShape.of(LLAMA | {"intermediate_size": 16} | changes)


@pytest.mark.parametrize(
    "changes",
    [{"n_layer": 10**9}, {"d_model": 0}, {"d_head": 3}, {"d_mlp": True}, {"n_ctx": 10**12}, {"d_pos_emb": -1}, {"bigram_top": 10**9}],
)
def test_so_are_those_of_sparse_models(changes: dict):
    with pytest.raises(UnsupportedModel, match=r"in its config\.json"):
        sparse_parameters(SPARSE | changes)


@pytest.mark.parametrize(
    "changes",
    [{}, {"heads": 3, "gated": True, "d_head": 12}, {"bigram": "counts"}, {"bigram": "none", "d_pos_emb": 4}, {"added_positions": True}],
)
def test_a_sparse_model_has_at_least_the_parameters_that_its_config_implies(changes: dict):
    from extractor.sparse import SparseGPTConfig, SparseGPTForCausalLM

    config = SparseGPTConfig(**(SPARSE | changes))
    real = sum(p.numel() for p in SparseGPTForCausalLM(config).parameters())
    assert 0.9 * real < sparse_parameters(config.to_dict()) <= real


@pytest.mark.parametrize("changes", [{"n_layer": 10**9}, {"n_head": 0}, {"vocab_size": 0}, {"n_embd": True}], ids=str)
@pytest.mark.parametrize("call", [resolve_pair, open_model, lambda folder: circuit_job(folder, ("quote_close",), subject="dense")])
def test_a_folder_with_such_a_config_is_refused_at_once_wherever_it_is_named(call, changes: dict, copy: Path):
    change(copy, **changes)
    started = time.monotonic()
    with pytest.raises(UnsupportedModel) as caught:
        call(str(copy))
    assert str(copy) in str(caught.value)
    assert time.monotonic() - started < 2


def test_a_sparse_folder_too(tmp_path: Path):
    from test_sparse_model import small_model

    small_model().save_pretrained(tmp_path)
    change(tmp_path, n_layer=10**9)
    with pytest.raises(UnsupportedModel, match="has n_layer 1000000000"):
        inspect_folder(tmp_path)


def test_of_a_hub_model_nothing_but_the_config_is_read(tmp_path: Path):
    models = {f"lab/odd-{n}": Repository({SHA: gpt2_files(f"{n}", **changes)}) for n, changes in enumerate(ABSURD)}
    script = """
import sys, time
from extractor.errors import UnsupportedModel
from extractor.models.reference import resolve_pair
for name in sys.argv[1].split(','):
    try:
        print(resolve_pair(name))
    except UnsupportedModel as error:
        print('refused', error)
"""
    with serve(LocalHub(models)) as hub:
        lines = python(script, ",".join(models), env=hub.environment(tmp_path)).splitlines()
    assert len(lines) == len(models)
    assert all(line.startswith("refused") for line in lines)
    assert {file for _, file in hub.fetched} == {"config.json"}


def test_the_memory_of_a_job_over_such_a_model_is_unknown_and_ends_nothing(copy: Path, monkeypatch: pytest.MonkeyPatch):
    made = circuit_job(str(copy), ("quote_close",))
    change(copy, n_head=0)
    assert bytes_needed(made) == 0
    monkeypatch.setattr("extractor.jobs.cost.bridging.bridging_cost", lambda *_: 1 / 0)
    assert bytes_needed(made) == 0


def test_a_model_that_its_weights_cannot_fill_is_not_built(copy: Path):
    change(copy, n_embd=65_536)
    started = time.monotonic()
    with pytest.raises(BrokenArtifact, match=r"bytes of weights, its config\.json describes [\d,]+ parameters"):
        open_model(str(copy))
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_of_every_precision_fill_their_model(copy: Path, dtype: torch.dtype):
    model = random_gpt2().to(dtype)
    model.save_pretrained(copy)
    assert open_model(str(copy)).path == copy


# What the weights themselves say


def load(folder: Path):
    return load_model(open_model(str(folder)))


def refused(folder: Path, kind: type[ExtractorError]) -> str:
    with pytest.raises(kind) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["transformer.h.1.mlp.c_fc.weight", "transformer.wte.weight", "transformer.ln_f.bias"])
def test_weights_that_are_no_numbers_are_refused_with_their_tensor(copy: Path, name: str, value: float):
    weights = load_file(copy / "model.safetensors")
    weights[name].view(-1)[3] = value
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    text = refused(copy, BrokenArtifact)
    assert f"in {name} are NaN or infinite" in text
    assert "weights that are no numbers: 1 of" in text


def test_infinities_that_cancel_are_found(copy: Path):
    weights = load_file(copy / "model.safetensors")
    weights["transformer.wpe.weight"].view(-1)[:2] = torch.tensor([torch.inf, -torch.inf])
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert "2 of" in refused(copy, BrokenArtifact)


def test_numbers_beyond_fp32_are_infinite_here(copy: Path):
    weights = {name: tensor.double() for name, tensor in load_file(copy / "model.safetensors").items()}
    weights["transformer.wpe.weight"][0, 0] = 1e300
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert "1 of" in refused(copy, BrokenArtifact)


def test_blocks_that_the_config_does_not_name_are_not_left_out_in_silence(copy: Path):
    change(copy, n_layer=1)
    assert "has weights of more than the 1 layers of its config.json, first transformer.h.1." in refused(copy, UnsupportedModel)


@pytest.mark.parametrize("name", ["transformer.h.1.attn.q_norm.weight", "lm_head.bias", "transformer.wte_scale"])
def test_weights_that_the_config_has_no_place_for_are_not_left_out_in_silence(copy: Path, name: str):
    added(copy, {name: torch.ones(3)})
    assert f"weights that its config.json has no place for, first {name}; 1 in total" in refused(copy, UnsupportedModel)


def test_a_tensor_of_another_shape_than_the_configs_is_named(copy: Path):
    change(copy, n_positions=7)
    assert re.search(
        r"transformer.wpe.weight has shape \(\d+, \d+\) in its weights, \(7, \d+\) by its config.json", refused(copy, UnsupportedModel)
    )


def test_weights_in_whole_numbers_are_refused(copy: Path):
    weights = load_file(copy / "model.safetensors")
    weights["transformer.h.0.mlp.c_fc.weight"] = (100 * weights["transformer.h.0.mlp.c_fc.weight"]).to(torch.int8)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert "weights in whole numbers, first transformer.h.0.mlp.c_fc.weight: it was quantized" in refused(copy, UnsupportedModel)


def test_masks_of_older_releases_and_further_heads_change_nothing(copy: Path, caplog, capsys):
    ids = torch.arange(12).unsqueeze(0)
    before = load(copy)(ids).logits
    masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4), "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    added(copy, masks | {"v_head.\x1b[31mweight": torch.ones(1, 4), "score.weight": torch.ones(2, 4)})
    assert torch.equal(load(copy)(ids).logits, before)
    assert "not used, since a language model has no place for them: 2 tensors (score.weight, v_head." in caplog.text
    assert "\x1b" not in caplog.text + capsys.readouterr().err


def added(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(load_file(folder / "model.safetensors") | tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_an_activation_that_transformers_lacks_is_found_in_the_config(copy: Path):
    assert set(ACTIVATIONS) == set(ACT2CLS), "the list is that of the pinned transformers"
    change(copy, activation_function="gelu_newest")
    with pytest.raises(UnsupportedModel, match="has the activation 'gelu_newest' in config"):
        resolve_pair(str(copy))


@pytest.mark.parametrize("named", ["flash_attention_2", "flash_attention_3", "flex_attention", "paged|sdpa", "sage"])
@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation"])
def test_attention_that_this_machine_may_lack_is_computed_by_torch(copy: Path, field: str, named: str):
    ids = torch.arange(12).unsqueeze(0)
    before = load(copy)(ids).logits
    change(copy, **{field: named})
    model = load(copy)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(ids).logits, before)


def test_eager_attention_stays_eager(copy: Path):
    change(copy, attn_implementation="eager")
    assert load(copy).config._attn_implementation == "eager"


NO_NUMBERS = [
    (GPT2, {"layer_norm_epsilon": float("nan")}),
    (GPT2, {"layer_norm_epsilon": -1.0}),
    (GPT2, {"layer_norm_epsilon": "x"}),
    (LLAMA, {"rms_norm_eps": float("nan")}),
    (LLAMA, {"rms_norm_eps": -1}),
    (LLAMA, {"rope_theta": 0}),
    (LLAMA, {"rope_parameters": {"rope_theta": -5.0, "rope_type": "default"}}),
    (LLAMA, {"rope_parameters": {"rope_theta": float("nan")}}),
    (LLAMA, {"rope_scaling": {"type": "linear", "factor": 0}}),
]


@pytest.mark.parametrize(("config", "changes"), NO_NUMBERS, ids=lambda facts: str(facts)[:40])
def test_a_config_whose_predictions_are_no_numbers_is_refused_with_the_field(config: dict, changes: dict):
    with pytest.raises(UnsupportedModel, match=r"in its config\.json, no number from .* to .*; correct the config"):
        DenseShape.of(config | {"intermediate_size": 16} | changes)
    DenseShape.of(config | {"intermediate_size": 16, "rope_scaling": None, "layer_norm_epsilon": 1e-5})


@pytest.mark.parametrize("name", ["transformer.wte.weight", "transformer.h.0.mlp.c_fc.weight"])
def test_finite_weights_that_predict_no_numbers_are_refused(copy: Path, name: str):
    weights = load_file(copy / "model.safetensors")
    weights[name].fill_(3e38)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert "predicts no numbers, though its weights are finite" in refused(copy, BrokenArtifact)


def test_what_transformers_says_of_a_config_names_the_field_and_the_value(copy: Path):
    change(copy, tie_word_embeddings="yes")
    text = refused(copy, BrokenArtifact)
    assert "tie_word_embeddings" in text
    assert "'yes'" in text
    assert "correct its files" in text


@pytest.mark.parametrize("changes", [{"do_layer_norm_before": False}, {"word_embed_proj_dim": 4}, {"_remove_final_layer_norm": True}])
def test_an_opt_that_norms_after_its_sublayers_is_refused_by_its_config(copy: Path, changes: dict):
    config = {"model_type": "opt", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 8, "vocab_size": 9}
    (copy / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8, "architectures": ["OPTForCausalLM"]} | changes))
    with pytest.raises(UnsupportedModel, match=r"cannot be bridged: its (norms follow|embeddings are projected)"):
        resolve_pair(str(copy))
