"""The steps of a load on a Redis server, each one script, so that nothing comes between its reads and its writes.

All keys are in KEYS.  Times are lives in milliseconds on the server's clock.  A lease is a hash: `t` the token of its holder,
`f` the token of the last holder that ended without an entry, `g` the generations of the holder's load: if they are others now,
the load is doomed, and nobody need wait for it.
"""

__all__ = ["ADD_TOTALS", "BEGIN", "COMMIT", "DISCARD", "END", "FORGO", "REMOVE", "RENEW", "REPLACE", "TOTALS", "WRITE"]

BEGIN = b"""
-- KEYS: entry, lease, last token, generations...
-- ARGV: life of the lease (0: none), new generation, life of a generation,
--   1 if an entry that is there is all that is wanted, 2 if the generations are too
local function ours(command, key, ...)  -- what somebody else has put under our key goes
  local found = redis.pcall(command, key, ...)
  if type(found) == 'table' and found.err then
    redis.call('DEL', key)
    found = redis.call(command, key, ...)
  end
  return found
end
local reply = {ours('GET', KEYS[1]), 0, 0, 0}
local generations = {}
if reply[1] and ARGV[4] == '1' then return reply[1] end
for i = 4, #KEYS do generations[i - 3] = ours('GET', KEYS[i]) or '' end
if reply[1] and ARGV[4] == '2' then
  for i = 4, #KEYS do reply[i + 1] = generations[i - 3] end
  return reply
end
if ARGV[1] ~= '0' then
  local held = ours('HMGET', KEYS[2], 't', 'f', 'g')
  reply[4] = held[2] or 0
  if held[1] and held[3] == table.concat(generations) then
    reply[3] = held[1]
    return reply
  end
end
for i = 4, #KEYS do
  if generations[i - 3] == '' then
    generations[i - 3] = ARGV[2]
    redis.call('SET', KEYS[i], ARGV[2], 'PX', ARGV[3])
  else
    local left = redis.call('PTTL', KEYS[i])
    if left >= 0 and left < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[i], ARGV[3]) end
  end
  reply[i + 1] = generations[i - 3]
end
if ARGV[1] ~= '0' then
  reply[2] = ours('INCR', KEYS[3])
  if reply[2] == 1 then  -- lost or new: from the microseconds on, so that tokens grow all the same
    local now = redis.call('TIME')
    reply[2] = now[1] * 1000000 + now[2]
    redis.call('SET', KEYS[3], string.format('%.0f', reply[2]))
  end
  redis.call('HSET', KEYS[2], 't', string.format('%.0f', reply[2]), 'g', table.concat(generations), 'n', ARGV[2])
  redis.call('PEXPIRE', KEYS[2], ARGV[1])
end
return reply
"""

_CARRIED = b"""
-- A generation lives as long as the entries that carry it.
local function carried_by(first, life)
  for i = first, #KEYS do
    local left = redis.call('PTTL', KEYS[i])
    if life == '0' then redis.call('PERSIST', KEYS[i])
    elseif left >= 0 and left < tonumber(life) then redis.call('PEXPIRE', KEYS[i], life) end
  end
end
"""

_HELD = b"""
-- Whether it is still the lease of this token, or the one that was asked for with this nonce (the token may have come damaged).
local function held(lease, token, nonce)
  return redis.call('HGET', lease, 't') == token or (nonce ~= '' and redis.call('HGET', lease, 'n') == nonce)
end
"""

COMMIT = (
    _HELD
    + _CARRIED
    + b"""
-- KEYS: entry, lease, generation of the key, other generations...
-- ARGV: value, its life (0: for ever), token, nonce of the lease,
--   how many of the last generations the entry carries, generations...
if held(KEYS[2], ARGV[3], ARGV[4]) then redis.call('DEL', KEYS[2]) end
if #ARGV - 5 ~= #KEYS - 2 then return 0 end
for i = 3, #KEYS do
  if redis.call('GET', KEYS[i]) ~= ARGV[i + 3] then return 0 end
end
if ARGV[2] == '0' then redis.call('SET', KEYS[1], ARGV[1]) else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
redis.call('DEL', KEYS[3])
carried_by(#KEYS - ARGV[5] + 1, ARGV[2])
return 1
"""
)

END = (
    _HELD
    + b"""
-- KEYS: lease, generation of the key   ARGV: token, nonce of the lease, whether it failed, the generation to drop
local ours = held(KEYS[1], ARGV[1], ARGV[2])
if (ours or ARGV[1] == '0') and redis.call('GET', KEYS[2]) == ARGV[4] then redis.call('DEL', KEYS[2]) end
if ours then
  if ARGV[3] == '1' then
    redis.call('HSET', KEYS[1], 'f', redis.call('HGET', KEYS[1], 't'))
    redis.call('HDEL', KEYS[1], 't', 'g', 'n')
    redis.call('PEXPIRE', KEYS[1], 10000)
  else redis.call('DEL', KEYS[1]) end
end
"""
)

FORGO = b"""
-- KEYS: lease   ARGV: the new generation that was offered for it.  For who has not heard whether the lease was got.
local found = redis.pcall('HGET', KEYS[1], 'n')
if found == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""

RENEW = b"""
-- KEYS: lease   ARGV: token, life
if redis.call('HGET', KEYS[1], 't') ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

REPLACE = (
    _CARRIED
    + b"""
-- KEYS: entry, generation of the key, generations that the entry carries...
-- ARGV: new value, its life (0: for ever), whether to fence, old value if there was one
if redis.call('GET', KEYS[1]) ~= (ARGV[4] or false) then return 0 end
if ARGV[2] == '0' then redis.call('SET', KEYS[1], ARGV[1]) else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
if ARGV[3] == '1' then redis.call('DEL', KEYS[2]) end
carried_by(3, ARGV[2])
return 1
"""
)

DISCARD = b"""
-- KEYS: entry, lease   ARGV: the value that it is to have, nonce of a lease
-- What was taken for the entry may have been a damaged reply that told of a lease.
if ARGV[2] ~= '' and redis.pcall('HGET', KEYS[2], 'n') == ARGV[2] then redis.call('DEL', KEYS[2]) end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""

WRITE = b"""
-- KEYS: entry, generation of its key, entry, generation of its key...   ARGV: value, its life (0: for ever), value, its life...
for i = 1, #KEYS, 2 do
  if ARGV[i + 1] == '0' then redis.call('SET', KEYS[i], ARGV[i]) else redis.call('SET', KEYS[i], ARGV[i], 'PX', ARGV[i + 1]) end
  redis.call('DEL', KEYS[i + 1])
end
"""

REMOVE = b"""
-- KEYS: entry, generation of its key, entry, generation of its key...   Answers how many entries there were.
local count = 0
for i = 1, #KEYS, 2 do
  redis.call('DEL', KEYS[i + 1])
  count = count + redis.call('UNLINK', KEYS[i])
end
return count
"""

ADD_TOTALS = b"""
-- KEYS: totals   ARGV: name, amount, name, amount...   Of names that begin with "max:" the largest amount is kept.
local kind = redis.call('TYPE', KEYS[1]).ok  -- what somebody else has put there goes, before anything is added
if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', KEYS[1]) end
for i = 1, #ARGV, 2 do
  local found = redis.call('HGET', KEYS[1], ARGV[i])
  if found and not tonumber(found) then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
for i = 1, #ARGV, 2 do
  if string.sub(ARGV[i], 1, 4) ~= 'max:' then redis.call('HINCRBYFLOAT', KEYS[1], ARGV[i], ARGV[i + 1])
  elseif tonumber(ARGV[i + 1]) > tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or '-inf') then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
"""

TOTALS = b"""
-- KEYS: totals   Answers name, amount, name, amount...
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return {} end
local reply = {}
local found = redis.call('HGETALL', KEYS[1])
for i = 1, #found, 2 do
  if tonumber(found[i + 1]) then
    reply[#reply + 1] = found[i]
    reply[#reply + 1] = found[i + 1]
  end
end
return reply
"""
