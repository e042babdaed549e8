-- Take the turn of an output, and read its notes.
-- KEYS: turn, notes, index. ARGV: tag, seconds.
-- Returns {-1} if the tag is not in hand and {0} if the turn is another delivery's; else {1, the time
-- of the first try, the last error}, followed by the notes of deliveries that died.
redis.call('ZREM', KEYS[3], '')
if not redis.call('ZSCORE', KEYS[3], ARGV[1]) then return {-1} end
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] and redis.call('ZSCORE', KEYS[3], owner) then return {0} end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
local found = {1, redis.call('HGET', KEYS[2], 'first') or '', redis.call('HGET', KEYS[2], 'error') or ''}
local notes = redis.call('HGETALL', KEYS[2])
for i = 1, #notes, 2 do
    local tag = notes[i]
    if tag ~= 'first' and tag ~= 'error' and tag ~= ARGV[1] and not redis.call('ZSCORE', KEYS[3], tag) then
        found[#found + 1] = notes[i + 1]
    end
end
return found
