"""A pretrained model of 135 million parameters: is the sparse GPT that starts from it exact, and what does its own circuit cost?

EXTRACT_REAL_MODEL names the folder of SmolLM2-135M or of another Llama of 30 layers of 576 channels. Without it a random model of that
shape takes its place, which does no task: the row then says so, and no circuit is sought. About half an hour on two cores.
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
from extractor.jobs.request import circuit_job
from extractor.models.load import open_dense
from extractor.models.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from extractor.spec.schema import to_json
from tests.benchmarks.measure import Row

TASK = "quote_close"
MINUTES = 20
CHANGES = {"standard": "paper", "algorithm": "attribution", "controls": "0", "mean_tokens": "8192"}
CHANGES |= {"select_pairs": "32", "held_out_pairs": "64", "trial_pairs": "16"}


def rows(threads: int) -> Iterator[Row]:
    torch.set_num_threads(threads)
    given = os.environ.get("EXTRACT_REAL_MODEL")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(given) if given else random_model(Path(place) / "random")
        said = folder.name if given else "a random model of SmolLM2-135M's shape"
        yield Row(f"{said} as a sparse GPT: largest KL of a token, nats", difference(folder), "<= 0.001")
        if given:
            yield from circuit(folder, Path(place) / "out", threads)


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
    spec = out.parent / "spec.json"
    spec.write_text(to_json(job), encoding="utf-8")
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "extractor", str(spec), "--out", str(out), "--threads", str(threads)], check=True)
    minutes = (time.monotonic() - began) / 60
    found = json.loads((out / "circuits" / TASK / "result.json").read_text())
    yield Row(f"{folder.name}, {TASK}, the dense model's own circuit: minutes", minutes, f"<= {MINUTES}")
    yield Row("... its loss on held-out pairs, nats", found["loss"]["circuit"], "<= 0.15")
    yield Row(
        "... its edges, of a million of the model's",
        1e6 * found["circuit"]["edges"] / found["standards"]["paper"]["edges_of_model"],
        "<= 1000",
    )
