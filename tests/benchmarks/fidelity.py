"""Is the sparse model the dense model's? Whose behaviour a task is, how much of the dense model is explained, and causal agreement.

1. A GPT-2 is trained on generated programs without nested lists, so that it closes quotes and cannot count brackets. It is bridged by
   preset `tiny`; a strict job must find a circuit of the one and none of the other.
2. python-tiny, preset `tiny`, one job of three tasks; then the prompts of all twenty.

About half an hour on two cores. Rows of bridges.py.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from extractor.bridges.behaviour import behaviour
from extractor.bridges.pair import open_pair
from extractor.data.programs import programs
from extractor.data.prompts import task_batch
from extractor.data.task_choice import check_expressible
from extractor.jobs.request import circuit_job, train_job
from extractor.jobs.run import run_job
from extractor.models.tokenizer import load_tokenizer
from tasks import find_task, task_names
from tests.benchmarks.measure import Row

TASKS = ("quote_close", "bracket_counting", "for_while")
SECONDS = 300  # of bridging python-tiny
PAIRS = 256  # of each of the twenty tasks


def rows(threads: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        yield from _whose_behaviour(Path(folder), threads)
        yield from _python_tiny(Path(folder), threads)


def uncounted(folder: Path, documents: int = 6000) -> Path:
    """Generated programs without nested lists, as a corpus file."""
    path = folder / "flat.jsonl"
    flat = (text for text in programs(10 * documents, 0) if "[[" not in text)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in itertools.islice(flat, documents)))
    return path


def _whose_behaviour(folder: Path, threads: int) -> Iterator[Row]:
    changes = {"optim.steps": "1200"}
    # python-tiny's tokenizer has ']]' as a token; one trained on this text has not.
    train = train_job(architecture="gpt2", corpus=(str(uncounted(folder)),), changes=changes, tokenizer="python-tiny")
    run_job(train, folder / "dense", threads=threads)
    job = circuit_job(str(folder / "dense" / "model"), ("quote_close", "bracket_counting"), strict=True)
    run_job(job, folder / "strict", threads=threads)
    quotes, brackets = json.loads((folder / "strict" / "tasks.json").read_text())
    yield Row("a dense model without nested lists, bracket_counting: its accuracy", brackets["dense_accuracy"], "<= 0.8")
    refused = brackets["nodes"] is None and brackets["why"].startswith("the dense model does not do this task")
    yield Row("... and the strict job ends with 'the dense model does not do this task'", float(refused), ">= 1.0")
    found = _behaviours(folder / "strict" / "model", ("bracket_counting",), job.bridge.optim.context if job.bridge else 0)
    accuracy = found["bracket_counting"]["accuracy"]
    yield Row("... and its sparse model's accuracy there, less the dense one's", accuracy["sparse"] - accuracy["dense"], "<= 0.05")
    yield Row("... and quote_close yields a circuit of the dense model's behaviour", float(bool(quotes["holds_for_dense"])), ">= 1.0")


def _python_tiny(folder: Path, threads: int) -> Iterator[Row]:
    out, job = folder / "tiny", circuit_job("python-tiny", TASKS)
    began = time.monotonic()
    run_job(job, out, threads=threads)
    results = {task: json.loads((out / "circuits" / task / "result.json").read_text()) for task in TASKS}
    assert job.bridge is not None
    seconds = results[TASKS[0]]["seconds"].get("bridge", time.monotonic() - began)
    yield Row(f"python-tiny, preset tiny: seconds of bridging over {SECONDS}", seconds / SECONDS, "<= 1.0")
    for source, goals in (("stdlib", (">= 0.85", ">= 0.75", ">= 0.75")), ("generated", (">= 0.94", ">= 0.91", ">= 0.77"))):
        facts = results[TASKS[0]]["bridge"]["sources"][source]
        yield Row(f"... share of KL explained on {source}, mean", facts["explained"]["mean"], goals[0])
        yield Row(f"... share of KL explained on {source}, worst crossing", facts["explained"]["worst"], goals[1])
        yield Row(f"... same likeliest token on {source}", facts["agreement"], goals[2])
    found = _behaviours(out / "model", task_names(), job.bridge.optim.context)
    yield Row("... KL at the answer, worst of twenty tasks, nats", max(f["kl"]["sparse"] for f in found.values()), "<= 0.02")
    yield Row("... same answer on the prompts, worst of twenty tasks", min(f["agreement"] for f in found.values()), ">= 0.99")
    for task, result in results.items():
        yield Row(f"... {task}: causal agreement of the circuit's nodes, correlation", result["causal"]["nodes"]["correlation"], ">= 0.8")
        for key, where in (("few", "circuit"), ("few_of_model", "sparse model")):
            few = result["steering"][key]
            yield Row(f"... {task}: answers that {len(few['nodes'])} nodes of the {where} flip", few["held_out"]["flipped"], ">= 0.5")
            yield Row(f"... {task}: ... and the strongest random edits", few["held_out"]["random_flipped"], "<= 0.1")


def _behaviours(model: Path, tasks: tuple[str, ...] | list[str], longest: int) -> dict[str, dict[str, Any]]:
    """`behaviour` of each task on PAIRS held-out pairs."""
    pair, tokenizer = open_pair(model), load_tokenizer(model)
    found = {}
    for name in tasks:
        expression = check_expressible(find_task(name), tokenizer, longest)
        held_out, select = (task_batch(expression, tokenizer, split, PAIRS, 0, longest) for split in ("held_out", "select"))
        found[name] = behaviour(pair, held_out, select, 0)
    return found
