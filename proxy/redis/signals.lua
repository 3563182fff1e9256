#!lua
--[[
Publish a budget hint, unless a newer one is there.

  KEYS  [1] hint of one budget
  ARGV  [1] period  [2] version  [3] headroom  [4] ttl_ms
        all integers; they are stored as they are written, so none loses a digit

  Reply 1 stored; 0 left alone, because the stored version is greater

  The value is "period version headroom at_us", at_us by the server's clock. Versions only grow, so a
  worker that was slow to publish cannot bring back the headroom from before a top-up.

  Worked: EVAL this 1 th:{b}:hint 20270101 7 0 1000  -> 1
          EVAL this 1 th:{b}:hint 20270101 6 5 1000  -> 0
]]

if #KEYS ~= 1 or #ARGV ~= 4 then
  error('signals: wrong number of keys or arguments')
end
for i = 1, 4 do
  if not string.match(ARGV[i], '^-?%d+$') then
    error('signals: ARGV[' .. i .. '] must be an integer')
  end
end

local stored = redis.call('GET', KEYS[1])
if stored then
  local version = string.match(stored, '^%S+ (%S+)')
  if tonumber(version) > tonumber(ARGV[2]) then
    return 0
  end
end
local t = redis.call('TIME')
local at_us = string.format('%.0f', t[1] * 1000000 + t[2])
redis.call('SET', KEYS[1], table.concat({ ARGV[1], ARGV[2], ARGV[3], at_us }, ' '), 'PX', ARGV[4])
return 1
