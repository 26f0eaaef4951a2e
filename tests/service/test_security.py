"""A remote Redis: TLS, users with few rights, passwords that nobody gets to read, tokens that never leave the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import secured_server
from redis.exceptions import NoPermissionError
from secured_server import Secured, make_secrets
from service_machine import PROJECT, wait_for

from worker.broker import routing
from worker.broker.app import KEY_PREFIX
from worker.broker.redis_url import connect

SLOW = {"steps": 15, "seconds": 0.1}
KEDA_SCRIPT = "if redis.call('type', KEYS[1]).ok == 'zset' then return redis.call('zcard', KEYS[1]) end return redis.call('llen', KEYS[1])"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Secrets as an operator makes them."""
    folder = tmp_path_factory.mktemp("secrets") / "made"
    make_secrets(folder, "localhost")
    make_secrets(folder / "other", "localhost")
    return folder


@pytest.fixture
def secured(machine, made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Secured]:
    """A server with TLS and users; the machine's commands and workers use it."""
    secrets = machine.home / "secrets"
    shutil.copytree(made, secrets)
    (machine.home / "data").mkdir()
    with secured_server.run(machine.home / "data", secrets) as server:
        monkeypatch.setenv("EXTRACT_REDIS_URL", server.url())
        yield server


def denied(secured: Secured) -> list[dict]:
    return [{"user": entry["username"], "what": entry["object"], "why": entry["reason"]} for entry in secured.client("operator").acl_log()]


@pytest.mark.slow
def test_a_job_goes_from_submit_to_its_result_over_tls_as_a_user_with_few_rights(machine, secured):
    alive = machine.home / "alive"
    worker = machine.worker("--alive-file", str(alive))
    assert machine.extract("train", "--wait", "--json").code == 0
    machine.plan(steps=1000, seconds=0.05)
    job = machine.extract("train", "--seed", "1", "--priority", "high", "--json").json["job"]
    machine.wait_step(job, 2)
    for command in (["list"], ["status", job], ["cancel", job]):
        assert machine.extract(*command).code == 0
    machine.wait_state(job, "cancelled")
    pong = subprocess.run(
        [sys.executable, "-m", "celery", "--app", "worker.celery_app", "inspect", "ping"],
        cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "pong" in pong.stdout, pong.stderr
    worker.terminate()
    assert worker.wait(timeout=20) == 0
    assert alive.exists()
    assert denied(secured) == []
    assert {key[:3] for key in secured.client("operator").scan_iter()} == {"ex:"}
    said = (machine.home / "worker-0.log").read_text() + pong.stdout + pong.stderr
    assert f"rediss://extract:**@localhost:{secured.port}" in said
    assert secured.password("extract") not in said
    assert secured.password("extract") not in machine.extract("status").out


@pytest.mark.parametrize(
    "command",
    [
        ("SET", "other", "1"),
        ("GET", "other"),
        ("LPUSH", "celery", "{}"),
        ("RENAME", "ex:jobs", "other"),
        ("COPY", "ex:jobs", "ex:other", "DB", "1"),
        ("EVAL", "return redis.call('GET', 'other')", "0"),
        ("EVAL", "return redis.call('FLUSHDB')", "0"),
        ("SUBSCRIBE", "other"),
        ("PUBLISH", "other", "x"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("RANDOMKEY",),
        ("FLUSHALL",),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("MONITOR",),
        ("SAVE",),
        ("SHUTDOWN",),
        ("REPLICAOF", "localhost", "1"),
        ("FUNCTION", "LOAD", "x"),
        ("SCRIPT", "FLUSH"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_the_workers_user_reaches_nothing_but_our_keys(secured, command):
    secured.client("operator").zadd("ex:jobs", {"x": 1})
    with pytest.raises(redis.ResponseError) as refusal:
        secured.client("extract").execute_command(*command)
    assert any(word in str(refusal.value).lower() for word in ("permission", "can't run this command", "can't access")), refusal.value
    assert denied(secured)[-1]["user"] == "extract"


def test_the_scaler_s_user_sees_the_length_of_queues_and_nothing_else(secured):
    keda = secured.client("keda")
    secured.client("operator").lpush(f"{KEY_PREFIX}extract", "a", "b")
    lengths = {queue: keda.eval(KEDA_SCRIPT, 1, KEY_PREFIX + queue) for queue in routing.queues_for(0)}
    assert lengths == dict.fromkeys(routing.queues_for(0), 0) | {"extract": 2}
    for command in (("LPUSH", f"{KEY_PREFIX}extract", "c"), ("LRANGE", f"{KEY_PREFIX}extract", "0", "-1"), ("HGETALL", "ex:job:x")):
        with pytest.raises(NoPermissionError):
            keda.execute_command(*command)


def test_nobody_without_a_password_can_do_more_than_ping(secured):
    assert secured.client("probe").ping()
    with pytest.raises(NoPermissionError):
        secured.client("probe").get("ex:jobs")
    with pytest.raises(redis.AuthenticationError):
        redis.Redis.from_url(secured.url("", query=None)).get("ex:jobs")


WRONG = {
    "authority": (lambda s: s.url(query=f"?ssl_ca_certs={s.secrets / 'other' / 'ca.crt'}"), "not signed by the authority in ssl_ca_certs"),
    "no authority": (lambda s: s.url(query=""), "not signed by the authority in ssl_ca_certs"),
    "name": (lambda s: s.url().replace("localhost", "127.1"), "or is for another host"),
    "password": (lambda s: s.url(password="guess/me@"), "correct the user and password"),
    "no password": (lambda s: s.url(user=""), "correct the user and password"),
    "rights": (lambda s: s.url("keda"), "give that user the rights of deploy/valkey/users.acl"),
    "no tls": (lambda s: s.url(scheme="redis", query=""), "if that port speaks TLS, write rediss://"),
    "key for certificate": (lambda s: s.url(query=f"?ssl_ca_certs={s.secrets / 'tls.key'}"), "must hold certificates and a key in PEM"),
}


@pytest.mark.parametrize("command", ["list", "worker"])
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_address_gets_one_line_that_says_what_to_do_and_no_password(machine, secured, monkeypatch, what, command):
    address, advice = WRONG[what]
    monkeypatch.setenv("EXTRACT_REDIS_URL", address(secured))
    answer = machine.extract(command, "--json")
    assert (answer.code, answer.err.count("\n")) == (4, 1), answer
    assert advice in answer.err
    assert answer.json["error"]["type"] == "ServiceUnavailable"
    for password in (secured.password("extract"), secured.password("keda"), "guess/me@", "guess%2Fme%40"):
        assert password not in answer.out + answer.err


def test_a_rotated_password_interrupts_no_job_and_the_retired_one_is_refused(machine, secured, monkeypatch):
    machine.plan(**SLOW)
    old = secured.url()
    machine.worker()
    job = machine.submit()
    machine.wait_step(job, 3)
    make_secrets("--rotate", secured.secrets)
    secured.client("operator").acl_load()
    assert secured.url() != old
    assert machine.wait_state(job, "succeeded")["attempt"] == "1"
    assert machine.states(job) == ["queued", "running", "succeeded"]
    make_secrets("--retire", secured.secrets)
    secured.client("operator").acl_load()
    assert machine.extract("list").code == 4
    monkeypatch.setenv("EXTRACT_REDIS_URL", secured.url())
    assert machine.extract("list").code == 0


def test_a_worker_cut_off_by_a_retired_password_says_so_without_it_and_works_again_once_let_in(machine, secured):
    machine.worker()
    password = secured.password("extract")
    make_secrets("--rotate", secured.secrets)
    make_secrets("--retire", secured.secrets)
    secured.client("operator").acl_load()
    secured.client("operator").execute_command("CLIENT", "KILL", "USER", "extract")
    log = machine.home / "worker-0.log"
    wait_for(lambda: "Redis cannot be reached (invalid username-password pair" in log.read_text(), "the worker to notice")
    secured.client("operator").acl_setuser("extract", enabled=True, passwords=["+" + password])
    machine.wait_state(machine.submit(), "succeeded")
    assert password not in log.read_text()


def test_a_submit_leaves_no_hub_token_in_redis(machine, monkeypatch):
    token = "hf_" + "secret" * 5
    monkeypatch.setenv("HF_TOKEN", token)
    job = machine.submit("mine")
    machine.worker("--max-jobs", "1")
    machine.wait_state(job, "succeeded")
    assert machine.extract("train", "--no-worker", "--json").code == 0
    written = b"".join(path.read_bytes() for path in (machine.state / "valkey-9" / "appendonlydir").iterdir())
    assert b"ex:job:mine" in written, "the file holds every command that ever changed a key"
    assert token.encode() not in written
    kept = [path for path in machine.settings.root.rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if token.encode() in path.read_bytes()]


def test_the_engine_is_not_told_the_address(machine, secured, monkeypatch):
    from worker.supervision import engine

    monkeypatch.setenv("EXTRACT_REDIS_URL_FILE", str(secured.secrets / "redis_url"))
    assert not {"EXTRACT_REDIS_URL", "EXTRACT_REDIS_URL_FILE"} & set(engine._engine_env())
    assert "EXTRACT_REDIS_URL" in os.environ


def test_a_special_character_in_the_password_works_for_both_libraries(machine, secured, monkeypatch):
    password = "p@ss:/w?r#d%"
    secured.client("operator").acl_setuser("extract", enabled=True, passwords=["+" + password])
    monkeypatch.setenv("EXTRACT_REDIS_URL", secured.url(password=password))
    machine.worker("--max-jobs", "1")
    assert machine.extract("train", "--wait", "--json").code == 0
    assert connect(secured.url(password=password)).ping()
