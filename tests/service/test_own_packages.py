"""Modules on PYTHONPATH with the names of this project's packages hide nothing, in commands, workers and engines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from service_machine import PROJECT, our_processes

from worker.settings import child_env

HIDING = ("tasks.py", "tasks/__init__.py", "worker.py", "worker/__init__.py", "extractor.py")


@pytest.fixture
def hiding(request, tmp_path: Path) -> str:
    path = tmp_path / "mine" / request.param
    path.parent.mkdir(parents=True)
    path.write_text("raise SystemExit('the wrong module')\n")
    return str(tmp_path / "mine")


def extract(hiding: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(PROJECT / "deploy" / "extract_command" / "__init__.py"), *arguments]
    return subprocess.run(command, cwd="/", env=os.environ | {"PYTHONPATH": hiding}, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("hiding", HIDING, indirect=True)
def test_a_command_finds_its_own_packages(hiding):
    done = extract(hiding, "tasks")
    assert (done.returncode, done.stderr) == (0, "")
    assert "quote_close" in done.stdout


@pytest.mark.parametrize("hiding", HIDING, indirect=True)
def test_children_find_them_as_well(hiding, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", hiding)
    for name in ("tasks.base", "worker.cli", "extractor.errors"):
        command = [sys.executable, "-P", "-c", f"import {name}; print({name}.__file__)"]
        done = subprocess.run(command, cwd="/", env=child_env(), capture_output=True, text=True)
        assert done.stdout.startswith(str(PROJECT)), done.stderr


@pytest.mark.parametrize("hiding", ["worker.py"], indirect=True)
def test_a_job_runs_to_its_end_beside_such_a_module(machine, hiding, monkeypatch):
    monkeypatch.setenv("EXTRACT_ENGINE", "tests.service.fake_engine")
    done = extract(hiding, "train", "--wait", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(our_processes(machine.home)) >= 2


def test_what_else_lies_on_the_path_stays_there(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{PROJECT}")
    assert child_env()["PYTHONPATH"] == f"{PROJECT}{os.pathsep}{tmp_path}"
