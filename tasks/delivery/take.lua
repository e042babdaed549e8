-- Take one message on a lease, from the first list that has one. Needs now.lua.
-- The message leaves its list last. If Redis refuses a command before, such as one that the user may
-- not call, nothing is lost. The first LTRIM removes nothing: it is the write without which a full
-- Redis would refuse the others (see lua.py), and shows that the last LTRIM is allowed.
-- KEYS: the leased messages, the index of leases, then the lists of the queues, by priority.
-- A list other than the first of a queue has a name with kombu's separator and a priority. The
-- record has this priority in the place of the exchange, which is not used.
-- ARGV: a new tag, the lease in seconds, the queue of each list, and optionally the most bytes.
-- Returns the queue and the message; for a larger message the queue, the message's end and its size.
redis.call('LTRIM', KEYS[3], 0, -1)
for i = 3, #KEYS do
    local message = redis.call('LINDEX', KEYS[i], -1)
    if message then
        redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1])
        local priority = string.match(KEYS[i], '\6\22(%d)$') or ''
        local record = '[' .. message .. ',"' .. priority .. '","' .. ARGV[i] .. '"]'
        redis.call('HSET', KEYS[1], ARGV[1], record)
        redis.call('LTRIM', KEYS[i], 0, -2)
        local max_bytes = tonumber(ARGV[#KEYS + 1])
        if max_bytes and #message > max_bytes then
            return {ARGV[i], string.sub(message, -max_bytes), #message}
        end
        return {ARGV[i], message}
    end
end
