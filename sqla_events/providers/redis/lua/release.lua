-- Let the next consumer have the lease at once.  KEYS: leases, consumers.  ARGV: '1' to want no other one either
if call('HGET', KEYS[1], PARTITION .. ':epoch') == EPOCH then
  call('HSET', KEYS[1], PARTITION .. ':owner', '', PARTITION .. ':until', 0)
end
if ARGV[6] == '1' then
  call('ZREM', KEYS[2], OWNER)
end
