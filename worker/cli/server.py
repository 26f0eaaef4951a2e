"""`extract server`."""

from __future__ import annotations

import click

from worker.cli.options import as_json as json_option
from worker.cli.text import print_json, print_line


@click.command("server", short_help="Start, stop or show the embedded Redis server.")
@click.argument("action", type=click.Choice(["start", "stop", "status"]))
@json_option
def command(action: str, as_json: bool) -> int:
    """Start, stop or show the embedded Redis server. Other commands start it automatically; `stop` also ends the local worker.

    \b
    Example: extract server stop
    """
    from extractor.errors import UsageError
    from worker.broker import embedded_redis
    from worker.cli.connect import load_settings
    from worker.fleet import local

    settings = load_settings()
    if not settings.embedded:
        raise UsageError("EXTRACT_REDIS_URL is set, so the embedded server is not in use; unset it, or manage that server where it runs")
    has_stopped = False
    if action == "start":
        embedded_redis.ensure(settings)
    elif action == "stop":
        local.stop(settings)
        has_stopped = embedded_redis.stop(settings)
    facts = embedded_redis.facts(settings)
    if as_json:
        print_json({"running": facts is not None} | (facts or {}))
    elif facts is None:
        print_line("stopped; the next command restarts it with all jobs" if has_stopped else "the embedded server is not running")
    else:
        print_line(f"running: pid {facts['pid']}, {facts['binary']} {facts['version']}")
        print_line(f"socket:  {facts['socket']}")
        print_line(f"data:    {facts['data']}")
    return 0
