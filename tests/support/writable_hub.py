"""A hub on this machine that one can push to: repositories, small files in the commit, large ones by git-LFS; and reading them back."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from local_hub import HubHandler, running


class WritableHub:
    """repositories: name -> {path: content}; log: (method, path) of every request; large: bytes that came by LFS, by sha256."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.log: list[tuple[str, str]] = []
        self.endpoint = ""

    def sha(self, name: str) -> str:
        """The repository's commit: a hash of its content."""
        digest = hashlib.sha1()
        for path, content in sorted(self.repositories[name].items()):
            digest.update(path.encode() + hashlib.sha256(content).digest())
        return digest.hexdigest()


@contextmanager
def serve() -> Iterator[WritableHub]:
    hub = WritableHub()
    with running(hub, _Handler):
        yield hub


class _Handler(HubHandler):
    def route(self) -> str:
        path = unquote(self.path.partition("?")[0]).strip("/")
        self.hub.log.append((self.command, path))
        return path

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        path = self.route()
        name, _, rest = path.removeprefix("api/models/").partition("/revision/" if path.startswith("api/") else "/resolve/")
        name = name.partition("/tree/")[0]
        files = self.hub.repositories.get(name)
        if files is None:
            return self.answer(404, b'{"error": "Repository not found"}', X_Error_Code="RepoNotFound")
        if "/tree/" in path:
            return self.json([{"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for p, c in files.items()])
        if path.startswith("api/"):
            return self.json({"id": name, "sha": self.hub.sha(name), "siblings": [{"rfilename": p} for p in files], "tags": []})
        content = files.get(rest.partition("/")[2])
        if content is None:
            return self.answer(404, b'{"error": "Entry not found"}', X_Error_Code="EntryNotFound")
        return self.answer(200, content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=self.hub.sha(name))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path, body = self.route(), self.body()
        if path == "api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            self.hub.repositories.setdefault(name, {})
            return self.json({"url": f"{self.hub.endpoint}/{name}", "id": name, "name": name})
        if path == "api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"} for f in files]
            return self.json({"files": [{**mode, "shouldIgnore": False, "oid": None} for mode in modes]})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch(json.loads(body)["objects"])
        name, _, _ = path.removeprefix("api/models/").partition("/commit/")
        return self.commit(name, [json.loads(line) for line in body.splitlines() if line])

    def do_PUT(self) -> None:
        oid = self.route().removeprefix("store/")
        content = self.body()
        if hashlib.sha256(content).hexdigest() != oid:
            return self.answer(400)
        self.hub.large[oid] = content
        return self.answer(200)

    def batch(self, objects: list[dict]) -> None:
        store = f"{self.hub.endpoint}/store"
        answers = [{**o, "authenticated": True, "actions": {"upload": {"href": f"{store}/{o['oid']}", "header": {}}}} for o in objects]
        self.json({"transfer": "basic", "objects": answers})

    def commit(self, name: str, lines: list[dict]) -> None:
        files = self.hub.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        sha = self.hub.sha(name)
        self.json({"commitUrl": f"{self.hub.endpoint}/{name}/commit/{sha}", "commitOid": sha, "success": True, "pullRequestUrl": None})
