"""A hub on this machine, as much of it as `huggingface_hub` and `datasets` need to read: models and datasets, several commits each."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote


@dataclass
class Repository:
    """commits: sha -> {path: content}, oldest first; `main` is the last. A gated one is refused."""

    commits: dict[str, dict[str, bytes]]
    gated: bool = False

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = list(self.commits)[-1] if revision in ("", "main") else revision
        return (sha, self.commits[sha]) if sha in self.commits else None


@dataclass
class LocalHub:
    """models, datasets: what is served; fetched: (revision, file) of every download; failing: the next so many data reads are cut off."""

    models: dict[str, Repository] = field(default_factory=dict)
    datasets: dict[str, Repository] = field(default_factory=dict)
    fetched: list[tuple[str, str]] = field(default_factory=list)
    failing: int = 0
    endpoint: str = ""

    def environment(self, home: Path) -> dict[str, str]:
        """Variables under which the hub's clients talk to this hub and keep their caches in `home`."""
        return hub_environment(self.endpoint, home)


def hub_environment(endpoint: str, home: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "", "HF_HUB_DISABLE_XET": "1"}


class HubHandler(BaseHTTPRequestHandler):
    """What every hub's handler answers with; `hub` is what it serves."""

    hub: Any

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")


@contextmanager
def running(hub: Any, handler: type[HubHandler]) -> Iterator[None]:
    """Run a hub inside a `with` block; its `endpoint` is set."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serve(hub: LocalHub) -> Iterator[LocalHub]:
    """Run a hub that one can read from inside a `with` block."""
    with running(hub, _Handler):
        yield hub


class _Handler(HubHandler):
    def refuse(self, code: int, reason: str) -> None:
        self.answer(code, json.dumps({"error": reason}).encode(), X_Error_Code=reason, X_Error_Message=reason)

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0]).strip("/")
        if path.startswith("api/"):
            return self.api(path.removeprefix("api/"))
        kind = "datasets" if path.startswith("datasets/") else "models"
        name, _, rest = path.removeprefix("datasets/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        found = self.find(kind, name, revision)
        if found is None:
            return None
        sha, files = found
        if file not in files:
            return self.refuse(404, "EntryNotFound")
        return self.download(sha, file, files[file])

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """paths-info: what is known of the named paths."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        form = json.loads(body) if body.startswith("{") else parse_qs(body)
        path = unquote(self.path.partition("?")[0]).strip("/").removeprefix("api/")
        kind, _, rest = path.partition("/")
        name, _, revision = rest.partition("/paths-info/")
        found = self.find(kind, name, revision)
        if found is not None:
            self.json([entry for entry in _tree(found[1]) if entry["path"] in form["paths"]])

    def api(self, path: str) -> None:
        kind, _, rest = path.partition("/")
        if "/tree/" in rest:
            name, _, place = rest.partition("/tree/")
            revision, _, folder = place.partition("/")
            found = self.find(kind, name, revision)
            if found is not None:
                deep = parse_qs(self.path.partition("?")[2]).get("recursive", ["false"])[0].lower() in ("true", "1")
                self.json([e for e in _tree(found[1]) if _is_below(str(e["path"]), folder, deep)])
            return
        name, _, revision = rest.partition("/revision/")
        found = self.find(kind, name, revision)
        if found is not None:
            sha, files = found
            self.json({"id": name, "sha": sha, "siblings": [{"rfilename": file} for file in files], "tags": [], "downloads": 0})

    def find(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit asked for, or None after the refusal was sent."""
        repository = getattr(self.hub, kind, {}).get(name)
        if repository is None:
            self.refuse(404, "RepoNotFound")
        elif repository.gated:
            self.refuse(403, "GatedRepo")
        elif repository.at(revision) is None:
            self.refuse(404, "RevisionNotFound")
        else:
            return repository.at(revision)
        return None

    def download(self, sha: str, file: str, content: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X_Repo_Commit": sha, "Accept_Ranges": "bytes"}
        if self.command == "GET":
            if self.hub.failing and not file.endswith((".md", ".json", ".py")):
                self.hub.failing -= 1
                self.close_connection = True
                return
            self.hub.fetched.append((sha, file))
        span = self.headers.get("Range", "")
        if not span.startswith("bytes="):
            return self.answer(200, content, **headers)
        first, _, last = span.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last) + 1 if last else len(content), len(content))
        return self.answer(206, content[start:stop], Content_Range=f"bytes {start}-{stop - 1}/{len(content)}", **headers)


def _is_below(path: str, folder: str, deep: bool) -> bool:
    if folder and not path.startswith(folder + "/"):
        return False
    return deep or "/" not in path.removeprefix(folder + "/" if folder else "")


def _tree(files: dict[str, bytes]) -> list[dict[str, object]]:
    folders = {path.rpartition("/")[0] for path in files} - {""}
    found: list[dict[str, object]] = [{"type": "directory", "path": f, "size": 0, "oid": "0" * 40} for f in sorted(folders)]
    return found + [{"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for p, c in files.items()]
