"""What Python asks of the service, for `extractor.jobs()` and `extractor.load(JOB)`. It only looks: no worker and no server is started.

The engine reaches this module by its name (`extractor.results.places`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from extractor.errors import NotFound, ServiceUnavailable
from worker.broker import embedded_redis, redis_url
from worker.client import results
from worker.client.service import open_service
from worker.ids import check_id
from worker.records.records import Records, describe
from worker.settings import Settings, from_env


def newest(limit: int, every: bool) -> list[dict[str, Any]]:
    """The newest jobs as `extract list --json` prints them; every: include those of batches and sweeps.

    Empty where no server has ever run. Raises ServiceUnavailable, also where the embedded server has data but does not run; UsageError.
    """
    with _records_of_all_jobs() as records:
        return [] if records is None else [describe(job, record) for job, record in records.newest(limit, alone=not every)]


def folder_of(job: str) -> Path:
    """The result folder of a job on this machine; downloads it from storage. Finds a finished job also where no server runs.

    Raises NotFound, what `result_folder` raises, and UsageError for what is no job id.
    """
    check_id(job)
    settings = from_env()
    with _answers(settings):
        records = _records(settings)
        try:
            return results.result_folder(settings, records, job)
        except NotFound:
            if records is not None and records.get(job) is not None:
                raise
            missing = f"there is neither a folder nor a finished job {job!r}"
            if records is None and _has_data(settings):
                raise NotFound(f"{missing}; {_no_server(settings)}") from None
            raise NotFound(f"{missing}; extractor.jobs() lists the jobs of {settings.state_dir}") from None


def newest_finished() -> str:
    """The id of the newest job that has succeeded and has a task, as `extract show` finds it. Raises NotFound, ServiceUnavailable."""
    with _records_of_all_jobs() as records:
        found = None if records is None else results.newest_finished(records)
    if found is None:
        raise NotFound("no job with a circuit has finished yet: name a result folder, or queue a job with `extract submit`")
    return found


@contextmanager
def _records_of_all_jobs() -> Iterator[Records | None]:
    """None where no server has ever run. Raises ServiceUnavailable, also where the embedded server has data but does not run."""
    settings = from_env()
    with _answers(settings):
        records = _records(settings)
        if records is None and _has_data(settings):
            raise ServiceUnavailable(_no_server(settings))
        yield records


def _records(settings: Settings) -> Records | None:
    """None where the embedded server does not run."""
    if not settings.embedded:
        return open_service(settings).records
    server = embedded_redis.find(settings)
    if server is not None and server.is_loading:
        raise ServiceUnavailable(f"the server still loads {server.data}; ask again in a minute")
    return None if server is None else Records(redis_url.connect(embedded_redis.url(server.socket)))


def _has_data(settings: Settings) -> bool:
    """Whether an embedded server has ever run in the state directory."""
    return any(True for engine in ("valkey", "redis") for _ in settings.state_dir.glob(f"{engine}-*/lock"))


def _no_server(settings: Settings) -> str:
    return f"the server that keeps the jobs of {settings.state_dir} does not run: `extract list` starts it"


@contextmanager
def _answers(settings: Settings) -> Iterator[None]:
    """A server that stops answering is an error of one line."""
    try:
        yield
    except redis.RedisError as error:
        url = settings.redis_url
        said = (
            redis_url.explain(url, error)
            if url
            else f"the server that keeps the jobs does not answer ({error}); see `extract server status`"
        )
        raise ServiceUnavailable(said) from None
