"""A pretrained model of 135 million parameters: is the sparse GPT that starts from it exact, what does its own circuit cost, and how near
does a sparse model come in which the layers of one answer are sparse?

EXTRACT_REAL_MODEL names the folder of SmolLM2-135M or of another Llama of 30 layers of 576 channels. Without it a random model of that
shape takes its place, which does no task: the row then says so, and no circuit is sought. About an hour and a half on two cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from extractor.bridges.as_sparse import dense_as_sparse
from extractor.data.programs import programs
from extractor.jobs.answer_layers import measure_layers
from extractor.jobs.request import circuit_job
from extractor.models.load import open_dense
from extractor.models.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from extractor.spec.schema import JobSpec, to_json
from tasks import find_task
from tests.benchmarks.measure import Row

TASK = "quote_close"
MINUTES, BRIDGED_MINUTES = 20, 60
CHANGES = {"standard": "paper", "algorithm": "attribution", "controls": "0", "mean_tokens": "8192"}
CHANGES |= {"select_pairs": "32", "held_out_pairs": "64", "trial_pairs": "16"}
# Few and short sequences of text, and more prompts of tasks than text.
BRIDGE = {"optim.batch": "6", "optim.context": "64", "optim.steps": "600", "focus": "2"}


def rows(threads: int) -> Iterator[Row]:
    torch.set_num_threads(threads)
    given = os.environ.get("EXTRACT_REAL_MODEL")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(given) if given else random_model(Path(place) / "random")
        said = folder.name if given else "a random model of SmolLM2-135M's shape"
        yield Row(f"{said} as a sparse GPT: largest KL of a token, nats", difference(folder), "<= 0.001")
        if given:
            yield from circuit(folder, Path(place) / "out", threads)
            yield from bridged(folder, Path(place) / "bridged", threads)


def random_model(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    LlamaForCausalLM(LlamaConfig(vocab_size=49152, tie_word_embeddings=True, **shape)).save_pretrained(folder)
    save_tokenizer(train_tokenizer(programs(300, 0), 600), folder, 256)
    return folder


@torch.no_grad()
def difference(folder: Path) -> float:
    """The largest KL(dense || sparse) over the tokens of two generated programs, nats."""
    dense = open_dense(str(folder), None)
    sparse, tokenizer = dense_as_sparse(dense), load_tokenizer(folder)
    ids = torch.tensor([tokenizer.encode(text).ids[:64] for text in programs(2, 1)])
    wanted, found = (logits.double().log_softmax(-1) for logits in (dense.model(ids).logits, sparse(input_ids=ids).logits))
    return (wanted.exp() * (wanted - found)).sum(-1).max().item()


def circuit(folder: Path, out: Path, threads: int) -> Iterator[Row]:
    """The dense model's own circuit by the paper's standard, from fewer pairs than usual."""
    changes = {f"prune.{name}": value for name, value in CHANGES.items()}
    job = circuit_job(str(folder), (TASK,), subject="dense", corpus=("stdlib",), changes=changes)
    minutes = run(job, out, threads)
    found = json.loads((out / "circuits" / TASK / "result.json").read_text())
    yield Row(f"{folder.name}, {TASK}, the dense model's own circuit: minutes", minutes, f"<= {MINUTES}")
    yield Row("... its loss on held-out pairs, nats", found["loss"]["circuit"], "<= 0.15")
    yield Row(
        "... its edges, of a million of the model's",
        1e6 * found["circuit"]["edges"] / found["standards"]["paper"]["edges_of_model"],
        "<= 1000",
    )


def bridged(folder: Path, out: Path, threads: int) -> Iterator[Row]:
    """A sparse model in the layers in which the task's answer reaches the last token, all others the dense model's; its circuit."""
    span = measure_layers(str(folder), None, find_task(TASK), 16)["span"]
    changes = {f"prune.{name}": value for name, value in CHANGES.items()} | {f"bridge.{name}": value for name, value in BRIDGE.items()}
    minutes = run(circuit_job(str(folder), (TASK,), layers=span, corpus=("stdlib",), changes=changes), out, threads)
    found = json.loads((out / "circuits" / TASK / "result.json").read_text())
    prompts, faith = found["bridge"]["prompts"], json.loads((out / "model" / "faithfulness.json").read_text())
    yield Row(f"{folder.name}, {TASK}, layers {span} sparse: minutes of the job", minutes, f"<= {BRIDGED_MINUTES}")
    yield Row("... KL from the dense model at the answer, nats", prompts["kl"]["sparse"], "<= 0.05")
    yield Row("... same answer as the dense model", prompts["agreement"], ">= 0.97")
    yield Row("... share of KL explained on the standard library, mean of crossings", faith["explained"]["mean"], ">= 0.8")
    yield Row("... its circuit's loss on held-out pairs, nats", found["loss"]["circuit"], "<= 0.15")
    yield Row("... causal agreement of the circuit's nodes, correlation", found["causal"]["nodes"]["correlation"] or 0.0, ">= 0.7")
    few = found["steering"]["few_of_model"] or {"held_out": None}
    yield Row("... answers that five nodes flip", (few["held_out"] or {"flipped": 0.0})["flipped"], ">= 0.5")


def run(job: JobSpec, out: Path, threads: int) -> float:
    """Run the job in a process of its own; returns minutes."""
    spec = out.with_suffix(".json")
    spec.write_text(to_json(job), encoding="utf-8")
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "extractor", str(spec), "--out", str(out), "--threads", str(threads)], check=True)
    return (time.monotonic() - began) / 60
