"""A whole circuit job beside a small random model of every family: bridging from its weights, pruning, validation, report."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from worlds import VOCABULARY

import extractor
from extractor.jobs.run import run_job
from extractor.spec.schema import BridgeSpec, CorpusSpec, JobSpec, OptimSpec, PruneSpec, SparseModelSpec, SparsitySpec

TASK = "for_while"
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "initializer_range": 0.3}
SIZES |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "max_position_embeddings": 64}
GROUPED = SIZES | {"intermediate_size": 48, "num_key_value_heads": 2}
CONFIGS: dict[str, PreTrainedConfig] = {
    "gemma2": Gemma2Config(**GROUPED, head_dim=8),
    "gpt_neox": GPTNeoXConfig(**SIZES, intermediate_size=48),
    "llama": LlamaConfig(**GROUPED),
    "mistral": MistralConfig(**GROUPED, sliding_window=None),
    "opt": OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32),
    "phi": PhiConfig(**GROUPED, rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=16),
}
BRIDGE = BridgeSpec(
    init="dense",
    model=SparseModelSpec(d_model=32, d_head=8, n_ctx=16, activation_frac=0.5),
    sparsity=SparsitySpec(weight_frac=0.5, embedding_frac=0.5, bias_frac=0.5),
    optim=OptimSpec(steps=3, batch=8, context=16, lr=1e-3, eps=0.01),
)
PRUNE = PruneSpec(
    algorithm="attribution",
    targets=(),
    pairs=16,
    select_pairs=16,
    trial_pairs=16,
    held_out_pairs=32,
    necessity=0.0,
    mean_tokens=512,
    controls=0,
)


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> CorpusSpec:
    path = tmp_path_factory.mktemp("loops") / "loops.jsonl"
    path.write_text("".join(json.dumps({"text": f"for item in {'abcdefgh'[i % 8]}:\n    pass\nwhile True:\n"}) + "\n" for i in range(400)))
    return CorpusSpec(sources=(str(path),))


def saved(folder: Path, name: str, tokenizer_of: Path) -> Path:
    """The model of that family with random weights, with the tokenizer of another one."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[name]).save_pretrained(folder / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer_of / file, folder / name / file)
    return folder / name


def finished(out: Path) -> dict:
    """The numbers of a result whose every part is there."""
    numbers = json.loads((out / "circuits" / TASK / "result.json").read_text())
    assert (out / "manifest.json").is_file()
    assert (out / "circuits" / TASK / "report.html").is_file()
    assert all(math.isfinite(loss) for loss in numbers["loss"].values())
    result = extractor.load(out, TASK)
    assert result.run("for item in").answer in result.circuit.answers
    return numbers


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_of_every_family_is_bridged_and_pruned(name: str, loops: CorpusSpec, gpt2_folder: Path, tmp_path: Path):
    model = saved(tmp_path, name, gpt2_folder)
    init = "scratch" if name == "gemma2" else "dense"
    bridge = BRIDGE.model_copy(update={"init": init})
    spec = JobSpec(kind="circuit", model=str(model), tasks=(TASK,), target_loss=0.69, corpus=loops, bridge=bridge, prune=PRUNE)
    run_job(spec, tmp_path / "out", threads=1)
    finished(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert config["parallel"] is (name in ("gpt_neox", "phi"))
    gated, turns = name in ("llama", "mistral", "qwen2", "qwen3"), name not in ("gemma2", "opt")
    assert (config["gated"], config["rotary"] is not None, config["query_key_norm"]) == (gated, turns, name == "qwen3")


@pytest.mark.parametrize("name", ["llama"])
def test_such_a_model_is_pruned_itself(name: str, loops: CorpusSpec, gpt2_folder: Path, tmp_path: Path):
    model = saved(tmp_path, name, gpt2_folder)
    facts = {"model": str(model), "subject": "dense", "tasks": (TASK,), "corpus": loops, "bridge": BRIDGE, "prune": PRUNE}
    spec = JobSpec(kind="circuit", target_loss=0.69, **facts)
    run_job(spec, tmp_path / "out", threads=1)
    finished(tmp_path / "out")


def test_a_job_whose_first_layers_stay_dense(loops: CorpusSpec, gpt2_folder: Path, tmp_path: Path):
    """Nodes, numbers, page and Python know of layers that stay as they are: no passes cross there."""
    config = LlamaConfig(**(GROUPED | {"num_hidden_layers": 3}))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "llama")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(gpt2_folder / file, tmp_path / "llama" / file)
    bridge = BRIDGE.model_copy(update={"layers": "1-1"})
    facts = {"model": str(tmp_path / "llama"), "tasks": (TASK,), "corpus": loops, "bridge": bridge, "prune": PRUNE}
    run_job(JobSpec(kind="circuit", target_loss=0.69, **facts), tmp_path / "out", threads=1)
    numbers = finished(tmp_path / "out")
    measured = [False, False, True, True, True, False, False]
    found = json.loads((tmp_path / "out" / "model" / "faithfulness.json").read_text())
    assert [value is not None for value in found["path_kl"]["to_dense"]] == measured
    assert [value is not None for value in numbers["bridge"]["prompts"]["kl"]["to_sparse"]] == measured
    assert [value is not None for value in numbers["bridge"]["circuit"]["loss"]] == measured
    page = (tmp_path / "out" / "circuits" / TASK / "report.html").read_text()
    assert "layer 1, before the MLP" in page
    assert 'class="number">None' not in page
    assert json.loads((tmp_path / "out" / "model" / "config.json").read_text())["sparse_layers"] == [1, 1]
