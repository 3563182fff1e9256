#!lua
--[[
Kept answers of one tenant: found, stored within a budget of bytes, purged; and whose turn it is to
make an answer that is not there.

  op      find    the entry; when there is none, take the turn or learn that another has it
          store   keep an entry, evicting those that were used longest ago; gives the turn back
          leave   give the turn back without an entry
          renew   the turn is still in use
          purge   delete a slice of the entries, of one model or of all
          promise bind a name to one request

KEYS      [1] entry       the stored bytes, with an end
          [2] turn        the owner who makes the answer now, with an end
          [3] index       sorted set: member -> time of its last use, ms
          [4] meta        hash: member -> "bytes model"; and "total" -> bytes of all members
          All under one hash tag. Entries that are evicted or purged are named by ARGV's prefix
          and member, so they are in the same slot.

ARGV      [1] op   [2] owner, "" to take no turn   [3] turn_ms   [4] member
          find, leave, renew: no more
          store   [5] entry  [6] ttl_ms  [7] budget  [8] model  [9] prefix of entry keys
          purge   [5] cursor [6] model, "" for all  [7] prefix of entry keys
          promise [5] ttl_ms; KEYS [1] is the name, ARGV [2] the request

Replies   find    {1, entry}, {0} nothing and it is our turn (or none was asked for), {2} another's turn
          store   {1 stored | 0 too large, evicted, entries, total bytes}
          leave, renew  1, or 0 when the turn is not ours (any more)
          purge   {cursor, deleted}; cursor "0" when every slice was seen
          promise 1 bound to this request, 0 to another

Worked    find with owner a -> {0}; find with owner b -> {2}; store by a -> {1, 0, 1, 500};
          find with owner b -> {1, entry}

Size counts OVERHEAD for what an entry costs besides its bytes. Members whose entry has ended are
dropped by later stores, those at the cold end first; until then they count. Needs Redis 7.0 or Valkey.
]]

local OVERHEAD = 400
local SWEPT_MAX = 16
local EVICTED_MAX = 10000
local SLICE = 500

local function integer(at, low, high)
  local n = tonumber(ARGV[at])
  if not n or n ~= math.floor(n) or n < low or n > high then
    error('cache: ARGV[' .. at .. '] must be an integer from ' .. low .. ' to ' .. high)
  end
  return n
end

local op, owner, member = ARGV[1], ARGV[2], ARGV[4]
local wanted = ({ find = 4, leave = 4, renew = 4, store = 9, purge = 7, promise = 5 })[op]
if not wanted or #ARGV ~= wanted or #KEYS ~= 4 then
  error('cache: unknown op, or wrong number of keys or arguments')
end
local turn_ms = integer(3, 1, 3600000)
local entry_key, turn_key, index, meta = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function owns()
  return redis.call('GET', turn_key) == owner
end

local function forget(name, prefix)
  local said = redis.call('HGET', meta, name)
  if said then
    redis.call('HDEL', meta, name)
    redis.call('HINCRBY', meta, 'total', -tonumber(string.match(said, '^%d+')))
  end
  redis.call('ZREM', index, name)
  return redis.call('DEL', prefix .. name)
end

if op == 'find' then
  local found = redis.call('GET', entry_key)
  if found then
    redis.call('ZADD', index, 'XX', string.format('%.0f', now_ms()), member)
    return { 1, found }
  end
  if owner == '' or redis.call('SET', turn_key, owner, 'NX', 'PX', turn_ms) or owns() then
    return { 0 }
  end
  return { 2 }
end

if op == 'leave' then
  return owns() and redis.call('DEL', turn_key) or 0
end

if op == 'renew' then
  return owns() and redis.call('PEXPIRE', turn_key, turn_ms) or 0
end

if op == 'promise' then
  local bound = redis.call('GET', KEYS[1])
  if not bound then
    redis.call('SET', KEYS[1], owner, 'PX', integer(5, 1, 604800000))
  end
  return (not bound or bound == owner) and 1 or 0
end

if op == 'purge' then
  local slice = redis.call('HSCAN', meta, ARGV[5], 'COUNT', SLICE)
  local deleted = 0
  for i = 1, #slice[2], 2 do
    local name, said = slice[2][i], slice[2][i + 1]
    if name ~= 'total' and (ARGV[6] == '' or string.match(said, '^%d+ (.*)$') == ARGV[6]) then
      deleted = deleted + forget(name, ARGV[7])
    end
  end
  return { slice[1], deleted }
end

local ttl_ms, budget = integer(6, 1, 2592000000), integer(7, 0, 2 ^ 50)
local model, prefix = ARGV[8], ARGV[9]
local size = #ARGV[5] + OVERHEAD
if owner ~= '' and owns() then
  redis.call('DEL', turn_key)
end

forget(member, prefix)
for _, name in ipairs(redis.call('ZRANGE', index, 0, SWEPT_MAX - 1)) do
  if redis.call('EXISTS', prefix .. name) == 0 then
    forget(name, prefix)
  end
end

local total = tonumber(redis.call('HGET', meta, 'total') or '0')
local evicted = 0
while size <= budget and total + size > budget and evicted < EVICTED_MAX do
  local coldest = redis.call('ZRANGE', index, 0, 0)[1]
  if not coldest then
    redis.call('DEL', meta) -- the index is gone, so is what it counted
    break
  end
  forget(coldest, prefix)
  evicted = evicted + 1
  total = tonumber(redis.call('HGET', meta, 'total') or '0')
end

local stored = 0
if size <= budget then
  stored = 1
  redis.call('SET', entry_key, ARGV[5], 'PX', ttl_ms)
  redis.call('ZADD', index, string.format('%.0f', now_ms()), member)
  redis.call('HSET', meta, member, string.format('%.0f', size) .. ' ' .. model)
  redis.call('HINCRBY', meta, 'total', size)
  for _, key in ipairs({ index, meta }) do
    if redis.call('PTTL', key) < ttl_ms then
      redis.call('PEXPIRE', key, ttl_ms)
    end
  end
end
return { stored, evicted, redis.call('ZCARD', index), tonumber(redis.call('HGET', meta, 'total') or '0') }
