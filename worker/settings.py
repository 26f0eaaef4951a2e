"""What the environment says about the service, read once into a frozen record. Times are in seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from extractor.errors import UsageError

PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Settings:
    """One field per EXTRACT_* variable; `redis_url` None means the embedded server."""

    state_dir: Path
    root: Path  # finished and unfinished jobs, one folder each
    redis_url: str | None
    redis_server: str | None  # a server binary that overrides the bundled one
    allow_insecure: bool
    start_worker: bool  # whether commands may start a local worker
    engine: str  # module run as the engine
    threads: int
    lease_ttl: float
    heartbeat: float  # between two renewals of a lease, which also bring the news of a cancel
    reap_every: float
    republish_after: float  # a queued job older than this whose message is nowhere is published again
    visibility_timeout: float
    idle_exit: float
    stop_grace: float  # between SIGTERM and SIGKILL for an engine
    max_attempts: int  # crashes, not preemptions

    @property
    def embedded(self) -> bool:
        return self.redis_url is None


def from_env(env: Mapping[str, str] | None = None) -> Settings:
    """Settings from environment variables. Raises UsageError for a value that is not what its variable needs."""
    env = os.environ if env is None else env
    state_dir = _state_dir(env)
    ttl = _seconds(env, "EXTRACT_LEASE_TTL", 30)
    return Settings(
        state_dir=state_dir,
        root=_root(env, state_dir),
        redis_url=_secret(env, "EXTRACT_REDIS_URL"),
        redis_server=env.get("EXTRACT_REDIS_SERVER") or None,
        allow_insecure=_flag(env, "EXTRACT_ALLOW_INSECURE_REDIS"),
        start_worker=not _flag(env, "EXTRACT_NO_WORKER"),
        engine=env.get("EXTRACT_ENGINE") or "extractor",
        threads=_count(env, "EXTRACT_THREADS", _usable_cpus()),
        lease_ttl=ttl,
        heartbeat=_seconds(env, "EXTRACT_HEARTBEAT", min(2, ttl / 3)),
        reap_every=_seconds(env, "EXTRACT_REAPER", min(5, ttl / 3)),
        republish_after=_seconds(env, "EXTRACT_REPUBLISH", 120),
        visibility_timeout=_seconds(env, "EXTRACT_VISIBILITY_TIMEOUT", 6 * 3600),
        idle_exit=_seconds(env, "EXTRACT_IDLE_EXIT", 15 * 60),
        stop_grace=_seconds(env, "EXTRACT_STOP_GRACE", 60),
        max_attempts=_count(env, "EXTRACT_MAX_ATTEMPTS", 3),
    )


def child_env() -> dict[str, str]:
    """The environment for a Python process of ours: from a checkout that is not installed, it must find the packages too."""
    env = dict(os.environ)
    if PROJECT.name not in ("site-packages", "dist-packages"):
        env["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), str(PROJECT)]))
    env["PYTHONUNBUFFERED"] = "1"
    return env


def python_module(name: str, *arguments: str) -> list[str]:
    """The command line that runs a module with this interpreter; -P keeps a random.py in the user's folder from being imported."""
    return [sys.executable, "-P", "-m", name, *arguments]


def _state_dir(env: Mapping[str, str]) -> Path:
    if env.get("EXTRACT_STATE_DIR"):
        return Path(env["EXTRACT_STATE_DIR"]).expanduser().absolute()
    base = env.get("XDG_STATE_HOME") or "~/.local/state"
    return (Path(base) / "extract").expanduser().absolute()


def _root(env: Mapping[str, str], state_dir: Path) -> Path:
    text = env.get("EXTRACT_ROOT") or str(state_dir / "jobs")
    if "://" in text:
        raise UsageError(f"EXTRACT_ROOT={text!r} is an address; results lie in folders: name one that all workers share")
    return Path(text).expanduser().absolute()


def _secret(env: Mapping[str, str], name: str) -> str | None:
    """A variable, or the content of the file that NAME_FILE names: container runtimes hand secrets out as files."""
    path = env.get(f"{name}_FILE")
    if env.get(name) or not path:
        return env.get(name) or None
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name}_FILE={path!r} cannot be read ({getattr(error, 'strerror', 'not text')}); correct or unset it") from None
    if not text:
        raise UsageError(f"{name}_FILE={path!r} is empty; write the address into it, or unset it")
    return text


def _seconds(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 < value < float("inf"):
        raise UsageError(f"{name}={text!r} is not a positive number of seconds; correct it or unset it")
    return value


def _count(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{name}={text!r} is not a whole number from 1; correct it or unset it")
    return int(text)


def _flag(env: Mapping[str, str], name: str) -> bool:
    return env.get(name, "").lower() in ("1", "true", "yes")


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
