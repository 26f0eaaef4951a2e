"""Checks messages before Celery sees them: anything not written by `broker.app.publish` is dropped with a log line.

Anyone with access to Redis can put anything into a queue. A message that is not JSON or lacks a field would make Celery's worker exit, and
Redis would then deliver it to the next worker.
"""

from __future__ import annotations

import base64
import json
import logging
from queue import Empty
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis

from extractor.errors import UsageError
from worker.broker import routing
from worker.broker.app import TASK
from worker.ids import check_id

log = logging.getLogger("extract")
JOB_QUEUES = frozenset(routing.queues_for(0))
MAX_BODY_CHARACTERS = 4000  # a valid body has about a hundred
_UNUSED = ("eta", "expires", "group", "timelimit", "retries")  # headers that `publish` never sets
Facts = dict[str, Any]


def check(message: Any) -> str:
    """The job that a message asks to run. Raises ValueError, with the reason, for a message that `broker.app.publish` does not write."""
    if not isinstance(message, dict):
        raise ValueError("it is not a JSON object")
    headers, properties, body = (message.get(name) for name in ("headers", "properties", "body"))
    if not isinstance(headers, dict) or not isinstance(properties, dict) or not isinstance(body, str):
        raise ValueError("it lacks headers, properties or a body")
    for is_wrong, reason in _header_faults(message, headers, properties, body):
        if is_wrong:
            raise ValueError(reason)
    return _job_of(json.loads(base64.b64decode(body, validate=True)))


def _header_faults(message: Facts, headers: Facts, properties: Facts, body: str) -> list[tuple[bool, str]]:
    """(whether the message has this fault, the reason to drop it), in the order of the checks."""
    content_type, encoding = message.get("content-type"), str(message.get("content-encoding")).lower()
    has_options = any(headers.get(name) for name in _UNUSED if name != "timelimit")
    has_id = isinstance(headers.get("id"), str) and isinstance(properties.get("delivery_tag"), str)
    is_readable = isinstance(properties.get("delivery_info"), dict) and properties.get("body_encoding") == "base64"
    return [
        (headers.get("task") != TASK, f"it is for task {str(headers.get('task'))[:80]!r}"),
        (content_type != "application/json" or encoding != "utf-8", f"its content is {str(content_type)[:80]!r}, not JSON"),
        (has_options or headers.get("timelimit", [None, None]) != [None, None], f"it sets one of {', '.join(_UNUSED)}"),
        (not has_id, "it has no id"),
        (not is_readable or len(body) > MAX_BODY_CHARACTERS, "its body cannot be read"),
    ]


def _job_of(content: Any) -> str:
    """The job id in a decoded body. Raises ValueError."""
    if not isinstance(content, list) or len(content) != 3 or content[1] or not isinstance(content[2], dict):
        raise ValueError("its body is not [arguments, {}, {}]")
    arguments = content[0]
    if not isinstance(arguments, list) or len(arguments) != 1 or not isinstance(arguments[0], str):
        raise ValueError("its argument is not one job")
    try:
        return check_id(arguments[0])
    except UsageError as error:
        raise ValueError(str(error)) from None


def guard() -> None:
    """Make this process read queues through `Transport`."""
    TRANSPORT_ALIASES["redis"] = TRANSPORT_ALIASES["rediss"] = f"{__name__}:Transport"


class Channel(redis.Channel):
    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (ValueError, RecursionError) as error:  # not JSON
            _drop(str(error))
            raise Empty from None


class Transport(redis.Transport):
    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> Any:
        if queue in JOB_QUEUES:  # other queues carry control messages of Celery and Flower
            try:
                check(message)
            except (ValueError, RecursionError) as error:
                return _drop(str(error))
        return super()._deliver(message, queue)


def _drop(why: str) -> None:
    log.warning("dropped a message not written by this service: %s", " ".join(why.split())[:200])
