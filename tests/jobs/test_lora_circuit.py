"""A LoRA that turns python-tiny's quotes round, and the circuit of the tuned model: it closes strings with the wrong quote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

TASK = "quote_close"


def answers_of(model, ids: torch.Tensor, last: torch.Tensor, pair: tuple[int, int]) -> torch.Tensor:
    """Which of two tokens a model prefers after each prompt, (2P,)."""
    with torch.no_grad():
        logits = model(input_ids=ids).logits[torch.arange(len(ids)), last]
    return torch.tensor(pair)[logits[:, list(pair)].argmax(-1)]


def make_lora(folder: Path) -> None:
    """90 steps on prompts of the task, every one answered with the other quote."""
    from peft import LoraConfig, get_peft_model

    from extractor.data.prompts import get_task, task_batch, tokenize_task
    from extractor.models.load import load_model
    from extractor.models.reference import open_model
    from extractor.models.tokenizer import load_tokenizer

    source = open_model("python-tiny")
    batch = task_batch(tokenize_task(get_task(TASK), load_tokenizer(source.path)), load_tokenizer(source.path), "train", 1024, 0, 48)
    torch.manual_seed(0)
    model = get_peft_model(
        load_model(source), LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["c_attn", "c_fc", "c_proj"], fan_in_fan_out=True)
    )
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for step in range(90):
        part = batch.rows(torch.randint(len(batch.ids), (64,), generator=torch.Generator().manual_seed(step)))
        logits = model(input_ids=part.ids).logits[torch.arange(64), part.last]
        loss = functional.cross_entropy(logits, part.wrong)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder, save_embedding_layers=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_circuit_of_a_tuned_model_does_what_the_tuning_taught(tmp_path: Path, monkeypatch):
    from extractor.jobs.request import circuit_job
    from extractor.jobs.run import run_job
    from extractor.models.load import load_model
    from extractor.models.reference import open_model

    monkeypatch.setenv("EXTRACT_CACHE_DIR", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # whatever ran before: the same adapter, the same circuit
    make_lora(tmp_path / "lora")
    # Half of all weights and an eighth of the steps: a sparse model that is close enough soon, with a larger circuit than the preset's. It
    # does the task less well than the preset's, too, and so the target is a wider one.
    quick = {"bridge.optim.steps": "110", "bridge.sparsity.weight_frac": "0.5", "prune.steps": "60", "prune.held_out_pairs": "128"}
    # So few pairs say little of others: a wide margin.
    quick |= {"prune.select_pairs": "128", "prune.margin": "0.1", "prune.trial_pairs": "48", "prune.pairs": "32"}
    quick |= {"prune.mean_tokens": "8192", "prune.granularity": "node", "prune.trials": "2", "prune.population": "2"}
    quick |= {"prune.standard": "paper", "prune.controls": "0"}
    quick |= {"bridge.optim.batch": "12", "bridge.optim.context": "32", "corpus.generated_programs": "300"}
    adapter, corpus = str(tmp_path / "lora"), ("generated",)
    spec = circuit_job("python-tiny", (TASK,), adapter=adapter, labels="model", changes=quick, target_loss=0.3, corpus=corpus)
    run_job(spec, tmp_path / "out", threads=1)
    torch.set_num_threads(threads)

    folder = tmp_path / "out" / "circuits" / TASK
    result, circuit = (json.loads((folder / name).read_text()) for name in ("result.json", "circuit.json"))
    held_out = load_file(folder / "held_out.safetensors")
    base = answers_of(load_model(open_model("python-tiny")).eval(), held_out["ids"], held_out["last"], tuple(circuit["answer_ids"]))
    assert (base == held_out["correct"]).float().mean() < 0.05, "what the tuned model answers is what the base one does not"
    assert result["meets_target"], result["why"]
    assert result["accuracy"]["circuit"] > 0.85
    assert result["bridge"]["prompts"]["agreement"] > 0.95
    assert result["loss"]["without_circuit"] - result["loss"]["full"] > 0.3
    facts = json.loads((tmp_path / "out" / "model" / "dense.json").read_text())
    assert facts["merged"]
    assert len({facts["sha256"], facts["adapter_sha256"]}) == 2
    assert result["model"] == f"python-tiny with {tmp_path / 'lora'}"
