"""What strangers can write into Redis: messages of the queues, records, keys of other kinds."""

from __future__ import annotations

import base64
import json

from bad_specs import TRAIN

_MESSAGE = {
    "content-type": "application/json",
    "content-encoding": "utf-8",
    "headers": {"lang": "py", "task": "extract.run", "id": "x.1"},
    "body": base64.b64encode(b'[["waiting"], {}, {}]').decode(),
    "properties": {"delivery_tag": "x", "delivery_info": {"exchange": "", "routing_key": "extract"}, "body_encoding": "base64"},
}


def _message(**changes: object) -> str:
    return json.dumps(_MESSAGE | changes)


def _body(value: object) -> str:
    return _message(body=base64.b64encode(json.dumps(value).encode()).decode())


def _headers(**changes: object) -> str:
    return _message(headers={"lang": "py", "task": "extract.run", "id": "x.1"} | changes)


# what -> an element of a queue
MESSAGES: dict[str, str | bytes] = {
    "prose": "not json",
    "nothing": "",
    "list": "[]",
    "number": "5",
    "null": "null",
    "nan": "NaN",
    "bytes": b"\xff\xfe",
    "deep": "[" * 100_000,
    "giant": json.dumps({"a": "x" * 5_000_000}),
    "empty": "{}",
    "no properties": _message(properties=None),
    "no tag": _message(properties={"delivery_info": {}}),
    "properties listed": _message(properties=[]),
    "no headers": _message(headers=None),
    "headers listed": _message(headers=[1]),
    "no task": _message(headers={}),
    "another task": _headers(task="extract.other"),
    "a task of Celery's": _headers(task="celery.backend_cleanup"),
    "task listed": _headers(task=["extract.run"]),
    "id listed": _headers(id=["x"]),
    "no id": _headers(id=None),
    "eta": _headers(eta="never"),
    "eta late": _headers(eta="2999-01-01T00:00:00"),
    "expires": _headers(expires="never"),
    "time limit": _headers(timelimit=["a", "b"]),
    "no body": _message(body=None),
    "body number": _message(body=5),
    "body no base64": _message(body="!!!"),
    "body long": _message(body="x" * 1_000_000),
    "body prose": _message(body=base64.b64encode(b"not json").decode()),
    "pickle": _message(**{"content-type": "application/x-python-serialize"}),
    "yaml": _message(**{"content-type": "application/x-yaml"}),
    "content number": _message(**{"content-type": 5}),
    "encoding": _message(**{"content-encoding": "nonsense"}),
    "no argument": _body([[], {}, {}]),
    "two arguments": _body([["a", "b"], {}, {}]),
    "argument outside": _body([["../../etc/passwd"], {}, {}]),
    "argument listed": _body([[["a"]], {}, {}]),
    "argument named": _body([[], {"job": "a"}, {}]),
    "no arguments": _body({}),
}

SOUND = {"state": "succeeded", "attempt": "1", "kind": "train", "spec": "{" + TRAIN + "}", "created": "1700000000", "max_attempts": "3"}
# what a stranger made of the record of a job
RECORDS: list[dict[str, str | bytes | None]] = [
    {"state": None},
    {"state": ""},
    {"state": "nonsense"},
    {"state": b"\xff"},
    {"attempt": None},
    {"attempt": "many"},
    {"attempt": "-1"},
    {"attempt": "1e400"},
    {"tasks": "not json"},
    {"tasks": '{"a":1}'},
    {"tasks": "[1,null]"},
    {"tasks": "[" * 50_000},
    {"metrics": "[]"},
    {"metrics": "NaN"},
    {"metrics": '{"loss":"low","tokens_per_s":[]}'},
    {"metrics": '{"loss":NaN}'},
    {"metrics": "{" * 50_000},
    {"created": "yesterday"},
    {"created": "nan"},
    {"created": "1e300"},
    {"created": "-1e18"},
    {"created": None, "kind": None, "spec": None},
    {"started": "x", "ended": "1e300"},
    {"state": "failed", "stage": "prune", "step": "x", "total": "y"},
    {"state": "failed", "stage": "prune", "step": "5", "total": "0"},
    {"state": "failed", "stage": "prune", "index": "x", "of": "nan"},
    {"state": "failed", "stage": "prune", "seconds_left": "1e308"},
    {"state": "failed", "stage": b"\xff\x00"},
    {"state": "failed", "error_type": "X"},
    {"state": "failed", "error_type": "X", "error_message": "two\nlines \x1b[31m and a colour"},
    {"state": "failed", "error_type": "X", "error_message": "x" * 100_000},
    {"priority": "urgent"},
    {"model": b"\xc3\x28"},
    {"kind": "x" * 2_000_000},
    {"artifact": "/etc"},
    {"artifact": "/nowhere"},
    {"artifact": "../.."},
    {"artifact": "s3://bucket/x"},
    {"artifact": "nonsense://x"},
    {"artifact": "\n"},
    {"artifact": b"/\xff"},
    {"artifact": "/" + "x" * 5000},
    {"waits": "../x", "want": "nonsense", "snapshot": "../x"},
]


def _half(**fields: str | bytes) -> list[str | bytes]:
    """A record of an open job, with a spec that is none."""
    return [part for item in ({"spec": "{}", "kind": "train"} | fields).items() for part in item]


# Redis commands of a stranger
PLANTED: list[tuple[str | bytes | float, ...]] = [
    ("RPUSH", "ex:job:alist", "x"),
    ("SET", "ex:job:atext", "x"),
    ("XADD", "ex:job:astream", "*", "a", "b"),
    ("ZADD", "ex:jobs", 1, "alist", 2, "atext", 3, "astream", 4, "../x", 5, "", 6, b"\xff", 7, "nobody"),
    ("ZADD", "ex:open", 1, "alist", 2, "atext", 3, "../x", 4, "", 5, b"\xff", 6, "nobody"),
    ("ZADD", "ex:state:running", 1, "alist", 2, "../x", 3, b"\xff", 4, "nobody"),
    ("ZADD", "ex:state:queued", 1, "atext", 2, "", 3, "nobody"),
    ("HSET", "ex:totals", "submitted", "many", "failed", "1e400"),
    ("RPUSH", "ex:worker:alist", "x"),
    (
        "HSET",
        "ex:worker:odd",
        "memory",
        "x",
        "gpu_total",
        "nan",
        "tokens_per_s",
        "fast",
        "started",
        "1e300",
        "process",
        "::::",
        "job",
        "../x",
    ),
    ("HSET", "ex:worker:bytes", "host", b"\xff", "process", b"\xff:\xff:x:y"),
    ("HSET", "ex:worker:bare", "nonsense", "1"),
    ("ZADD", "ex:workers", 1, "alist", 1, "odd", 1, "bytes", 1, "bare", "1e300", "odd"),
    ("XADD", "ex:ev:canary2", "*", "json", "not json"),
    ("XADD", "ex:ev:canary2", "*", "nonsense", "1"),
    ("XADD", "ex:ev:canary2", "*", "json", "[]"),
    ("XADD", "ex:ev:canary2", "*", "json", '{"event":5}'),
    ("XADD", "ex:ev:canary2", "*", "json", '{"event":"state","state":"nonsense"}'),
    ("XADD", "ex:ev:canary2", "*", "json", '{"event":"progress"}'),
    ("XADD", "ex:ev:canary2", "*", "json", '{"event":"progress","step":"x","total":[],"metrics":5,"time":"now"}'),
    ("XADD", "ex:ev:canary2", "*", "json", '{"event":"stage","index":null}'),
    ("XADD", "ex:ev:canary2", "*", "json", b'{"event":"note","message":"\xff"}'),
    ("XADD", "ex:ev:canary2", "*", "json", "[" * 50_000),
    ("HSET", "ex:job:half1", *_half(state="queued", attempt="many", max_attempts="x", updated="soon")),
    ("HSET", "ex:job:half2", *_half(state="running", token="t", process="::::", worker=b"\xff", updated="nan")),
    ("HSET", "ex:job:half3", *_half(state="queued", attempt="0", updated="1", published="1")),
    ("SET", "ex:ev:half3", "x"),
    ("RPUSH", "ex:lease:half3", "x"),
    ("ZADD", "ex:open", 1, "half1", 2, "half2", 3, "half3"),
    ("ZADD", "ex:state:running", 1, "half2"),
    ("SET", "ex:batch:text", "not json"),
    ("SET", "ex:batch:list", "[]"),
    ("SET", "ex:batch:null", "null"),
    ("SET", "ex:batch:deep", "[" * 50_000),
    ("SET", "ex:batch:bytes", b"\xff\xfe"),
    ("SET", "ex:batch:empty", "{}"),
    ("SET", "ex:batch:parts", '{"selection":[],"asked":{},"template":{},"tasks":[],"task_files":[],"created":0}'),
    ("SET", "ex:batch:models", '{"selection":{"taken":[{"asked":5}],"refused":[],"is_complete":1},"asked":{},"tasks":5}'),
    ("RPUSH", "ex:batch:kind", "x"),
    ("ZADD", "ex:batches", 1, "text", 2, "kind", 3, "../x"),
]
