-- Put a message back unchanged, at the end of its list that is taken from next.
-- A record that can't be read stays in the hash.
-- KEYS: the messages in hand, their index.
local function restore(tag)
    local record = redis.call('HGET', KEYS[1], tag)
    redis.call('ZREM', KEYS[2], tag)
    local message, queue = string.match(record or '', '^%[(.*), ?"[^"]*", ?"([^"]*)"%]$')
    if message then
        redis.call('HDEL', KEYS[1], tag)
        redis.call('RPUSH', queue, message)
    end
end
