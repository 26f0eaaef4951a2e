"""A hub on this machine, as much of it as `huggingface_hub` and `datasets` need to read: models and datasets, several commits each.

Refusals are those of the real hub, as its client tells them apart: by status and by the X-Error headers.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode

TOKEN = "hf_good"  # the one token that this hub knows
LISTED_FIELDS = ("architectures", "model_type", "auto_map", "quantization_config")  # of a config, in listings
PAGE = 30  # models on a page of a listing


@dataclass
class Repository:
    """commits: sha -> {path: content}, oldest first; `main` is the last.

    gated         True: everything is refused; 'manual': what is in it may be seen, its files need TOKEN, as on the real hub
    private       all but TOKEN are told that there is no such repository
    disabled      everything is refused; 'seen': only its files are
    status        every request is answered with this error
    seconds       every answer takes so long
    parameters    what the hub counts in the safetensors; None: it does not say
    sizes         path -> bytes the hub claims the file has
    tags          by which a search may filter
    """

    commits: dict[str, dict[str, bytes]]
    gated: bool | str = False
    private: bool = False
    disabled: bool | str = False
    status: int = 0
    seconds: float = 0.0
    parameters: int | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    tags: tuple[str, ...] = ()

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = list(self.commits)[-1] if revision in ("", "main") else revision
        return (sha, self.commits[sha]) if sha in self.commits else None

    def siblings(self, files: dict[str, bytes], detailed: bool) -> list[dict[str, object]]:
        """The files as model_info lists them; with sizes and LFS pointers when `detailed`."""
        return [{"rfilename": path} | (_blob(content, self.sizes.get(path)) if detailed else {}) for path, content in files.items()]

    def counted(self) -> dict[str, object]:
        """What the hub says of the safetensors, if it does."""
        if self.parameters is None:
            return {}
        return {"safetensors": {"parameters": {"F32": self.parameters}, "total": self.parameters}}

    def listed(self, name: str) -> dict[str, object]:
        """The repository as a search lists it: of its config only some fields."""
        sha, files = list(self.commits.items())[-1]
        told: dict[str, object] = {"id": name, "sha": sha, "private": self.private, "gated": self.gated, "disabled": bool(self.disabled)}
        told |= {"siblings": self.siblings(files, detailed=False), "tags": list(self.tags)} | self.counted()
        try:
            config = json.loads(files["config.json"])
            return told | {"config": {key: config[key] for key in LISTED_FIELDS if key in config}}
        except (KeyError, ValueError, TypeError, RecursionError):
            return told


@dataclass
class LocalHub:
    """models, datasets: what is served; fetched: (revision, file) of every download; looked: names of models that were
    looked into, in order; failing: the next so many data reads are cut off; searchless: searches are answered with this error.
    """

    models: dict[str, Repository] = field(default_factory=dict)
    datasets: dict[str, Repository] = field(default_factory=dict)
    fetched: list[tuple[str, str]] = field(default_factory=list)
    looked: list[str] = field(default_factory=list)
    failing: int = 0
    searchless: int = 0
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
    def refuse(self, code: int, reason: str, message: str | None = None) -> None:
        headers = {"X_Error_Code": reason} if reason else {}
        self.answer(code, json.dumps({"error": message or reason}).encode(), X_Error_Message=message or reason, **headers)

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0]).strip("/")
        if path.startswith("api/"):
            return self.api(path.removeprefix("api/"))
        kind = "datasets" if path.startswith("datasets/") else "models"
        name, _, rest = path.removeprefix("datasets/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        found = self.find(kind, name, revision, wants_file=True)
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
        if path == "models":
            return self.search()
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
            (sha, files), repository = found, getattr(self.hub, kind)[name]
            self.hub.looked.append(name)
            detailed = "blobs" in parse_qs(self.path.partition("?")[2])
            info = {"id": name, "sha": sha, "siblings": repository.siblings(files, detailed), "tags": [], "downloads": 0}
            info |= repository.counted()
            self.json(info | {"private": repository.private, "gated": repository.gated, "disabled": bool(repository.disabled)})

    def search(self) -> None:
        """The models that a search finds, a page at a time; private ones are not told of."""
        if self.hub.searchless:
            return self.refuse(self.hub.searchless, "", "Internal trouble")
        query = parse_qs(self.path.partition("?")[2])
        words, author, tags = query.get("search", [""])[0], query.get("author", [""])[0], set(query.get("filter", ()))
        found = [
            repository.listed(name)
            for name, repository in self.hub.models.items()
            if all(word in name for word in words.split()) and (not author or name.startswith(author + "/"))
            if tags <= set(repository.tags) and not repository.private
        ]
        start = int(query.get("cursor", ["0"])[0])
        headers = {"Content_Type": "application/json"}
        if start + PAGE < len(found):
            following = urlencode({key: value for key, value in query.items() if key != "cursor"} | {"cursor": start + PAGE}, doseq=True)
            headers["Link"] = f'<{self.hub.endpoint}/api/models?{following}>; rel="next"'
        self.answer(200, json.dumps(found[start : start + PAGE]).encode(), **headers)

    def find(self, kind: str, name: str, revision: str, wants_file: bool = False) -> tuple[str, dict[str, bytes]] | None:
        """The commit asked for, or None after the refusal was sent."""
        repository = getattr(self.hub, kind, {}).get(name)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository is not None:
            time.sleep(repository.seconds)
        if token not in ("", TOKEN):
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif repository is not None and repository.status:
            self.refuse(repository.status, "", "Internal trouble")
        elif repository is None or (repository.private and not token):
            self.refuse(*((404, "RepoNotFound") if token or repository is None else (401, "", "Invalid username or password.")))
        elif repository.disabled is True or (repository.disabled and wants_file):
            self.refuse(403, "", "Access to this resource is disabled.")
        elif repository.gated is True or (repository.gated and wants_file and not token):
            self.refuse(403 if token else 401, "GatedRepo")
        elif repository.at(revision) is None:
            self.refuse(404, "RevisionNotFound")
        else:
            return repository.at(revision)
        return None

    def download(self, sha: str, file: str, content: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X_Repo_Commit": sha, "Accept_Ranges": "bytes"}
        if _is_large(content):
            headers |= {"X_Linked_Size": str(len(content)), "X_Linked_ETag": headers["ETag"]}
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


def _blob(content: bytes, size: int | None) -> dict[str, object]:
    """What is told of a file: weights are kept by LFS."""
    told: dict[str, object] = {"size": len(content) if size is None else size, "blobId": hashlib.sha1(content).hexdigest()}
    if _is_large(content):
        told["lfs"] = {"size": told["size"], "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 134}
    return told


def _is_large(content: bytes) -> bool:
    return content[8:9] == b"{"  # a safetensors header


def _tree(files: dict[str, bytes]) -> list[dict[str, object]]:
    folders = {path.rpartition("/")[0] for path in files} - {""}
    found: list[dict[str, object]] = [{"type": "directory", "path": f, "size": 0, "oid": "0" * 40} for f in sorted(folders)]
    return found + [{"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} | _lfs(c) for p, c in files.items()]


def _lfs(content: bytes) -> dict[str, object]:
    if not _is_large(content):
        return {}
    return {"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}}
