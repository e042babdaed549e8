-- Put a message back unchanged, at the end of its list from which the next message is taken.
-- A record that can't be parsed stays in the hash.
-- The record and the lease are removed last: if Redis refuses the message, it stays leased. The
-- first write needs no memory (see lua.py).
-- KEYS: the leased messages, the index of leases.
-- Queues have the prefix of the installation, which stands before the name of the hash.
local prefix = string.sub(KEYS[1], 1, -#'unacked' - 1)
local function restore(tag)
    local record = redis.call('HGET', KEYS[1], tag)
    local message, queue = string.match(record or '', '^%[(.*), ?"[^"]*", ?"([^"]*)"%]$')
    if message then
        redis.call('HDEL', KEYS[1], '')
        redis.call('RPUSH', prefix .. queue, message)
        redis.call('HDEL', KEYS[1], tag)
    end
    redis.call('ZREM', KEYS[2], tag)
end
