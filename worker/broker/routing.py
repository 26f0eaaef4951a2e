"""Which queue a job waits in, and which queues a worker empties: by priority, and by the memory that the job needs.

Memory comes in steps, in GB as vendors count it. A job waits at the smallest step that holds it; jobs of the first step go everywhere. A
worker takes from every step that its memory reaches, of each priority those first that fewer workers can take.
"""

from __future__ import annotations

GB = 10**9
STEPS = (8, 16, 24, 40, 48, 80, 141, 288)  # GB; cards have a little more than their name says
PRIORITIES = {"high": "extract.high", "normal": "extract", "low": "extract.low"}  # in the order in which they are emptied


def queue_of(priority: str, memory: int = 0) -> str:
    """The queue of a job. priority: an unknown one is a normal one. memory: bytes that it needs, 0 if that is not known."""
    step = next((step for step in STEPS if memory <= step * GB), STEPS[-1])
    return _name(PRIORITIES.get(priority, PRIORITIES["normal"]), step)


def queues_for(memory: int) -> list[str]:
    """The queues that a worker with so many bytes empties, in that order; 0: all."""
    reached = [step for step in STEPS if not memory or step == STEPS[0] or step * GB <= memory]
    return [_name(base, step) for base in PRIORITIES.values() for step in reversed(reached)]


def all_queues() -> dict[str, list[str]]:
    """Priority -> its queues."""
    return {priority: [_name(base, step) for step in STEPS] for priority, base in PRIORITIES.items()}


def reaches(capacity: int, memory: int) -> bool:
    """Whether a worker with so many bytes takes jobs that need so many."""
    return queue_of("normal", memory) in queues_for(capacity)


def _name(base: str, step: int) -> str:
    return base if step == STEPS[0] else f"{base}.{step}g"
