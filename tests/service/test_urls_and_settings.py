"""Addresses in two dialects, and what the environment may say."""

from __future__ import annotations

import re
import ssl

import pytest
import redis
from kombu import Connection
from redis.connection import SSLConnection
from redis.connection import parse_url as redis_parse

from extractor.errors import ServiceUnavailable, UsageError
from worker.broker import embedded_redis, redis_url
from worker.broker.app import make_app
from worker.settings import child_env, from_env


@pytest.mark.parametrize("spelling", ["unix://{}?db=3", "redis+socket://{}?virtual_host=3"])
def test_either_spelling_of_a_socket_reaches_the_same_database_through_both_libraries(machine, spelling):
    embedded_redis.ensure(machine.settings)
    url = spelling.format(embedded_redis.running(machine.settings))
    with Connection(redis_url.to_celery(url)) as connection:
        connection.SimpleQueue("here").put("hello")
    client = redis.Redis.from_url(redis_url.to_redis(url))
    assert client.connection_pool.connection_kwargs["db"] == 3
    assert client.llen("here") == 1


@pytest.mark.parametrize("url", ["redis://host:6380/2", "redis://:secret@host/0"])
def test_tcp_addresses_are_the_same_in_both_dialects(url):
    assert redis_url.to_redis(url) == redis_url.to_celery(url) == url


def test_a_tls_address_checks_certificates_in_both_dialects():
    url = "rediss://user:secret@host:6380/2"
    assert redis_parse(redis_url.to_redis(url))["connection_class"] is SSLConnection
    with Connection(redis_url.to_celery(url)) as connection:
        assert connection.ssl["ssl_cert_reqs"].name == "CERT_REQUIRED"
    assert redis_url.to_celery(url + "?ssl_cert_reqs=none").endswith("?ssl_cert_reqs=none")


def test_user_and_password_in_the_query_reach_celery_too():
    url = "rediss://host:6380/2?username=me&password=p%40ss&ssl_ca_certs=/ca.crt&ssl_check_hostname=false"
    with Connection(redis_url.to_celery(url)) as connection:
        assert (connection.userid, connection.password, connection.virtual_host) == ("me", "p@ss", "2")
        assert connection.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": "/ca.crt", "ssl_check_hostname": False}
    with Connection(redis_url.to_celery("redis://host?db=3")) as connection:
        assert connection.virtual_host == "3"
    assert redis_parse(redis_url.to_redis("redis://host?virtual_host=3"))["db"] == 3


@pytest.mark.parametrize("spelling", ["unix://{}?db=3&password=p%40ss", "unix://:p%40ss@{}?db=3"])
def test_a_socket_with_a_password_is_reached_through_both_libraries(machine, spelling):
    machine.records.client.config_set("requirepass", "p@ss")
    url = spelling.format(embedded_redis.socket_path(machine.settings))
    with Connection(redis_url.to_celery(url)) as connection:
        connection.SimpleQueue("here").put("hello")
    assert redis.Redis.from_url(redis_url.to_redis(url)).llen("here") == 1


def test_what_a_url_says_of_certificates_is_told_to_flower_as_well():
    app = make_app("rediss://host/0?ssl_ca_certs=/ca.crt", from_env({}))
    assert app.conf.broker_use_ssl == {"ssl_cert_reqs": "required", "ssl_ca_certs": "/ca.crt"}
    assert make_app("redis://host/0", from_env({})).conf.broker_use_ssl is None


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://host?timeout=3", "an unknown option 'timeout'"),
        ("redis://host?ssl_ca_certs=/x", "an unknown option 'ssl_ca_certs' for a redis:// address"),
        ("rediss://host?ssl_cert_reqs=maybe", "write one of required, optional, none"),
        ("redis://user:12#secret@host", "write them as %23 for #"),
        ("redis://user:12/secret@host", "%2F for /"),
        ("redis://user:12?secret@host", "%3F for ?"),
    ],
)
def test_an_address_that_neither_library_would_understand_is_refused_without_its_password(url, words):
    for convert in (redis_url.to_redis, redis_url.to_celery):
        with pytest.raises(UsageError, match=re.escape(words)) as refusal:
            convert(url)
        assert "secret" not in str(refusal.value)


def test_a_port_that_speaks_no_tls_is_suspected_when_a_tls_address_does_not_answer():
    assert "that this port speaks TLS" in redis_url.explain("rediss://u:secret@host", TimeoutError("Timeout connecting to server"))
    assert "does not speak TLS: write redis://" in redis_url.explain("rediss://u:secret@host", OSError("[SSL: WRONG_VERSION_NUMBER] wrong"))
    assert "TLS" not in redis_url.explain("redis://u:secret@host", TimeoutError("Timeout connecting to server"))


@pytest.mark.parametrize("url", ["http://host", "host:6379", "redis://host:port/0", "unix://", "", "redis+sentinel://host"])
def test_what_is_no_redis_address_is_refused(url):
    with pytest.raises(UsageError, match="not a Redis address"):
        redis_url.to_celery(url)


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
    assert redis_url.mask(url) == masked


def test_a_server_on_the_network_without_a_password_is_refused_unless_allowed():
    with pytest.raises(ServiceUnavailable, match="EXTRACT_ALLOW_INSECURE_REDIS=1"):
        redis_url.check_safe("redis://10.0.0.5:6379/0", allow_insecure=False)
    for url in ("redis://10.0.0.5/0?password=x", "redis://:x@10.0.0.5", "redis://localhost", "redis://127.0.0.9", "redis://[::1]:6379"):
        redis_url.check_safe(url, allow_insecure=False)
    redis_url.check_safe("rediss://10.0.0.5:6379/0", allow_insecure=False)
    redis_url.check_safe("redis://10.0.0.5:6379/0", allow_insecure=True)


def test_a_server_on_the_network_whose_certificate_is_not_checked_is_refused_unless_allowed():
    for query in ("ssl_cert_reqs=none", "ssl_cert_reqs=optional", "ssl_check_hostname=false"):
        with pytest.raises(ServiceUnavailable, match="others could read the password"):
            redis_url.check_safe(f"rediss://:x@10.0.0.5/0?{query}", allow_insecure=False)
        redis_url.check_safe(f"rediss://:x@10.0.0.5/0?{query}", allow_insecure=True)
        redis_url.check_safe(f"rediss://:x@localhost/0?{query}", allow_insecure=False)


def test_a_certificate_file_that_is_not_there_is_named():
    with pytest.raises(UsageError, match=r"file '/nowhere/ca.crt' of ssl_ca_certs"):
        redis_url.check_safe("rediss://:x@10.0.0.5/0?ssl_ca_certs=/nowhere/ca.crt", allow_insecure=False)


def test_the_address_may_lie_in_a_file(tmp_path):
    path = tmp_path / "redis_url"
    path.write_text("redis://:x@10.0.0.5/0\n")
    assert from_env({"EXTRACT_REDIS_URL_FILE": str(path)}).redis_url == "redis://:x@10.0.0.5/0"
    assert from_env({"EXTRACT_REDIS_URL_FILE": str(path), "EXTRACT_REDIS_URL": "redis://h"}).redis_url == "redis://h"
    path.write_text("\n")
    with pytest.raises(UsageError, match="is empty"):
        from_env({"EXTRACT_REDIS_URL_FILE": str(path)})
    with pytest.raises(UsageError, match="EXTRACT_REDIS_URL_FILE='/nowhere' cannot be read"):
        from_env({"EXTRACT_REDIS_URL_FILE": "/nowhere"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EXTRACT_ROOT", "s3://bucket/jobs?version=2"),
        ("EXTRACT_LEASE_TTL", "soon"),
        ("EXTRACT_HEARTBEAT", "-1"),
        ("EXTRACT_IDLE_EXIT", "nan"),
        ("EXTRACT_THREADS", "0"),
        ("EXTRACT_THREADS", "2.5"),
        ("EXTRACT_NO_WORKER", "on demand"),
        ("EXTRACT_ALLOW_INSECURE_REDIS", "2"),
    ],
)
def test_a_wrong_variable_is_named(name, value):
    with pytest.raises(UsageError, match=name):
        from_env({name: value})


def test_a_heartbeat_that_comes_after_the_lease_ends_is_refused():
    with pytest.raises(UsageError, match="EXTRACT_HEARTBEAT=100 is not less than EXTRACT_LEASE_TTL=4"):
        from_env({"EXTRACT_HEARTBEAT": "100", "EXTRACT_LEASE_TTL": "4"})


def test_a_child_in_another_folder_gets_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in (("EXTRACT_STATE_DIR", "state"), ("EXTRACT_ROOT", "jobs"), ("EXTRACT_CACHE_DIR", "../cache")):
        monkeypatch.setenv(name, value)
    env = child_env()
    assert from_env(env).state_dir == from_env().state_dir == tmp_path / "state"
    assert (env["EXTRACT_ROOT"], env["EXTRACT_CACHE_DIR"]) == (str(tmp_path / "jobs"), str(tmp_path.parent / "cache"))
    monkeypatch.setenv("EXTRACT_ROOT", "s3://bucket/jobs")
    assert child_env()["EXTRACT_ROOT"] == "s3://bucket/jobs"


def test_the_state_directory_follows_the_desktop_convention(tmp_path):
    assert from_env({"XDG_STATE_HOME": str(tmp_path)}).state_dir == tmp_path / "extract"
    assert from_env({}).state_dir.parts[-3:] == (".local", "state", "extract")
    chosen = from_env({"EXTRACT_STATE_DIR": str(tmp_path)})
    assert (chosen.state_dir, chosen.root) == (tmp_path, tmp_path / "jobs")
    assert from_env({"EXTRACT_ROOT": "/data"}).root.as_posix() == "/data"
