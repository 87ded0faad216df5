-- Write what became of entries, once: acknowledge, remember attempts, make dead letters. Without any, renew the lease.
-- KEYS: leases, consumers, stream, retries, dead
-- ARGV[7]: flush ('': none), then three counted lists: acknowledged; forgotten attempts; attempts (id, text);
--          then dead letters, each a counted list of fields and values
-- Returns 0 if the lease is lost, 2 if others should have it, else 1.
if not holds() then
  return 0
end

local at = 8
local function counted()
  local list, count = {}, tonumber(ARGV[at])
  for next = at + 1, at + count do
    list[#list + 1] = ARGV[next]
  end
  at = at + count + 1
  return list
end

local FLUSH, settled = ARGV[7], PARTITION .. ':settled'
if FLUSH ~= '' and call('HGET', KEYS[1], settled) ~= FLUSH then
  each(counted(), function(...) call('XACK', KEYS[3], GROUP, ...) end)
  each(counted(), function(...) call('HDEL', KEYS[4], ...) end)
  each(counted(), function(...) call('HSET', KEYS[4], ...) end)
  while at <= #ARGV do
    call('XADD', KEYS[5], '*', unpack(counted()))
  end
  call('HSET', KEYS[1], settled, FLUSH)
end

local own, least = spread()
for surplus = #own - math.floor((#own - (least or #own)) / 2) + 1, #own do
  if own[surplus] == tonumber(PARTITION) then
    return 2
  end
end
return 1
