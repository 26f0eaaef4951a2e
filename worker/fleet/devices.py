"""The device of a worker's engine and its memory in use, from `nvidia-smi`, without loading torch.

A worker uses the GPUs in CUDA_VISIBLE_DEVICES, or all GPUs if it is not set. Without `nvidia-smi` or GPUs it uses the CPU.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

from extractor.jobs.cost.hardware import available_ram

_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,memory.used", "--format=csv,noheader,nounits")
_MEBIBYTE = 2**20
_TIMEOUT = 10.0  # seconds; a GPU that fell off the bus makes nvidia-smi hang


@dataclass(frozen=True)
class Device:
    """name: 'NVIDIA H200, 140 GiB', '2 x NVIDIA H200, 280 GiB' or 'cpu, 4 threads'. total, used: bytes of GPU memory, 0 for a CPU.

    smallest: bytes of the GPU with the least memory.
    """

    name: str
    total: int = 0
    used: int = 0
    smallest: int = 0


def detect(threads: int) -> Device:
    """The device and its present memory use. threads: the CPU threads of the engine."""
    return _gpus() or Device(f"cpu, {threads} {'thread' if threads == 1 else 'threads'}")


def capacity(threads: int) -> int:
    """Most bytes that a job here may need: memory of the smallest GPU, or the free RAM."""
    return detect(threads).smallest or available_ram()


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, each as a value for CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    try:
        query = ("nvidia-smi", "--query-gpu=index", "--format=csv,noheader")
        answer = subprocess.run(query, capture_output=True, text=True, timeout=_TIMEOUT, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.split()


def _gpus() -> Device | None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return None
    which = ("--id", visible.strip()) if visible is not None else ()
    try:
        answer = subprocess.run([*_QUERY, *which], capture_output=True, text=True, timeout=_TIMEOUT, check=True, stdin=subprocess.DEVNULL)
        rows = [line.rsplit(",", 2) for line in answer.stdout.splitlines() if line.strip()]
        names = [name.strip() for name, _, _ in rows]
        sizes, uses = ([_number(row[column]) * _MEBIBYTE for row in rows] for column in (1, 2))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    if not names:
        return None
    total = sum(sizes)
    kinds = " + ".join(f"{names.count(name)} x {name}" if names.count(name) > 1 else name for name in dict.fromkeys(names))
    return Device(f"{kinds}, {total / 2**30:.0f} GiB" if total else kinds, total, sum(uses), min(sizes))


def _number(text: str) -> int:
    """A number of nvidia-smi; 0 for '[N/A]', which GPUs with shared memory report."""
    return int(text) if text.strip().isdecimal() else 0
