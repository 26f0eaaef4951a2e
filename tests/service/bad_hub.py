"""A hub that answers badly: what it says of model bad/KIND, and gives for its files, is in a table.

Answers are (status, body, headers); None closes the connection without a word.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from urllib.parse import unquote

from local_hub import HubHandler
from simulated_hub import SHA, gpt2_files

Answer = tuple[int, bytes, dict[str, str]] | None
GOOD = gpt2_files("good")
HTML = b"<!doctype html><html><body>Please log in to the network</body></html>"


def info(**changes: object) -> Answer:
    siblings = [{"rfilename": name, "size": len(content), "blobId": "0" * 40} for name, content in GOOD.items()]
    facts = {"id": "bad/x", "sha": SHA, "siblings": siblings, "tags": [], "downloads": 0, "private": False, "gated": False}
    return raw({key: value for key, value in (facts | changes).items() if value != "absent"})


def raw(value: object, status: int = 200, **headers: str) -> Answer:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return status, body, headers


def sizes(size: object, name: object = "config.json") -> list[dict[str, object]]:
    return [{"rfilename": n, "size": 1, "blobId": "0"} for n in GOOD if n != name] + [{"rfilename": name, "size": size, "blobId": "0"}]


# kind -> what the hub says of the model, exit code
TOLD: dict[str, tuple[Answer, int]] = {
    "page": (raw(HTML, **{"Content-Type": "text/html"}), 3),
    "list": (raw([]), 3),
    "null": (raw(None), 3),
    "number": (raw(5), 3),
    "nothing": (raw(b""), 3),
    "cut": (raw(b'{"id": "bad/'), 3),
    "deep": (raw(b"[" * 100_000), 3),
    "bytes": (raw(b"\xff\xfe"), 3),
    "silent": (None, 4),
    "longer": (raw(b"{}", **{"Content-Length": "1000"}), 4),
    "zipped": (raw(b"no gzip", **{"Content-Encoding": "gzip"}), 4),
    "in-circles": (raw(b"", 302, Location="/api/models/bad/in-circles"), 4),
    "to-nowhere": (raw(b"", 302, Location="http://127.0.0.1:9/"), 4),
    "to-a-file": (raw(b"", 302, Location="file:///etc/passwd"), 4),
    "s401": (raw({}, 401), 3),
    "s403": (raw({}, 403), 3),
    "s404": (raw({}, 404), 3),
    "s404-page": (raw(HTML, 404), 3),
    "s418": (raw(b"\xff", 418), 3),
    "s429": (raw({}, 429), 4),
    "s500": (raw(HTML, 500), 4),
    "s502": (raw(b"", 502), 4),
    "s503": (raw({"error": 5}, 503), 4),
    "s200-error": (raw({"error": "no"}), 3),
    "no-sha": (info(sha="absent"), 3),
    "sha-number": (info(sha=5), 3),
    "sha-outside": (info(sha="../../x"), 3),
    "no-files": (info(siblings="absent"), 2),
    "files-null": (info(siblings=None), 2),
    "files-text": (info(siblings="config.json"), 3),
    "files-numbers": (info(siblings=[1, 2]), 3),
    "files-nameless": (info(siblings=[{"size": 1}]), 3),
    "size-text": (info(siblings=sizes("many")), 3),
    "size-negative": (info(siblings=sizes(-5)), 3),
    "size-absurd": (info(siblings=sizes(10**30)), 1),
    "size-listed": (info(siblings=sizes([1])), 3),
    "weights-absurd": (info(siblings=sizes(10**30, "model.safetensors")), 2),
    "tensors-text": (info(safetensors="many"), 3),
    "total-text": (info(safetensors={"parameters": {}, "total": "many"}), 3),
    "total-negative": (info(safetensors={"parameters": {}, "total": -1}), 3),
    "total-absurd": (info(safetensors={"parameters": {}, "total": 10**30}), 2),
    "disabled": (info(disabled=True), 3),
}
# kind -> what the hub gives for config.json of a good listing, exit code
GIVEN: dict[str, tuple[Answer, int]] = {
    "config-page": (raw(HTML), 1),
    "config-list": (raw([]), 1),
    "config-null": (raw(None), 1),
    "config-deep": (raw(b"[" * 100_000), 1),
    "config-cut": (raw(GOOD["config.json"][:30]), 1),
    "config-bytes": (raw(b"\xff\xfe\xff"), 1),
    "config-nothing": (raw(b""), 1),
    "config-longer": (raw(b"{}", **{"Content-Length": "1000"}), 4),
    "config-silent": (None, 4),
    "config-s404": (raw({}, 404), 3),
    "config-s403": (raw({}, 403), 3),
    "config-s500": (raw(HTML, 500), 4),
    "config-in-circles": (raw(b"", 302, Location="/bad/config-in-circles/resolve/" + SHA + "/config.json"), 4),
    "config-giant": (raw(b'{"a": "' + b"x" * 3_000_000 + b'"}'), 1),
}


@dataclass
class BadHub:
    endpoint: str = ""
    asked: list[str] = field(default_factory=list)


class BadHandler(HubHandler):
    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0]).strip("/")
        self.hub.asked.append(path)
        if "bad/" not in path:  # the client asks for other things as well
            return self.answer(404)
        kind = path.partition("bad/")[2].partition("/")[0]
        if path.startswith("api/"):
            answer = TOLD[kind][0] if kind in TOLD else info() if kind in GIVEN else raw([])
        else:
            answer = GIVEN[kind][0] if kind in GIVEN and path.endswith("config.json") else raw(GOOD[path.rpartition("/")[2]])
        if answer is None:
            self.close_connection = True
            return
        status, body, headers = answer
        self.answer(status, body, **({"Content-Length": str(len(body))} | headers))
        self.close_connection = True

    do_HEAD = do_GET
