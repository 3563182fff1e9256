#!lua
--[[
Every bucket and every lease of one call, in one step: all of them pass, or nothing changes.

  op      spend   take from all buckets and lease all slots, or none
          settle  give the leases back, correct the token buckets to what was used
          renew   the call still runs: its leases and its record last another term

KEYS      [1]     record of the spend
          [2]     the tenant's buckets: a hash, field -> the time at which the bucket is full again, in us;
                  `end`: until when the hash lives; the key of a set of leases: until when that lives
          [3..]   leases, one each: sorted set, member = spend id, score = its end, in us
          All under one hash tag, so that they live in one slot of a cluster.

ARGV      [1] op
          [2] spend id
          [3] numbers
              ttl_ms  of leases and record
              now_us  0: the server's TIME. Anything else is a clock for tests
              spend   for every bucket three: span_us (by how much the call moves it), room_us (how far ahead
                      of now it may be for that; -1 never), enforce (0|1)
                      for every lease two: slots, enforce (0|1)
              settle  for every bucket two: its place among those of the spend, from 1; by_us (by how much
                      to move it, where it was taken)
              renew   for every lease one: enforce (0|1)
          [4..] fields of the buckets

Replies   spend   numbers: allowed (1|0); for every bucket ahead_us, the time until it is full; for every
                  lease the slots in use. What does not fit, or would not have, is told as -1 - n
          settle  1, or 0 when it did nothing
          renew   1, or 0 when the spend is settled or refused

Worked    60 requests per minute, at most 10 at once, and 3 slots; the clock is at 5 s:
            KEYS th:{t}:s:9 th:{t}:full th:{t}:x:c   ARGV spend 9 <60000 5000000 1000000 9000000 1 3 1> r
            -> <1 1000000 1>   the bucket is full in 1 s, one slot is in use
          The same again answers the same and takes nothing. A fourth call while three run:
            -> <0 3000000 -4>  nothing was taken; the bucket would have had room

A limit with enforce 0 never refuses. It is taken when it fits and left alone when it does not, so
its bucket shows what enforcing would have done.

The record is a letter, its end and the reply: O (open), N (refused); S (settled) has none. A repeated spend
gets its first reply until it is settled, then one that takes nothing; a repeated settle does nothing. A
settle without a record gives back the leases only, because nobody knows what was taken; the S it leaves is
there for a spend which arrives after its own settle (a late packet of a dead connection).

What costs here is every call of the server, every argument and every number written as text: hence one hash,
packed numbers (64-bit integers, little endian, here and in what is stored), spans worked out by who asks, no
function that an op does not need (each is made anew at every call), and a record that is looked at by the
command that writes it. Six buckets and a lease: 381,000 instructions of the server for a spend and its settle,
610,000 when buckets were stored as text and spans worked out here (callgrind, Valkey 9.1).

Needs Redis 7.0 or Valkey. Times are integers of microseconds; all sums stay below 2^53. The twin in
Python is proxy/domain/bucket.py with bucketstore.py.
]]

local DEBT_MAX_US = 604800000000
local REFUSAL_TTL_MS = 5000
-- the hash of the buckets outlives its last bucket by this, so that its end is seldom moved
local SLACK_US = 60000000
-- how many numbers stand before those of the first bucket
local HEAD = 2

local KEYS, ARGV, call = KEYS, ARGV, redis.call
local pack, unpacked, text = struct.pack, struct.unpack, string.format

local op, id, packed = ARGV[1], ARGV[2], ARGV[3]
local buckets, leases, numbers = #ARGV - 3, #KEYS - 2, nil
if op == 'spend' then
  numbers = HEAD + 3 * buckets + 2 * leases
elseif op == 'settle' then
  numbers = HEAD + 2 * buckets
elseif op == 'renew' then
  numbers = HEAD + leases
else
  error('limiter: unknown op')
end
if id == '' or not packed or leases < 0 or #packed ~= 8 * numbers then
  error('limiter: wrong number of keys or arguments')
end
local n = { unpacked('<' .. string.rep('i8', numbers), packed) }
local ttl_ms, now = n[1], n[2]
if ttl_ms < 1 then
  error('limiter: a term must be positive')
end
if now == 0 then
  local t = call('TIME')
  now = t[1] * 1000000 + t[2]
end
local lease_end = now + ttl_ms * 1000

local function number(stored)
  return stored and unpacked('<i8', stored) or 0
end

-- State of a record and the numbers of its reply; nil when there is none or its time is over.
local function opened(record)
  if record and unpacked('<i8', record, 2) > now then
    return string.sub(record, 1, 1), string.sub(record, 10)
  end
end

-- Writes the buckets that have a time. A full bucket is an absent one; `known_end` is what the hash says of
-- its own end. Returns whether the hash is there now, with an end.
local function put(times, known_end)
  local set, length, last, gone = { 'HSET', KEYS[2] }, 2, 0, nil
  for i = 1, buckets do
    local at = times[i]
    if at and at > now then
      set[length + 1] = ARGV[3 + i]
      set[length + 2] = pack('<i8', at)
      length = length + 2
      if at > last then
        last = at
      end
    elseif at then
      gone = gone or { 'HDEL', KEYS[2] }
      gone[#gone + 1] = ARGV[3 + i]
    end
  end
  local moved = last > known_end
  if moved then
    last = last + SLACK_US
    set[length + 1] = 'end'
    set[length + 2] = pack('<i8', last)
  end
  if gone then
    call(unpack(gone))
  end
  if last > 0 then
    call(unpack(set))
  end
  if moved then
    call('PEXPIRE', KEYS[2], text('%d', math.ceil((last - now) / 1000)))
  end
  return last > 0
end

-- Leases once more. The set's end is moved when this is its only lease, or when it is not known to come late
-- enough. `note`: there is a hash to write it down in.
local function lease(key, alone, known_end, note)
  call('ZADD', key, text('%d', lease_end), id)
  if not alone and lease_end <= known_end then
    return
  end
  call('PEXPIRE', key, text('%d', 2 * ttl_ms))
  if note then
    call('HSET', KEYS[2], key, pack('<i8', now + 2000 * ttl_ms))
  end
end

if op == 'spend' then
  local fields = { 'HMGET', KEYS[2], 'end', unpack(ARGV, 4) }
  for i = 1, leases do
    fields[3 + buckets + i] = KEYS[2 + i]
  end
  local stored = call(unpack(fields))
  local allowed, reply, times, used = 1, { 1 }, {}, {}
  for i = 1, buckets do
    local at = 3 * i
    local ahead = number(stored[1 + i]) - now
    if ahead < 0 then
      ahead = 0
    end
    if ahead <= n[at + 1] then
      reply[1 + i] = ahead
      times[i] = n[at] > 0 and now + ahead + n[at] or nil
    else
      reply[1 + i] = -1 - ahead
      if n[at + 2] == 1 then
        allowed = 0
      end
    end
  end
  local first = HEAD + 3 * buckets
  for i = 1, leases do
    local key, slots = KEYS[2 + i], n[first + 2 * i - 1]
    -- Leases that ended are not counted. They are removed now and then: only lost settlements leave any.
    if now % 16 == 0 then
      call('ZREMRANGEBYSCORE', key, '-inf', text('%d', now))
    end
    local taken = call('ZCOUNT', key, text('(%d', now), '+inf')
    if taken < slots then
      used[i] = taken
      reply[1 + buckets + i] = taken
    else
      reply[1 + buckets + i] = -1 - taken
      if n[first + 2 * i] == 1 then
        allowed = 0
      end
    end
  end
  if allowed == 1 then
    for i, at in pairs(times) do
      reply[1 + i] = at - now
    end
    for i, taken in pairs(used) do
      reply[1 + buckets + i] = taken + 1
    end
  end
  reply[1] = allowed
  local term_ms = allowed == 1 and ttl_ms or REFUSAL_TTL_MS
  local term = text('%d', term_ms)
  local answer = pack('<' .. string.rep('i8', #reply), unpack(reply))
  local record = (allowed == 1 and 'O' or 'N') .. pack('<i8', now + term_ms * 1000) .. answer
  local before = call('SET', KEYS[1], record, 'PX', term, 'NX', 'GET')
  if before then
    local state, known = opened(before)
    if state then
      if state == 'S' then
        return string.rep('\0', #answer)
      elseif #known ~= #answer then
        error('limiter: this spend id was used with other buckets')
      end
      return known
    end
    call('SET', KEYS[1], record, 'PX', term)
  end
  if allowed == 1 then
    local note = next(times) and put(times, number(stored[1]))
    for i, taken in pairs(used) do
      lease(KEYS[2 + i], taken == 0, number(stored[1 + buckets + i]), note)
    end
  end
  return answer
end

if op == 'settle' then
  local term = text('%d', ttl_ms)
  local before = call('SET', KEYS[1], 'S' .. pack('<i8', lease_end), 'PX', term, 'GET')
  local state, reply = opened(before)
  if state and state ~= 'O' then
    call('SET', KEYS[1], before, 'PX', term)
    return 0
  end
  for i = 1, leases do
    call('ZREM', KEYS[2 + i], id)
  end
  if state and buckets > 0 then
    local stored = call('HMGET', KEYS[2], 'end', unpack(ARGV, 4))
    local times = {}
    for i = 1, buckets do
      local at = HEAD + 2 * i - 1
      if unpacked('<i8', reply, 8 * n[at] + 1) >= 0 then
        local ahead = math.max(number(stored[1 + i]) - now, 0) + n[at + 1]
        times[i] = now + math.min(ahead, DEBT_MAX_US)
      end
    end
    put(times, number(stored[1]))
  end
  return state and 1 or 0
end

local state, reply = opened(call('GET', KEYS[1]))
if state and state ~= 'O' then
  return 0
end
for i = 1, leases do
  local held = n[HEAD + i] == 1
  if state then
    held = unpacked('<i8', reply, #reply - 8 * (leases - i) - 7) >= 0
  end
  if held then
    lease(KEYS[2 + i], true, 0, false)
  end
end
if state then
  local term = text('%d', ttl_ms)
  call('SET', KEYS[1], 'O' .. pack('<i8', lease_end) .. reply, 'PX', term)
end
return 1
