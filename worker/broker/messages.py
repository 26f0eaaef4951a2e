"""What workers take from the queues: only messages that `broker.app.publish` writes reach Celery; all others are dropped with a line.

Whoever can write to Redis can put anything into a queue. Celery ends its worker over a message that is no JSON or lacks a field, and then
the message is restored for the next worker to end over.
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
OURS = frozenset(routing.queues_for(0))
MOST_LETTERS = 4000  # of a body; ours have a hundred
_PLAIN = ("eta", "expires", "group", "timelimit", "retries")  # headers that we never set


def check(message: Any) -> str:
    """The job that a message asks to try. Raises ValueError, with the reason, for a message that no client of ours writes."""
    if not isinstance(message, dict):
        raise ValueError("it is no JSON object")
    headers, properties, body = (message.get(name) for name in ("headers", "properties", "body"))
    if not isinstance(headers, dict) or not isinstance(properties, dict) or not isinstance(body, str):
        raise ValueError("it lacks headers, properties or a body")
    if headers.get("task") != TASK:
        raise ValueError(f"it is for task {str(headers.get('task'))[:80]!r}")
    if message.get("content-type") != "application/json" or str(message.get("content-encoding")).lower() != "utf-8":
        raise ValueError(f"its content is {str(message.get('content-type'))[:80]!r}, not JSON")
    if any(headers.get(name) for name in _PLAIN if name != "timelimit") or headers.get("timelimit", [None, None]) != [None, None]:
        raise ValueError(f"it sets one of {', '.join(_PLAIN)}")
    if not isinstance(headers.get("id"), str) or not isinstance(properties.get("delivery_tag"), str):
        raise ValueError("it has no id")
    if not isinstance(properties.get("delivery_info"), dict) or properties.get("body_encoding") != "base64" or len(body) > MOST_LETTERS:
        raise ValueError("its body cannot be read")
    content = json.loads(base64.b64decode(body, validate=True))
    if not isinstance(content, list) or len(content) != 3 or content[1] or not isinstance(content[2], dict):
        raise ValueError("its body is not [arguments, {}, {}]")
    if not isinstance(content[0], list) or len(content[0]) != 1 or not isinstance(content[0][0], str):
        raise ValueError("its argument is not one job")
    try:
        return check_id(content[0][0])
    except UsageError as error:
        raise ValueError(str(error)) from None


def guard() -> None:
    """From now on this process reads queues through `Transport`."""
    TRANSPORT_ALIASES["redis"] = TRANSPORT_ALIASES["rediss"] = f"{__name__}:Transport"


class Channel(redis.Channel):
    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (ValueError, RecursionError) as error:  # no JSON at all
            _drop(str(error))
            raise Empty from None


class Transport(redis.Transport):
    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> Any:
        if queue in OURS:  # others carry what Celery and Flower ask of workers
            try:
                check(message)
            except (ValueError, RecursionError) as error:
                return _drop(str(error))
        return super()._deliver(message, queue)


def _drop(why: str) -> None:
    log.warning("a message that is none of ours was dropped: %s", " ".join(why.split())[:200])
