"""The names of log files below a job's folder or storage key."""

from __future__ import annotations

from pathlib import Path

NAME = "log.jsonl"
MAX_BYTES, BACKUPS = 2 << 20, 3  # log.jsonl.3 is the oldest part


def parts(folder: Path) -> list[Path]:
    """The possible files of a job's log, oldest first."""
    return [folder / f"{NAME}.{number}" for number in range(BACKUPS, 0, -1)] + [folder / NAME]


def is_log(key: str) -> bool:
    """Whether a key is a part of a job's log: JOB/TOKEN/log.jsonl."""
    return key.count("/") == 2 and key.rpartition("/")[2].startswith(NAME)
