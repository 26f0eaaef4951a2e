"""The independent script tests/rerun_circuit.py, run in this process."""

from __future__ import annotations

import io
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "rerun_circuit.py"


def rerun(folder: Path) -> float:
    """The loss (nats) that tests/rerun_circuit.py recomputes from a result folder."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(sys, "argv", [str(SCRIPT), str(folder)])
        runpy.run_path(str(SCRIPT))
    return float(printed.getvalue().split()[1])
