-- Append entries to the streams KEYS[key], KEYS[key + 1] … From ARGV[arg] on: how many each gets, then the type, lane,
-- headers and body of every one. The fields have the same names in the same order, so the server stores no names.
local function append(key, arg)
  local call, at = redis.call, arg + #KEYS - key + 1
  for stream = key, #KEYS do
    for _ = 1, tonumber(ARGV[arg + stream - key]) do
      local headers = ARGV[at + 2]
      if headers == '' then
        call('XADD', KEYS[stream], '*', 'type', ARGV[at], 'lane', ARGV[at + 1], 'body', ARGV[at + 3])
      else
        call('XADD', KEYS[stream], '*', 'type', ARGV[at], 'lane', ARGV[at + 1], 'body', ARGV[at + 3], 'headers', headers)
      end
      at = at + 4
    end
  end
end
