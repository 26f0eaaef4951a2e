"""Numbers of jobs by state, waiting times and ages of leases, without reading job records.

    ex:state:{state}  zset    job ids by the time of entering that state; running jobs by their last heartbeat
    ex:totals         hash    sums since counting started: submitted, attempts, succeeded, failed, cancelled
    ex:counted        string  set once the records of versions without these keys have been counted

The scripts in `records.transitions` maintain these keys. Clients and workers of earlier versions do not; `repair` corrects the counts.
Times are seconds since 1970.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

import redis

from worker.records.transitions import KEEP_SECONDS, STATES

OPEN = ("queued", "running")
MAX_DIGITS = 18  # of a sum; a longer number is not one that the scripts wrote
_CHUNK = 500  # jobs recounted by one script call; a call blocks all other clients

_RECOUNT = """
local t = redis.call('TIME')
for _, id in ipairs(ARGV) do
  local facts = redis.pcall('HMGET', 'ex:job:' .. id, 'state', 'ended', 'updated')
  if facts.err then facts = {} end -- no record at all
  for _, key in ipairs(KEYS) do
    redis.call('ZREM', key, id)
    if key == 'ex:state:' .. (facts[1] or '') then
      local since = tonumber(facts[2] or facts[3] or '')
      if not since or since ~= since then since = t[1] end
      if facts[1] == 'running' and redis.call('EXISTS', 'ex:lease:' .. id) == 1 then since = t[1] end
      redis.call('ZADD', key, since, id)
    end
  end
end
"""


class Counts:
    """The counts of one server. Methods raise redis.RedisError when it cannot be reached."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._recount = client.register_script(_RECOUNT)

    def prepare(self) -> None:
        """Count the records of earlier versions, once."""
        if self.client.exists("ex:counted"):
            return
        ids: Any = self.client.zrange("ex:jobs", 0, -1)
        self.recount(ids)
        self.client.set("ex:counted", 1)

    def by_state(self) -> dict[str, int]:
        """The number of records in each state."""
        expired = time.time() - KEEP_SECONDS
        with self.client.pipeline(transaction=False) as batch:
            for state in STATES:
                if state not in OPEN:
                    batch.zremrangebyscore(_key(state), "-inf", expired)
            for state in STATES:
                batch.zcard(_key(state))
            numbers = batch.execute()[-len(STATES) :]
        return dict(zip(STATES, numbers, strict=True))

    def totals(self) -> dict[str, int]:
        """Sums so far: submitted, attempts, succeeded, failed, cancelled. Attempts include preempted ones."""
        found: Any = self.client.hgetall("ex:totals")
        counted = {name: text for name, text in found.items() if text.isdecimal() and len(text) <= MAX_DIGITS}
        return {name: int(counted.get(name, 0)) for name in ("submitted", "attempts", *(s for s in STATES if s not in OPEN))}

    def longest_wait(self) -> float:
        """Seconds since the oldest queued job was queued; 0 without queued jobs."""
        return self._age("queued")

    def oldest_lease(self) -> float:
        """The longest time in seconds since the last heartbeat of a running job; 0 without running jobs."""
        return self._age("running")

    def newest(self, state: str, limit: int) -> list[str]:
        """Ids of the jobs that entered a state last; limit 0: all."""
        ids: Any = self.client.zrange(_key(state), 0, limit - 1, desc=True)
        return ids

    def repair(self, open_jobs: Mapping[str, Mapping[str, str]], lease_ttl: float) -> None:
        """Correct the counts after changes by earlier versions. open_jobs: every open job's record."""
        wrong: set[str] = set()
        for state in OPEN:
            counted = set(self.newest(state, 0))
            wrong |= counted ^ {job for job, record in open_jobs.items() if record["state"] == state}
        silent: Any = self.client.zrangebyscore(_key("running"), "-inf", time.time() - lease_ttl)
        self.recount(wrong | set(silent))  # a heartbeat of an earlier version renews only the lease

    def recount(self, jobs: Collection[str]) -> None:
        """Move each of these jobs to the key of its present state."""
        ids = list(jobs)
        for first in range(0, len(ids), _CHUNK):
            self._recount(keys=[_key(state) for state in STATES], args=ids[first : first + _CHUNK])

    def _age(self, state: str) -> float:
        oldest: Any = self.client.zrange(_key(state), 0, 0, withscores=True)
        return max(0.0, time.time() - oldest[0][1]) if oldest else 0.0


def _key(state: str) -> str:
    return f"ex:state:{state}"
