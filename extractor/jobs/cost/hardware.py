"""Resources of this machine: available memory, speed of matrix products and copies. Functions import torch only where they need it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
_TRIALS = 3


@dataclass(frozen=True)
class Speed:
    """flops: floating-point operations per second in matrix products; bytes: read or written per second."""

    flops: float
    bytes: float


def available_memory() -> int:
    """Free bytes of the GPU, without one those of RAM within the limit of the cgroup."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return available_ram()


def available_ram(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = CGROUP) -> int:
    """Free bytes of RAM, including caches that the system can drop; all RAM where the system does not report this."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(free, max(0, _cgroup_free(cgroup, free)))


def _cgroup_free(folder: Path, otherwise: int) -> int:
    """Bytes below the cgroup's limit, inactive file pages counted as free; `otherwise` where there is no limit."""
    try:
        limit, used = (int((folder / name).read_text(encoding="utf-8")) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):  # no such file, or the word 'max'
        return otherwise
    return limit - used + int(stat.get("inactive_file", 0))


def measure_speed(precision: str = "fp32") -> Speed:
    """Time matrix products and copies for about 0.1 s, on the device and in the precision of a training."""
    import torch

    gpu = torch.cuda.is_available()
    size, device = (8192, "cuda") if gpu else (768, "cpu")
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if gpu and precision == "bf16" else torch.float32)
    b, moved = torch.empty_like(a), torch.empty(1 << 24, device=device)

    def multiply() -> None:
        torch.mm(a, a, out=b)

    def copy() -> None:
        moved.add_(1.0)

    return Speed(2 * size**3 / _seconds(multiply, gpu), 2 * 4 * moved.numel() / _seconds(copy, gpu))


def _seconds(work: Callable[[], None], gpu: bool) -> float:
    """Seconds of the fastest of a few calls, after one to warm up."""
    import torch

    best = float("inf")
    for turn in range(_TRIALS + 1):
        started = time.perf_counter()
        work()
        if gpu:
            torch.cuda.synchronize()
        if turn:
            best = min(best, time.perf_counter() - started)
    return best
