"""A server as production has it: TLS with a certificate of one's own authority, and users with few rights.

The bundled Valkey has no TLS, so its TLS end is a proxy in this process. EXTRACTOR_TLS_SERVER names a server program to use that has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import redis
from service_machine import PROJECT

from worker.broker.embedded_redis import find_binary
from worker.settings import from_env


@dataclass(frozen=True)
class Secured:
    """A running server: the folder of its secrets, its TLS port, its port without TLS (0: none)."""

    secrets: Path
    port: int
    plain_port: int

    def password(self, user: str) -> str:
        return (self.secrets / f"{user}.password").read_text()

    def url(self, user: str = "extract", password: str | None = None, scheme: str = "rediss", query: str | None = None) -> str:
        """An address of this server, by default the right one."""
        query = f"?ssl_ca_certs={self.secrets / 'ca.crt'}" if query is None else query
        login = f"{user}:{quote(self.password(user) if password is None else password, safe='')}@" if user else ""
        return f"{scheme}://{login}localhost:{self.port}/0{query}"

    def client(self, user: str) -> redis.Redis:
        """A connection as one of the users."""
        return redis.Redis.from_url(self.url(user, "any" if user == "probe" else None), decode_responses=True)


def make_secrets(*arguments: str | Path) -> None:
    """deploy/make-secrets, as an operator calls it."""
    subprocess.run([PROJECT / "deploy" / "make-secrets", *arguments], check=True, stdin=subprocess.DEVNULL, capture_output=True)


@contextmanager
def run(folder: Path, secrets: Path) -> Iterator[Secured]:
    """A server with those secrets until the end of the block."""
    native = os.environ.get("EXTRACTOR_TLS_SERVER")
    port, tls_port = _free_port(), _free_port()
    program = shutil.which(native) if native else str(find_binary(from_env()).path)
    assert program is not None, f"EXTRACTOR_TLS_SERVER={native} is no program"
    flags = {"--port": str(port), "--bind": "127.0.0.1", "--aclfile": str(secrets / "users.acl"), "--save": "", "--dir": str(folder)}
    if native:
        files = {"--tls-cert-file": "tls.crt", "--tls-key-file": "tls.key", "--tls-ca-cert-file": "ca.crt"}
        flags |= {"--tls-port": str(tls_port), "--tls-auth-clients": "no"} | {flag: str(secrets / name) for flag, name in files.items()}
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen([program, *(word for flag in flags.items() for word in flag)], stdout=log, stderr=log)
    try:
        _await_port(port, process, folder / "server.log")
        with contextlib.nullcontext(tls_port) if native else _tls_proxy(port, secrets) as found:
            yield Secured(secrets, found, port)
    finally:
        process.kill()
        process.wait()


@contextmanager
def _tls_proxy(port: int, secrets: Path) -> Iterator[int]:
    """The port of a TLS end in front of a plain one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(secrets / "tls.crt", secrets / "tls.key")
    loop, tasks = asyncio.new_event_loop(), set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    listener = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
    loop.set_exception_handler(lambda *_: None)  # clients that speak no TLS, or leave
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_port(port: int, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
