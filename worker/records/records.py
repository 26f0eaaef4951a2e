"""Job records in Redis, which decide the state of every job. Celery only delivers the message "try job X".

    ex:job:{id}      hash     the record          ex:open          zset   ids of jobs that have not ended
    ex:server        string   identity of this server
    ex:lease:{id}    string   the owner's token   ex:jobs          zset   ids of all jobs by time of creation
    ex:ev:{id}       stream   the job's events    ex:worker:{name} hash, ex:workers zset   live workers

    `worker.broker.fair_share` and `worker.supervision.shared_bridging` delay messages, `worker.records.counts` counts jobs.

    queued -> running -> succeeded | failed | cancelled;   running -> queued on preemption or after a crash

Each transition is one atomic Lua script, which also writes its event to the job's stream. A running job belongs to the process that knows
its token: a process that lost its lease can neither report nor end the job (fencing). Times are seconds since 1970.
"""

from __future__ import annotations

import dataclasses
import json
import math
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import redis

from extractor.errors import BrokenArtifact, NotFound, ServiceUnavailable
from worker.ids import ID, check_id
from worker.records.transitions import SCRIPTS, STATES

TERMINAL = ("succeeded", "failed", "cancelled")
T = TypeVar("T")
_NUMBERS = ("time", "attempt", "index", "of", "step", "total", "seconds_left", "elapsed_seconds", "total_seconds_left")  # in events
_PROGRESS = ("stage", "index", "of", "phase", "step", "total", "seconds_left", "elapsed_seconds", "total_seconds_left")  # in records
_WORDS = ("stage", "phase")  # of these


@dataclass(frozen=True)
class Worker:
    """A live worker, from its own announcement. Workers of earlier versions announce fewer fields; the others have their defaults.

    job           the job it runs, '' for none           memory        bytes used by the engine and its children
    process       identity of its main process           gpu_memory    bytes in use on its GPUs, of gpu_total
    local         started by a command                   tokens_per_s  speed of the job's training, 0 if unknown
    version       of the installation                    started       seconds since 1970
    device        description                            capacity      most bytes that its jobs may need; 0: any
                                                         seen          time of its last announcement, seconds since 1970
    """

    name: str
    host: str
    job: str
    process: str
    local: bool
    version: str = ""
    device: str = ""
    memory: int = 0
    gpu_memory: int = 0
    gpu_total: int = 0
    tokens_per_s: float = 0.0
    started: float = 0.0
    capacity: int = 0
    seen: float = 0.0


class Records:
    """Access to all job records. Methods raise redis.RedisError when the server cannot be reached."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._scripts = {name: client.register_script(text) for name, text in SCRIPTS.items()}

    def create(self, job: str, fields: dict[str, str | int], replaces: Sequence[str] = ()) -> bool:
        """Record a new queued job; False if the id is taken.

        replaces: end states in which an earlier job with this id is replaced; its stored checkpoint is kept.
        """
        flat = [part for item in fields.items() for part in item]
        return self._run("create", job, [" ".join(replaces), *flat]) != "exists"

    def get(self, job: str) -> dict[str, str] | None:
        """The record, or None. Raises BrokenArtifact for a malformed one."""
        try:
            record: Any = self.client.hgetall(f"ex:job:{check_id(job)}")
        except redis.ResponseError as error:
            raise BrokenArtifact(f"the record of job {job!r} cannot be read ({error}); remove the key ex:job:{job}") from None
        if record and not _is_sound(record):
            raise BrokenArtifact(f"the record of job {job!r} is damaged: it has no state or no attempt; remove the key ex:job:{job}")
        return record or None

    def need(self, job: str) -> dict[str, str]:
        """The record. Raises NotFound."""
        record = self.get(job)
        if record is None:
            raise NotFound(f"job {job!r} not found; `extract list` shows all jobs")
        return record

    def get_many(self, jobs: Iterable[str]) -> dict[str, dict[str, str]]:
        """The existing records among these jobs, in one request; malformed ones are omitted."""
        return {job: record for job, record in self._read(jobs).items() if record and _is_sound(record)}

    def _read(self, jobs: Iterable[str]) -> dict[str, dict[str, str]]:
        """The content of the record keys, {} without one, a marker for a key of another type."""
        ids = [job for job in dict.fromkeys(jobs) if ID.fullmatch(job)]
        with self.client.pipeline(transaction=False) as batch:
            for job in ids:
                batch.hgetall(f"ex:job:{job}")
            rows = _answers(batch)
        return {job: {"": ""} if row is None else row for job, row in zip(ids, rows, strict=True)}

    def claim(self, job: str, token: str, ttl: float, host: str, worker: str, process: str) -> str:
        """Take a queued job: 'claimed', or the reason why not: 'unknown', 'held', 'terminal', 'cancelled'."""
        return self._run("claim", job, [token, _ms(ttl), host, worker, process])

    def beat(self, job: str, token: str, ttl: float) -> str:
        """Renew the lease: '', 'cancel' if the job is to be cancelled, or 'lost'."""
        return self._run("beat", job, [token, _ms(ttl)])

    def report(self, job: str, token: str, event: dict[str, Any], fields: dict[str, Any]) -> str:
        """Append an event to the stream and set fields of the record: 'ok' or 'lost'."""
        flat = [str(part) for item in fields.items() for part in item]
        return self._run("report", job, [token, json.dumps(event | {"time": round(time.time(), 3)}), *flat])

    def end(self, job: str, token: str, state: str, artifact: str = "", error: tuple[str, str] = ("", "")) -> str:
        """Set a terminal state, with the result's place or the (error type, message). Returns that state, or 'lost'."""
        return self._run("end", job, [token, state, artifact, *error])

    def release(self, job: str, token: str, reason: str, counts: bool) -> str:
        """Return a job to the queue: 'queued', 'failed' after the last attempt, 'cancelled' if requested, or 'lost'.

        counts: whether this attempt counts as a crash; a preemption does not.
        """
        return self._run("release", job, [token, reason, int(counts)])

    def claim_bridging(self, job: str, token: str, address: str) -> str:
        """Claim the training of a bridged model: 'mine', 'lost', or the id of the open job that already trains it.

        In the last case the job is queued again, without a message, until that job has stored the model.
        """
        return self._run("claim_bridging", job, [token, address])

    def release_bridging(self, job: str, address: str) -> list[str]:
        """The job has stored the bridged model, or gives up training it. Returns the jobs that waited for it; they need messages."""
        return self._run("release_bridging", job, [address]).split()

    def cancel(self, job: str) -> str:
        """Cancel: 'cancelled' for a queued job, 'running' if its owner will stop it, else its terminal state.

        Raises NotFound, BrokenArtifact for a damaged record, ServiceUnavailable when Redis refuses to write: full, read-only, a replica.
        """
        try:
            state = self._run("cancel", job, [])
        except redis.ResponseError as error:
            state = self.need(job)["state"]  # a damaged record says so itself
            raise ServiceUnavailable(f"job {job!r} is {state}, not cancelled: Redis refuses to write ({error}); try again") from None
        if state == "unknown":
            self.need(job)
        return state

    def server_id(self) -> str:
        """The identity of this server: random, made once, stored with the records."""
        key = "ex:server"
        self.client.set(key, secrets.token_hex(16), nx=True)
        return str(self.client.get(key))

    def reap(self, job: str, token: str, reason: str, gone: bool) -> str:
        """Requeue a running job whose lease has expired, or (`gone`) whose owner has ended: the new state, or 'kept'."""
        return self._run("reap", job, [token, reason, int(gone)])

    def next_message_id(self, job: str) -> str:
        """A new message id of the form JOB.N."""
        return f"{job}.{self.client.hincrby(f'ex:job:{check_id(job)}', 'published', 1)}"

    def newest(self, limit: int, alone: bool = False) -> list[tuple[str, dict[str, str]]]:
        """The newest jobs as (id, record); alone: without those of batches and sweeps. Also deletes ids of expired records."""
        found: dict[str, dict[str, str]] = {}
        start, page = 0, max(limit, 200) if alone else limit
        client: Any = self.client
        while len(found) < limit and (ids := client.zrange("ex:jobs", start, start + page - 1, desc=True)):
            records = self._read(ids)
            sound = {job: record for job, record in records.items() if record and _is_sound(record)}
            found |= {job: record for job, record in sound.items() if not (alone and record.get("group"))}
            expired = [job for job in ids if not records.get(job)]
            start += len(ids) - (client.zrem("ex:jobs", *expired) if expired else 0)
        return list(found.items())[:limit]

    def open_jobs(self) -> dict[str, dict[str, str]]:
        """The outline of every open job, oldest first."""
        return self.outline(self.open_ids())

    def outline(self, ids: Sequence[str]) -> dict[str, dict[str, str]]:
        """The fields that a caretaker needs: state, token, process, worker, updated, waits, in_line; '' for a missing field.

        Keys that are not records are omitted.
        """
        fields = ("state", "token", "process", "worker", "updated", "waits", "in_line")
        with self.client.pipeline(transaction=False) as batch:
            for job in ids:
                batch.hmget(f"ex:job:{job}", fields)
            rows = {job: row for job, row in zip(ids, _answers(batch), strict=True) if row is not None and ID.fullmatch(job)}
        found = {job: {key: value or "" for key, value in zip(fields, row, strict=True)} for job, row in rows.items()}
        return {job: facts | {"updated": str(_number(facts["updated"]) or 0)} for job, facts in found.items()}

    def any_open(self) -> bool:
        """Whether some job has not ended."""
        return bool(self.client.exists("ex:open"))

    def open_ids(self) -> list[str]:
        """Ids of the jobs that have not ended, oldest first."""
        ids: Any = self.client.zrange("ex:open", 0, -1)
        return ids

    def events(self, job: str, after: str, block: float) -> list[tuple[str, dict[str, Any]]]:
        """Events after a stream id, waiting up to `block` seconds for the first."""
        answer: Any = self.client.xread({f"ex:ev:{check_id(job)}": after}, count=500, block=max(1, int(block * 1000)))
        return [(key, event) for _, entries in answer or [] for key, fields in entries if (event := _event(fields))]

    def announce(self, worker: Worker, ttl: float) -> None:
        """Announce a live worker for `ttl` seconds."""
        key = f"ex:worker:{worker.name}"
        facts = dataclasses.asdict(worker) | {"local": int(worker.local)}
        del facts["name"], facts["seen"]
        with self.client.pipeline() as batch:
            batch.hset(key, mapping=facts)  # type: ignore[arg-type]
            batch.pexpire(key, int(_ms(ttl)))
            batch.zadd("ex:workers", {worker.name: time.time()})
            batch.execute()

    def withdraw(self, name: str) -> None:
        """Remove a worker's announcement."""
        self.client.delete(f"ex:worker:{name}")
        self.client.zrem("ex:workers", name)

    def workers(self) -> list[Worker]:
        """The workers whose announcement has not expired."""
        seen: Any = self.client.zrange("ex:workers", 0, -1, withscores=True)
        with self.client.pipeline(transaction=False) as batch:
            for name, _ in seen:
                batch.hgetall(f"ex:worker:{name}")
            rows = _answers(batch)
        if gone := [name for (name, _), facts in zip(seen, rows, strict=True) if not facts]:
            self.client.zrem("ex:workers", *gone)
        return [_worker(name, at, facts) for (name, at), facts in zip(seen, rows, strict=True) if facts]

    def _run(self, script: str, job: str, arguments: list[Any]) -> str:
        check_id(job)
        keys = [f"ex:job:{job}", f"ex:lease:{job}", f"ex:ev:{job}", "ex:open", "ex:jobs"]
        return str(self._scripts[script](keys=keys, args=arguments))


def _worker(name: str, seen: float, facts: dict[str, str]) -> Worker:
    """A worker from its announcement, of any version."""
    known = {field.name: facts[field.name] for field in dataclasses.fields(Worker) if field.name in facts}
    numbers = {key: int(_number(known.get(key)) or 0) for key in ("memory", "gpu_memory", "gpu_total", "capacity")}
    rates = {key: float(_number(known.get(key)) or 0) for key in ("tokens_per_s", "started")}
    least = {"host": "", "job": "", "process": ""}
    return Worker(**(least | known | numbers | rates | {"name": name, "seen": seen, "local": facts.get("local") == "1"}))  # type: ignore[arg-type]


def memory_of(record: dict[str, str]) -> int:
    """Bytes that a job needs, 0 if unknown."""
    return int(_number(record.get("memory")) or 0)


def _answers(batch: redis.client.Pipeline) -> list[Any]:
    """The answers of a pipeline's commands; None for a key of the wrong type."""
    rows: list[Any] = batch.execute(raise_on_error=False)
    for row in rows:
        if isinstance(row, redis.RedisError) and "WRONGTYPE" not in str(row):
            raise row
    return [None if isinstance(row, redis.RedisError) else row for row in rows]


def _is_sound(record: dict[str, str]) -> bool:
    """Whether a record has the fields that all readers require."""
    return record.get("state") in STATES and record.get("attempt", "").isdecimal()


def _event(fields: dict[str, str]) -> dict[str, Any] | None:
    """An event of a stream; None if it is malformed. Omits numbers of a wrong type."""
    event = _json(fields.get("json", ""), dict)
    if not isinstance(event.get("event"), str) or (event["event"] == "state" and event.get("state") not in STATES):
        return None
    return {name: value for name, value in event.items() if name not in _NUMBERS or _fits(name, value)}


def _fits(name: str, value: Any) -> bool:
    return isinstance(value, (int, float)) or (value is None and name not in ("time", "attempt"))


def _json(text: str | None, kind: type[T]) -> T:
    """The JSON value of a field; an empty value if it is not JSON of this type."""
    try:
        value = json.loads(text or "")
    except (ValueError, RecursionError):
        return kind()
    return value if isinstance(value, kind) else kind()


def _ms(seconds: float) -> str:
    return str(max(1, int(seconds * 1000)))


def describe(job: str, record: dict[str, str]) -> dict[str, Any]:
    """A record as the object that --json prints."""
    progress = {key: record[key] for key in _PROGRESS if record.get(key)}
    error = {"type": record["error_type"], "message": record.get("error_message", "")} if record.get("error_type") else None
    return {
        "job": job,
        "state": record["state"],
        "kind": record.get("kind", ""),
        "model": record.get("model") or None,
        "task": record.get("task") or None,
        "tasks": list(map(str, _json(record["tasks"], list))) if record.get("tasks") else [record["task"]] if record.get("task") else [],
        "priority": record.get("priority") or "normal",
        "group": record.get("group") or None,
        "memory": _number(record.get("memory")) or None,
        "cancelling": record["state"] == "running" and record.get("want") == "cancel",
        "attempt": int(record["attempt"]),
        "worker": record.get("worker") or None,
        "waits": (record.get("waits") or None) if record["state"] == "queued" else None,
        "created": _number(record.get("created")),
        "started": _number(record.get("started")),
        "ended": _number(record.get("ended")),
        "progress": {key: value if key in _WORDS else _number(value) for key, value in progress.items()},
        "metrics": _json(record.get("metrics"), dict),
        "artifact": record.get("artifact") or None,
        "error": error,
    }


def _number(text: str | None) -> float | int | None:
    text = text or ""
    try:
        value = float(text)
    except ValueError:  # for example "None"
        return None
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() and "." not in text else value
