-- Put a message back unchanged, at the end of its list from which the next message is taken.
-- A record that can't be parsed stays in the hash.
-- The record and the lease are removed last: if Redis refuses the message, it stays leased. The
-- first write needs no memory (see lua.py).
-- KEYS: the leased messages, the index of leases.
-- Queues have the prefix of the installation, which stands before the name of the hash. A record
-- with a priority (see take.lua) goes to the list with kombu's separator and that priority.
local prefix = string.sub(KEYS[1], 1, -#'unacked' - 1)
local function restore(tag)
    local record = redis.call('HGET', KEYS[1], tag) or ''
    local message, exchange, queue = string.match(record, '^%[(.*), ?"([^"]*)", ?"([^"]*)"%]$')
    if message then
        local priority = string.match(exchange, '^%d$')
        local list = priority and queue .. '\6\22' .. priority or queue
        redis.call('HDEL', KEYS[1], '')
        redis.call('RPUSH', prefix .. list, message)
        redis.call('HDEL', KEYS[1], tag)
    end
    redis.call('ZREM', KEYS[2], tag)
end
