-- How the partitions of a group are spread: no consumer has two more than another.
-- KEYS[2]: consumers, with the time until which they are believed to live.  ARGV[6]: how many partitions there are
local function spread()  -- our partitions in order, and how many the consumer with fewest has; nil without another one
  local now, counts, own = milliseconds(), {}, {}
  call('ZADD', KEYS[2], now + LEASE, OWNER)
  call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  for _, consumer in ipairs(call('ZRANGE', KEYS[2], 0, -1)) do
    counts[consumer] = 0
  end
  for number = 0, ARGV[6] - 1 do
    local lease = call('HMGET', KEYS[1], number .. ':owner', number .. ':until')
    if lease[1] == OWNER then
      own[#own + 1] = number
    elseif counts[lease[1]] and tonumber(lease[2]) > now then
      counts[lease[1]] = counts[lease[1]] + 1
    end
  end
  local least
  for consumer, count in pairs(counts) do
    if consumer ~= OWNER and (not least or count < least) then
      least = count
    end
  end
  return own, least
end
