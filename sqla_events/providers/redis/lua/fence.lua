-- What consumers share.  KEYS[1]: leases of the group.  ARGV: group, owner, partition, epoch, milliseconds of a lease
local call, GROUP, OWNER, PARTITION, EPOCH, LEASE = redis.call, ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])

local function milliseconds()
  local now = call('TIME')
  return now[1] * 1000 + math.floor(now[2] / 1000)
end

local function renew()
  call('HSET', KEYS[1], PARTITION .. ':owner', OWNER, PARTITION .. ':until', string.format('%.0f', milliseconds() + LEASE))
end

local function holds()  -- whether this consumer still has its lease, which is renewed then
  local lease = call('HMGET', KEYS[1], PARTITION .. ':owner', PARTITION .. ':epoch')
  if lease[1] ~= OWNER or lease[2] ~= EPOCH then  -- the owner too: a server that goes back gives epochs out again
    return false
  end
  renew()
  return true
end

local function each(list, act)  -- in portions: Lua cannot unpack any number of values
  for first = 1, #list, 1000 do
    act(unpack(list, first, math.min(first + 999, #list)))
  end
end
