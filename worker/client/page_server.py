"""Serves pages on the loopback interface: files of given folders, and pages that are made when they are first asked for.

Only GET, only to a browser that names this machine's loopback address (another site that resolves to it is refused), only files below the
given folders that are pages, pictures or JSON.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from extractor.errors import ExtractorError, UsageError

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
HOST = "127.0.0.1"
Make = Callable[[Mapping[str, str]], str]  # the parameters of an address -> the text of a page


class PageServer(ThreadingHTTPServer):
    """pages: {path: how it is made}; folders: {first part of a path: folder}. Made pages are kept. Raises UsageError for a port in use."""

    daemon_threads = True

    def __init__(self, pages: Mapping[str, Make], folders: Mapping[str, Path], port: int = 0) -> None:
        self.pages, self.folders = pages, {name: folder.resolve() for name, folder in folders.items()}
        self._made: dict[tuple[str, tuple[tuple[str, str], ...]], str] = {}
        self._lock = threading.Lock()  # pages are made one at a time: they may open models
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"port {port} cannot be used ({reason}); choose another --port, or none for any free one") from None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/"

    def made(self, path: str, parameters: Mapping[str, str]) -> str | None:
        """The page of a path; None where there is none. Raises what its making raises."""
        if path not in self.pages:
            return None
        key = (path, tuple(sorted(parameters.items())))
        with self._lock:
            if key not in self._made:
                self._made[key] = self.pages[path](parameters)
            return self._made[key]

    def file(self, path: str) -> Path | None:
        """The file of a path; None where there is none that may be read."""
        name, _, rest = path.lstrip("/").partition("/")
        folder = self.folders.get(name)
        if folder is None or "\0" in rest:
            return None
        found = (folder / rest).resolve()
        return found if found.is_relative_to(folder) and found.suffix in KINDS and found.is_file() else None


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version, sys_version = "extract", ""
    timeout = 30

    def do_GET(self) -> None:
        if self.headers.get("Host", "").rpartition(":")[0] not in (HOST, "localhost"):
            return self._say(HTTPStatus.FORBIDDEN, "this server answers to 127.0.0.1 and localhost only")
        address = urlsplit(self.path)
        path = unquote(address.path)
        try:
            text = self.server.made(path, dict(parse_qsl(address.query)))
        except ExtractorError as error:
            return self._say(HTTPStatus.BAD_REQUEST, str(error))
        if text is not None:
            return self._send(HTTPStatus.OK, KINDS[".html"], text.encode())
        file = self.server.file(path)
        if file is None:
            return self._say(HTTPStatus.NOT_FOUND, "there is no such page")
        return self._send(HTTPStatus.OK, KINDS[file.suffix], file.read_bytes())

    def _say(self, status: HTTPStatus, message: str) -> None:
        self._send(status, "text/plain; charset=utf-8", f"{message}\n".encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), ("X-Content-Type-Options", "nosniff")):
            self.send_header(name, value)
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Requests are not logged."""
