"""`extract logs`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from worker.cli import complete
from worker.cli.options import as_json as json_option
from worker.cli.options import no_worker as no_worker_option
from worker.cli.text import print_json, print_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker.client.service import Service

COLOURS = {"warning": "yellow", "error": "red"}
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@click.command("logs", short_help="Show the log of a job.")
@click.argument("job", required=False, shell_complete=complete.jobs)
@click.option("-f", "--follow", is_flag=True, help="Print new lines until the job ends.")
@click.option("--since", metavar="AGE|TIME", help="Only lines since then: 90s, 10m, 2h, 1d, or 2026-11-23T09:30.")
@no_worker_option
@json_option
def command(job: str | None, follow: bool, since: str | None, no_worker: bool, as_json: bool) -> int:
    """Show the messages of the engine and the workers about a job, from all its attempts. Without JOB, of the newest.

    \b
    Example: extract logs k3v9x2mq -f --since 10m
    """
    from worker.cli.connect import newest_job, open_for
    from worker.ids import check_id

    job = check_id(newest_job() if job is None else job)
    earliest = parse_since(since) if since else 0.0
    for line in _lines(open_for(no_worker, only_again=True), job, follow):
        if line["time"] >= earliest:
            print_json(line) if as_json else show(line)
    return 0


def parse_since(text: str) -> float:
    """An age ('10m') or a local time ('2026-11-23T09:30') as seconds since 1970. Raises UsageError."""
    import re
    import time
    from datetime import datetime

    from extractor.errors import UsageError

    if age := re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])", text):
        return time.time() - float(age[1]) * UNITS[age[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"--since {text!r} is neither an age such as 10m, 2h or 1d nor a time such as 2026-11-23T09:30") from None


def show(line: dict[str, Any]) -> None:
    """Print a log line: local time, attempt, source, message; warnings and errors are coloured."""
    from datetime import datetime

    at = datetime.fromtimestamp(line["time"]).strftime("%Y-%m-%d %H:%M:%S")
    text = f"{at}  {line.get('attempt')}  {line.get('source'):<6}  {line['message']}"
    print_line(text, COLOURS.get(str(line.get("level"))))


def _lines(service: Service, job: str, follow: bool) -> Iterator[dict[str, Any]]:
    """The lines of a job's log. Raises NotFound without such a job, or without a log that is visible here."""
    from extractor.errors import NotFound
    from worker.monitoring import log_reader

    reader = log_reader.open_log(service.settings, job)
    record = service.records.get(job)
    found = reader.exists()
    if record is None and not found:
        service.records.need(job)
    if follow and record is not None:
        yield from log_reader.follow(reader, _end_checker(service, job))
        found = found or reader.exists()
    elif found:
        yield from reader.new_lines()
    if record is not None and not found:
        if int(record["attempt"]):
            raise NotFound(f"no log of job {job} is visible from here; it ran on {record.get('host')} in {service.settings.root / job}")
        raise NotFound(f"job {job} has no log: it is {record['state']} and has not started")


def _end_checker(service: Service, job: str) -> Callable[[], bool]:
    """A function that returns whether the job has ended, False while Redis does not answer.

    It raises ServiceUnavailable when Redis has not answered for a minute.
    """
    import time

    import redis

    from extractor.errors import ServiceUnavailable
    from worker.client.watch import OUTAGE_SECONDS
    from worker.records.records import TERMINAL

    answered = time.monotonic()

    def has_ended() -> bool:
        nonlocal answered
        try:
            record = service.records.get(job)
        except redis.RedisError as error:
            if time.monotonic() - answered > OUTAGE_SECONDS:
                raise ServiceUnavailable(f"connection to Redis lost ({error}); follow the log again with `extract logs {job} -f`") from None
            return False
        answered = time.monotonic()
        return record is None or record["state"] in TERMINAL

    return has_ended
