"""The cost of a bridging as a table, as JSON and as one line."""

from __future__ import annotations

from typing import Any

from extractor.jobs.cost.bridging import BridgingCost, largest_micro_batch
from extractor.jobs.cost.hardware import Speed
from extractor.jobs.cost.units import show_bytes, show_count, show_seconds


def describe(cost: BridgingCost, memory: int | None = None, speed: Speed | None = None) -> list[tuple[str, str]]:
    """Rows (name, value) of a table. memory: available bytes, for the micro-batch that fits; speed: for the time."""
    rows = _micro_batch(cost, memory)
    optim, known = cost.spec.optim, cost.parameters
    sparse = f"{show_count(known['sparse'])}, {show_count(known['sparse_nonzero'])} nonzero after training"
    found = [
        ("dense model", f"{cost.dense.layers} layers of {cost.dense.width}, {cost.dense.vocabulary:,} tokens"),
        ("parameters, dense", show_count(known["dense"])),
        ("parameters, sparse", sparse),
        ("parameters, bigram", f"{show_count(known['bigram'])} ({cost.bigram})"),
        ("parameters, bridges", f"{show_count(known['bridges'])} at {cost.sites} sites"),
        *(() if cost.spec.layers is None else (("sparse layers", _of_layers(cost)),)),
        *((f"memory, {part}", show_bytes(size)) for part, size in cost.memory(rows).items()),
        ("memory total", show_bytes(cost.bytes_needed(rows))),
    ]
    if memory is not None:
        found.append(("memory available", show_bytes(memory)))
    found.append(("micro-batch", f"{rows} of {optim.batch} sequences"))
    found.append(("training", f"{optim.steps:,} steps of {optim.batch * optim.context:,} tokens, {show_count(cost.tokens)} in total"))
    if speed is not None:
        seconds = cost.seconds(speed)
        found.append(("time of the bridging", f"about {show_seconds(seconds * optim.steps)}, {seconds:.2g} s per step"))
    return found


def _of_layers(cost: BridgingCost) -> str:
    return f"{cost.spec.layers}; {show_count(cost.trained)} parameters are trained, passes cross at {cost.crossed} of {cost.sites} sites"


def to_json(cost: BridgingCost, memory: int | None = None, speed: Speed | None = None) -> dict[str, Any]:
    """The same as JSON: bytes, seconds, floating-point operations."""
    rows = _micro_batch(cost, memory)
    return {
        "layers": cost.dense.layers,
        "vocabulary": cost.dense.vocabulary,
        "sites": cost.sites,
        "bigram": cost.bigram,
        "parameters": cost.parameters,
        "micro_batch": rows,
        "memory": cost.memory(rows),
        "memory_needed": cost.bytes_needed(rows),
        "memory_at_hand": memory,
        "flops_a_step": cost.flops,
        "seconds_a_step": None if speed is None else cost.seconds(speed),
        "seconds": None if speed is None else cost.seconds(speed) * cost.spec.optim.steps,
        "steps": cost.spec.optim.steps,
        "tokens": cost.tokens,
    }


def line(cost: BridgingCost, memory: int | None = None, speed: Speed | None = None) -> str:
    """The cost in one line, for the log of a job."""
    rows, known, steps = _micro_batch(cost, memory), cost.parameters, cost.spec.optim.steps
    sizes = f"{show_count(known['sparse'] + known['bigram'])} sparse + {show_count(known['dense'])} dense + {show_count(known['bridges'])}"
    time = "" if speed is None else f", about {show_seconds(cost.seconds(speed) * steps)}"
    part = "" if cost.spec.layers is None else f", sparse in layers {cost.spec.layers}"
    return (
        f"{cost.dense.layers} layers{part}, {cost.dense.vocabulary:,} tokens: {sizes} bridge parameters; "
        f"{show_bytes(cost.bytes_needed(rows))} with micro-batch {rows}{time} for {steps:,} steps"
    )


def _micro_batch(cost: BridgingCost, memory: int | None) -> int:
    """The micro-batch, in sequences, that the training would choose."""
    optim = cost.spec.optim
    return min(optim.micro_batch or optim.batch, optim.batch) if memory is None else max(1, largest_micro_batch(cost, memory))
