"""Redis URLs: conversion between the forms of redis-py and Celery, masking of passwords, safety checks, connections.

redis-py   redis://HOST:PORT/DB   rediss://HOST:PORT/DB   unix:///PATH?db=DB
Celery     redis://HOST:PORT/DB   rediss://HOST:PORT/DB?ssl_cert_reqs=required   redis+socket:///PATH?virtual_host=DB

Both accept USER:PASSWORD@ before the host, percent-encoded. With rediss:// the server's certificate must match the host name and be signed
by an authority of the system, or by the one in ?ssl_ca_certs=FILE; a client certificate is ?ssl_certfile=FILE&ssl_keyfile=FILE.
"""

from __future__ import annotations

import ipaddress
import os
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from extractor.errors import ServiceUnavailable, UsageError

_SOCKET_SCHEMES = ("unix", "redis+socket")
_SCHEMES = ("redis", "rediss", *_SOCKET_SCHEMES)
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_TLS_OPTIONS = (*_FILES, "ssl_cert_reqs", "ssl_check_hostname")
_OPTIONS = ("username", "password", "db", "virtual_host")
_VALUES = {"ssl_cert_reqs": ("required", "optional", "none"), "ssl_check_hostname": ("true", "false")}
_CHECK = "check EXTRACT_REDIS_URL and that the server runs"
_CHECK_TLS = "check EXTRACT_REDIS_URL, that the server runs, and that this port speaks TLS"
_CUT_OFF = ("Connection closed", "Protocol Error", "reset by peer")
_ADVICE = {  # parts of error messages of redis-py, OpenSSL and servers -> advice
    ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"): "that port does not speak TLS: write redis://, or name the port that does",
    ("CERTIFICATE_VERIFY_FAILED",): "its certificate is not signed by the authority in ssl_ca_certs, or is for another host",
    ("[X509", "PEM lib"): "the files that ssl_ca_certs, ssl_certfile and ssl_keyfile name must hold certificates and a key in PEM",
    ("WRONGPASS", "invalid username-password", "NOAUTH", "Authentication required", "HELLO must be called with the client already"): (
        "correct the user and password in EXTRACT_REDIS_URL"
    ),
    ("NOPERM", "ermissions to"): "give that user the rights of deploy/valkey/users.acl",
}


def to_redis(url: str) -> str:
    """The redis-py form of a URL in either form. Raises UsageError."""
    parts = _split(url)
    query = dict(parse_qsl(parts.query))
    if "virtual_host" in query:
        query["db"] = query.pop("virtual_host").strip("/")
    if parts.scheme in _SOCKET_SCHEMES:
        return _socket_url("unix", parts, query)
    return _with_query(parts, query)


def to_celery(url: str) -> str:
    """The Celery form of a URL in either form. Raises UsageError."""
    parts = _split(url)
    query = dict(parse_qsl(parts.query))
    if "db" in query:
        query["virtual_host"] = query.pop("db")
    if parts.scheme in _SOCKET_SCHEMES:
        return _socket_url("redis+socket", _with_login(parts, query), query)
    parts = _with_login(parts, query)
    if "virtual_host" in query:  # kombu reads the database from the path only
        parts = parts._replace(path="/" + query.pop("virtual_host").strip("/"))
    if parts.scheme == "rediss":
        query.setdefault("ssl_cert_reqs", "required")
    return _with_query(parts, query)


def tls_options(url: str) -> dict[str, Any] | None:
    """The TLS options in a rediss:// URL, for libraries that expect them outside the URL; None for other URLs."""
    parts = _split(url)
    if parts.scheme != "rediss":
        return None
    return {"ssl_cert_reqs": "required"} | {name: value for name, value in parse_qsl(parts.query) if name in _TLS_OPTIONS}


def mask(url: str) -> str:
    """The URL without its password, for messages and logs."""
    parts = urlsplit(url)
    query = [(key, "***" if key == "password" else value) for key, value in parse_qsl(parts.query)]
    masked = parts._replace(query=urlencode(query, safe="*/"))
    if parts.password is not None:
        masked = masked._replace(netloc=f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}")
    return _with_slashes(masked)


def check_safe(url: str, allow_insecure: bool) -> None:
    """Refuse a server that others on the network could write to, since that would let them queue work.

    Raises ServiceUnavailable for redis:// to another machine without a password, and for rediss:// to another machine without a check of
    its certificate, unless `allow_insecure`. Raises UsageError for a missing certificate file.
    """
    parts = _split(url)
    query = dict(parse_qsl(parts.query))
    for name in _FILES:
        if name in query and not os.access(query[name], os.R_OK):
            raise UsageError(
                f"EXTRACT_REDIS_URL {mask(url)}: file {query[name]!r} of {name} is missing or cannot be read; correct its path"
            )
    if allow_insecure or parts.scheme in _SOCKET_SCHEMES or _is_loopback(parts.hostname or "localhost"):
        return
    if parts.scheme == "rediss":
        if query.get("ssl_cert_reqs", "required") != "required" or query.get("ssl_check_hostname", "true") == "false":
            raise ServiceUnavailable(
                f"EXTRACT_REDIS_URL {mask(url)} does not verify the server's certificate, so others could read the password; "
                "name its authority with ssl_ca_certs=FILE instead, or set EXTRACT_ALLOW_INSECURE_REDIS=1 on a private network"
            )
    elif parts.password is None and "password" not in query:
        raise ServiceUnavailable(
            f"EXTRACT_REDIS_URL {mask(url)} is on another machine and has no password; use rediss:// with a password, "
            "or set EXTRACT_ALLOW_INSECURE_REDIS=1 on a private network"
        )


def explain(url: str, error: Exception) -> str:
    """One line, without the password, that says why the server does not answer and what to do."""
    words = " ".join(str(error).split()) or type(error).__name__
    if urlsplit(url).scheme == "redis" and any(sign in words for sign in _CUT_OFF):
        words, advice = "it closed the connection", "if that port speaks TLS, write rediss://"
    else:
        otherwise = _CHECK_TLS if urlsplit(url).scheme == "rediss" else _CHECK  # TLS to a plain port ends in a timeout
        advice = next((advice for signs, advice in _ADVICE.items() if any(sign in words for sign in signs)), otherwise)
    return f"Redis at {mask(url)} cannot be reached ({words}); {advice}"


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in _SCHEMES and url.startswith(f"{parts.scheme}://") and (parts.port or True)
        valid = valid and (parts.scheme not in _SOCKET_SCHEMES or bool(parts.path))
    except ValueError:
        valid = False
    if not valid:
        raise UsageError("EXTRACT_REDIS_URL is not a Redis address; write redis://, rediss:// or unix:///path/to/socket")
    if parts.fragment or (parts.scheme not in _SOCKET_SCHEMES and "@" in parts.path + parts.query):
        raise UsageError(
            "EXTRACT_REDIS_URL has a password with special characters; write them as %23 for #, %2F for /, %3F for ?, %40 for @"
        )
    _check_options(parts)
    return parts


def _check_options(parts: SplitResult) -> None:
    known = (*_OPTIONS, *_TLS_OPTIONS) if parts.scheme == "rediss" else _OPTIONS
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            raise UsageError(
                f"EXTRACT_REDIS_URL has an unknown option {name!r} for a {parts.scheme}:// address; known options: {', '.join(known)}"
            )
        if name in ("db", "virtual_host") and not (value.strip("/").isdecimal() or not value):
            raise UsageError(f"EXTRACT_REDIS_URL says {name}={value[:80]}; write a number")
        if name in _VALUES and value not in _VALUES[name]:
            raise UsageError(f"EXTRACT_REDIS_URL says {name}={value}; write one of {', '.join(_VALUES[name])}")


def _with_login(parts: SplitResult, query: dict[str, str]) -> SplitResult:
    """The URL with user and password moved out of the query, where kombu does not read them."""
    user, password = query.pop("username", ""), query.pop("password", None)
    if password is None or parts.password is not None:
        return parts
    login = f"{parts.username or quote(user, safe='')}:{quote(password, safe='')}"
    return parts._replace(netloc=f"{login}@{parts.netloc.rpartition('@')[2]}")


def _socket_url(scheme: str, parts: SplitResult, query: dict[str, str]) -> str:
    return _with_slashes(parts._replace(scheme=scheme, query=urlencode(query)))


def _with_slashes(parts: SplitResult) -> str:
    # geturl() writes unix:/p and redis: for an empty host; both clients want unix:///p and redis://
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}{parts.path}{query}"


def _with_query(parts: SplitResult, query: dict[str, str]) -> str:
    return _with_slashes(parts._replace(query=urlencode(query, safe="/")))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def connect(url: str, timeout: float = 5) -> redis.Redis:
    """A client for a URL in either form, with a timeout in seconds and one retry."""
    return redis.Redis.from_url(
        to_redis(url),
        decode_responses=True,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        encoding_errors="replace",  # invalid text in one key must not prevent reading the others
        retry=Retry(ConstantBackoff(0.1), 1),
    )
