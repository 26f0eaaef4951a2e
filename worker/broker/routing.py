"""The queues of jobs and workers, by priority and by the memory that a job needs.

There is one queue per priority and memory step (in GB, as vendors count them). A job waits in the queue of the smallest sufficient step.
A worker reads all queues up to its own memory; within a priority, the largest step first, since fewest workers can take those jobs.
"""

from __future__ import annotations

GB = 10**9
STEPS = (8, 16, 24, 40, 48, 80, 141, 288)  # GB; cards have slightly more than their nominal size
PRIORITIES = {"high": "extract.high", "normal": "extract", "low": "extract.low"}  # in the order in which workers read them


def queue_of(priority: str, memory: int = 0) -> str:
    """The queue of a job. priority: an unknown one counts as normal. memory: bytes that the job needs, 0 if unknown."""
    step = next((step for step in STEPS if memory <= step * GB), STEPS[-1])
    return _name(PRIORITIES.get(priority, PRIORITIES["normal"]), step)


def queues_for(memory: int) -> list[str]:
    """The queues that a worker with `memory` bytes reads, in this order; 0: all queues."""
    reached = [step for step in STEPS if not memory or step == STEPS[0] or step * GB <= memory]
    return [_name(base, step) for base in PRIORITIES.values() for step in reversed(reached)]


def all_queues() -> dict[str, list[str]]:
    """Priority -> its queues."""
    return {priority: [_name(base, step) for step in STEPS] for priority, base in PRIORITIES.items()}


def reaches(capacity: int, memory: int) -> bool:
    """Whether a worker with `capacity` bytes takes a job that needs `memory` bytes."""
    return queue_of("normal", memory) in queues_for(capacity)


def _name(base: str, step: int) -> str:
    return base if step == STEPS[0] else f"{base}.{step}g"
