"""Whether a bridging starts from the dense model's weights is decided by config.json: when a job is made, in a dry run, in a batch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from worlds import VOCABULARY

from extractor.errors import SpecError, UnsupportedModel
from extractor.jobs.bridge_choice import BridgeChoice
from extractor.jobs.cost.bridging import bridging_cost, longest_prompt
from extractor.jobs.cost.memory import bytes_needed
from extractor.jobs.request import circuit_job
from extractor.models.dense.base import wrap_dense
from extractor.models.dense.start import obstacle
from extractor.spec.presets import bridge_spec
from extractor.spec.schema import BridgeSpec
from worker.batches.batch import Batch, Child
from worker.batches.request import BatchRequest, plan
from worker.cli import main

GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
NEO = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 512}
LLAMA = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}
MIXED = [[["global", "local"], 1]]
REASONS = {
    "dynamic": "its rotary positions depend on the length of the text (rope_type 'dynamic')",
    "capped": "its logits have a soft cap (final_logit_softcapping, attn_logit_softcapping)",
    "relu": "has the activation 'relu'",
    "scaled": "does not divide scores by the root",
    "crossed": "its blocks have cross-attention",
    "window": "its local attention sees 16 tokens, fewer than the 128",
}


def in_context(positions: int) -> BridgeSpec:
    """The preset's settings beside a model of so many positions."""
    spec = bridge_spec("tiny")
    optim = {"context": positions, "batch": spec.optim.batch * spec.optim.context // positions}
    return spec.model_copy(update={"optim": spec.optim.model_copy(update=optim)})


def saved(folder: Path, name: str, tokenizer_of: Path) -> Path:
    """The model of that name with random weights, in a folder."""
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        GPT2Config,
        GPT2LMHeadModel,
        GPTNeoConfig,
        GPTNeoForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
    )

    torch.manual_seed(0)
    model = {
        "plain": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
        "dynamic": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, rope_parameters=DYNAMIC)),
        "capped": lambda: Gemma2ForCausalLM(Gemma2Config(**LLAMA, head_dim=8, num_key_value_heads=2)),
        "relu": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, activation_function="relu")),
        "scaled": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True)),
        "crossed": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, add_cross_attention=True)),
        "wide": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, n_inner=640)),
        "window": lambda: GPTNeoForCausalLM(GPTNeoConfig(**NEO, window_size=16, attention_types=MIXED)),
        "tinystories": lambda: GPTNeoForCausalLM(GPTNeoConfig(**NEO, window_size=256, attention_types=MIXED)),
        "short": lambda: GPT2LMHeadModel(GPT2Config(**(GPT2 | {"n_positions": 32}))),
    }[name]()
    model.save_pretrained(folder / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer_of / file, folder / name / file)
    return folder / name


@pytest.mark.parametrize("name", REASONS)
def test_without_init_such_a_model_is_bridged_from_scratch_and_that_is_said(name: str, tmp_path: Path, gpt2_folder: Path):
    model, notes = saved(tmp_path, name, gpt2_folder), []
    made = circuit_job(str(model), ("quote_close",), tell=notes.append)
    assert made.bridge == bridge_spec("tiny", "scratch")
    assert len(notes) == 1
    assert REASONS[name] in notes[0]
    assert bytes_needed(made) > 0
    with pytest.raises(SpecError) as caught:
        circuit_job(str(model), ("quote_close",), init="dense")
    assert REASONS[name] in str(caught.value)
    assert str(caught.value).endswith("use --init scratch")


@pytest.mark.parametrize("name", ["plain", "tinystories", "llama", "wide"])
def test_a_window_that_is_not_shorter_than_the_context_is_plain_attention(name: str, tmp_path: Path, gpt2_folder: Path):
    model, notes = saved(tmp_path, name, gpt2_folder), []
    assert circuit_job(str(model), ("quote_close",), tell=notes.append).bridge == bridge_spec("tiny")
    assert notes == []


def test_the_weights_of_a_window_are_those_within_the_context(tmp_path: Path, gpt2_folder: Path):
    from extractor.models.load import load_model
    from extractor.models.reference import open_model

    dense = wrap_dense(load_model(open_model(str(saved(tmp_path, "tinystories", gpt2_folder)))))
    assert dense.weights(256) is not None
    assert dense.weights(257) is None
    assert dense.weights() is None


def test_the_users_changes_are_kept_whatever_the_start(tmp_path: Path, gpt2_folder: Path):
    changes = {"bridge.optim.steps": "7", "bridge.optim.lr": "0.004"}
    made = circuit_job(str(saved(tmp_path, "dynamic", gpt2_folder)), ("quote_close",), changes=changes)
    assert made.bridge is not None
    assert (made.bridge.init, made.bridge.optim.steps, made.bridge.optim.lr) == ("scratch", 7, 0.004)
    assert made.bridge.sparsity == bridge_spec("tiny", "scratch").sparsity


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bridge.model.d_pos_emb": "8"}, "exclude position channels"),
        ({"bridge.model.mlp_ratio": "1", "bridge.model.d_model": "32"}, "bridge.model.mlp_ratio=4 would do"),
        ({"bridge.optim.context": "4000"}, "has positions for 128; --set bridge.optim.context=128"),
    ],
)
def test_what_the_changes_make_impossible_is_refused_too(changes: dict[str, str], said: str, tmp_path: Path, gpt2_folder: Path):
    with pytest.raises(SpecError) as caught:
        circuit_job(str(saved(tmp_path, "plain", gpt2_folder)), ("quote_close",), init="dense", changes=changes)
    assert said in str(caught.value)


def test_a_window_is_no_shorter_than_what_the_sparse_model_reads_later():
    """The bridging reads 16 tokens, the means and prompts of the sparse model 64."""
    config = {"model_type": "mistral", **LLAMA, "num_key_value_heads": 2, "sliding_window": 48}
    spec = bridge_spec("tiny")
    spec = spec.model_copy(update={"optim": spec.optim.model_copy(update={"context": 16})})
    with pytest.raises(SpecError, match="its local attention sees 48 tokens, fewer than the 64 that are read at once"):
        bridging_cost(config, spec)


def test_a_sparse_model_has_whole_heads_of_the_dense_models_width():
    """96 channels in 4 heads of 24: the preset's 128 channels would not be whole heads."""
    config = {"model_type": "gpt2", "n_embd": 96, "n_head": 4, "n_layer": 1, "n_positions": 128, "vocab_size": 50}
    shape = bridging_cost(config, bridge_spec("tiny")).spec.model
    assert (shape.d_head, shape.d_model) == (24, 144)


@pytest.mark.parametrize(
    ("config", "neurons", "heads"),
    [
        ({"model_type": "gpt2", "n_embd": 128, "n_head": 4, "n_layer": 1, "n_positions": 128, "n_inner": 640}, 640, None),
        ({"model_type": "llama", **LLAMA, "num_key_value_heads": 2}, 256, None),
        ({"model_type": "qwen3", **LLAMA, "head_dim": 16, "num_key_value_heads": 2}, 256, 8),
    ],
)
def test_a_sparse_model_has_the_dense_models_kind_of_mlp_and_heads(config: dict, neurons: int, heads: int | None):
    """A Llama of width 32 beside the preset's 128 channels: four times its 64 neurons, and heads that are not the width over d_head."""
    shape = bridging_cost({"vocab_size": 50} | config, bridge_spec("tiny")).spec.model
    assert (shape.d_mlp, shape.heads, shape.gated) == (neurons, heads, config["model_type"] != "gpt2")


@pytest.mark.parametrize("name", ["dynamic", "capped", "relu", "scaled", "window", "tinystories"])
def test_a_dense_model_that_cannot_be_pruned_as_it_is_is_refused_at_once(name: str, tmp_path: Path, gpt2_folder: Path):
    with pytest.raises(UnsupportedModel, match=r"cannot be pruned as it is: .*\(no --dense\)"):
        circuit_job(str(saved(tmp_path, name, gpt2_folder)), ("quote_close",), subject="dense")


def test_prompts_of_a_dense_model_that_is_pruned_itself_are_as_long_as_its_positions(tmp_path: Path, gpt2_folder: Path):
    config = json.loads((saved(tmp_path, "short", gpt2_folder) / "config.json").read_text())
    assert longest_prompt(config, bridge_spec("tiny"), prunes_dense=True) == 32
    made = circuit_job(str(tmp_path / "short"), ("quote_close",), subject="dense")
    assert made.bridge == bridge_spec("tiny")


@pytest.mark.parametrize(
    ("config", "context", "free"),
    [
        ({"model_type": "gpt_neo"}, 256, True),  # transformers' defaults: every other layer has a window of 256
        ({"model_type": "gpt_neo"}, 257, False),
        ({"model_type": "gpt_neo", "attention_types": [[["global"], 2]], "window_size": 4}, 4000, True),
        ({"model_type": "gpt_neo", "attention_layers": ["global", "local"], "window_size": 4}, 5, False),
        ({"model_type": "gpt_neo", "window_size": "many"}, 5, False),
        ({"model_type": "gpt2"}, 4000, True),
        ({"model_type": "gpt2", "scale_attn_weights": False}, 5, False),
        ({"model_type": "gpt2", "activation_function": ["gelu"]}, 5, False),
        ({"model_type": "llama"}, 4000, True),
        ({"model_type": "llama", "hidden_act": "tanh"}, 5, False),
        ({"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}}, 5, True),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "longrope"}}, 5, False),
        ({"model_type": "mistral", "sliding_window": 16}, 16, True),
        ({"model_type": "mistral", "sliding_window": 16}, 17, False),
        ({"model_type": "qwen2", "sliding_window": 4, "use_sliding_window": False}, 5, True),
        ({"model_type": "qwen3", "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]}, 5, False),
        ({"model_type": "opt", "hidden_size": 8, "word_embed_proj_dim": 4}, 5, False),
        ({"model_type": "opt", "do_layer_norm_before": False}, 5, False),
        ({"model_type": "gemma2", "final_logit_softcapping": None, "attn_logit_softcapping": None}, 5, False),
        ({"model_type": "gpt_neox"}, 4000, True),
        ({}, 5, False),
    ],
)
def test_the_config_alone_tells_what_stands_in_the_way(config: dict, context: int, free: bool):
    assert (obstacle(config, context) is None) is free


@pytest.mark.parametrize("init", [(), ("--init", "dense")])
def test_a_dry_run_tells_it_as_well(init: tuple[str, ...], tmp_path: Path, gpt2_folder: Path, capsys, monkeypatch):
    monkeypatch.setenv("EXTRACT_STATE_DIR", str(tmp_path / "state"))
    model = saved(tmp_path, "dynamic", gpt2_folder)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["submit", "--model", str(model), "--task", "quote_close", "--dry-run", *init])
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert REASONS["dynamic"] in err
    assert (end.value.code, "memory total" in out) == ((2, False) if init else (0, True))


def test_a_dry_run_of_a_dense_model_that_is_pruned_itself_shows_no_bridging(tmp_path: Path, gpt2_folder: Path, capsys, monkeypatch):
    monkeypatch.setenv("EXTRACT_STATE_DIR", str(tmp_path / "state"))
    with pytest.raises(SystemExit) as end:
        main(["submit", "--model", str(saved(tmp_path, "short", gpt2_folder)), "--task", "quote_close", "--dense", "--dry-run"])
    out = capsys.readouterr().out
    assert (end.value.code, "the dense model itself is pruned" in out, "memory total" in out) == (0, True, False)


def test_a_batch_takes_the_start_that_suits_each_model(tmp_path: Path, gpt2_folder: Path):
    folder = tmp_path / "models"
    for name in ("dynamic", "plain", "short"):
        saved(folder, name, gpt2_folder)
    found = plan(BatchRequest((str(folder),), ("quote_close",)), lambda _: None)
    taken = {Path(model.asked).name: model for model in found.selection.taken}
    assert set(taken) == {"dynamic", "plain", "short"}
    assert REASONS["dynamic"] in taken["dynamic"].from_scratch
    assert taken["plain"].from_scratch == ""
    again = Batch.from_json(found.id, found.to_json())
    for batch in (found, again):
        specs = {Path(child.model.asked).name: batch.spec(child).bridge for child in batch.children}
        assert specs == {"dynamic": bridge_spec("tiny", "scratch"), "plain": bridge_spec("tiny"), "short": in_context(32)}


def test_a_model_with_few_positions_is_read_in_more_and_shorter_contexts(tmp_path: Path, gpt2_folder: Path):
    model, spec = str(saved(tmp_path, "short", gpt2_folder)), in_context(32)
    assert spec.optim.batch * spec.optim.context == bridge_spec("tiny").optim.batch * bridge_spec("tiny").optim.context
    assert circuit_job(model, ("quote_close",)).bridge == spec
    few = circuit_job(model, ("quote_close",), changes={"bridge.optim.batch": "4"}).bridge
    assert few is not None
    assert (few.optim.batch, few.optim.context) == (4, 32)
    with pytest.raises(SpecError, match=r"has positions for 32; --set bridge\.optim\.context=32"):
        circuit_job(model, ("quote_close",), changes={"bridge.optim.context": "64"})


def test_a_chosen_context_is_kept_in_a_batch(tmp_path: Path, gpt2_folder: Path):
    saved(tmp_path / "models", "short", gpt2_folder)
    request = BatchRequest((str(tmp_path / "models"),), ("quote_close",), changes=("bridge.optim.context=64",))
    (refused,) = plan(request, lambda _: None).selection.refused
    assert "has positions for 32; --set bridge.optim.context=32" in refused.reason


def test_where_init_was_given_a_batch_refuses_the_models_that_it_does_not_suit(tmp_path: Path, gpt2_folder: Path):
    saved(tmp_path / "models", "dynamic", gpt2_folder)
    found = plan(BatchRequest((str(tmp_path / "models"),), ("quote_close",), init="dense"), lambda _: None)
    assert found.selection.taken == ()
    assert REASONS["dynamic"] in found.selection.refused[0].reason


def test_the_plan_of_an_earlier_release_is_read(tmp_path: Path, gpt2_folder: Path):
    saved(tmp_path / "models", "plain", gpt2_folder)
    found = plan(BatchRequest((str(tmp_path / "models"),), ("quote_close",)), lambda _: None)
    earlier = json.loads(found.to_json())
    del earlier["otherwise"]
    assert "from_scratch" not in earlier["selection"]["taken"][0]
    read = Batch.from_json(found.id, json.dumps(earlier))
    (child,) = read.children
    assert isinstance(child, Child)
    assert read.spec(child) == found.spec(child)


def test_presets_that_start_from_scratch_have_no_other_choice():
    assert BridgeChoice.of("small", None, {}).otherwise is None
    assert BridgeChoice.of("tiny", "dense", {}).otherwise is None
