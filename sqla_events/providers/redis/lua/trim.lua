-- Remove old entries, never what a group has not acknowledged unless told so. Returns whether there may be more to remove.
-- KEYS: stream.  ARGV: entries to keep ('': any number), oldest millisecond to keep ('': any), '1': unread ones go too
local call, PORTION = redis.call, 1000

local function parts(id)
  local milliseconds, number = string.match(id, '^(%d+)%-(%d+)$')
  return tonumber(milliseconds), tonumber(number)
end

local function before(one, other)
  local a, b = parts(one)
  local c, d = parts(other)
  return a < c or (a == c and b < d)
end

local function following(id)
  local milliseconds, number = parts(id)
  return string.format('%.0f-%.0f', milliseconds, number + 1)
end

local function read_by_all()  -- the first id that some group still needs
  local first
  for _, group in ipairs(call('XINFO', 'GROUPS', KEYS[1])) do
    local pending = call('XPENDING', KEYS[1], group[2])
    local needed = pending[1] > 0 and pending[2] or following(group[8])
    if not first or before(needed, first) then
      first = needed
    end
  end
  return first
end

local function over_length()  -- the first id to keep, a portion further at a time
  local excess = call('XLEN', KEYS[1]) - ARGV[1]
  if excess <= 0 then
    return nil
  end
  local portion = math.min(excess, PORTION)
  local entries = call('XRANGE', KEYS[1], '-', '+', 'COUNT', portion + 1)
  return entries[portion + 1] and entries[portion + 1][1] or following(entries[#entries][1])
end

if call('EXISTS', KEYS[1]) == 0 then
  return 0
end
local cut = ARGV[1] ~= '' and over_length() or nil
if ARGV[2] ~= '' and (not cut or before(cut, ARGV[2] .. '-0')) then
  cut = ARGV[2] .. '-0'
end
local floor = ARGV[3] ~= '1' and read_by_all() or nil
if cut and floor and before(floor, cut) then
  cut = floor
end
if not cut then
  return 0
end
return call('XTRIM', KEYS[1], 'MINID', cut)
