-- Begin an epoch of a relay, or go on with it: fence older ones, and tell what is stored.
-- KEYS: relays, relay.  ARGV: partitions of the relay, epoch, its own position, '1' to store that instead
local epoch = tonumber(ARGV[2])
local layout = redis.call('HMGET', KEYS[1], 'partitions', 'since', 'changed')
local known = redis.call('HMGET', KEYS[2], 'epoch', 'number', 'position', 'batch', 'seq', 'id')
if tonumber(known[1] or 0) > epoch then
  return {known[1]}
end
if layout[1] ~= ARGV[1] then  -- the group has another number of relays now; those of the old number are over
  if layout[1] and tonumber(layout[2]) >= epoch then
    return {layout[2]}
  end
  redis.call('HSET', KEYS[1], 'partitions', ARGV[1], 'since', ARGV[2], 'changed', layout[1] and 1 or 0)
  layout = {ARGV[1], ARGV[2], layout[1] and '1' or '0'}
end
local before = layout[3] == '1' and tonumber(known[1] or 0) < tonumber(layout[2])
if ARGV[4] == '1' or before then  -- what the same name meant before the change says nothing; the log knows where it is
  redis.call('DEL', KEYS[2])
  known = {false, '0', ARGV[3], '', false, false}
end
if known[1] ~= ARGV[2] then
  redis.call('HSET', KEYS[2], 'epoch', ARGV[2], 'number', 0, 'position', known[3] or '', 'batch', known[4] or '')
  known[2] = '0'
end
return {'', known[2], known[3] or '', known[4] or '', known[5] or '', known[6] or ''}
