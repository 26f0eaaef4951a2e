"""The transitions of a job as Lua scripts. Each is atomic and writes its event to the job's stream.

Keys: ex:job:{id}, ex:lease:{id}, ex:ev:{id}, ex:open, ex:jobs. A script returns one word, documented in `worker.records.records`. The
scripts also update ex:state:{state} and ex:totals, which `worker.records.counts` reads, so that counts always match the records.
"""

from __future__ import annotations

STATES = ("queued", "running", "succeeded", "failed", "cancelled")
MAX_EVENTS = 2000  # approximate length of a job's stream
KEPT_EVENTS = 60  # of an ended job: the last of its events, and all that are no progress
KEEP_SECONDS = 30 * 24 * 3600  # lifetime of the record of an ended job; its result does not expire

_PRELUDE = """
local job, lease, ev, open = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local t = redis.call('TIME')
local now = string.format('%d.%03d', tonumber(t[1]), math.floor(tonumber(t[2]) / 1000))
local function append(text)
  local answer = redis.pcall('XADD', ev, 'MAXLEN', '~', MAX_EVENTS, '*', 'json', text)
  if type(answer) == 'table' and answer.err and string.find(answer.err, 'WRONGTYPE') then
    redis.call('DEL', ev)
    redis.call('XADD', ev, 'MAXLEN', '~', MAX_EVENTS, '*', 'json', text)
  end
end
local function emit(event)
  event.time = tonumber(now)
  append(cjson.encode(event))
end
local function count(what)
  redis.pcall('HINCRBY', 'ex:totals', what, 1)
end
local function integer(name, otherwise)
  local n = tonumber(redis.call('HGET', job, name) or '')
  if not n or n < 0 or n > 1e9 or n ~= math.floor(n) then return otherwise end
  return n
end
local function shorten()
  local entries = redis.pcall('XRANGE', ev, '-', '+')
  if entries.err or #entries <= KEPT_EVENTS then return end
  redis.call('DEL', ev)
  for i, entry in ipairs(entries) do
    local is_progress = string.find(tostring(entry[2][2]), '^{"event": ?"progress"')
    if i > #entries - KEPT_EVENTS or not is_progress then redis.call('XADD', ev, entry[1], unpack(entry[2])) end
  end
end
local function become(state, event)
  local id = string.sub(job, 8)
  for _, other in ipairs(STATES) do redis.call('ZREM', 'ex:state:' .. other, id) end
  redis.call('ZADD', 'ex:state:' .. state, now, id)
  redis.call('HSET', job, 'state', state, 'updated', now)
  event.event, event.state = 'state', state
  event.attempt = integer('attempt', 0)
  if state ~= 'running' then
    redis.call('DEL', lease)
    redis.call('HSET', job, 'token', '')
  end
  emit(event)
  if state == 'succeeded' or state == 'failed' or state == 'cancelled' then
    redis.call('HSET', job, 'ended', now)
    redis.call('ZREM', open, id)
    redis.call('EXPIRE', job, KEEP_SECONDS)
    shorten()
    redis.call('EXPIRE', ev, KEEP_SECONDS)
    count(state)
  end
  return state
end
local function is_owner(token)
  return token ~= '' and redis.call('HGET', job, 'token') == token and redis.call('HGET', job, 'state') == 'running'
end
local function requeue(reason)
  if redis.call('HGET', job, 'want') == 'cancel' then return become('cancelled', {reason = reason}) end
  local attempt, most = integer('attempt', 0), integer('max_attempts', 3)
  if attempt >= most then
    local message = reason .. ' (' .. attempt .. ' of ' .. most .. ' attempts)'
    redis.call('HSET', job, 'error_type', 'Crashed', 'error_message', message)
    return become('failed', {error = {type = 'Crashed', message = message}})
  end
  return become('queued', {reason = reason})
end
"""

_BODIES = {
    "create": """
local state, snapshot = redis.call('HGET', job, 'state'), redis.call('HGET', job, 'snapshot')
if state then
  if not string.find(' ' .. ARGV[1] .. ' ', ' ' .. state .. ' ', 1, true) then return 'exists' end
  redis.call('DEL', job, ev)
end
redis.call('HSET', job, 'attempt', 0, 'token', '', 'want', '', 'published', 0, 'created', now, 'snapshot', snapshot or '', unpack(ARGV, 2))
redis.call('ZADD', open, now, string.sub(job, 8))
redis.call('ZADD', KEYS[5], now, string.sub(job, 8))
count('submitted')
local group = redis.call('HGET', job, 'group')
if group and group ~= '' then
  redis.call('HSET', job, 'in_line', '1')
  redis.call('RPUSH', 'ex:group:' .. group, string.sub(job, 8))
  redis.call('SADD', 'ex:groups', group)
end
return become('queued', {})
""",
    "claim": """
local token, ttl, owner, worker, process = unpack(ARGV)
local state = redis.call('HGET', job, 'state')
if not state then return 'unknown' end
if state == 'running' then return 'held' end
if state ~= 'queued' then return 'terminal' end
if redis.call('HGET', job, 'want') == 'cancel' then return become('cancelled', {}) end
redis.call('HSET', job, 'attempt', integer('attempt', 0) + 1)
redis.call('HSET', job, 'token', token, 'worker', worker, 'process', process, 'host', owner, 'started', now)
redis.call('SET', lease, token, 'PX', ttl)
count('attempts')
become('running', {worker = worker})
return 'claimed'
""",
    # A lease that expired while Redis was down is renewed unless another owner has claimed the job.
    "beat": """
if not is_owner(ARGV[1]) then return 'lost' end
redis.call('SET', lease, ARGV[1], 'PX', ARGV[2])
redis.call('ZADD', 'ex:state:running', 'XX', now, string.sub(job, 8))
return redis.call('HGET', job, 'want')
""",
    "report": """
if not is_owner(ARGV[1]) then return 'lost' end
redis.call('HSET', job, 'updated', now, unpack(ARGV, 3))
append(ARGV[2])
return 'ok'
""",
    "end": """
local token, state, artifact, kind, message = unpack(ARGV)
if not is_owner(token) then return 'lost' end
redis.call('HSET', job, 'artifact', artifact, 'error_type', kind, 'error_message', message)
local event = {}
if kind ~= '' then event.error = {type = kind, message = message} end
return become(state, event)
""",
    "release": """
local token, reason, counts = unpack(ARGV)
if not is_owner(token) then return 'lost' end
if counts == '0' then redis.call('HINCRBY', job, 'attempt', -1) end
return requeue(reason)
""",
    # A bridged model is trained once: ex:twin:{address} holds the job that trains it, ex:twin:{address}:waiting the jobs that wait for it.
    "claim_bridging": """
local token, address = unpack(ARGV)
if not is_owner(token) then return 'lost' end
local place, me = 'ex:twin:' .. address, string.sub(job, 8)
local maker = redis.call('GET', place)
if maker and maker ~= me and redis.call('ZSCORE', open, maker) then
  redis.call('SADD', place .. ':waiting', me)
  redis.call('EXPIRE', place .. ':waiting', KEEP_SECONDS)
  redis.call('HSET', job, 'waits', maker)
  redis.call('HINCRBY', job, 'attempt', -1)
  requeue('waits for job ' .. maker .. ', which trains the bridged model for both')
  return maker
end
redis.call('SET', place, me, 'EX', KEEP_SECONDS)
return 'mine'
""",
    "release_bridging": """
local place, waiting = 'ex:twin:' .. ARGV[1], {}
if redis.call('GET', place) ~= string.sub(job, 8) then return '' end
redis.call('DEL', place)
for _, other in ipairs(redis.call('SMEMBERS', place .. ':waiting')) do
  if redis.call('HGET', 'ex:job:' .. other, 'state') == 'queued' then
    redis.call('HSET', 'ex:job:' .. other, 'waits', '')
    table.insert(waiting, other)
  end
end
redis.call('DEL', place .. ':waiting')
return table.concat(waiting, ' ')
""",
    "cancel": """
local state = redis.call('HGET', job, 'state')
if not state then return 'unknown' end
if state == 'queued' then return become('cancelled', {}) end
if state == 'running' and redis.call('HGET', job, 'want') ~= 'cancel' then
  redis.call('HSET', job, 'want', 'cancel')
  emit({event = 'cancelling'})
end
return state
""",
    "reap": """
local token, reason, gone = unpack(ARGV)
if not is_owner(token) then return 'kept' end
if gone == '0' and redis.call('EXISTS', lease) == 1 then return 'kept' end
return requeue(reason)
""",
}

_LIST = ", ".join(f"'{state}'" for state in STATES)
_CONSTANTS = f"local KEEP_SECONDS, MAX_EVENTS, KEPT_EVENTS, STATES = {KEEP_SECONDS}, {MAX_EVENTS}, {KEPT_EVENTS}, {{{_LIST}}}"
SCRIPTS = {name: _CONSTANTS + _PRELUDE + body for name, body in _BODIES.items()}
