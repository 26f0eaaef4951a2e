"""How many jobs are in which state, how long they wait, how old the leases are: known without reading a record.

    ex:state:{state}  zset    ids by the time they came into that state; of running jobs, by their last heartbeat
    ex:totals         hash    since the counting began: submitted, attempts, succeeded, failed, cancelled
    ex:counted        string  set once the records of versions that kept no such sets have been counted

The scripts of `records.transitions` keep all this right. Only what a worker or client of an earlier version changes escapes them, and
`mend` finds that. Times are seconds since 1970.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

import redis

from worker.records.transitions import KEEP_SECONDS, STATES

OPEN = ("queued", "running")
_CHUNK = 500  # jobs settled by one call, so that no other client waits long

_SETTLE = """
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
        self._settle = client.register_script(_SETTLE)

    def prepare(self) -> None:
        """Count the records of earlier versions, unless somebody has done so."""
        if self.client.exists("ex:counted"):
            return
        ids: Any = self.client.zrange("ex:jobs", 0, -1)
        self.settle(ids)
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
        """What has happened so far: submitted, attempts, succeeded, failed, cancelled. Attempts include those that were preempted."""
        found: Any = self.client.hgetall("ex:totals")
        counted = {name: text for name, text in found.items() if text.isdecimal()}
        return {name: int(counted.get(name, 0)) for name in ("submitted", "attempts", *(s for s in STATES if s not in OPEN))}

    def longest_wait(self) -> float:
        """Seconds since the first of the queued jobs was queued; 0 when none is."""
        return self._age("queued")

    def oldest_lease(self) -> float:
        """Seconds since that running job's lease was renewed whose owner is longest silent; 0 when none runs."""
        return self._age("running")

    def newest(self, state: str, limit: int) -> list[str]:
        """Ids of the jobs that came last into a state."""
        ids: Any = self.client.zrange(_key(state), 0, limit - 1, desc=True)
        return ids

    def mend(self, open_jobs: Mapping[str, Mapping[str, str]], lease_ttl: float) -> None:
        """Count right what earlier versions changed. open_jobs: every open job's record."""
        wrong: set[str] = set()
        for state in OPEN:
            counted = set(self.newest(state, 0))
            wrong |= counted ^ {job for job, record in open_jobs.items() if record["state"] == state}
        silent: Any = self.client.zrangebyscore(_key("running"), "-inf", time.time() - lease_ttl)
        self.settle(wrong | set(silent))  # a heartbeat of an earlier version renews a lease and nothing else

    def settle(self, jobs: Collection[str]) -> None:
        """Put each of these jobs among those of the state it is in."""
        ids = list(jobs)
        for first in range(0, len(ids), _CHUNK):
            self._settle(keys=[_key(state) for state in STATES], args=ids[first : first + _CHUNK])

    def _age(self, state: str) -> float:
        oldest: Any = self.client.zrange(_key(state), 0, 0, withscores=True)
        return max(0.0, time.time() - oldest[0][1]) if oldest else 0.0


def _key(state: str) -> str:
    return f"ex:state:{state}"
