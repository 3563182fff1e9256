#!lua
--[[
Every bucket and every lease of one call, in one step: all of them pass, or nothing changes.

  op      spend   take from all buckets and lease all slots, or none
          settle  give the leases back, correct the token buckets to what was used
          renew   the call still runs: its leases and its record last another term

KEYS      [1]                 record of the spend
          [2 .. B+1]          buckets: the time at which each is full again, in us
          [B+2 .. B+L+1]      leases: sorted set, member = spend id, score = its end, in us
          All under one hash tag, so that they live in one slot of a cluster.

ARGV      [1] op
          [2] spend id
          [3] B   [4] L
          [5] ttl_ms          of leases and record
          [6] now_us          0: the server's TIME. Anything else is a clock for tests
          [7] actual          settle: tokens really used, -1 when the call was never made;
                              0 for the other ops
          then for every bucket five:  per_minute, burst, cost, enforce (0|1), tokens (0|1)
          then for every lease two:    slots, enforce (0|1)

Replies   spend   {allowed, ahead_us, fits, ahead_us, fits, ..., in_use, fits, ...}
                  ahead_us: until the bucket is full; fits: 1 taken (or would be, if refused)
          settle  1, or 0 when it did nothing
          renew   1, or 0 when the spend is settled or refused

Worked    60 requests per minute, at most 10 at once, and 3 slots; the clock is at 5 s:
            EVAL this 3 th:{t}:s:9 th:{t}:a:b:r th:{t}:a:b:c
                 spend 9 1 1 60000 5000000 0  60 10 1 1 0  3 1
            -> {1, 1000000, 1, 1, 1}   bucket full in 1 s, one slot in use
          The same again answers the same and takes nothing. A fourth call while three run:
            -> {0, 3000000, 1, 3, 0}   nothing was taken; the bucket would have had room

A limit with enforce 0 never refuses. It is taken when it fits and left alone when it does not, so
its bucket shows what enforcing would have done.

The record is "state until_us reply...": state O (open), N (refused), S (settled). A repeated spend
gets its first reply; a repeated settle does nothing. A settle without a record gives back the
leases only, because nobody knows what was taken, and leaves a bare S so that a spend which arrives
after its own settle (a late packet of a dead connection) takes nothing.

Needs Redis 7.0 or Valkey. Times are integers of microseconds; all products stay below 2^53. The
twin in Python is proxy/domain/bucket.py with bucketstore.py.
]]

local MINUTE_US = 60000000
local DEBT_MAX_US = 604800000000
local REFUSAL_TTL_MS = 5000
local UNITS_MAX = 100000000
local RATE_MAX = 1000000000

local function integer(at, low, high)
  local n = tonumber(ARGV[at])
  if not n or n ~= math.floor(n) or n < low or n > high then
    error('limiter: ARGV[' .. at .. '] must be an integer from ' .. low .. ' to ' .. high)
  end
  return n
end

-- never tostring(): it writes large numbers with an exponent and loses digits
local function text(n)
  return string.format('%.0f', n)
end

local op, id = ARGV[1], ARGV[2]
if op ~= 'spend' and op ~= 'settle' and op ~= 'renew' then
  error('limiter: unknown op')
end
local buckets, leases = integer(3, 0, 64), integer(4, 0, 64)
local ttl_ms = integer(5, 1, 86400000)
local now = integer(6, 0, 2 ^ 52)
local actual = integer(7, -1, UNITS_MAX)
if not id or id == '' or #KEYS ~= 1 + buckets + leases or #ARGV ~= 7 + 5 * buckets + 2 * leases then
  error('limiter: wrong number of keys or arguments')
end

local charges, slots = {}, {}
for i = 1, buckets do
  local at = 7 + 5 * (i - 1)
  charges[i] = {
    key = KEYS[1 + i],
    rate = integer(at + 1, 0, RATE_MAX),
    burst = integer(at + 2, 1, UNITS_MAX),
    cost = integer(at + 3, 0, UNITS_MAX),
    enforce = integer(at + 4, 0, 1) == 1,
    tokens = integer(at + 5, 0, 1) == 1,
  }
end
for i = 1, leases do
  local at = 7 + 5 * buckets + 2 * (i - 1)
  slots[i] = {
    key = KEYS[1 + buckets + i],
    slots = integer(at + 1, 0, UNITS_MAX),
    enforce = integer(at + 2, 0, 1) == 1,
  }
end

if now == 0 then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
end
local lease_end = now + ttl_ms * 1000

local function span_us(units, rate)
  if units <= 0 then
    return 0
  end
  return math.min(math.max(math.floor(units * MINUTE_US / rate), 1), DEBT_MAX_US)
end

local function burst_us(charge)
  return math.min(math.ceil(charge.burst * MINUTE_US / charge.rate), DEBT_MAX_US)
end

local function ahead_us(stored)
  return math.max((tonumber(stored) or 0) - now, 0)
end

-- A full bucket is an absent one, so a bucket's key needs to live no longer than until it is full.
local function put(charge, ahead)
  if ahead <= 0 then
    redis.call('DEL', charge.key)
  else
    redis.call('SET', charge.key, text(now + ahead), 'PX', text(math.ceil(ahead / 1000) + 1000))
  end
end

local function lease(slot)
  redis.call('ZADD', slot.key, text(lease_end), id)
  redis.call('PEXPIRE', slot.key, ttl_ms)
end

-- nil when there is none or its time is over, else {state, until_us, reply...}
local function record()
  local stored = redis.call('GET', KEYS[1])
  if not stored then
    return nil
  end
  local fields = {}
  for field in string.gmatch(stored, '%S+') do
    fields[#fields + 1] = field
  end
  if tonumber(fields[2]) <= now then
    return nil
  end
  if #fields > 2 and #fields ~= 3 + 2 * (buckets + leases) then
    error('limiter: this spend id was used with other buckets')
  end
  return fields
end

local function remember(state, term_ms, reply)
  local words = { state, text(now + term_ms * 1000) }
  for i = 1, #reply do
    words[#words + 1] = text(reply[i])
  end
  redis.call('SET', KEYS[1], table.concat(words, ' '), 'PX', term_ms)
end

local function reply_of(known)
  local reply = {}
  for i = 1, 1 + 2 * (buckets + leases) do
    reply[i] = tonumber(known[2 + i] or '0')
  end
  return reply
end

local function judge_charges(allowed)
  if buckets == 0 then
    return allowed
  end
  local stored = redis.call('MGET', unpack(KEYS, 2, 1 + buckets))
  for i, charge in ipairs(charges) do
    charge.ahead = ahead_us(stored[i])
    if charge.rate > 0 then
      charge.span = span_us(charge.cost, charge.rate)
      charge.fits = charge.ahead <= math.max(burst_us(charge) - charge.span, 0)
    end
    allowed = allowed and (charge.fits or not charge.enforce)
  end
  return allowed
end

local function judge_leases(allowed)
  for _, slot in ipairs(slots) do
    redis.call('ZREMRANGEBYSCORE', slot.key, '-inf', text(now))
    slot.used = redis.call('ZCARD', slot.key)
    slot.fits = slot.used < slot.slots
    allowed = allowed and (slot.fits or not slot.enforce)
  end
  return allowed
end

local function spend()
  local known = record()
  if known then
    return reply_of(known)
  end
  local allowed = judge_leases(judge_charges(true))
  local reply = { allowed and 1 or 0 }
  for _, charge in ipairs(charges) do
    if allowed and charge.fits then
      charge.ahead = charge.ahead + charge.span
      put(charge, charge.ahead)
    end
    reply[#reply + 1] = charge.ahead
    reply[#reply + 1] = charge.fits and 1 or 0
  end
  for _, slot in ipairs(slots) do
    if allowed and slot.fits then
      slot.used = slot.used + 1
      lease(slot)
    end
    reply[#reply + 1] = slot.used
    reply[#reply + 1] = slot.fits and 1 or 0
  end
  remember(allowed and 'O' or 'N', allowed and ttl_ms or REFUSAL_TTL_MS, reply)
  return reply
end

local function settle()
  local known = record()
  if known and known[1] ~= 'O' then
    return 0
  end
  for _, slot in ipairs(slots) do
    redis.call('ZREM', slot.key, id)
  end
  if not known then
    remember('S', ttl_ms, {})
    return 0
  end
  for i, charge in ipairs(charges) do
    if charge.tokens and charge.rate > 0 and known[2 + 2 * i + 1] == '1' then
      local used = span_us(actual, charge.rate) - span_us(charge.cost, charge.rate)
      put(charge, math.min(ahead_us(redis.call('GET', charge.key)) + used, DEBT_MAX_US))
    end
  end
  remember('S', ttl_ms, reply_of(known))
  return 1
end

local function renew()
  local known = record()
  if known and known[1] ~= 'O' then
    return 0
  end
  for i, slot in ipairs(slots) do
    local held = slot.enforce
    if known then
      held = known[3 + 2 * buckets + 2 * i] == '1'
    end
    if held then
      lease(slot)
    end
  end
  if known then
    remember('O', ttl_ms, reply_of(known))
  end
  return 1
end

if op == 'spend' then
  return spend()
elseif op == 'settle' then
  return settle()
end
return renew()
