-- Put a dead letter back into the stream, for the subscription that its headers name; nothing if it is not there any more.
-- KEYS: dead, stream.  ARGV: id, type, lane, headers, body
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then
  return 0
end
redis.call('XADD', KEYS[2], '*', 'type', ARGV[2], 'lane', ARGV[3], 'body', ARGV[5], 'headers', ARGV[4])
return 1
