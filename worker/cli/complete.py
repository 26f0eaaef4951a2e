"""What the shell offers for tasks, models and jobs. Each offers nothing rather than an error, and starts no server."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import click
from click.shell_completion import CompletionItem

JOBS = 30  # newest jobs that are offered
SECONDS = 1  # that a distant server may take


def tasks(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    from tasks import task_names

    return _beginning(begun, [*task_names(), "all"])


def models(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    from extractor.models.reference import bundled_models

    return _beginning(begun, [*(model["name"] for model in bundled_models()), *_jobs()]) or _folders(begun)


def jobs(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    return _beginning(begun, _jobs()) or _folders(begun)


def _beginning(begun: str, names: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(begun)]


def _folders(begun: str) -> list[CompletionItem]:
    """The shell's own folders; in bash they would replace names beside them."""
    return [CompletionItem(begun, type="dir")]


def _jobs() -> list[str]:
    """Ids of the newest jobs, where the service runs."""
    with suppress(Exception):  # whatever is wrong, the user is typing and needs no message
        from worker.broker import embedded_redis
        from worker.broker.redis_url import connect
        from worker.records.records import Records
        from worker.settings import from_env

        settings = from_env()
        socket = None if settings.redis_url else embedded_redis.running(settings)
        url = settings.redis_url or (embedded_redis.url(socket) if socket else None)
        if url is not None:
            return [job for job, _ in Records(connect(url, SECONDS)).newest(JOBS)]
    return []
