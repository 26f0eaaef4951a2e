"""Which device a worker's engine computes on, and how much of its memory is in use, without loading torch: `nvidia-smi` says it.

A worker has the GPUs of CUDA_VISIBLE_DEVICES, all of them where it is not set. Without `nvidia-smi`, or GPUs, it has the CPU.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,memory.used", "--format=csv,noheader,nounits")
_MEBIBYTE = 2**20
_TIMEOUT = 10.0  # seconds; a GPU that fell off the bus makes nvidia-smi hang


@dataclass(frozen=True)
class Device:
    """name: 'NVIDIA H200, 140 GiB', '2 x NVIDIA H200, 280 GiB' or 'cpu, 4 threads'. total, used: bytes of GPU memory, 0 for a CPU."""

    name: str
    total: int = 0
    used: int = 0


def look(threads: int) -> Device:
    """The device as it is now. threads: the CPU threads of the engine."""
    return _gpus() or Device(f"cpu, {threads} {'thread' if threads == 1 else 'threads'}")


def _gpus() -> Device | None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return None
    which = ("--id", visible.strip()) if visible is not None else ()
    try:
        answer = subprocess.run([*_QUERY, *which], capture_output=True, text=True, timeout=_TIMEOUT, check=True, stdin=subprocess.DEVNULL)
        rows = [line.rsplit(",", 2) for line in answer.stdout.splitlines() if line.strip()]
        names = [name.strip() for name, _, _ in rows]
        total, used = (sum(_number(row[column]) for row in rows) * _MEBIBYTE for column in (1, 2))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    if not names:
        return None
    kinds = " + ".join(f"{names.count(name)} x {name}" if names.count(name) > 1 else name for name in dict.fromkeys(names))
    return Device(f"{kinds}, {total / 2**30:.0f} GiB" if total else kinds, total, used)


def _number(text: str) -> int:
    """'[N/A]' on GPUs that share the machine's memory."""
    return int(text) if text.strip().isdecimal() else 0
