"""Redis addresses: the same server in the dialects of redis-py and of Celery, masked for people, checked for safety.

redis-py   redis://HOST:PORT/DB   rediss://HOST:PORT/DB   unix:///PATH?db=DB
Celery     redis://HOST:PORT/DB   rediss://HOST:PORT/DB?ssl_cert_reqs=required   redis+socket:///PATH?virtual_host=DB
"""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from extractor.errors import ServiceUnavailable, UsageError

_SOCKET_SCHEMES = ("unix", "redis+socket")
_SCHEMES = ("redis", "rediss", *_SOCKET_SCHEMES)


def to_redis(url: str) -> str:
    """A URL of either dialect as redis-py wants it. Raises UsageError."""
    parts = _split(url)
    query = dict(parse_qsl(parts.query))
    if parts.scheme not in _SOCKET_SCHEMES:
        return url
    database = query.pop("virtual_host", None)
    if database is not None:
        query["db"] = database.strip("/")
    return _socket_url("unix", parts, query)


def to_celery(url: str) -> str:
    """A URL of either dialect as Celery wants it. Raises UsageError."""
    parts = _split(url)
    query = dict(parse_qsl(parts.query))
    if parts.scheme in _SOCKET_SCHEMES:
        database = query.pop("db", None)
        if database is not None:
            query["virtual_host"] = database
        return _socket_url("redis+socket", parts, query)
    if parts.scheme == "rediss" and "ssl_cert_reqs" not in query:
        return parts._replace(query=urlencode(query | {"ssl_cert_reqs": "required"})).geturl()
    return url


def mask(url: str) -> str:
    """The URL without its password, for messages and logs."""
    parts = urlsplit(url)
    query = [(key, "***" if key == "password" else value) for key, value in parse_qsl(parts.query)]
    masked = parts._replace(query=urlencode(query, safe="*/"))
    if parts.password is not None:
        masked = masked._replace(netloc=f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}")
    return _with_slashes(masked)


def check_safe(url: str, allow_insecure: bool) -> None:
    """Refuse a server that anybody on the network could write to: whoever can write to it can queue work.

    Raises ServiceUnavailable for redis:// to another machine without a password, unless `allow_insecure`.
    """
    parts = _split(url)
    if parts.scheme != "redis" or allow_insecure or _is_loopback(parts.hostname or "localhost"):
        return
    if parts.password is None and "password" not in dict(parse_qsl(parts.query)):
        raise ServiceUnavailable(
            f"EXTRACT_REDIS_URL {mask(url)} is on another machine and has no password; use rediss:// with a password, "
            "or set EXTRACT_ALLOW_INSECURE_REDIS=1 on a private network"
        )


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in _SCHEMES and (parts.port or True) and (parts.scheme not in _SOCKET_SCHEMES or bool(parts.path))
    except ValueError:
        valid = False
    if not valid:
        raise UsageError("EXTRACT_REDIS_URL is not a Redis address; write redis://, rediss:// or unix:///path/to/socket")
    return parts


def _socket_url(scheme: str, parts: SplitResult, query: dict[str, str]) -> str:
    return _with_slashes(parts._replace(scheme=scheme, query=urlencode(query)))


def _with_slashes(parts: SplitResult) -> str:
    # geturl() writes unix:/p for an empty host; both clients want unix:///p
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}{parts.path}{query}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
