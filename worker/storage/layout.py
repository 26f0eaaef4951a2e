"""Names of files below a job's folder or storage key: its log, and the marker that says which server's job it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from extractor import files

MARKER = "server.json"  # in a job's folder: {"server": id}; `extract gc` deletes a job without a record only if it names its own server
NAME = "log.jsonl"
MAX_BYTES, BACKUPS = 2 << 20, 3  # log.jsonl.3 is the oldest part


def parts(folder: Path) -> list[Path]:
    """The possible files of a job's log, oldest first."""
    return [folder / f"{NAME}.{number}" for number in range(BACKUPS, 0, -1)] + [folder / NAME]


def read_marker(path: Path) -> str | None:
    """The server that a job's folder names; None without a readable marker."""
    try:
        return _server_in(files.read_json(path))
    except files.BrokenArtifact:
        return None


def parse_marker(data: bytes) -> str | None:
    """The server that a stored marker names, or None."""
    try:
        return _server_in(json.loads(data))
    except (ValueError, RecursionError):
        return None


def _server_in(marker: Any) -> str | None:
    server = marker.get("server") if isinstance(marker, dict) else None
    return server if isinstance(server, str) else None


def is_marker(key: str) -> bool:
    """Whether a key is the marker of an attempt: JOB/TOKEN/server.json."""
    return key.count("/") == 2 and key.rpartition("/")[2] == MARKER


def is_log(key: str) -> bool:
    """Whether a key is a part of a job's log: JOB/TOKEN/log.jsonl."""
    return key.count("/") == 2 and key.rpartition("/")[2].startswith(NAME)
