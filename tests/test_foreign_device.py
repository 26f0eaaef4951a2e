"""The cases of foreign_device_cases.py, in a fresh process: a device is registered before torch's first backward pass."""

from __future__ import annotations

import subprocess
import sys

import pytest
from worlds import ROOT


@pytest.mark.slow
def test_everything_that_meets_on_a_second_device_was_made_there():
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests/foreign_device_cases.py"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert found.returncode == 0, found.stdout[-3000:]
    assert "5 passed" in found.stdout
