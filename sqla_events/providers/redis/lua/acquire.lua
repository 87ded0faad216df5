-- Take the lease of a partition if it is free, has expired or is ours, and we have not our share yet; then claim whatever a
-- consumer before us had not acknowledged. Nobody but the owner of the lease reads, so nobody else has any.
-- KEYS: leases, consumers, stream, retries
local own, least = spread()
local now = milliseconds()
local lease = call('HMGET', KEYS[1], PARTITION .. ':owner', PARTITION .. ':until')
local free = not lease[1] or lease[1] == '' or lease[1] == OWNER or tonumber(lease[2]) <= now
if not free or (lease[1] ~= OWNER and least and #own > least) then
  return {0}
end
local made = redis.pcall('XGROUP', 'CREATE', KEYS[3], GROUP, '0', 'MKSTREAM')
if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then
  return made
end
local epoch = call('HINCRBY', KEYS[1], PARTITION .. ':epoch', 1)
renew()
local cursor, gone = '0-0', 0
repeat
  local claimed = call('XAUTOCLAIM', KEYS[3], GROUP, OWNER, 0, cursor, 'COUNT', 1000, 'JUSTID')
  cursor, gone = claimed[1], gone + #(claimed[3] or {})
until cursor == '0-0'
for _, consumer in ipairs(call('XINFO', 'CONSUMERS', KEYS[3], GROUP)) do
  if consumer[2] ~= OWNER then
    call('XGROUP', 'DELCONSUMER', KEYS[3], GROUP, consumer[2])
  end
end
local last = '0-0'
for _, group in ipairs(call('XINFO', 'GROUPS', KEYS[3])) do
  if group[2] == GROUP then
    last = group[8]
  end
end
return {epoch, last, gone, call('HGETALL', KEYS[4])}
