"""Batches: one circuit job per model and task. Submitting the same batch again queues only jobs without a result.

    ex:batch:{id}   string   the plan: template, tasks, accepted and rejected models     ex:batches   zset   ids by time of creation

The batch id is a hash of the request; a job id is a hash of batch id, pinned model and task. The state of a batch is derived from its
jobs. The plan is in Redis, visible from every machine, and expires some weeks after the last job has ended, like a job record.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import redis

from extractor.errors import BrokenArtifact, Cancelled, ExtractorError, NotFound, UsageError, first_line
from extractor.jobs.cost.memory import bytes_needed
from extractor.spec.schema import BridgeSpec, JobSpec, TaskFileSpec
from worker.batches.selection import ModelDecision, Selection
from worker.client import damaged
from worker.client.results import with_results
from worker.client.service import Service
from worker.client.submit import submit_again
from worker.client.watch import watch_group
from worker.fleet import local
from worker.ids import check_id
from worker.records.records import TERMINAL, describe
from worker.records.transitions import KEEP_SECONDS

RECORDS_PER_READ = 500
NOT_EXPRESSIBLE = "not expressible"  # state of a job whose model's tokenizer cannot express the task; not a failure
STATES = ("succeeded", NOT_EXPRESSIBLE, "failed", "missing", "cancelled", "running", "queued")
Facts = dict[str, Any]


@dataclass(frozen=True)
class Child:
    """The job of one model and one task."""

    job: str
    model: ModelDecision
    task: str


@dataclass(frozen=True)
class Batch:
    """template: the job's spec with placeholders for model and task. asked: the request as it was typed, to show it.

    otherwise: the bridging's settings for models whose weights cannot be the start of a training (`ModelDecision.from_scratch`)
    """

    id: str
    asked: Facts
    template: JobSpec
    tasks: tuple[str, ...]
    task_files: tuple[TaskFileSpec, ...]
    selection: Selection
    created: float
    otherwise: BridgeSpec | None = None

    @cached_property
    def children(self) -> list[Child]:
        taken = self.selection.taken
        return [Child(self._job(model, task), model, task) for model in taken for task in self.tasks if task not in model.left_out]

    def spec(self, child: Child) -> JobSpec:
        """The spec of a child's job."""
        files = tuple(file for file in self.task_files if file.name == child.task)
        return self.beside(child.model).model_copy(update={"tasks": (child.task,), "task_files": files})

    def beside(self, model: ModelDecision) -> JobSpec:
        """The template with this model, and the bridging's settings that suit it."""
        bridge = self.otherwise if model.from_scratch and self.otherwise else self.template.bridge
        if model.batch and bridge is not None:
            rows, context = model.batch
            bridge = bridge.model_copy(update={"optim": bridge.optim.model_copy(update={"batch": rows, "context": context})})
        return self.template.model_copy(update={"model": model.reference, "bridge": bridge})

    def _job(self, model: ModelDecision, task: str) -> str:
        return "b-" + _digest(self.id, model.reference, model.digest, task)[:14]

    def to_json(self) -> str:
        plan = {"version": 1, "asked": self.asked, "template": self.template.model_dump(mode="json"), "tasks": self.tasks}
        plan |= {"task_files": [file.model_dump() for file in self.task_files], "created": self.created}
        plan |= {"otherwise": None if self.otherwise is None else self.otherwise.model_dump(mode="json")}
        selection = dataclasses.asdict(self.selection)
        for decision in (*selection["taken"], *selection["refused"]):
            for later in ("from_scratch", "batch"):  # workers of earlier releases read plans without these
                if not decision[later]:
                    del decision[later]
        return json.dumps(plan | {"selection": selection})

    @classmethod
    def from_json(cls, batch: str, text: str) -> Batch:
        """Raises BrokenArtifact for anything not written by `to_json`."""
        try:
            plan = json.loads(text)
            models = {kind: tuple(ModelDecision(**verdict) for verdict in plan["selection"][kind]) for kind in ("taken", "refused")}
            selection = Selection(**models, is_complete=bool(plan["selection"]["is_complete"]))
            template, files = JobSpec.model_validate(plan["template"]), tuple(map(TaskFileSpec.model_validate, plan["task_files"]))
            otherwise = None if plan.get("otherwise") is None else BridgeSpec.model_validate(plan["otherwise"])
            tasks, created = tuple(map(str, plan["tasks"])), float(plan["created"])
            return cls(batch, dict(plan["asked"]), template, tasks, files, selection, created, otherwise)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise BrokenArtifact(f"the plan of batch {batch} is not readable ({first_line(error)}); submit the batch again") from None


def batch_id(request: Facts) -> str:
    """The id of a request. Equal requests have equal ids."""
    return "b" + _digest(json.dumps(request, sort_keys=True))[:9]


def save(service: Service, batch: Batch) -> None:
    """Write the plan to Redis."""
    with service.records.client.pipeline() as pipe:
        pipe.set(_key(batch.id), batch.to_json())
        pipe.zadd("ex:batches", {batch.id: batch.created}, nx=True)
        pipe.execute()


def find(service: Service, batch: str) -> Batch | None:
    """The batch with that id, or None. Raises BrokenArtifact."""
    try:
        text: Any = service.records.client.get(_key(check_id(batch)))
    except redis.ResponseError as error:
        raise BrokenArtifact(f"the plan of batch {batch} cannot be read ({error}); remove the key {_key(batch)}") from None
    return None if text is None else Batch.from_json(batch, text)


def need(service: Service, batch: str) -> Batch:
    """The batch with that id. Raises NotFound, BrokenArtifact."""
    found = find(service, batch)
    if found is None:
        raise NotFound(f"batch {batch!r} not found; `extract batch list` shows all batches")
    return found


def newest(service: Service, limit: int, on_unreadable: Callable[[ExtractorError], None] | None = None) -> list[Batch]:
    """The newest `limit` batches, 0 for all. Also deletes ids whose plan has expired.

    on_unreadable: called for each plan that cannot be read. Without it raises BrokenArtifact: `extract gc` must know every batch.
    """
    redis_client = service.records.client
    ids: Any = redis_client.zrange("ex:batches", 0, limit - 1, desc=True)
    found: dict[str, Batch | None] = {}
    for batch in ids:
        try:
            found[batch] = find(service, batch)
        except (UsageError, BrokenArtifact) as error:
            if on_unreadable is None:
                raise
            on_unreadable(error)
    if expired := [batch for batch, plan in found.items() if plan is None]:
        redis_client.zrem("ex:batches", *expired)
    return [plan for plan in found.values() if plan is not None]


def queue(service: Service, batch: Batch, priority: str = "low") -> list[str]:
    """Queue the jobs that are missing, failed, cancelled or damaged, except those not expressible. Returns the queued ids."""
    one_by_one = dataclasses.replace(service, settings=dataclasses.replace(service.settings, start_worker=False))
    needed = {model.reference: cache(partial(_memory, batch, model)) for model in batch.selection.taken}
    queued: list[str] = []
    found = inspect(service, batch)
    lost = damaged.find_damaged(service, [facts["job"] for facts in found if facts["state"] == "succeeded"])
    for child, facts in zip(batch.children, found, strict=True):
        if facts["state"] in ("missing", "failed", "cancelled") or child.job in lost:
            need = needed[child.model.reference]()
            queued.append(submit_again(one_by_one, batch.spec(child), child.job, priority, batch.id, need, child.job in lost))
            if len(queued) == 1:
                local.ensure_worker(service.records, service.settings)  # it starts up while the other jobs are published
    return queued


def _memory(batch: Batch, model: ModelDecision) -> int:
    """Bytes that a job for this model needs; 0 if unknown."""
    return bytes_needed(batch.beside(model).model_copy(update={"tasks": batch.tasks}))


def inspect(service: Service, batch: Batch, before: Sequence[Facts] = ()) -> list[Facts]:
    """The facts of every child: job, model, task, state, attempt, progress, metrics, error, worker, artifact.

    state is one of STATES; 'missing' means never queued, or record and result are both gone.
    before: facts of an earlier call; jobs that had succeeded then are not read again.
    """
    done = {facts["job"]: facts for facts in before if facts["state"] in ("succeeded", NOT_EXPRESSIBLE)}
    records = _records(service, [child.job for child in batch.children if child.job not in done])
    left = with_results(service.settings, [job for job, record in records.items() if not record])
    return [done.get(child.job) or _facts(child, records[child.job], child.job in left) for child in batch.children]


def _records(service: Service, jobs: Sequence[str]) -> dict[str, dict[str, str]]:
    """Job -> its record, {} without one."""
    found: dict[str, dict[str, str]] = {}
    for start in range(0, len(jobs), RECORDS_PER_READ):
        page = jobs[start : start + RECORDS_PER_READ]
        found |= {job: {} for job in page} | service.records.get_many(page)
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
    """State -> number of children in it, without zeros."""
    return {state: number for state in STATES if (number := sum(child["state"] == state for child in facts))}


def state_of(counts: dict[str, int]) -> str:
    """The state of the batch: 'running' while a job is open, else the worst end of any job."""
    if counts.get("running"):
        return "running"
    if counts.get("queued"):
        return "running" if counts.keys() & {*TERMINAL, NOT_EXPRESSIBLE} else "queued"
    if counts.keys() & {"failed", "missing"}:
        return "failed"
    return "cancelled" if counts.get("cancelled") else "succeeded"


def ending(batch: str, counts: dict[str, int]) -> ExtractorError | None:
    """The error to report for these counts; None while no job has failed or was cancelled."""
    total = sum(counts.values())
    if failed := counts.get("failed", 0) + counts.get("missing", 0):
        return ExtractorError(f"batch {batch}: {failed} of {total} jobs failed; the same `extract batch submit` queues them again")
    if cancelled := counts.get("cancelled", 0):
        return Cancelled(f"batch {batch}: {cancelled} of {total} jobs were cancelled; the same `extract batch submit` queues them again")
    return None


def watch(service: Service, batch: Batch) -> Iterator[list[Facts]]:
    """The facts of every child, about once a second, until all have ended. Starts local workers when needed.

    Raises ServiceUnavailable when Redis does not answer for a minute or no worker stays up.
    """
    advice = f"the jobs are kept; watch them again: extract batch watch {batch.id}"
    yield from watch_group(service, lambda service, before: inspect(service, batch, before), advice)
    with suppress(redis.RedisError):
        service.records.client.expire(_key(batch.id), KEEP_SECONDS)


def cancel(service: Service, batch: Batch) -> dict[str, int]:
    """Cancel every open job. Counts of jobs: 'cancelled' at once, 'running' ones that will stop, and those that had 'ended' before."""
    counts = {"cancelled": 0, "running": 0, "ended": 0}
    for facts in inspect(service, batch):
        if facts["state"] in ("queued", "running"):
            state = service.records.cancel(facts["job"])
            counts[state if state in ("cancelled", "running") else "ended"] += 1
        elif facts["state"] != "missing":
            counts["ended"] += 1
    return counts


def _key(batch: str) -> str:
    return f"ex:batch:{batch}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
