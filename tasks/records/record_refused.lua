-- Record the letter of a message that no worker accepts, and keep only the newest such letters.
-- The first write needs memory, so a full Redis refuses the whole script.
-- KEYS: the letters, the names of such letters. ARGV: name, letter, the most names.
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('LREM', KEYS[2], 0, ARGV[1])
redis.call('LPUSH', KEYS[2], ARGV[1])
local surplus = redis.call('LRANGE', KEYS[2], ARGV[3], -1)
for _, name in ipairs(surplus) do redis.call('HDEL', KEYS[1], name) end
redis.call('LTRIM', KEYS[2], 0, ARGV[3] - 1)
