"""Bad inputs, each with what must come of it. HOME stands for the machine's folder, which holds good.json (a spec) and plan.json ('{}').

Jobs there: `canary` succeeded, `circuit` too and left a report, `waiting` is queued, `broken` has failed, `ended` was cancelled.
"""

from __future__ import annotations

import base64
import json

LONG = "a" * 5000
BYTE = "\udcff"  # a byte on the command line that is no UTF-8
ASK = "submit --model python-tiny --task quote_close"
MANY = ",".join(str(number) for number in range(1, 18))

# exit code -> command lines, cut at spaces; a '""' is an empty word
COMMANDS: dict[int, str] = {
    2: f"""
submit
submit --model python-tiny
submit --task quote_close
submit --model --task quote_close
submit --model "" --task quote_close
submit --model ../.. --task quote_close
submit --model HOME/plan.json --task quote_close
submit --model broken --task quote_close
submit --model python-tiny --task nonsense
submit --model python-tiny --task ""
submit --model python-tiny --task HOME
submit --model python-tiny --task {BYTE}
submit --model python-tiny --task /dev/null/x.jsonl
{ASK} extra
{ASK} --preset huge
{ASK} --seed -1
{ASK} --seed 2147483648
{ASK} --seed 1e3
{ASK} --target-loss nan
{ASK} --target-loss inf
{ASK} --target-loss 0
{ASK} --target-loss 9
{ASK} --trials 0
{ASK} --minutes -1
{ASK} --minutes nan
{ASK} --minutes inf
{ASK} --seeds 0
{ASK} --algorithm guess
{ASK} --set x
{ASK} --set =1
{ASK} --set bridge.optim.lr=
{ASK} --set bridge.optim.lr=nan
{ASK} --set bridge.optim.steps=1e400
{ASK} --set bridge.optim.steps=1.5
{ASK} --set bridge.model.d_model=999999999999999999999999
{ASK} --set bridge.optim=1
{ASK} --set nothing.at.all=1
{ASK} --set bridge.optim.lr=1 --set bridge.optim.lr=2
{ASK} --set prune.targets=0.1,x
{ASK} --set prune.targets=nan
{ASK} --set prune.init_mean=nan
{ASK} --corpus /nowhere
{ASK} --corpus ~nosuchuser/x
{ASK} --corpus ""
{ASK} --corpus {BYTE}
{ASK} --corpus {LONG}
{ASK} --dataset ""
{ASK} --dataset :x
{ASK} --dataset-tokens 0
{ASK} --job-id ../x
{ASK} --job-id ""
{ASK} --job-id {BYTE}
{ASK} --job-id canary
{ASK} --out x
{ASK} --wait --out HOME
{ASK} --wait --out HOME/plan.json/x
{ASK} --priority urgent
submit --nonsense
train --architecture rnn
train --architecture gpt2 --dense
train --match nan
train --match -1
train --task nonsense
train --set prune.trials=2
train --set vocab_size=0
train --set vocab_size=9 --tokenizer python-tiny
train --set optim.context=9999
train --set model.d_model=999999999999999999999999
train --dense --set sparsity.weight_frac=0.1
train --tokenizer HOME
train --corpus HOME/nothing.txt
train --set corpus.seed=x
sweep
sweep --grid width
sweep --grid width=
sweep --grid width=64,64.5
sweep --grid width=64 --grid width=128
sweep --grid width=0
sweep --grid width=65
sweep --grid width=99999999999999999999
sweep --grid l0=nan
sweep --grid l0=1e400
sweep --grid nothing=1
sweep --grid width=64 --grid l0=0.0001
sweep --grid width=64 --set model.d_model=64
sweep --grid width=64 --dense --grid l0=8k
sweep --grid optim.lr={MANY} --grid seed={MANY}
sweep --grid optim.lr={MANY} --grid optim.eps={MANY}
sweep --status ../../etc
sweep --status x --grid width=64
sweep --grid width=64 --out HOME
batch
batch nonsense
batch submit
batch submit --models hub: --task all
batch submit --models hub:x=1 --task all
batch submit --models hub:sort=fame --task all
batch submit --models /nowhere --task all
batch submit --models ~nosuchuser --task all
batch submit --models "" --task all
batch submit --models /dev/null --task all
batch submit --models HOME/plan.json --task all
batch submit --models HOME --task nonsense
batch submit --models HOME --task all --max-params many
batch submit --models HOME --task all --max-params 0
batch submit --models HOME --task all --max-params -5M
batch submit --models HOME --task all --limit 0
batch submit --models HOME --task all --set nope=1
batch submit --models HOME --task all --target-loss 9
batch status
batch status ../x
batch result ../x
batch list --limit 0
status ../../etc/passwd
status ""
status {BYTE}
status {LONG}
status --limit 0
status --limit x
status a b
watch
watch canary --from $
watch canary --from 0-
watch canary --from ٣
watch canary --from 99999999999999999999999
logs
logs ../x
logs canary --since yesterday
logs canary --since 10y
logs canary --since -5m
logs canary --since 9999999999d
cancel
cancel ../x
result
result canary --out HOME
result canary --out HOME/plan.json/x
result canary --out /proc/x
steer canary
steer canary --toward x --strength 2
steer canary --toward x --strength nan
steer canary --toward x --way sideways
run
run /nowhere.json --out HOME/new
run HOME --out HOME/new
run HOME/plan.json --out HOME/new
run HOME/plan.json
run HOME/good.json --out HOME
run HOME/good.json --out HOME/plan.json
run HOME/good.json --out /proc/x
run HOME/good.json --out HOME/new --threads 0
worker --max-jobs 0
worker --idle-exit 0
worker --idle-exit nan
worker --idle-exit inf
worker --threads 0
worker --alive-file /nowhere/x
worker --alive-file HOME
caretaker --alive-file /nowhere/x
caretaker --nonsense
metrics --port 99999
metrics --port x
metrics --host nowhere.invalid --port 0
metrics --host 256.1.1.1 --port 0
server
server restart
server start now
gc --older-than x
gc --older-than 5
gc --older-than -1d
gc --older-than 9999999d
tasks nonsense
tasks show
tasks show quote_close
tasks show nonsense --model python-tiny
tasks show quote_close --model python-tiny --pairs 0
tasks check
tasks check --model python-tiny --task nonsense
tasks check --model python-tiny --target-loss nan
tasks check --model python-tiny --pairs 0
models extra
list --limit 0
list --limit 10001
import
import /nowhere --out HOME/new
import HOME --out HOME/new
import HOME --out HOME
nonsense
--nonsense
""",
    3: f"""
submit --model /nowhere --task quote_close
submit --model ~nosuchuser/x --task quote_close
submit --model {LONG} --task quote_close
submit --model {BYTE} --task quote_close
submit --model a//b --task quote_close
submit --model job:x/0123456789abcdef --task quote_close
submit --model python-tiny --task ~nosuchuser/x.jsonl
{ASK} --adapter /nowhere
{ASK} --adapter ""
{ASK} --dataset ~nosuchuser/x
{ASK} --dataset {LONG}
train --tokenizer /nowhere
train --tokenizer ~nosuchuser
train --tokenizer ""
train --tokenizer {LONG}
sweep --status nothing
batch status nobody
batch watch nobody
batch cancel nobody
batch result nobody
status nobody
watch nobody
logs nobody
logs waiting
cancel nobody
result nobody
result waiting
steer nobody --toward x
steer HOME --toward x
steer canary --toward x
tasks show quote_close --model /nowhere
tasks show quote_close --model python-tiny --adapter /nowhere
tasks check --model /nowhere
""",
    1: """
result broken
watch broken --from 9999999999999
""",
    5: """
result ended
watch ended --from 9999999999999
""",
}

# variable=value, exit code
SETTINGS: dict[str, int] = {
    "EXTRACT_REDIS_URL=nonsense": 2,
    "EXTRACT_REDIS_URL=http://127.0.0.1:1": 2,
    "EXTRACT_REDIS_URL=redis://127.0.0.1:99999/0": 2,
    "EXTRACT_REDIS_URL=redis://127.0.0.1:port/0": 2,
    "EXTRACT_REDIS_URL=redis://127.0.0.1:1/many": 4,
    "EXTRACT_REDIS_URL=redis://[::1/0": 2,
    "EXTRACT_REDIS_URL=redis://127.0.0.1:1/0": 4,
    "EXTRACT_REDIS_URL=redis://user:pa#ss@127.0.0.1:1/0": 2,
    "EXTRACT_REDIS_URL=redis://127.0.0.1:1/0?nonsense=1": 2,
    "EXTRACT_REDIS_URL=redis://127.0.0.1:1/0?db=x": 2,
    "EXTRACT_REDIS_URL=unix://": 2,
    "EXTRACT_REDIS_URL=unix:///nowhere.sock": 4,
    "EXTRACT_REDIS_URL=unix:///nowhere.sock?db=x": 2,
    "EXTRACT_REDIS_URL=rediss://127.0.0.1:1/0?ssl_ca_certs=/nowhere": 2,
    "EXTRACT_REDIS_URL=rediss://127.0.0.1:1/0?ssl_cert_reqs=maybe": 2,
    "EXTRACT_REDIS_URL=rediss://127.0.0.1:1/0?ssl_ca_certs=HOME/plan.json": 4,
    "EXTRACT_REDIS_URL=redis://nowhere.invalid:6379/0": 4,
    "EXTRACT_REDIS_URL=redis://:secret@nowhere.invalid:6379/0": 4,
    "EXTRACT_REDIS_URL_FILE=/nowhere": 2,
    "EXTRACT_REDIS_URL_FILE=HOME": 2,
    "EXTRACT_REDIS_URL_FILE=/dev/null": 2,
    "EXTRACT_REDIS_URL_FILE=HOME/bytes": 2,
    "EXTRACT_STATE_DIR=/proc/x": 4,
    "EXTRACT_STATE_DIR=HOME/plan.json": 4,
    "EXTRACT_ROOT=s3://": 2,
    "EXTRACT_ROOT=s3://user:secret@bucket/x": 2,
    "EXTRACT_ROOT=memory://x": 2,
    "EXTRACT_ROOT=s3://bucket/x?a=1": 2,
    "EXTRACT_ROOT=http://[": 2,
    "EXTRACT_THREADS=0": 2,
    "EXTRACT_THREADS=-1": 2,
    "EXTRACT_THREADS=1.5": 2,
    "EXTRACT_THREADS=many": 2,
    "EXTRACT_THREADS=99999999999999999999": 2,
    "EXTRACT_MAX_ATTEMPTS=0": 2,
    "EXTRACT_LEASE_TTL=0": 2,
    "EXTRACT_LEASE_TTL=nan": 2,
    "EXTRACT_LEASE_TTL=inf": 2,
    "EXTRACT_LEASE_TTL=1e300": 2,
    "EXTRACT_HEARTBEAT=soon": 2,
    "EXTRACT_REAPER=-1": 2,
    "EXTRACT_REPUBLISH=x": 2,
    "EXTRACT_VISIBILITY_TIMEOUT=1e99": 2,
    "EXTRACT_IDLE_EXIT=never": 2,
    "EXTRACT_STOP_GRACE=-0": 2,
    "EXTRACT_STORE_EVERY=x": 2,
    "EXTRACT_STORE_PATIENCE=nan": 2,
}

TRAIN = '"kind":"train","train":{}'
CIRCUIT = '"kind":"circuit","model":"m","tasks":["quote_close"],"bridge":{},"prune":{}'
SHA = "0" * 64
# what -> the text of a spec, from a file and from a record
SPECS: dict[str, str | bytes] = {
    "nothing": "",
    "blank": " \n",
    "prose": "not json",
    "cut": '{"kind":"train","train":{',
    "more": "{" + TRAIN + "} {}",
    "list": "[]",
    "number": "5",
    "null": "null",
    "text": '"train"',
    "bytes": b"\xff\xfe{}",
    "surrogate": '{"kind":"\\ud800"}',
    "deep": "[" * 100_000,
    "deep inside": '{"kind":"train","train":' + '{"model":' * 5000 + "1" + "}" * 5001,
    "giant": '{"kind":"' + "x" * 2_000_000 + '"}',
    "giant key": '{"' + "k" * 100_000 + '":1,' + TRAIN + "}",
    "key of many lines": '{"a\\nb\\u001b[31m":1,' + TRAIN + "}",
    "no kind": "{}",
    "unknown kind": '{"kind":"format","train":{}}',
    "kind twice": '{"kind":"circuit",' + TRAIN + "}",
    "inner key twice": '{"kind":"train","train":{"vocab_size":300,"vocab_size":400}}',
    "wrong version": '{"version":2,' + TRAIN + "}",
    "text version": '{"version":"one",' + TRAIN + "}",
    "unknown key": '{"out":"../../etc",' + TRAIN + "}",
    "unknown inner key": '{"kind":"train","train":{"shell":"rm"}}',
    "no train": '{"kind":"train"}',
    "train null": '{"kind":"train","train":null}',
    "train list": '{"kind":"train","train":[]}',
    "no model": '{"kind":"circuit","tasks":["quote_close"],"bridge":{},"prune":{}}',
    "no task": '{"kind":"circuit","model":"m","tasks":[],"bridge":{},"prune":{}}',
    "task twice": '{"kind":"circuit","model":"m","tasks":["a","a"],"bridge":{},"prune":{}}',
    "task and tasks": '{"task":"a",' + CIRCUIT + "}",
    "task number": '{"kind":"circuit","model":"m","task":5,"bridge":{},"prune":{}}',
    "tasks text": '{"kind":"circuit","model":"m","tasks":"quote_close","bridge":{},"prune":{}}',
    "model number": '{"kind":"circuit","model":5,"tasks":["a"],"bridge":{},"prune":{}}',
    "loss nan": '{"target_loss":NaN,' + TRAIN + "}",
    "loss infinite": '{"target_loss":Infinity,' + TRAIN + "}",
    "loss chance": '{"target_loss":0.7,' + TRAIN + "}",
    "warmup nan": '{"kind":"circuit","model":"m","tasks":["a"],"bridge":{},"prune":{"warmup":NaN}}',
    "beta2 infinite": '{"kind":"circuit","model":"m","tasks":["a"],"bridge":{},"prune":{"beta2":1e999}}',
    "seed negative": '{"seed":-1,' + TRAIN + "}",
    "seed large": '{"seed":2147483648,' + TRAIN + "}",
    "seed huge": '{"seed":' + "9" * 5000 + "," + TRAIN + "}",
    "seed half": '{"seed":0.5,' + TRAIN + "}",
    "seed true text": '{"seed":"true",' + TRAIN + "}",
    "width huge": '{"kind":"train","train":{"model":{"d_model":1000000000000000000000}}}',
    "steps none": '{"kind":"train","train":{"optim":{"steps":0}}}',
    "context long": '{"kind":"train","train":{"optim":{"context":999}}}',
    "fraction": '{"kind":"train","train":{"sparsity":{"weight_frac":1.5}}}',
    "corpus empty": '{"corpus":{"sources":[]},' + TRAIN + "}",
    "corpus number": '{"corpus":{"sources":[1]},' + TRAIN + "}",
    "dataset": '{"corpus":{"datasets":[{"name":1}]},' + TRAIN + "}",
    "file outside": '{"task_files":[{"name":"../x","path":"/x","sha256":"' + SHA + '"}],' + CIRCUIT + "}",
    "file sum": '{"task_files":[{"name":"x","path":"/x","sha256":"../../"}],' + CIRCUIT + "}",
    "file stray": '{"task_files":[{"name":"x","path":"/x","sha256":"' + SHA + '"}],' + CIRCUIT + "}",
}

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
