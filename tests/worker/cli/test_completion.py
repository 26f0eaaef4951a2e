"""`extract completion`: what a shell offers after the script is read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from extractor.errors import UsageError
from worker.cli import group

EXTRACT = [sys.executable, "-c", "from worker.cli import main; main()"]


def offered(line: str, env: dict[str, str]) -> list[str]:
    """The completions that the command gives bash for this command line, whose last word is incomplete."""
    told = {"_EXTRACT_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = subprocess.run(EXTRACT, env=os.environ | env | told, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("extract su", ["plain,submit"]),
        ("extract submit --task quote", ["plain,quote_close"]),
        ("extract train --task all", ["plain,all"]),
        ("extract submit --model python-tiny-", ["plain,python-tiny-1"]),
        ("extract result /tm", ["dir,/tm"]),
        ("extract completion f", ["plain,fish"]),
        ("extract nosuch a", []),
    ],
)
def test_commands_tasks_models_and_folders_are_offered_without_a_server(line: str, wanted: list[str], tmp_path: Path):
    state = tmp_path / "state"
    assert offered(line, {"EXTRACT_STATE_DIR": str(state), "EXTRACT_REDIS_URL": ""}) == wanted
    assert not state.exists(), "completing started a server"


def test_an_unreachable_server_is_no_message(tmp_path: Path):
    env = {"EXTRACT_STATE_DIR": str(tmp_path / "state"), "EXTRACT_REDIS_URL": "redis://127.0.0.1:1"}
    assert offered("extract status k", env) == ["dir,k"]


def test_nothing_is_said_where_nothing_can_be_completed(tmp_path: Path):
    told = {"_EXTRACT_COMPLETE": "bash_complete", "COMP_WORDS": "extract", "COMP_CWORD": "x"}
    done = subprocess.run(EXTRACT, env=os.environ | told, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_reads_the_script_and_completes(tmp_path: Path):
    script = CliRunner().invoke(group, ["completion", "bash"]).output
    (tmp_path / "extract").write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from worker.cli import main; main()' \"$@\"\n")
    (tmp_path / "extract").chmod(0o755)
    (tmp_path / "script").write_text(script)
    ask = "COMP_WORDS=(extract submit --task bracket_c); COMP_CWORD=3; _extract_completion extract; echo ${COMPREPLY[@]}"
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "EXTRACT_STATE_DIR": str(tmp_path / "state")}
    done = subprocess.run(
        ["bash", "-c", f"source {tmp_path}/script 2>/dev/null; {ask}"], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["bracket_counting"]


def test_a_shell_without_completion_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert isinstance(CliRunner().invoke(group, ["completion"]).exception, UsageError)
    monkeypatch.setenv("SHELL", "/bin/zsh")
    assert "#compdef extract" in CliRunner().invoke(group, ["completion"]).output
