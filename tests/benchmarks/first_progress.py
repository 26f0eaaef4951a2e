"""Run in fresh processes: an engine without a service, up to its first progress, and nothing but what it imports."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
from pathlib import Path

import psutil


class _Reached(BaseException):
    pass


def by_hand(spec: str, folder: str) -> dict:
    """Seconds from the start of this process to the first progress of that spec; the modules imported by then, in order."""
    from extractor import __main__

    path = Path(folder) / "spec.json"
    path.write_text(spec)

    def emit(event: dict) -> None:
        if event["event"] == "progress":
            raise _Reached

    __main__.emit = emit
    with contextlib.suppress(_Reached):
        __main__.main([str(path), "--out", str(Path(folder) / f"out-{os.getpid()}"), "--threads", "1"])
    return {"seconds": _age(), "modules": list(sys.modules)}


def import_all(modules: list[str]) -> dict:
    """Seconds from the start of this process until all these modules are imported."""
    for name in modules:
        with contextlib.suppress(Exception):  # some exist only once others have made them
            importlib.import_module(name)
    return {"seconds": _age()}


def _age() -> float:
    return time.time() - psutil.Process().create_time()
