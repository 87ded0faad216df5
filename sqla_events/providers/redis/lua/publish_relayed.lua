-- Append a relay's batch and store its position with it; nothing if the relay's state is not what it left there.
-- KEYS: relays, relay, then streams
-- ARGV: partitions of the relay, epoch, number, position, batch, seq, id, then as append
local known = redis.call('HMGET', KEYS[2], 'epoch', 'number', 'position', 'batch')
if redis.call('HGET', KEYS[1], 'partitions') ~= ARGV[1] or known[1] ~= ARGV[2] or known[2] ~= ARGV[3] then
  return known
end
append(3, 8)
redis.call('HSET', KEYS[2], 'number', tonumber(ARGV[3]) + 1, 'position', ARGV[4], 'batch', ARGV[5])
if ARGV[7] ~= '' and tonumber(ARGV[6]) > tonumber(redis.call('HGET', KEYS[2], 'seq') or 0) then
  redis.call('HSET', KEYS[2], 'seq', ARGV[6], 'id', ARGV[7])
end
return 'stored'
