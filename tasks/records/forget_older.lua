-- Remove the entry of a source for a destination, if version 0.2.0 or before recorded it: the name
-- of such an entry is the source alone, whatever its destination.
-- KEYS: the ledger. ARGV: source, destination. Returns the number of removed entries.
local entry = redis.call('HGET', KEYS[1], ARGV[1])
local is_read, fields = pcall(cjson.decode, entry or '{}')
if is_read and fields.destination == ARGV[2] then
    return redis.call('HDEL', KEYS[1], ARGV[1])
end
return 0
