"""A bridging's plan in words and as JSON; see `preflight`."""

from __future__ import annotations

from typing import Any

from extractor.jobs.cost.bridging import BridgingCost, largest_micro_batch
from extractor.jobs.cost.hardware import Speed
from extractor.jobs.cost.units import show_bytes, show_count, show_seconds


def describe(plan: BridgingCost, memory: int | None = None, speed: Speed | None = None) -> list[tuple[str, str]]:
    """Rows (name, value) for a table; with `memory` (bytes at hand) also what fits into it, with `speed` also the time."""
    rows = _pass_of(plan, memory)
    optim, known = plan.spec.optim, plan.parameters
    sparse = f"{show_count(known['sparse'])}, {show_count(known['sparse_nonzero'])} nonzero at the end"
    found = [
        ("dense model", f"{plan.dense.layers} layers of {plan.dense.width}, {plan.dense.vocabulary:,} tokens"),
        ("parameters, dense", show_count(known["dense"])),
        ("parameters, sparse", sparse),
        ("parameters, bigram", f"{show_count(known['bigram'])} ({plan.bigram})"),
        ("parameters, bridges", f"{show_count(known['bridges'])} at {plan.sites} sites"),
        *((f"memory, {part}", show_bytes(size)) for part, size in plan.memory(rows).items()),
        ("memory in all", show_bytes(plan.needed(rows))),
    ]
    if memory is not None:
        found.append(("memory at hand", show_bytes(memory)))
    found.append(("sequences a pass", f"{rows} of {optim.batch}"))
    found.append(("training", f"{optim.steps:,} steps of {optim.batch * optim.context:,} tokens, {show_count(plan.tokens)} in all"))
    if speed is not None:
        seconds = plan.seconds(speed)
        found.append(("time", f"about {show_seconds(seconds * optim.steps)}, {seconds:.2g} s a step"))
    return found


def to_json(plan: BridgingCost, memory: int | None = None, speed: Speed | None = None) -> dict[str, Any]:
    """The same as numbers: bytes, seconds, floating-point operations."""
    rows = _pass_of(plan, memory)
    return {
        "layers": plan.dense.layers,
        "vocabulary": plan.dense.vocabulary,
        "sites": plan.sites,
        "bigram": plan.bigram,
        "parameters": plan.parameters,
        "micro_batch": rows,
        "memory": plan.memory(rows),
        "memory_needed": plan.needed(rows),
        "memory_at_hand": memory,
        "flops_a_step": plan.flops,
        "seconds_a_step": None if speed is None else plan.seconds(speed),
        "seconds": None if speed is None else plan.seconds(speed) * plan.spec.optim.steps,
        "steps": plan.spec.optim.steps,
        "tokens": plan.tokens,
    }


def line(plan: BridgingCost, memory: int | None = None, speed: Speed | None = None) -> str:
    """One line for a job's notes."""
    rows, known, steps = _pass_of(plan, memory), plan.parameters, plan.spec.optim.steps
    sizes = f"{show_count(known['sparse'] + known['bigram'])} sparse + {show_count(known['dense'])} dense + {show_count(known['bridges'])}"
    time = "" if speed is None else f", about {show_seconds(plan.seconds(speed) * steps)}"
    return (
        f"{plan.dense.layers} layers, {plan.dense.vocabulary:,} tokens: {sizes} bridge parameters; "
        f"{show_bytes(plan.needed(rows))} with {rows} sequence{'s' * (rows > 1)} a pass{time} for {steps:,} steps"
    )


def _pass_of(plan: BridgingCost, memory: int | None) -> int:
    """Sequences a pass, as the training would choose them."""
    optim = plan.spec.optim
    return min(optim.micro_batch or optim.batch, optim.batch) if memory is None else max(1, largest_micro_batch(plan, memory))
