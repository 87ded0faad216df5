-- How many partitions each consumer of a group may have: as many as any other, but for one.
-- KEYS[2]: consumers.  ARGV[6]: how many partitions there are
local function fair()
  local now = milliseconds()
  call('ZADD', KEYS[2], now + LEASE, OWNER)
  call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  return math.ceil(ARGV[6] / call('ZCARD', KEYS[2]))
end

local function own()  -- our partitions, in order
  local now, numbers = milliseconds(), {}
  for number = 0, ARGV[6] - 1 do
    local lease = call('HMGET', KEYS[1], number .. ':owner', number .. ':until')
    if lease[1] == OWNER and tonumber(lease[2]) > now then
      numbers[#numbers + 1] = number
    end
  end
  return numbers
end
