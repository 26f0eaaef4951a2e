"""Addresses in two dialects, and what the environment may say."""

from __future__ import annotations

import pytest
import redis
from kombu import Connection
from redis.connection import SSLConnection
from redis.connection import parse_url as redis_parse

from extractor.errors import ServiceUnavailable, UsageError
from worker import server, urls
from worker.settings import from_env


@pytest.mark.parametrize("spelling", ["unix://{}?db=3", "redis+socket://{}?virtual_host=3"])
def test_either_spelling_of_a_socket_reaches_the_same_database_through_both_libraries(machine, spelling):
    server.ensure(machine.settings)
    url = spelling.format(server.running(machine.settings))
    with Connection(urls.to_celery(url)) as connection:
        connection.SimpleQueue("here").put("hello")
    client = redis.Redis.from_url(urls.to_redis(url))
    assert client.connection_pool.connection_kwargs["db"] == 3
    assert client.llen("here") == 1


@pytest.mark.parametrize("url", ["redis://host:6380/2", "redis://:secret@host/0"])
def test_tcp_addresses_are_the_same_in_both_dialects(url):
    assert urls.to_redis(url) == urls.to_celery(url) == url


def test_a_tls_address_checks_certificates_in_both_dialects():
    url = "rediss://user:secret@host:6380/2"
    assert redis_parse(urls.to_redis(url))["connection_class"] is SSLConnection
    with Connection(urls.to_celery(url)) as connection:
        assert connection.ssl["ssl_cert_reqs"].name == "CERT_REQUIRED"
    assert urls.to_celery(url + "?ssl_cert_reqs=none").endswith("?ssl_cert_reqs=none")


@pytest.mark.parametrize("url", ["http://host", "host:6379", "redis://host:port/0", "unix://", "", "redis+sentinel://host"])
def test_what_is_no_redis_address_is_refused(url):
    with pytest.raises(UsageError, match="not a Redis address"):
        urls.to_celery(url)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://user:secret@host:1/0", "redis://user:***@host:1/0"),
        ("rediss://:secret@host", "rediss://:***@host"),
        ("unix:///s.sock?db=1&password=secret", "unix:///s.sock?db=1&password=***"),
        ("redis://host", "redis://host"),
    ],
)
def test_passwords_are_masked(url, masked):
    assert urls.mask(url) == masked


def test_a_server_on_the_network_without_a_password_is_refused_unless_allowed():
    with pytest.raises(ServiceUnavailable, match="EXTRACT_ALLOW_INSECURE_REDIS=1"):
        urls.check_safe("redis://10.0.0.5:6379/0", allow_insecure=False)
    for url in ("redis://10.0.0.5/0?password=x", "redis://:x@10.0.0.5", "redis://localhost", "redis://127.0.0.9", "redis://[::1]:6379"):
        urls.check_safe(url, allow_insecure=False)
    urls.check_safe("rediss://10.0.0.5:6379/0", allow_insecure=False)
    urls.check_safe("redis://10.0.0.5:6379/0", allow_insecure=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EXTRACT_LEASE_TTL", "soon"),
        ("EXTRACT_HEARTBEAT", "-1"),
        ("EXTRACT_IDLE_EXIT", "nan"),
        ("EXTRACT_THREADS", "0"),
        ("EXTRACT_THREADS", "2.5"),
    ],
)
def test_a_wrong_variable_is_named(name, value):
    with pytest.raises(UsageError, match=name):
        from_env({name: value})


def test_the_state_directory_follows_the_desktop_convention(tmp_path):
    assert from_env({"XDG_STATE_HOME": str(tmp_path)}).state_dir == tmp_path / "extract"
    assert from_env({}).state_dir.parts[-3:] == (".local", "state", "extract")
    chosen = from_env({"EXTRACT_STATE_DIR": str(tmp_path)})
    assert (chosen.state_dir, chosen.root) == (tmp_path, tmp_path / "jobs")
    assert from_env({"EXTRACT_ROOT": "/data"}).root.as_posix() == "/data"
