-- Read the next entries of a group: those after an id that were claimed ('0-0', …), or new ones ('>'). What the group does
-- not want is acknowledged here and does not travel.
-- KEYS: leases, stream.  ARGV[6]: count, after, address, Lua patterns of types (none: all)
if not holds() then
  return 0
end
local COUNT, AFTER, ADDRESS, FIRST_PATTERN = ARGV[6], ARGV[7], ARGV[8], 9
local got = call('XREADGROUP', 'GROUP', GROUP, OWNER, 'COUNT', COUNT, 'STREAMS', KEYS[2], AFTER)
local entries = got and got[1][2] or {}
local known = {}

local function wanted(kind)
  if known[kind] == nil then
    known[kind] = #ARGV < FIRST_PATTERN
    for pattern = FIRST_PATTERN, #ARGV do
      known[kind] = known[kind] or string.find(kind, ARGV[pattern]) ~= nil
    end
  end
  return known[kind]
end

local function for_us(kind, headers)
  if headers ~= '' and string.find(headers, '"sqla-only"', 1, true) then
    local readable, found = pcall(cjson.decode, headers)
    local only = readable and type(found) == 'table' and found['sqla-only']
    if type(only) == 'string' then
      return string.sub(only, 1, #ADDRESS) == ADDRESS
    end
  end
  return wanted(kind)
end

local function named(fields)  -- of an entry that somebody else has added
  local found = {}
  for at = 1, #fields, 2 do
    found[fields[at]] = fields[at + 1]
  end
  return found.type or '', found.lane or '', found.body or '', found.headers or ''
end

local out, passed, gone, count = {}, {}, 0, 0
for _, entry in ipairs(entries) do
  local fields = entry[2]
  if not fields then  -- trimmed before it was acknowledged
    gone = gone + 1
    passed[#passed + 1] = entry[1]
  else
    local kind, lane, body, headers = fields[2], fields[4], fields[6], fields[8] or ''
    if fields[1] ~= 'type' or fields[3] ~= 'lane' or fields[5] ~= 'body' then
      kind, lane, body, headers = named(fields)
    end
    if for_us(kind, headers) then
      out[count + 1], out[count + 2], out[count + 3], out[count + 4], out[count + 5] = entry[1], kind, lane, headers, body
      count = count + 5
    else
      passed[#passed + 1] = entry[1]
    end
  end
end
each(passed, function(...) call('XACK', KEYS[2], GROUP, ...) end)
local last = #entries > 0 and entries[#entries][1] or ''
return {#entries, last, gone, out}
