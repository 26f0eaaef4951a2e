"""Fair shares: only a few jobs of one batch or sweep have messages in the queue at a time; the others wait in the group's own line.

    ex:group:{id}        list  its jobs that wait in line          ex:groups   set   ids of unfinished groups
    ex:group:{id}:sent   set   its jobs that have left the line and have not ended

So a group of ten thousand jobs delays other jobs no more than a group of ten. Whoever submits to a group, or ends a job of it, draws the
next jobs; a caretaker does this periodically for all groups. It also publishes jobs whose drawer died before sending the message.
"""

from __future__ import annotations

import redis

MIN_ACTIVE = 8  # jobs of a group that are published or running; twice the number of workers if that is more

_DRAW = """
local line, sent, group = KEYS[1], KEYS[2], ARGV[1]
local most = math.max(tonumber(ARGV[2]), 2 * redis.call('ZCARD', 'ex:workers'))
local active, drawn = 0, {}
for _, id in ipairs(redis.call('SMEMBERS', sent)) do
  local facts = redis.call('HMGET', 'ex:job:' .. id, 'state', 'waits')
  local waits = facts[2] and facts[2] ~= ''
  if facts[1] == 'running' or (facts[1] == 'queued' and not waits) then active = active + 1
  elseif facts[1] ~= 'queued' then redis.call('SREM', sent, id) end
end
while active < most do
  local id = redis.call('LPOP', line)
  if not id then break end
  local facts = redis.call('HMGET', 'ex:job:' .. id, 'state', 'in_line', 'group')
  if facts[1] == 'queued' and facts[2] == '1' and facts[3] == group then
    redis.call('HSET', 'ex:job:' .. id, 'in_line', '')
    redis.call('SADD', sent, id)
    table.insert(drawn, id)
    active = active + 1
  end
end
if redis.call('EXISTS', line) == 0 and redis.call('EXISTS', sent) == 0 then redis.call('SREM', 'ex:groups', group) end
return drawn
"""


class Groups:
    """The groups on one server. Methods raise redis.RedisError when it cannot be reached."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._draw = client.register_script(_DRAW)

    def draw(self, group: str) -> list[str]:
        """Take the jobs of a group whose turn has come out of the line. The caller publishes them."""
        drawn: list[str] = self._draw(keys=[f"ex:group:{group}", f"ex:group:{group}:sent"], args=[group, MIN_ACTIVE])
        return drawn

    def draw_all(self) -> list[str]:
        """`draw` for all groups."""
        groups: set[str] = self._client.smembers("ex:groups")  # type: ignore[assignment]
        return [job for group in sorted(groups) for job in self.draw(group)]
