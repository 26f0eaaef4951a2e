"""Settings of the service from EXTRACT_* environment variables. Times are in seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from extractor.errors import UsageError
from extractor.spec.limits import MAX_THREADS

MAX_COUNT = 1_000_000  # of attempts
MAX_SECONDS = 1_000_000_000  # 30 years; clocks and Redis do not accept unlimited times
PROJECT = Path(__file__).resolve().parent.parent
_OWN_PACKAGES = ("extractor", "tasks", "worker")
_YES, _NO = ("1", "true", "yes"), ("0", "false", "no")
_PATHS = (  # variables that name a file or folder
    *("EXTRACT_STATE_DIR", "EXTRACT_ROOT", "EXTRACT_CACHE_DIR", "EXTRACT_REDIS_URL_FILE", "XDG_STATE_HOME", "XDG_CACHE_HOME"),
    *("XDG_RUNTIME_DIR", "HF_HOME", "HF_HUB_CACHE", "HOME", "TMPDIR"),
)
MAX_SECRET_BYTES = 1 << 16  # of a file that holds an address
NO_HOME = Path("/dev/null/no-home")  # stands for the home of a user who has none; nothing can be created below it


@dataclass(frozen=True)
class Settings:
    """One field per EXTRACT_* variable; `redis_url` None means the embedded server."""

    state_dir: Path
    root: Path  # one folder per job; with a store, only the jobs that run on this machine
    store: str | None  # URL of the storage for machines without a shared disk; None: jobs are in `root`
    redis_url: str | None
    redis_server: str | None  # program of the embedded server, in place of the bundled one
    allow_insecure: bool
    start_worker: bool  # whether commands may start a local worker
    engine: str  # module that runs as the engine
    threads: int
    lease_ttl: float
    heartbeat: float  # between two renewals of a lease, which also fetch a cancel request
    reap_every: float
    republish_after: float  # age after which a queued job without a message is published again
    visibility_timeout: float
    idle_exit: float
    stop_grace: float  # between SIGTERM and SIGKILL for an engine
    silence: float  # longest time without an event of an engine, before it is killed as one that makes no progress
    max_attempts: int  # crashes, not preemptions
    store_every: float  # least time between two uploads of a running job
    store_patience: float  # longest wait of a job, at its start and end, for storage that does not answer or for space on a full disk

    @property
    def embedded(self) -> bool:
        return self.redis_url is None


def from_env(env: Mapping[str, str] | None = None) -> Settings:
    """Settings from environment variables. Raises UsageError for an invalid value."""
    env = os.environ if env is None else env
    state_dir = _state_dir(env)
    ttl = _seconds(env, "EXTRACT_LEASE_TTL", 30)
    root, store = _root(env, state_dir)
    heartbeat = _seconds(env, "EXTRACT_HEARTBEAT", min(2, ttl / 3))
    if heartbeat >= ttl:
        raise UsageError(f"EXTRACT_HEARTBEAT={heartbeat:g} is not less than EXTRACT_LEASE_TTL={ttl:g}: every job would count as lost")
    return Settings(
        state_dir=state_dir,
        root=root,
        store=store,
        redis_url=_secret(env, "EXTRACT_REDIS_URL"),
        redis_server=env.get("EXTRACT_REDIS_SERVER") or None,
        allow_insecure=_flag(env, "EXTRACT_ALLOW_INSECURE_REDIS"),
        start_worker=not _flag(env, "EXTRACT_NO_WORKER"),
        engine=env.get("EXTRACT_ENGINE") or "extractor",
        threads=_count(env, "EXTRACT_THREADS", _usable_cpus(), MAX_THREADS),
        lease_ttl=ttl,
        heartbeat=heartbeat,
        reap_every=_seconds(env, "EXTRACT_REAPER", min(5, ttl / 3)),
        republish_after=_seconds(env, "EXTRACT_REPUBLISH", 120),
        visibility_timeout=_seconds(env, "EXTRACT_VISIBILITY_TIMEOUT", 6 * 3600),
        idle_exit=_seconds(env, "EXTRACT_IDLE_EXIT", 15 * 60),
        stop_grace=_seconds(env, "EXTRACT_STOP_GRACE", 60),
        silence=_seconds(env, "EXTRACT_SILENCE", 6 * 3600),
        max_attempts=_count(env, "EXTRACT_MAX_ATTEMPTS", 3),
        store_every=_seconds(env, "EXTRACT_STORE_EVERY", 20),
        store_patience=_seconds(env, "EXTRACT_STORE_PATIENCE", 15 * 60),
    )


def child_env() -> dict[str, str]:
    """The environment for a Python child process, with absolute paths.

    PYTHONPATH begins with a checkout, and with any place of ours that it would hide.
    """
    env = dict(os.environ)
    for name in _PATHS:  # a worker runs in another folder
        if env.get(name) and "://" not in env[name]:
            env[name] = os.path.abspath(os.path.expanduser(env[name]))
    paths = list(filter(None, env.get("PYTHONPATH", "").split(os.pathsep)))
    if PROJECT.name not in ("site-packages", "dist-packages") or any(map(_hides, paths)):
        env["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(PROJECT), *paths]))
    env["PYTHONUNBUFFERED"] = "1"
    env.pop("PYTHONOPTIMIZE", None)  # 2 removes docstrings, without which transformers does not load
    return env


def _hides(folder: str) -> bool:
    """Whether a folder has a module or package of the same name as one of ours."""
    return any(os.path.exists(os.path.join(folder, name + end)) for name in _OWN_PACKAGES for end in ("", ".py"))


def python_module(name: str, *arguments: str) -> list[str]:
    """The command line that runs a module with this interpreter; -P excludes modules in the current folder, such as a random.py."""
    return [sys.executable, "-P", "-m", name, *arguments]


def _state_dir(env: Mapping[str, str]) -> Path:
    if env.get("EXTRACT_STATE_DIR"):
        return _path(env, "EXTRACT_STATE_DIR")
    if env.get("XDG_STATE_HOME"):
        return _path(env, "XDG_STATE_HOME") / "extract"
    home = os.path.expanduser("~")  # "~" itself for a user id without an entry in the password file
    return (Path(home) if os.path.isabs(home) else NO_HOME) / ".local" / "state" / "extract"


def _path(env: Mapping[str, str], name: str) -> Path:
    """The absolute path that a variable names. Raises UsageError."""
    try:
        env[name].encode()
    except UnicodeEncodeError:  # records, specs and JSON output hold UTF-8 text only
        raise UsageError(f"{name}={env[name]!a} is not UTF-8 text; name a folder whose path is") from None
    return Path(os.path.expanduser(env[name])).absolute()  # unlike Path.expanduser, accepts the ~ of an unknown user


def _root(env: Mapping[str, str], state_dir: Path) -> tuple[Path, str | None]:
    """The folder in which jobs run, and the URL of the storage, None without storage."""
    text = env.get("EXTRACT_ROOT") or ""
    if "://" not in text:
        root = _path(env, "EXTRACT_ROOT") if text else state_dir / "jobs"
        if text and os.path.exists(root) and not os.path.isdir(root):
            raise UsageError(f"EXTRACT_ROOT={text!r} is a file; write a folder, or a URL such as s3://bucket/prefix")
        return root, None
    try:
        parts = urlsplit(text)
        has_secret, has_place = parts.password is not None, bool(parts.netloc or parts.path.strip("/"))
    except ValueError:
        has_secret, has_place = False, False
    if has_secret:  # it would be in every record and log
        raise UsageError("EXTRACT_ROOT contains a password; give credentials in the environment instead, as in AWS_SECRET_ACCESS_KEY")
    if not has_place or parts.query or parts.fragment:
        raise UsageError(f"EXTRACT_ROOT={text!r} is not a place for jobs; write a folder, or a URL such as s3://bucket/prefix")
    if parts.scheme == "memory":
        raise UsageError("EXTRACT_ROOT=memory:// would be lost with each process; write a folder, or a URL such as s3://bucket/prefix")
    if problem := _obstacle(parts.scheme):
        raise UsageError(f"EXTRACT_ROOT={text!r} {problem}; write a folder, or a URL such as s3://bucket/prefix")
    return state_dir / "scratch", text.rstrip("/")


def _obstacle(scheme: str) -> str:
    """Why URLs of this scheme are no storage; '' where they are. fsspec is asked of uncommon ones only: its import takes time."""
    if scheme in ("file", "s3", "gs", "abfs", "az"):
        return ""
    if scheme in ("http", "https"):
        return "cannot be written"
    from fsspec.registry import known_implementations, registry

    return "" if scheme in known_implementations or scheme in registry else f"has an unknown scheme, {scheme!r}"


def _secret(env: Mapping[str, str], name: str) -> str | None:
    """A variable, or the content of the file that NAME_FILE names: container runtimes provide secrets as files."""
    path = env.get(f"{name}_FILE")
    if env.get(name) or not path:
        return env.get(name) or None
    try:
        with open(path, "rb") as file:  # which may be a pipe
            content = file.read(MAX_SECRET_BYTES + 1)
        text = content.decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name}_FILE={path!r} cannot be read ({getattr(error, 'strerror', 'not text')}); correct or unset it") from None
    if len(content) > MAX_SECRET_BYTES:
        raise UsageError(f"{name}_FILE={path!r} has more than {MAX_SECRET_BYTES:,} bytes, it is no address; correct or unset it")
    if not text:
        raise UsageError(f"{name}_FILE={path!r} is empty; write the address into it, or unset it")
    return text


def _seconds(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 < value <= MAX_SECONDS:
        raise UsageError(f"{name}={text!r} is not a positive number of seconds, at most {MAX_SECONDS:,}; correct it or unset it")
    return value


def _count(env: Mapping[str, str], name: str, default: int, most: int = MAX_COUNT) -> int:
    text = env.get(name) or str(default)
    if not text.isdecimal() or not 1 <= int(text[:20]) <= most:
        raise UsageError(f"{name}={text!r} is not a whole number from 1 to {most:,}; correct it or unset it")
    return int(text)


def _flag(env: Mapping[str, str], name: str) -> bool:
    text = env.get(name, "").strip().lower()
    if text not in ("", *_YES, *_NO):
        raise UsageError(f"{name}={env[name]!r} is neither {', '.join(_YES)} nor {', '.join(_NO)}; correct it or unset it")
    return text in _YES


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
