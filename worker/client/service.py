"""The connection of a client to the service: settings, Redis URL, job records."""

from __future__ import annotations

import time
from dataclasses import dataclass

import redis

from extractor.errors import ServiceUnavailable
from worker.broker import embedded_redis, redis_url
from worker.broker.redis_url import connect
from worker.records.records import Records
from worker.settings import Settings


@dataclass(frozen=True)
class Service:
    """A connection to the service: settings, Redis URL, job records."""

    settings: Settings
    url: str
    records: Records


def open_service(settings: Settings) -> Service:
    """Connect to EXTRACT_REDIS_URL, or to the embedded server, which is started if necessary.

    Raises ServiceUnavailable, or UsageError for an invalid address.
    """
    if settings.redis_url is None:
        url = embedded_redis.ensure(settings)
        return Service(settings, url, Records(connect(url)))
    redis_url.check_safe(settings.redis_url, settings.allow_insecure)
    records = Records(connect(settings.redis_url))
    try:
        records.client.zcard("ex:open")  # unlike a ping, also checks the permission to read keys
    except (redis.RedisError, OSError, ValueError) as error:
        raise ServiceUnavailable(redis_url.explain(settings.redis_url, error)) from None
    return Service(settings, settings.redis_url, records)


def open_lazily(settings: Settings) -> Service:
    """`open_service` without checking that the server of EXTRACT_REDIS_URL answers, for callers that can wait for it.

    Raises ServiceUnavailable for an unsafe address or when the embedded server does not start, or UsageError.
    """
    if settings.redis_url is None:
        return open_service(settings)
    redis_url.check_safe(settings.redis_url, settings.allow_insecure)
    return Service(settings, settings.redis_url, Records(connect(settings.redis_url)))


def reopen(service: Service) -> Service:
    """A new connection, after a pause; the old one if the service still does not answer."""
    time.sleep(0.5)
    try:
        return open_service(service.settings)
    except ServiceUnavailable:
        return service
