-- Append entries to the streams KEYS[key], KEYS[key + 1] … From ARGV[arg] on: parts, MessagePack, each the number of a
-- stream and then the type, lane, headers and body of every entry. The fields have the same names in the same order, so
-- the server stores no names.
local function append(key, arg)
  local call = redis.call
  for number = arg, #ARGV do
    local part = cmsgpack.unpack(ARGV[number])
    local stream = KEYS[key + part[1]]
    for at = 2, #part, 4 do
      local headers = part[at + 2]
      if headers == '' then
        call('XADD', stream, '*', 'type', part[at], 'lane', part[at + 1], 'body', part[at + 3])
      else
        call('XADD', stream, '*', 'type', part[at], 'lane', part[at + 1], 'body', part[at + 3], 'headers', headers)
      end
    end
  end
end
