"""Batches on the service: one circuit job for each model and task, known by what was asked for; rerun, only what is missing is queued.

    ex:batch:{id}   string   the plan: template, tasks, the models taken and refused     ex:batches   zset   ids by time of creation

A batch has no state of its own: it is derived from its jobs, whose ids follow from the batch's id, the pinned model and the task. The
plan lies in Redis, so that every machine sees it; like a record it stays for some weeks after the last job has ended.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import redis

from extractor.errors import BrokenArtifact, Cancelled, ExtractorError, NotFound, ServiceUnavailable, UsageError
from extractor.jobs.cost.memory import bytes_needed
from extractor.spec.schema import JobSpec, TaskFileSpec
from worker.batches.selection import ModelDecision, Selection
from worker.client import damaged
from worker.client.results import with_results
from worker.client.service import Service, open_service
from worker.client.submit import submit_again
from worker.client.watch import MAX_STARTS, OUTAGE_SECONDS
from worker.fleet import local
from worker.ids import check_id
from worker.records.records import TERMINAL, describe
from worker.records.transitions import KEEP_SECONDS

LOOK_SECONDS = 1.0
AT_ONCE = 500  # records read in one go
NOT_EXPRESSIBLE = "not expressible"  # the end of a job whose model's tokenizer cannot write the task: no failure
STATES = ("succeeded", NOT_EXPRESSIBLE, "failed", "missing", "cancelled", "running", "queued")
Facts = dict[str, Any]


@dataclass(frozen=True)
class Child:
    """One model and one task of it: a job."""

    job: str
    model: ModelDecision
    task: str


@dataclass(frozen=True)
class Batch:
    """template: the job, but for its model and tasks. asked: the request in a few words, for people."""

    id: str
    asked: Facts
    template: JobSpec
    tasks: tuple[str, ...]
    task_files: tuple[TaskFileSpec, ...]
    selection: Selection
    created: float

    @cached_property
    def children(self) -> list[Child]:
        taken = self.selection.taken
        return [Child(self._job(model, task), model, task) for model in taken for task in self.tasks if task not in model.left_out]

    def spec(self, child: Child) -> JobSpec:
        """The spec of a child's job."""
        files = tuple(file for file in self.task_files if file.name == child.task)
        return self.template.model_copy(update={"model": child.model.reference, "tasks": (child.task,), "task_files": files})

    def _job(self, model: ModelDecision, task: str) -> str:
        return "b-" + _digest(self.id, model.reference, model.digest, task)[:14]

    def to_json(self) -> str:
        plan = {"version": 1, "asked": self.asked, "template": self.template.model_dump(mode="json"), "tasks": self.tasks}
        plan |= {"task_files": [file.model_dump() for file in self.task_files], "created": self.created}
        return json.dumps(plan | {"selection": dataclasses.asdict(self.selection)})

    @classmethod
    def from_json(cls, batch: str, text: str) -> Batch:
        """Raises BrokenArtifact for anything that `to_json` has not written."""
        try:
            plan = json.loads(text)
            models = {kind: tuple(ModelDecision(**verdict) for verdict in plan["selection"][kind]) for kind in ("taken", "refused")}
            selection = Selection(**models, is_complete=bool(plan["selection"]["is_complete"]))
            template, files = JobSpec.model_validate(plan["template"]), tuple(map(TaskFileSpec.model_validate, plan["task_files"]))
            return cls(batch, dict(plan["asked"]), template, tuple(map(str, plan["tasks"])), files, selection, float(plan["created"]))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BrokenArtifact(f"the plan of batch {batch} is not readable ({said}); submit the batch again") from None


def batch_id(request: Facts) -> str:
    """The id of what was asked for: equal requests are one batch."""
    return "b" + _digest(json.dumps(request, sort_keys=True))[:9]


def save(service: Service, batch: Batch) -> None:
    """Keep the plan where every machine sees it."""
    with service.records.client.pipeline() as pipe:
        pipe.set(_key(batch.id), batch.to_json())
        pipe.zadd("ex:batches", {batch.id: batch.created}, nx=True)
        pipe.execute()


def find(service: Service, batch: str) -> Batch | None:
    """The batch of that id, if there is one. Raises BrokenArtifact."""
    try:
        text: Any = service.records.client.get(_key(check_id(batch)))
    except redis.ResponseError as error:
        raise BrokenArtifact(f"the plan of batch {batch} cannot be read ({error}); remove the key {_key(batch)}") from None
    return None if text is None else Batch.from_json(batch, text)


def need(service: Service, batch: str) -> Batch:
    """The batch of that id. Raises NotFound, BrokenArtifact."""
    found = find(service, batch)
    if found is None:
        raise NotFound(f"batch {batch!r} not found; `extract batch list` shows the batches there are")
    return found


def newest(service: Service, limit: int, readable: bool = False) -> list[Batch]:
    """The newest batches, 0 for all; ids whose plan has expired are forgotten on the way.

    readable: leave out what cannot be read. Else raises BrokenArtifact: whoever removes what no batch names must know of all.
    """
    redis_client = service.records.client
    ids: Any = redis_client.zrange("ex:batches", 0, limit - 1, desc=True)
    found: dict[str, Batch | None] = {}
    for batch in ids:
        with suppress(*((UsageError, BrokenArtifact) if readable else ())):
            found[batch] = find(service, batch)
    if expired := [batch for batch, plan in found.items() if plan is None]:
        redis_client.zrem("ex:batches", *expired)
    return [plan for plan in found.values() if plan is not None]


def queue(service: Service, batch: Batch, priority: str = "low") -> list[str]:
    """Queue what is missing, failed, cancelled or damaged, but for what cannot be asked: the ids that were queued."""
    one_by_one = dataclasses.replace(service, settings=dataclasses.replace(service.settings, start_worker=False))
    memory = cache(partial(_memory, batch))
    queued: list[str] = []
    found = look(service, batch)
    lost = damaged.find_damaged(service, [facts["job"] for facts in found if facts["state"] == "succeeded"])
    for child, facts in zip(batch.children, found, strict=True):
        if facts["state"] in ("missing", "failed", "cancelled") or child.job in lost:
            need = memory(child.model.reference)
            queued.append(submit_again(one_by_one, batch.spec(child), child.job, priority, batch.id, need, child.job in lost))
            if len(queued) == 1:
                local.ensure_worker(service.records, service.settings)  # it boots while we publish
    return queued


def _memory(batch: Batch, model: str) -> int:
    """Bytes that a job over a model needs; 0 if that cannot be told."""
    return bytes_needed(batch.template.model_copy(update={"model": model, "tasks": batch.tasks}))


def look(service: Service, batch: Batch, before: Sequence[Facts] = ()) -> list[Facts]:
    """What every child is doing: job, model, task, state, attempt, progress, metrics, error, worker, artifact.

    state is one of STATES: 'missing' of a job that was never queued, or whose record and result are both gone.
    before: an earlier look; those that had succeeded then are not asked about again.
    """
    done = {facts["job"]: facts for facts in before if facts["state"] in ("succeeded", NOT_EXPRESSIBLE)}
    records = _records(service, [child.job for child in batch.children if child.job not in done])
    left = with_results(service.settings, [job for job, record in records.items() if not record])
    return [done.get(child.job) or _facts(child, records[child.job], child.job in left) for child in batch.children]


def _records(service: Service, jobs: Sequence[str]) -> dict[str, dict[str, str]]:
    """Job -> its record, empty where there is none."""
    found: dict[str, dict[str, str]] = {}
    for start in range(0, len(jobs), AT_ONCE):
        some = jobs[start : start + AT_ONCE]
        found |= {job: {} for job in some} | service.records.get_many(some)
    return found


def _facts(child: Child, record: dict[str, str], has_result: bool) -> Facts:
    named = {"job": child.job, "model": child.model.asked, "task": child.task}
    if not record:
        blank = dict.fromkeys(("attempt", "progress", "metrics", "error", "worker", "artifact"))
        return named | blank | {"state": "succeeded" if has_result else "missing"}
    found = describe(child.job, record)
    same = {name: found[name] for name in ("attempt", "progress", "metrics", "worker", "artifact", "state")}
    if found["error"] and found["error"]["type"] == "TaskNotExpressible":
        same["state"] = NOT_EXPRESSIBLE
    return named | same | {"error": f"{found['error']['type']}: {found['error']['message']}" if found["error"] else None}


def count(facts: Sequence[Facts]) -> dict[str, int]:
    """State -> how many children are in it, those states that occur."""
    return {state: number for state in STATES if (number := sum(child["state"] == state for child in facts))}


def state_of(counts: dict[str, int]) -> str:
    """The state of the whole: 'running' while anything is open, else the worst end of any child."""
    if counts.get("running"):
        return "running"
    if counts.get("queued"):
        return "running" if counts.keys() & {*TERMINAL, NOT_EXPRESSIBLE} else "queued"
    if counts.keys() & {"failed", "missing"}:
        return "failed"
    return "cancelled" if counts.get("cancelled") else "succeeded"


def ending(batch: str, counts: dict[str, int]) -> ExtractorError | None:
    """The error that the children mean so far for somebody who asks; None while none has failed or was cancelled."""
    total = sum(counts.values())
    if failed := counts.get("failed", 0) + counts.get("missing", 0):
        return ExtractorError(f"batch {batch}: {failed} of {total} jobs failed; the same `extract batch submit` queues them again")
    if cancelled := counts.get("cancelled", 0):
        return Cancelled(f"batch {batch}: {cancelled} of {total} jobs were cancelled; the same `extract batch submit` queues them again")
    return None


def watch(service: Service, batch: Batch) -> Iterator[list[Facts]]:
    """What every child is doing, about once a second, until all have ended.

    Local workers are started as they are needed. Raises ServiceUnavailable when nothing answers for a minute, or no worker stays up.
    """
    facts: list[Facts] = []
    starts, away_since, ended = 0, None, -1
    while True:
        try:
            starts += local.ensure_worker(service.records, service.settings)
            facts = look(service, batch, facts)
            away_since = None
        except redis.RedisError as error:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > OUTAGE_SECONDS:
                raise ServiceUnavailable(
                    f"Redis went away ({error}); the jobs are kept, watch them again: extract batch watch {batch.id}"
                ) from None
            time.sleep(LOOK_SECONDS)
            with suppress(ServiceUnavailable):
                service = open_service(service.settings)  # the embedded server is started again
            continue
        yield facts
        done = sum(child["state"] not in ("queued", "running") for child in facts)
        if done == len(facts):
            with suppress(redis.RedisError):
                service.records.client.expire(_key(batch.id), KEEP_SECONDS)
            return
        if done > ended:
            starts, ended = 0, done
        if starts > MAX_STARTS:
            raise ServiceUnavailable(f"the local worker does not stay up; see {local.log_path(service.settings)}")
        time.sleep(LOOK_SECONDS)


def cancel(service: Service, batch: Batch) -> dict[str, int]:
    """Cancel every child that is open: how many were 'cancelled' at once, were told to stop ('running'), or had ended before ('ended')."""
    told = {"cancelled": 0, "running": 0, "ended": 0}
    for facts in look(service, batch):
        if facts["state"] in ("queued", "running"):
            state = service.records.cancel(facts["job"])
            told[state if state in ("cancelled", "running") else "ended"] += 1
        elif facts["state"] != "missing":
            told["ended"] += 1
    return told


def _key(batch: str) -> str:
    return f"ex:batch:{batch}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
