#!lua
--[[
Every bucket and every lease of one call, in one step: all of them pass, or nothing changes.

  op      spend   take from all buckets and lease all slots, or none
          settle  give the leases back, correct the token buckets to what was used
          renew   the call still runs: its leases and its record last another term

KEYS      [1]                 record of the spend
          [2]                 the tenant's buckets, where the call has any: a hash, field -> the time at
                              which the bucket is full again, in us; `end`: until when the hash lives, in us;
                              the key of a set of leases: until when that lives, in us
          [rest, one each]    leases: sorted set, member = spend id, score = its end, in us
          All under one hash tag, so that they live in one slot of a cluster.

ARGV      [1] op
          [2] spend id
          [3] numbers, as doubles (little endian):
              B       how many buckets
              ttl_ms  of leases and record
              now_us  0: the server's TIME. Anything else is a clock for tests
              actual  settle: tokens really used, -1 when the call was never made; 0 for the other ops
              for every bucket four:  per_minute, burst, cost, mode (1 enforce + 2 tokens)
              for every lease two:    slots, enforce (0|1)
          [4 .. B+3] fields of the buckets

Replies   spend   {allowed, ahead_us, fits, ahead_us, fits, ..., in_use, fits, ...}
                  ahead_us: until the bucket is full; fits: 1 taken (or would be, if refused)
          settle  1, or 0 when it did nothing
          renew   1, or 0 when the spend is settled or refused

Worked    60 requests per minute, at most 10 at once, and 3 slots; the clock is at 5 s:
            KEYS th:{t}:s:9 th:{t}:b th:{t}:x:c   ARGV spend 9 <numbers> r
            numbers 1 60000 5000000 0   60 10 1 1   3 1
            -> {1, 1000000, 1, 1, 1}   bucket full in 1 s, one slot in use
          The same again answers the same and takes nothing. A fourth call while three run:
            -> {0, 3000000, 1, 3, 0}   nothing was taken; the bucket would have had room

A limit with enforce 0 never refuses. It is taken when it fits and left alone when it does not, so
its bucket shows what enforcing would have done.

The record is a letter, its end in us (a double) and the reply (MessagePack): O (open), N (refused),
S (settled). A repeated spend gets its first reply; a repeated settle does nothing. A settle without a
record gives back the leases only, because nobody knows what was taken, and leaves a bare S so that a
spend which arrives after its own settle (a late packet of a dead connection) takes nothing.

What costs here is every call of the server and every argument, not arithmetic: hence one hash, packed
numbers, and a record that is looked at by the command that writes it.

Needs Redis 7.0 or Valkey. Times are integers of microseconds; all products stay below 2^53, and a
number that is an argument is written with all its digits (tostring() would lose some). The twin in
Python is proxy/domain/bucket.py with bucketstore.py.
]]

local MINUTE_US = 60000000
local DEBT_MAX_US = 604800000000
local REFUSAL_TTL_MS = 5000
local UNITS_MAX = 100000000
local RATE_MAX = 1000000000
local HEAD, PER_BUCKET, PER_LEASE = 4, 4, 2
-- the hash of the buckets outlives its last bucket by this, so that its end is seldom moved
local SLACK_US = 60000000

local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min
local call = redis.call

local op, id, packed = ARGV[1], ARGV[2], ARGV[3]
if op ~= 'spend' and op ~= 'settle' and op ~= 'renew' then
  error('limiter: unknown op')
end
if not id or id == '' or not packed or #packed % 8 ~= 0 or #packed < 8 * HEAD or #packed > 8 * 400 then
  error('limiter: wrong number of keys or arguments')
end
local n = { struct.unpack('<' .. string.rep('d', #packed / 8), packed) }

local function whole(x, low, high)
  return x >= low and x <= high and x == floor(x)
end

local buckets, ttl_ms, now, actual = n[1], n[2], n[3], n[4]
if not (whole(buckets, 0, 64) and whole(ttl_ms, 1, 86400000) and whole(now, 0, 2 ^ 52)
    and whole(actual, -1, UNITS_MAX)) then
  error('limiter: a number of the head is out of range')
end
local lease_at = HEAD + PER_BUCKET * buckets
local lease_key = buckets > 0 and 2 or 1
local leases = #KEYS - lease_key
if leases < 0 or #ARGV ~= 3 + buckets or #packed ~= 8 * (lease_at + PER_LEASE * leases) then
  error('limiter: wrong number of keys or arguments')
end
for i = HEAD + 1, lease_at, PER_BUCKET do
  if not (whole(n[i], 0, RATE_MAX) and whole(n[i + 1], 1, UNITS_MAX) and whole(n[i + 2], 0, UNITS_MAX)
      and whole(n[i + 3], 0, 3)) then
    error('limiter: a bucket has a number out of range')
  end
end
for i = lease_at + 1, lease_at + PER_LEASE * leases, PER_LEASE do
  if not (whole(n[i], 0, UNITS_MAX) and whole(n[i + 1], 0, 1)) then
    error('limiter: a lease has a number out of range')
  end
end

if now == 0 then
  local t = call('TIME')
  now = t[1] * 1000000 + t[2]
end
local lease_end = now + ttl_ms * 1000

local function span_us(units, rate)
  if units <= 0 then
    return 0
  end
  return min(max(floor(units * MINUTE_US / rate), 1), DEBT_MAX_US)
end

local function burst_us(burst, rate)
  return min(ceil(burst * MINUTE_US / rate), DEBT_MAX_US)
end

-- Writes buckets as pairs of field and time. A full bucket is an absent one; `known_end` is what the
-- hash says of its own end. Returns whether the hash is there now, with an end.
local function put(fields, times, known_end)
  local set, gone, last = { 'HSET', KEYS[2] }, nil, 0
  for i = 1, #fields do
    local at = times[i]
    if at > now then
      set[#set + 1] = fields[i]
      set[#set + 1] = at
      last = max(last, at)
    else
      gone = gone or { 'HDEL', KEYS[2] }
      gone[#gone + 1] = fields[i]
    end
  end
  local moved = last > (tonumber(known_end) or 0)
  if moved then
    last = last + SLACK_US
    set[#set + 1] = 'end'
    set[#set + 1] = last
  end
  if gone then
    call(unpack(gone))
  end
  if #set > 2 then
    call(unpack(set))
  end
  if moved then
    call('PEXPIRE', KEYS[2], ceil((last - now) / 1000))
  end
  return #set > 2
end

-- The set's end is moved when this is its only lease, or when it is not known to come late enough.
-- `note`: there is a hash to write it down in.
local function lease(i, used, known_end, note)
  local key = KEYS[lease_key + i]
  call('ZADD', key, lease_end, id)
  if used > 0 and lease_end <= (tonumber(known_end) or 0) then
    return
  end
  call('PEXPIRE', key, 2 * ttl_ms)
  if note then
    call('HSET', KEYS[2], key, now + 2000 * ttl_ms)
  end
end

-- state and packed reply of a record; nil when there is none or its time is over
local function opened(record)
  if not record then
    return nil
  end
  local term = struct.unpack('<d', record, 2)
  if term <= now then
    return nil
  end
  return string.sub(record, 1, 1), string.sub(record, 10)
end

local function record_of(state, term_ms, reply)
  return state .. struct.pack('<d', now + term_ms * 1000) .. reply
end

local function reply_of(reply)
  local length = 1 + 2 * (buckets + leases)
  if reply ~= '' then
    local known = cmsgpack.unpack(reply)
    if #known ~= length then
      error('limiter: this spend id was used with other buckets')
    end
    return known
  end
  local nothing = {}
  for i = 1, length do
    nothing[i] = 0
  end
  return nothing
end

-- What the hash says: its own end, the buckets, the ends of the sets of leases.
local function read()
  if buckets == 0 then
    return {}
  end
  local fields = { 'HMGET', KEYS[2], 'end', unpack(ARGV, 4) }
  for i = 1, leases do
    fields[#fields + 1] = KEYS[lease_key + i]
  end
  return call(unpack(fields))
end

-- Leases that ended are not counted. They are removed now and then: only lost settlements leave any.
local function count(i)
  local key = KEYS[lease_key + i]
  if now % 16 == 0 then
    call('ZREMRANGEBYSCORE', key, '-inf', now)
  end
  return call('ZCOUNT', key, '(' .. string.format('%.0f', now), '+inf')
end

-- Looks at every bucket and lease. Returns whether all pass, the reply for a call that takes nothing,
-- and by how much each bucket would be moved.
local function judge(stored)
  local allowed, reply, spans = true, { 1 }, {}
  if buckets > 0 then
    for i = 1, buckets do
      local at = HEAD + PER_BUCKET * (i - 1)
      local rate, ahead, fits = n[at + 1], max((tonumber(stored[i + 1]) or 0) - now, 0), 0
      if rate > 0 then
        spans[i] = span_us(n[at + 3], rate)
        if ahead <= max(burst_us(n[at + 2], rate) - spans[i], 0) then
          fits = 1
        end
      end
      allowed = allowed and (fits == 1 or n[at + 4] % 2 == 0)
      reply[2 * i] = ahead
      reply[2 * i + 1] = fits
    end
  end
  for i = 1, leases do
    local at = lease_at + PER_LEASE * (i - 1)
    local used = count(i)
    local fits = used < n[at + 1]
    allowed = allowed and (fits or n[at + 2] == 0)
    reply[2 * (buckets + i)] = used
    reply[2 * (buckets + i) + 1] = fits and 1 or 0
  end
  return allowed, reply, spans
end

local function spend()
  local stored = read()
  local allowed, reply, spans = judge(stored)
  local fields, times, taken = {}, {}, {}
  if allowed then
    for i = 1, buckets do
      if reply[2 * i + 1] == 1 then
        reply[2 * i] = reply[2 * i] + spans[i]
        fields[#fields + 1] = ARGV[3 + i]
        times[#fields] = now + reply[2 * i]
      end
    end
    for i = buckets + 1, buckets + leases do
      if reply[2 * i + 1] == 1 then
        reply[2 * i] = reply[2 * i] + 1
        taken[#taken + 1] = i - buckets
      end
    end
  else
    reply[1] = 0
  end
  local term_ms = allowed and ttl_ms or REFUSAL_TTL_MS
  local record = record_of(allowed and 'O' or 'N', term_ms, cmsgpack.pack(reply))
  local before = call('SET', KEYS[1], record, 'PX', term_ms, 'NX', 'GET')
  if before then
    local state, known = opened(before)
    if state then
      return reply_of(known)
    end
    call('SET', KEYS[1], record, 'PX', term_ms)
  end
  local note = #fields > 0 and put(fields, times, stored[1])
  for _, i in ipairs(taken) do
    lease(i, reply[2 * (buckets + i)] - 1, stored[1 + buckets + i], note)
  end
  return reply
end

local function correct(known)
  local fields, spans = {}, {}
  for i = 1, buckets do
    local at = HEAD + PER_BUCKET * (i - 1)
    local rate = n[at + 1]
    if n[at + 4] >= 2 and rate > 0 and known[2 * i + 1] == 1 then
      fields[#fields + 1] = ARGV[3 + i]
      spans[#fields] = span_us(actual, rate) - span_us(n[at + 3], rate)
    end
  end
  if #fields == 0 then
    return
  end
  local stored = call('HMGET', KEYS[2], 'end', unpack(fields))
  local times = {}
  for i = 1, #fields do
    times[i] = now + min(max((tonumber(stored[i + 1]) or 0) - now, 0) + spans[i], DEBT_MAX_US)
  end
  put(fields, times, stored[1])
end

local function settle()
  local state, reply = opened(call('GET', KEYS[1]))
  if state and state ~= 'O' then
    return 0
  end
  for i = 1, leases do
    call('ZREM', KEYS[lease_key + i], id)
  end
  if state then
    correct(reply_of(reply))
  end
  call('SET', KEYS[1], record_of('S', ttl_ms, reply or ''), 'PX', ttl_ms)
  return state and 1 or 0
end

local function renew()
  local state, reply = opened(call('GET', KEYS[1]))
  if state and state ~= 'O' then
    return 0
  end
  local known = state and reply_of(reply)
  for i = 1, leases do
    local held = n[lease_at + PER_LEASE * i] == 1
    if known then
      held = known[1 + 2 * (buckets + i)] == 1
    end
    if held then
      lease(i, 0)
    end
  end
  if known then
    call('SET', KEYS[1], record_of('O', ttl_ms, reply), 'PX', ttl_ms)
  end
  return 1
end

if op == 'spend' then
  return spend()
elseif op == 'settle' then
  return settle()
end
return renew()
